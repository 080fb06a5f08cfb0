"""Checks of memory and huge pages."""

import pytest

from dqrm_cpu.doctor import memory
from dqrm_cpu.doctor.finding import Verdict
from planted import GB, XEON, machine


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
