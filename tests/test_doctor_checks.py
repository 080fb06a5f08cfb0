"""Each check over planted facts: the verdict, and the mend that goes with it."""

import dataclasses
import os
from pathlib import Path

import pytest

from dqrm_cpu.doctor import extras, memory, mpi, openmp, processor
from dqrm_cpu.doctor.finding import Verdict
from dqrm_cpu.doctor.isolated import ProbeError, in_fresh_process
from dqrm_cpu.doctor.mpi import MpiLauncher, MpiLibrary
from dqrm_cpu.doctor.openmp import OpenmpFacts
from dqrm_cpu.profile.hardware import Cache, Fingerprint, NumaNode, Package

GB = 10**9

XEON = Fingerprint(
    cpu_model="Xeon",
    architecture="x86_64",
    isa=("avx2", "avx512f"),
    sockets=2,
    cores=16,
    logical_cpus=16,
    affinity=tuple(range(8)),
    cpu_quota=None,
    numa_nodes=(NumaNode(0, tuple(range(8)), 8 * GB), NumaNode(1, tuple(range(8, 16)), 8 * GB)),
    memory_total_bytes=16 * GB,
    memory_available_bytes=10 * GB,
    memory_limit_bytes=None,
    huge_pages="madvise",
    caches=(Cache(3, "Unified", 32 * 1024, 8), Cache(1, "Data", 48, 1)),
    kernel="6.1",
    python="3.11",
    packages=(Package("torch", "2.13.0+cpu"),),
    gpus=(),
)


def machine(**changes: object) -> Fingerprint:
    return dataclasses.replace(XEON, **changes)  # type: ignore[arg-type]


def test_cpu_shows_the_last_cache() -> None:
    finding = processor.check_cpu(XEON)
    assert finding.verdict is Verdict.OK
    assert finding.found == "Xeon, 2 sockets, 16 cores, L3 32 MiB per 8 CPUs"


def test_another_architecture() -> None:
    assert processor.check_cpu(machine(architecture="aarch64", caches=())).verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("isa", "verdict"),
    [(("avx2", "avx512f", "amx_tile"), Verdict.OK), (("avx2",), Verdict.NOTE), ((), Verdict.WARNING)],
)
def test_isa(isa: tuple[str, ...], verdict: Verdict) -> None:
    assert processor.check_isa(machine(isa=isa)).verdict is verdict


def test_all_cores_free() -> None:
    assert processor.check_cores(XEON).verdict is Verdict.OK


def test_process_pinned_to_one_core() -> None:
    finding = processor.check_cores(machine(affinity=(3,)))
    assert finding.verdict is Verdict.WARNING
    assert finding.found == "this process may use 1 of 16 CPUs"
    assert "taskset -c 0-15" in finding.mend


def test_machine_of_one_core_is_not_pinned() -> None:
    assert processor.check_cores(machine(affinity=(0,), logical_cpus=1)).verdict is Verdict.OK


def test_quota_below_the_affinity() -> None:
    finding = processor.check_cores(machine(cpu_quota=2.5))
    assert finding.verdict is Verdict.WARNING
    assert finding.mend.endswith("--train.threads 2")


def test_quota_above_the_affinity() -> None:
    assert processor.check_cores(machine(cpu_quota=8.0)).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("environment", "threads", "verdict", "mend"),
    [
        ({}, 0, Verdict.OK, ""),
        ({"OMP_NUM_THREADS": "8"}, 8, Verdict.OK, ""),
        ({}, 16, Verdict.WARNING, "--train.threads 8"),
        ({"OMP_NUM_THREADS": "16"}, 0, Verdict.WARNING, "export OMP_NUM_THREADS=8"),
        (
            {"OMP_NUM_THREADS": "16", "NUMBA_NUM_THREADS": "9"},
            0,
            Verdict.WARNING,
            "export OMP_NUM_THREADS=8 and export NUMBA_NUM_THREADS=8",
        ),
        ({"MKL_NUM_THREADS": "16", "OMP_NUM_THREADS": "4"}, 0, Verdict.WARNING, "export MKL_NUM_THREADS=8"),
        ({"OMP_NUM_THREADS": "1"}, 0, Verdict.NOTE, "export OMP_NUM_THREADS=8"),
        ({"OMP_NUM_THREADS": "8,2"}, 0, Verdict.OK, ""),
        ({"OMP_NUM_THREADS": "many"}, 0, Verdict.WARNING, "unset OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "0"}, 0, Verdict.WARNING, "unset OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": ""}, 0, Verdict.OK, ""),
    ],
)
def test_threads_on_eight_usable_cores(environment: dict[str, str], threads: int, verdict: Verdict, mend: str) -> None:
    finding = processor.check_threads(XEON, environment, threads)
    assert (finding.verdict, finding.mend) == (verdict, mend)


def test_one_core_with_sixteen_threads() -> None:
    finding = processor.check_threads(machine(affinity=(3,)), {"OMP_NUM_THREADS": "16"}, 0)
    assert finding.found == "OMP_NUM_THREADS=16: more than 1 usable core"
    assert finding.mend == "export OMP_NUM_THREADS=1"


def test_process_on_one_numa_node() -> None:
    finding = processor.check_numa(XEON)
    assert (finding.verdict, finding.found) == (Verdict.OK, "2 nodes, this process runs on node 0")


def test_process_across_numa_nodes() -> None:
    finding = processor.check_numa(machine(affinity=(7, 8)))
    assert finding.verdict is Verdict.NOTE
    assert "numactl --cpunodebind=0 --membind=0" in finding.mend


def test_memory_node_without_cpus_is_no_numa_node() -> None:
    nodes = (NumaNode(0, tuple(range(16)), GB), NumaNode(1, (), GB))
    assert processor.check_numa(machine(numa_nodes=nodes)).found == "1 node"


@pytest.mark.parametrize(
    ("need", "verdict"),
    [(9 * GB, Verdict.OK), (9 * GB + 1, Verdict.WARNING), (16 * GB, Verdict.WARNING), (16 * GB + 1, Verdict.FAIL)],
)
def test_memory(need: int, verdict: Verdict) -> None:
    assert memory.check_memory(XEON, "kaggle", {"tables": need - 7, "rest": 7}).verdict is verdict


def test_memory_names_the_largest_part_and_a_smaller_preset() -> None:
    finding = memory.check_memory(XEON, "terabyte", {"rest": 1 * GB, "tables": 17 * GB})
    assert finding.found == "terabyte needs 18.0 GB (tables 17.0), 10.0 of 16.0 GB free"
    assert finding.mend == "--preset demo, or a machine with more memory"


def test_memory_limit_is_named() -> None:
    finding = memory.check_memory(machine(memory_limit_bytes=16 * GB), "demo", {"tables": 17 * GB})
    assert finding.found.endswith("GB free (control group limit)")
    assert finding.mend == "a machine with more memory"


@pytest.mark.parametrize(
    ("mode", "verdict"),
    [("always", Verdict.OK), ("madvise", Verdict.OK), ("never", Verdict.WARNING), ("", Verdict.NOTE)],
)
def test_huge_pages(mode: str, verdict: Verdict) -> None:
    assert memory.check_huge_pages(machine(huge_pages=mode)).verdict is verdict


MAPS = """\
7f00-7f01 r-xp 00000000 08:01 11   /opt/torch lib/libgomp-a34b3233.so.1
7f01-7f02 r--p 00001000 08:01 11   /opt/torch lib/libgomp-a34b3233.so.1
7f02-7f03 r-xp 00000000 08:01 12   /usr/lib/libgomp.so.1.0.0
7f03-7f04 r-xp 00000000 08:01 13   /opt/intel/libiomp5.so
7f04-7f05 r-xp 00000000 08:01 14   /opt/llvm/libomp.so.5
7f05-7f06 r-xp 00000000 08:01 15   /usr/lib/libompdevice.so
7f06-7f07 r-xp 00000000 08:01 16   /opt/numba/omppool.cpython-311-x86_64-linux-gnu.so
7f07-7f08 rw-p 00000000 00:00 0
7f08-7f09 rw-p 00000000 00:00 0    [heap]
"""


def test_openmp_runtimes_are_found_among_the_mapped_files() -> None:
    assert openmp.mapped_runtimes(MAPS) == (
        "/opt/intel/libiomp5.so",
        "/opt/llvm/libomp.so.5",
        "/opt/torch lib/libgomp-a34b3233.so.1",
        "/usr/lib/libgomp.so.1.0.0",
    )


@pytest.mark.parametrize(
    ("facts", "verdict", "mend"),
    [
        (OpenmpFacts(("/usr/lib/libgomp.so.1",), "omp"), Verdict.OK, ""),
        (OpenmpFacts(("/a/libgomp.so.1", "/b/libgomp.so.1"), "omp"), Verdict.WARNING, "export LD_PRELOAD=libgomp.so.1"),
        (
            OpenmpFacts(("/a/libgomp.so.1",), "workqueue"),
            Verdict.WARNING,
            "apt-get install libgomp1, and unset NUMBA_THREADING_LAYER",
        ),
        (OpenmpFacts((), "", "no libtorch"), Verdict.FAIL, "pip install --force-reinstall torch numba"),
    ],
)
def test_openmp(facts: OpenmpFacts, verdict: Verdict, mend: str) -> None:
    finding = openmp.check_openmp(facts)
    assert (finding.verdict, finding.mend) == (verdict, mend)


INTEL = MpiLibrary(True, "Intel(R) MPI Library 2021.18.1 for Linux* OS", "/venv/lib/libmpi.so")
INTEL_SAYS = "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626"
OPEN_MPI_SAYS = "mpirun (Open MPI) 4.1.4"
MPICH_SAYS = "HYDRA build details:\n    Version:   4.2.0"
VENV_MPIRUN = MpiLauncher("/venv/bin/mpirun", False, INTEL_SAYS)


@pytest.mark.parametrize(
    ("text", "family"),
    [
        (INTEL.version, "Intel MPI"),
        (INTEL_SAYS, "Intel MPI"),
        (OPEN_MPI_SAYS, "Open MPI"),
        ("Open MPI v5.0.3, package: Debian", "Open MPI"),
        (MPICH_SAYS, "MPICH"),
        ("MPICH Version:      4.2.0", "MPICH"),
        ("MVAPICH2 Version      :	2.3.7", "MVAPICH"),
        ("", ""),
    ],
)
def test_mpi_families(text: str, family: str) -> None:
    assert mpi.mpi_family(text) == family


@pytest.mark.parametrize(
    ("library", "required", "verdict"),
    [
        (INTEL, True, Verdict.OK),
        (MpiLibrary(False), False, Verdict.NOTE),
        (MpiLibrary(False), True, Verdict.FAIL),
        (MpiLibrary(True, error="libmpi.so.12: cannot open"), False, Verdict.WARNING),
        (MpiLibrary(True, error="libmpi.so.12: cannot open"), True, Verdict.FAIL),
    ],
)
def test_mpi_library(library: MpiLibrary, required: bool, verdict: Verdict) -> None:
    assert mpi.check_library(library, required).verdict is verdict


def test_launcher_of_the_library() -> None:
    launcher = MpiLauncher("/venv/bin/mpirun", True, INTEL_SAYS)
    finding = mpi.check_launcher(INTEL, (launcher,), required=True)
    assert (finding.verdict, finding.found) == (Verdict.OK, "/venv/bin/mpirun (Intel MPI)")


@pytest.mark.parametrize(("required", "verdict"), [(False, Verdict.WARNING), (True, Verdict.FAIL)])
def test_launcher_of_another_mpi(required: bool, verdict: Verdict) -> None:
    launchers = (MpiLauncher("/usr/bin/mpirun", True, OPEN_MPI_SAYS), VENV_MPIRUN)
    finding = mpi.check_launcher(INTEL, launchers, required)
    assert finding.verdict is verdict
    assert finding.found == "/usr/bin/mpirun is of Open MPI, the library is Intel MPI"
    assert finding.mend == 'export PATH="/venv/bin:$PATH"'


def test_launcher_of_another_mpi_and_none_that_fits() -> None:
    finding = mpi.check_launcher(INTEL, (MpiLauncher("/usr/bin/mpirun", True, MPICH_SAYS),), required=False)
    assert finding.mend == "pip install 'dqrm-cpu[mpi]'"


def test_launcher_beside_python_but_not_on_path() -> None:
    finding = mpi.check_launcher(INTEL, (VENV_MPIRUN,), required=True)
    assert (finding.verdict, finding.mend) == (Verdict.NOTE, 'export PATH="/venv/bin:$PATH"')


def test_launcher_that_does_not_run() -> None:
    finding = mpi.check_launcher(INTEL, (MpiLauncher("/usr/bin/mpirun", True, ""),), required=False)
    assert (finding.verdict, finding.found) == (Verdict.WARNING, "/usr/bin/mpirun does not run")


@pytest.mark.parametrize(("required", "verdict"), [(False, Verdict.NOTE), (True, Verdict.FAIL)])
def test_no_launcher(required: bool, verdict: Verdict) -> None:
    assert mpi.check_launcher(INTEL, (), required).verdict is verdict


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_launchers_are_found_on_path_and_beside_python(tmp_path: Path) -> None:
    found = script(tmp_path / "path", "mpiexec", "echo one $1")
    beside = script(tmp_path / "beside", "mpirun", "echo two $1")
    assert mpi.read_launchers(str(found.parent), beside.parent) == (
        MpiLauncher(str(found), True, "one --version\n"),
        MpiLauncher(str(beside), False, "two --version\n"),
    )


def test_launcher_on_path_beside_python_counts_once(tmp_path: Path) -> None:
    found = script(tmp_path, "mpirun", "echo one")
    assert mpi.read_launchers(str(tmp_path), tmp_path) == (MpiLauncher(str(found), True, "one\n"),)


def test_launcher_that_fails_says_nothing(tmp_path: Path) -> None:
    script(tmp_path, "mpirun", "echo broken; exit 3")
    assert [launcher.says for launcher in mpi.read_launchers(str(tmp_path), tmp_path)] == [""]


def test_launcher_finds_its_companions(tmp_path: Path) -> None:
    script(tmp_path, "mpirun", "companion")
    script(tmp_path, "companion", "echo here")
    assert [launcher.says for launcher in mpi.read_launchers("", tmp_path)] == ["here\n"]


def test_oneccl_library_of_a_wheel(tmp_path: Path) -> None:
    library = tmp_path / "lib/ccl/cpu/lib/libccl.so"
    library.parent.mkdir(parents=True)
    library.touch()
    assert extras.read_oneccl(tmp_path).library == str(library)


def test_oneccl_without_its_library(tmp_path: Path) -> None:
    installed = machine(packages=(Package("oneccl-devel", "2021.13.1"),))
    assert extras.check_oneccl(installed, extras.OneCclFacts("", False)).verdict is Verdict.WARNING


@pytest.mark.parametrize("facts", [extras.OneCclFacts("", False), extras.OneCclFacts("/lib/libccl.so", False)])
def test_oneccl_is_optional(facts: extras.OneCclFacts) -> None:
    assert extras.check_oneccl(XEON, facts).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("ipex", "torch", "verdict"),
    [
        (None, "2.13.0", Verdict.OK),
        ("2.8.0", "2.8.0+cpu", Verdict.NOTE),
        ("2.8.0", "2.13.0+cpu", Verdict.WARNING),
        ("2.8.0", "2.80.0", Verdict.WARNING),
    ],
)
def test_ipex(ipex: str | None, torch: str, verdict: Verdict) -> None:
    packages = (Package("torch", torch), Package("intel-extension-for-pytorch", ipex))
    assert extras.check_ipex(machine(packages=packages)).verdict is verdict


@pytest.mark.parametrize(
    ("gpus", "device", "verdict"),
    [
        ((), "cpu", Verdict.OK),
        (("H200",), "cpu", Verdict.OK),
        (("H200",), "cuda", Verdict.OK),
        ((), "cuda", Verdict.FAIL),
    ],
)
def test_gpu(gpus: tuple[str, ...], device: str, verdict: Verdict) -> None:
    assert extras.check_gpu(machine(gpus=gpus), device).verdict is verdict


def answer() -> int:
    return os.getpid()


def abort() -> None:
    os.abort()


def refuse() -> None:
    raise ImportError("libmpi.so.12: cannot open shared object file\nand more")


def sleep() -> None:
    import time

    time.sleep(600)


def test_probe_runs_in_another_process() -> None:
    assert in_fresh_process(answer) != os.getpid()


@pytest.mark.parametrize(
    ("probe", "timeout_s", "message"),
    [
        (abort, 60, "the process died while it loaded the library"),
        (refuse, 60, "libmpi.so.12: cannot open shared object file"),
        (sleep, 0.5, "no answer within 0.5 s"),
    ],
)
def test_probe_that_does_not_answer(probe: object, timeout_s: float, message: str) -> None:
    with pytest.raises(ProbeError, match=f"^{message}$"):
        in_fresh_process(probe, timeout_s)  # type: ignore[arg-type]
