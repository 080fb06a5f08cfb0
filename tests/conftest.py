"""Lets tests import the helpers that stand beside them: tiny, plain_dlrm, launching; sets up hypothesis."""

import gc
import os
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import dqrm_cpu  # noqa: F401  # before any test imports numba: it chooses the folder of the cache
from dqrm_cpu.base.hardware import fingerprint, has_bf16_products

# Tests start hundreds of processes: without bytecode on disk each of them would compile the package's sources anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Files of tests run side by side, and most models in them are tiny: two threads of such a process wait for each other
# longer than they compute. What is about threads sets their number itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_HERE = Path(__file__).parent
_LONG_TOGETHER = {
    *(_HERE / "quant" / f"test_methods_{name}.py" for name in ("resume", "training")),
    *(_HERE / "train" / f"test_{name}.py" for name in ("init_from", "resume", "step")),
    _HERE / "train" / "tuning" / "test_tuning_search.py",
    _HERE / "serving" / "test_serving.py",
}
"""Files of which no test takes long, but all of them together do."""

_ON_TWO_THREADS = _HERE / "kernels"

# Under nohup a closed terminal is ignored, by all that tests start as well.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The first example compiles kernels, and machines are shared: a deadline would be a hidden test of speed.
# A run of the tests tries the same examples each time; `pytest --hypothesis-profile=explore` tries new ones.
settings.register_profile("dqrm", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("dqrm")

for folder in (
    "",
    "model",
    "comm",
    "data/prepare",
    "data/store",
    "doctor",
    "node",
    "predict",
    "quant",
    "server",
    "serving",
    "lab/bench",
):
    sys.path.insert(0, str(_HERE / folder))

# Debian: apt-get install npm. The summary says what is left out.
collect_ignore_glob: list[str] = []
if not all(map(shutil.which, ("node", "npm"))):
    collect_ignore_glob += ["node/test_*.py", "browser/test_same_probability.py", "browser/test_serving_page.py"]
    warnings.warn("tests in Node and of ONNX Runtime in browsers are left out: they need npm", stacklevel=1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: Sequence[Any]) -> None:
    """Forks the processes that run files side by side from the one of which ranks are forked: it has torch already."""
    from prestart import python

    for spec in specs:
        spec.python = shlex.join(python(os.environ))


def pytest_collection_finish() -> None:
    """Leaves what thousands of tests consist of out of the collections of garbage to come: each would take .3 s."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files that take long first: those that run files side by side then end with small ones, at the same time."""
    marked = (item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("mpi"))
    long = _LONG_TOGETHER.union(marked)
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True, scope="module")
def _two_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Gives kernels two threads: what they compute may not depend on how many there are."""
    if _ON_TWO_THREADS not in request.path.parents:
        yield
        return
    import torch  # takes seconds, and not every file needs it

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("bf16") and not has_bf16_products(fingerprint().isa):
        pytest.skip("this CPU has no BF16 products; `train` refuses --train.precision bf16 on it")


@pytest.fixture
def forked_processes(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Has commands that start ranks or other processes of Python fork them from one that has torch already."""
    from launching import clean_environ
    from prestart import executable

    environ = clean_environ()
    for name in ("OMP_NUM_THREADS", "I_MPI_WAIT_MODE"):  # without the last, ranks that wait burn a core each
        monkeypatch.setenv(name, environ[name])
    monkeypatch.setattr(sys, "executable", str(executable(tmp_path_factory.mktemp("forked"), environ)))
