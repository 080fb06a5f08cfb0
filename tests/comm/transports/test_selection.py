"""The transport that is chosen, why, and what is refused."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.comm.transports.launch import Launch
from dqrm_cpu.comm.transports.mpi import load_mpi
from dqrm_cpu.comm.transports.rendezvous import open_store
from dqrm_cpu.comm.transports.selection import _automatic, open_transport
from dqrm_cpu.errors import CommError, ConfigError, DeviceError, DqrmError
from launching import clean_environ, run_gloo, run_mpi

TWO_RANKS = {"PMI_RANK": "0", "PMI_SIZE": "2"}
TELL = (
    "import sys; from dqrm_cpu.comm.transports.selection import open_transport\n"
    "with open_transport(sys.argv[1]) as t: print(t.name, t.size, t.broadcast_json(t.rank, root=1), t.reason, sep='|')"
)


def test_one_process_needs_no_transport() -> None:
    transport = open_transport("auto", environ={})
    assert isinstance(transport, SingleTransport)
    assert transport.reason == "one process"


@pytest.mark.parametrize("name", ["oneccl", "gloo"])
def test_a_process_without_a_launcher_needs_none_either(name: str) -> None:
    assert open_transport(name, environ={}).reason == "one process, started without a launcher"


@pytest.mark.parametrize(
    ("environ", "chosen"),
    [({}, "mpi"), ({"MASTER_ADDR": "node-1"}, "mpi"), ({"MASTER_ADDR": "node-1", "MASTER_PORT": "2000"}, "gloo")],
)
def test_srun_without_pmi_uses_gloo_where_it_says_where_to_meet(environ: dict[str, str], chosen: str) -> None:
    assert _automatic(Launch(0, 2, 0, "slurm"), environ)[0] == chosen


def test_sim_is_one_process() -> None:
    assert isinstance(open_transport("sim", environ={}), SingleTransport)


def test_simulated_ranks_stay_in_one_process() -> None:
    assert open_transport("auto", simulated_ranks=4, environ={}).reason == "4 ranks simulated in one process"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"name": "ucx"}, ConfigError, "auto, oneccl, mpi, gloo, nccl, sim"),
        ({"name": "nccl"}, DeviceError, r"needs CUDA, and torch .*: install torch from a CUDA index"),
        ({"name": "sim", "environ": TWO_RANKS}, CommError, "hydra started 2 processes, and the sim transport"),
        ({"name": "auto", "simulated_ranks": 0}, ConfigError, "at least 1"),
        ({"name": "auto", "timeout_s": 0.0}, ConfigError, "more than 0 s"),
        ({"name": "auto", "simulated_ranks": 2, "environ": TWO_RANKS}, CommError, "hydra started 2 ranks"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, object], kind: type[DqrmError], words: str) -> None:
    with pytest.raises(kind, match=words):
        open_transport(**{"environ": {}, **arguments})  # type: ignore[arg-type]


def test_missing_mpi4py_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(DeviceError, match=r"pip install 'dqrm-cpu\[mpi\]'"):
        load_mpi()


def test_gloo_without_a_place_to_meet_names_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(CommError, match="MASTER_ADDR and MASTER_PORT not set, and MPI cannot choose one"):
        open_store(Launch(0, 2, 0, "slurm"), {}, timeout_s=1)


def test_gloo_refuses_a_port_that_is_none() -> None:
    with pytest.raises(CommError, match="MASTER_PORT='http' is not a port"):
        open_store(Launch(0, 2, 0, "torchrun"), {"MASTER_ADDR": "localhost", "MASTER_PORT": "http"}, timeout_s=1)


def test_a_plain_process_does_not_load_mpi() -> None:
    source = (
        "import sys; from dqrm_cpu.comm.transports.selection import open_transport; open_transport('auto').barrier(); "
    )
    source += "sys.exit('mpi4py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], env=clean_environ(), timeout=60).returncode == 0


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", "mpi|2|1|hydra started 2 processes, and mpi4py is installed"),
        ("gloo", "gloo|2|1|gloo was asked for"),  # MPI agrees on the port
        ("oneccl", "oneccl|2|1|oneccl was asked for (oneCCL 2021.13.1 through mpi)"),
    ],
)
def test_under_mpirun(name: str, expected: str) -> None:
    world = run_mpi(["-c", TELL, name], 2).check()
    assert [rank.stdout for rank in world.ranks] == [f"{expected}\n"] * 2


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["gloo", "oneccl"])
def test_a_port_that_is_taken_is_named(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        world = run_gloo(["-c", TELL, name], 1, env={"MASTER_PORT": str(port)})
    assert world.returncode != 0
    assert (
        f"rank 0 of 1 cannot reach the others at 127.0.0.1:{port}: MASTER_ADDR and MASTER_PORT must be" in world.stderr
    )


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", "gloo|2|1|torchrun started 2 processes"),
        ("oneccl", "oneccl|2|1|oneccl was asked for (oneCCL 2021.13.1 through ofi)"),
    ],
)
def test_under_torchrun(name: str, expected: str) -> None:
    world = run_gloo(["-c", TELL, name], 2).check()
    assert [rank.stdout for rank in world.ranks] == [f"{expected}\n"] * 2


STAND_IN = """
import torch.distributed as dist
from torch.distributed import ProcessGroupGloo
dist.Backend.register_backend(
    "ccl", lambda store, rank, size, timeout: ProcessGroupGloo(store, rank, size, timeout=timeout), devices=["cpu"]
)
"""


def beside(folder: Path) -> str:
    """TELL where modules in `folder` can be imported."""
    return f"import sys; sys.path.insert(0, {str(folder)!r})\n{TELL}"


@pytest.mark.mpi
def test_the_bindings_for_pytorch_come_first_where_they_are_installed(tmp_path: Path) -> None:
    """Intel's wheel is in no index: what is imported here registers gloo under its backend's name."""
    (tmp_path / "oneccl_bindings_for_pytorch.py").write_text(STAND_IN)
    world = run_gloo(["-c", beside(tmp_path), "oneccl"], 2).check()
    expected = "oneccl|2|1|oneccl was asked for, through oneccl_bindings_for_pytorch\n"
    assert [rank.stdout for rank in world.ranks] == [expected] * 2


@pytest.mark.mpi
def test_bindings_that_do_not_load_name_the_mend(tmp_path: Path) -> None:
    (tmp_path / "oneccl_bindings_for_pytorch.py").write_text("raise AttributeError('of another torch')")
    world = run_gloo(["-c", beside(tmp_path), "oneccl"], 2)
    assert world.returncode != 0
    assert "does not load beside torch" in world.stderr
    assert "pip install 'dqrm-cpu[oneccl]'" in world.stderr
