"""Checks of CPU, cores, threads, NUMA, memory and huge pages: the verdict, and the mend that goes with it."""

from pathlib import Path

import pytest

from dqrm_cpu.base.hardware import NumaNode
from dqrm_cpu.doctor import machine as checks
from dqrm_cpu.doctor.finding import Verdict
from planted import GB, XEON, machine


def test_cpu_shows_the_last_cache() -> None:
    finding = checks.check_cpu(XEON)
    assert finding.verdict is Verdict.OK
    assert finding.found == "Xeon, 2 sockets, 16 cores, L3 32 MiB per 8 CPUs"


def test_another_architecture() -> None:
    assert checks.check_cpu(machine(architecture="aarch64", caches=())).verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("isa", "verdict"),
    [(("avx2", "avx512f", "amx_tile"), Verdict.OK), (("avx2",), Verdict.NOTE), ((), Verdict.WARNING)],
)
def test_isa(isa: tuple[str, ...], verdict: Verdict) -> None:
    assert checks.check_isa(machine(isa=isa)).verdict is verdict


def test_all_cores_free() -> None:
    assert checks.check_cores(XEON).verdict is Verdict.OK


def test_process_pinned_to_one_core() -> None:
    finding = checks.check_cores(machine(affinity=(3,)))
    assert finding.verdict is Verdict.WARNING
    assert finding.found == "this process may use 1 of 16 CPUs"
    assert "taskset -c 0-15" in finding.mend


def test_machine_of_one_core_is_not_pinned() -> None:
    assert checks.check_cores(machine(affinity=(0,), logical_cpus=1)).verdict is Verdict.OK


def test_quota_below_the_affinity() -> None:
    finding = checks.check_cores(machine(cpu_quota=2.5))
    assert finding.verdict is Verdict.WARNING
    assert finding.mend.endswith("--train.threads 2")


def test_quota_above_the_affinity() -> None:
    assert checks.check_cores(machine(cpu_quota=8.0)).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("environment", "threads", "verdict", "mend"),
    [
        ({}, 0, Verdict.OK, ""),
        ({"OMP_NUM_THREADS": "8"}, 8, Verdict.OK, ""),
        ({}, 16, Verdict.WARNING, "--train.threads 8"),
        ({"OMP_NUM_THREADS": "16"}, 0, Verdict.WARNING, "export OMP_NUM_THREADS=8"),
        (
            {"OMP_NUM_THREADS": "16", "MKL_NUM_THREADS": "9"},
            0,
            Verdict.WARNING,
            "export OMP_NUM_THREADS=8 and export MKL_NUM_THREADS=8",
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
    finding = checks.check_threads(XEON, environment, threads)
    assert (finding.verdict, finding.mend) == (verdict, mend)


def test_one_core_with_sixteen_threads() -> None:
    finding = checks.check_threads(machine(affinity=(3,)), {"OMP_NUM_THREADS": "16"}, 0)
    assert finding.found == "OMP_NUM_THREADS=16: more than 1 usable core"
    assert finding.mend == "export OMP_NUM_THREADS=1"


def test_process_on_one_numa_node() -> None:
    finding = checks.check_numa(XEON)
    assert (finding.verdict, finding.found) == (Verdict.OK, "2 nodes, this process runs on node 0")


def test_process_across_numa_nodes() -> None:
    finding = checks.check_numa(machine(affinity=(7, 8)))
    assert finding.verdict is Verdict.NOTE
    assert "numactl --cpunodebind=0 --membind=0" in finding.mend


def test_memory_node_without_cpus_is_no_numa_node() -> None:
    nodes = (NumaNode(0, tuple(range(16)), GB), NumaNode(1, (), GB))
    assert checks.check_numa(machine(numa_nodes=nodes)).found == "1 node"


@pytest.mark.parametrize(
    ("need", "verdict"),
    [(9 * GB, Verdict.OK), (9 * GB + 1, Verdict.WARNING), (16 * GB, Verdict.WARNING), (16 * GB + 1, Verdict.FAIL)],
)
def test_memory(need: int, verdict: Verdict) -> None:
    assert checks.check_memory(XEON, "kaggle", {"tables": need - 7, "rest": 7}).verdict is verdict


def test_memory_names_the_largest_part_and_a_smaller_preset() -> None:
    finding = checks.check_memory(XEON, "terabyte", {"rest": 1 * GB, "tables": 17 * GB})
    assert finding.found == "terabyte needs 18.0 GB (tables 17.0), 10.0 of 16.0 GB free"
    assert finding.mend == "--preset demo, or a machine with more memory"


def test_memory_limit_is_named() -> None:
    finding = checks.check_memory(machine(memory_limit_bytes=16 * GB), "demo", {"tables": 17 * GB})
    assert finding.found.endswith("GB free (control group limit)")
    assert finding.mend == "a machine with more memory"


@pytest.mark.parametrize(
    ("mode", "verdict"),
    [("always", Verdict.OK), ("madvise", Verdict.OK), ("never", Verdict.WARNING), ("", Verdict.NOTE)],
)
def test_huge_pages(mode: str, verdict: Verdict) -> None:
    assert checks.check_huge_pages(machine(huge_pages=mode)).verdict is verdict


def test_a_data_set_that_is_not_there_fails(tmp_path: Path) -> None:
    assert checks.check_data("synthetic") == []
    (tmp_path / "clicks.csv").touch()
    [finding] = checks.check_data(str(tmp_path / "clicks.csv"))
    assert finding.verdict is Verdict.FAIL
    assert "is a file, and no data set" in finding.found


@pytest.mark.parametrize(
    ("pressure", "load", "verdict", "found"),
    [
        (
            "some avg10=60.10 avg60=1.00 avg300=0.00 total=9\nfull avg10=0.00",
            1.5,
            Verdict.NOTE,
            "a core 60% of the time",
        ),
        ("some avg10=3.00 avg60=99.00 avg300=99.00 total=9", 9.0, Verdict.OK, "load 9.0 on 4 CPUs, some program waits"),
        ("", 5.0, Verdict.NOTE, "load 5.0 on 4 CPUs"),
        ("", 3.0, Verdict.OK, "load 3.0 on 4 CPUs"),
    ],
)
def test_what_other_programs_take(pressure: str, load: float, verdict: Verdict, found: str) -> None:
    finding = checks.check_load(pressure, load, 4)
    assert finding.verdict is verdict
    assert found in finding.found
    assert bool(finding.mend) == (verdict is Verdict.NOTE)
