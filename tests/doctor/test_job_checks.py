"""Checks of a job over planted facts, and a real job of two ranks."""

import dataclasses
import json
from pathlib import Path

import pytest

from dqrm_cpu.base.hardware import fingerprint
from dqrm_cpu.comm.transports.selection import open_transport
from dqrm_cpu.doctor import job_checks
from dqrm_cpu.doctor.finding import Verdict
from dqrm_cpu.doctor.job_facts import JobFacts, LinkFacts, RankFacts, read_job
from launching import run_mpi
from planted import GB

RANK = RankFacts(
    rank=0,
    host="a",
    version="1",
    cpu_model="Xeon",
    affinity=(0, 1, 2, 3),
    usable_cores=4,
    omp_num_threads="4",
    numa_nodes=(0,),
    memory_available_bytes=10 * GB,
    disk_free_bytes=100 * GB,
    clock_offset_s=0.0,
    sees_run_folder=True,
)


def job(latency_s: float = 2e-5, bandwidth: float = 1e10, **second: object) -> JobFacts:
    """Two ranks on two hosts; `second` changes what the second one tells."""
    other = dataclasses.replace(RANK, **{"rank": 1, "host": "b", **second})  # type: ignore[arg-type]
    return JobFacts("mpi", "it is there", (RANK, other), LinkFacts(latency_s, bandwidth))


def test_a_healthy_job_passes_every_check() -> None:
    findings = job_checks.check_job(job(), GB, GB, Path("runs"))
    assert {finding.verdict for finding in findings} == {Verdict.OK}


@pytest.mark.parametrize(
    ("check", "facts", "verdict", "found"),
    [
        (job_checks.check_ranks, job(version="2"), Verdict.FAIL, "versions 1, 2"),
        (job_checks.check_ranks, job(cpu_model="EPYC"), Verdict.WARNING, "CPUs differ: EPYC, Xeon"),
        (job_checks.check_affinity, job(host="a"), Verdict.WARNING, "ranks 0 and 1 share 4 CPUs of a"),
        (job_checks.check_affinity, job(host="a", affinity=(4, 5)), Verdict.OK, "2-4 CPUs a rank"),
        (job_checks.check_threads, job(usable_cores=2), Verdict.NOTE, "rank 1: OMP_NUM_THREADS=4 on 2 usable cores"),
        (job_checks.check_numa, job(numa_nodes=(0, 1)), Verdict.NOTE, "rank 1 spans 2 memory nodes"),
        (job_checks.check_clocks, job(clock_offset_s=-0.7), Verdict.WARNING, "700.0 ms apart at most (rank 1)"),
        (job_checks.check_latency, job(latency_s=2e-3), Verdict.WARNING, "2000 us"),
        (job_checks.check_bandwidth, job(bandwidth=1e8), Verdict.WARNING, "0.10 GB/s from each rank"),
    ],
)
def test_what_a_check_finds(check: object, facts: JobFacts, verdict: Verdict, found: str) -> None:
    finding = check(facts)  # type: ignore[operator]
    assert finding.verdict is verdict
    assert found in finding.found
    assert bool(finding.mend) == (verdict is not Verdict.OK)


@pytest.mark.parametrize(("host", "verdict"), [("b", Verdict.OK), ("a", Verdict.FAIL)])
def test_memory_counts_the_ranks_of_a_host(host: str, verdict: Verdict) -> None:
    assert job_checks.check_memory(job(host=host), 6 * GB).verdict is verdict


def test_a_folder_that_one_rank_does_not_see() -> None:
    finding = job_checks.check_run_folder(job(sees_run_folder=False), Path("/scratch"))
    assert (finding.verdict, finding.found) == (Verdict.FAIL, "/scratch is not seen by rank 1 on b")


def test_checkpoints_that_do_not_fit_on_the_disk() -> None:
    assert job_checks.check_disk(job(), 101 * GB, Path("runs")).verdict is Verdict.FAIL
    assert job_checks.check_disk(job(), 81_000, Path("runs")).found == "checkpoints take 81.0 kB, 100.00 GB are free"


def test_one_process_reads_its_own_place(tmp_path: Path) -> None:
    with open_transport("auto", environ={}) as transport:
        facts = read_job(transport, fingerprint(), tmp_path / "runs")
    assert len(facts.ranks) == 1
    assert facts.ranks[0].sees_run_folder
    assert facts.ranks[0].clock_offset_s == 0
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.mpi
@pytest.mark.slow
def test_two_ranks_find_each_other_and_the_folder(tmp_path: Path) -> None:
    world = run_mpi(["-m", "dqrm_cpu", "doctor", "--job", "--json", "--run-dir", tmp_path], ranks=2, timeout_s=120)
    findings = {finding["check"]: finding for finding in json.loads(world.check().ranks[0].stdout)}
    assert findings["ranks"]["found"].startswith("2 ranks on ")
    assert findings["run folder"]["verdict"] == "ok"
    assert world.ranks[1].stdout == ""
