"""Data parallel training of models on GPUs that are pretended: the same bits as on the CPU, over every transport."""

import functools
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dqrm_cpu.train.run_folder import read_rows
from gpu_worker import CASES, RANKS
from launching import World, run_gloo, run_mpi
from pretend_gpu import LIBRARY, NUMBER, build_library

pytestmark = pytest.mark.mpi

PATHS = [str(folder) for folder in Path(__file__).parents[:2]]
WORKER = f"import sys; sys.path[:0] = {PATHS!r}; from gpu_worker import main; main(*sys.argv[1:])"
LAUNCHERS = {"sim": run_gloo, "gloo": run_gloo, "nccl": run_gloo, "mpi": run_mpi, "oneccl": run_mpi}


def work(device: str, transport: str, folder: Path, library: Path, ranks: int = RANKS, gpus: int = RANKS) -> World:
    started = 1 if transport == "sim" else ranks
    env = {NUMBER: str(gpus), LIBRARY: str(library)}
    return LAUNCHERS[transport](["-c", WORKER, device, transport, folder], started, env=env, timeout_s=240)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def on_cpu(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpu")
    (rank,) = work("cpu", "sim", folder, library).check().ranks
    assert int(rank.stdout) == 0
    return folder


def losses(run: Path) -> list[float | None]:
    return [row.loss for row in read_rows(run) if row.phase == "train"]


def weights(run: Path) -> dict[str, np.ndarray]:
    (last,) = sorted(run.glob("checkpoints/step-*"))[-1:]
    return functools.reduce(lambda found, path: found | load_file(path), last.glob("*.safetensors"), {})


# How a gradient leaves the GPU is the same for every transport but NCCL; each of them is tested with CPUs as well.
@pytest.mark.parametrize(
    "transport", [pytest.param(name, marks=[pytest.mark.long] * (name in ("mpi", "oneccl"))) for name in LAUNCHERS]
)
def test_ranks_with_gpus_train_as_simulated_ones_on_the_cpu(
    transport: str, on_cpu: Path, library: Path, tmp_path: Path
) -> None:
    """With the same kernels and products: no bit depends on where the model is, and what carries its gradients."""
    world = work("cuda", transport, tmp_path, library).check()
    assert all(int(rank.stdout) > 1000 for rank in world.ranks), "the model must have been on the GPU"
    for case in CASES:
        assert len(losses(on_cpu / case)) == 6
        assert losses(tmp_path / case) == losses(on_cpu / case), case
        expected, found = weights(on_cpu / case), weights(tmp_path / case)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name].tobytes() != expected[name].tobytes()] == [], case


@pytest.mark.parametrize(
    ("transport", "ranks", "gpus", "words"),
    [
        ("gloo", 2, 1, "ranks 0 and 1 both have GPU-0 of"),
        ("nccl", 2, 1, "ranks 0 and 1 both have GPU-0 of"),
        ("gloo", 3, 2, "ranks 0 and 2 both have GPU-0 of"),
    ],
)
def test_ranks_without_a_gpu_of_their_own_are_told_so(
    transport: str, ranks: int, gpus: int, words: str, library: Path, tmp_path: Path
) -> None:
    world = work("cuda", transport, tmp_path, library, ranks, gpus)
    assert world.returncode == 1
    for rank in world.ranks:
        assert f"each rank needs a GPU of its own, and {words}" in rank.stderr
    assert list(tmp_path.iterdir()) == []
