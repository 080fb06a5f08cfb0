"""One OpenMP runtime in a process, and a cache of compiled kernels that no two processes share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dqrm_cpu.openmp import claim_cache_folder, must_compile

PREPARE = "from dqrm_cpu.openmp import prepare_openmp; prepare_openmp()\n"

RUN_A_KERNEL = """
import os, sys
import torch
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import Tables
kernels = select_kernels("numba", torch.device("cpu"))
tables = Tables(torch.tensor([[1.0, -5.0], [2.0, 3.0]]), torch.tensor([0, 1, 2]))
print(os.environ["NUMBA_CACHE_DIR"], kernels.scan_absmax(tables).tolist())
"""

MAPPED = """
from numba.np.ufunc import threading_layer
maps = {line.split()[-1] for line in open("/proc/self/maps")}
print(threading_layer(), sum("libgomp" in name for name in maps))
"""

WITHOUT_RUNTIME = """
import ctypes
load = ctypes.CDLL
def missing(name, *args, **options):
    if name == "libgomp.so.1.0.0":
        raise OSError(f"{name}: cannot open shared object file")
    return load(name, *args, **options)
ctypes.CDLL = missing
"""

HOLD = "import os; print(os.environ['NUMBA_CACHE_DIR'], flush=True); input()"


def start(code: str, cache: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(cache)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_torch_and_numba_share_one_runtime(tmp_path: Path) -> None:
    lines = output(start(PREPARE + RUN_A_KERNEL + MAPPED, tmp_path)).splitlines()
    assert lines[-1] == "omp 1"


def test_a_machine_without_the_runtime_still_works(tmp_path: Path) -> None:
    assert "[5.0, 3.0]" in output(start(WITHOUT_RUNTIME + PREPARE + RUN_A_KERNEL, tmp_path))


def test_processes_that_compile_at_once_do_not_share_a_cache(tmp_path: Path) -> None:
    processes = [start(PREPARE + RUN_A_KERNEL, tmp_path) for _ in range(3)]
    lines = [output(process).split(maxsplit=1) for process in processes]
    assert [line[1].strip() for line in lines] == ["[5.0, 3.0]"] * 3
    assert len({line[0] for line in lines}) == 3
    assert all(any(Path(line[0]).rglob("*.nbi")) for line in lines)


def test_a_cache_is_used_again_once_its_process_has_ended(tmp_path: Path) -> None:
    folders = []
    for _ in range(2):
        process = start(PREPARE + HOLD, tmp_path)
        folders.append(process.communicate("\n", timeout=60)[0])
    assert folders[0] == folders[1] != ""


def test_a_child_does_not_take_its_parents_cache(tmp_path: Path) -> None:
    child = "import os; print(os.environ['NUMBA_CACHE_DIR'])"
    code = f"{PREPARE}import os, subprocess, sys\nprint(os.environ['NUMBA_CACHE_DIR'], flush=True)\n"
    code += f"subprocess.run([sys.executable, '-c', {PREPARE + child!r}], check=True)"
    first, second = output(start(code, tmp_path)).split()
    assert first != second


def test_a_cache_folder_of_the_user_is_left_alone(tmp_path: Path) -> None:
    code = f"import os; os.environ['NUMBA_CACHE_DIR'] = '/given'\n{PREPARE}print(os.environ['NUMBA_CACHE_DIR'])"
    assert output(start(code, tmp_path)) == "/given\n"


def test_a_root_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    blocked, good = tmp_path / "file", tmp_path / "good"
    blocked.touch()
    folder = claim_cache_folder(iter([blocked, good]))
    assert folder is not None
    assert folder.is_relative_to(good)
    assert claim_cache_folder(iter([blocked])) is None


THREADS = "import numba, torch; print(torch.get_num_threads(), numba.get_num_threads())\n"


def test_threads_are_set_together_and_stay(tmp_path: Path) -> None:
    set_one = "import torch; torch.get_num_threads()\nfrom dqrm_cpu.openmp import set_threads; set_threads(1)\n"
    lines = output(start(PREPARE + set_one + THREADS + RUN_A_KERNEL + THREADS, tmp_path)).splitlines()
    assert (lines[0], lines[-1]) == ("1 1", "1 1")


def test_kernels_leave_the_threads_of_torch_alone(tmp_path: Path) -> None:
    set_one = "import torch; torch.set_num_threads(1)\n"
    lines = output(start(PREPARE + set_one + RUN_A_KERNEL + THREADS, tmp_path)).splitlines()
    assert lines[-1].startswith("1 ")


def test_an_empty_cache_is_told_from_a_filled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert must_compile()
    (tmp_path / "gather").mkdir()
    (tmp_path / "gather" / "gather_one_hot.nbi").touch()
    assert not must_compile()
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert not must_compile()
