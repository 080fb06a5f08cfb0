"""What the processes of `bench data` report, and what it takes for a comparison."""

import subprocess
import sys
from pathlib import Path

import pytest

from dqrm_cpu.bench.contestant import AbsentError
from dqrm_cpu.bench.data import GROUPS, DataCase, require_package
from dqrm_cpu.bench.data_run import _require_same
from dqrm_cpu.bench.data_work import WORKS, Found, Outcome, Task, run_task
from dqrm_cpu.errors import DataError

OURS, PEER = GROUPS[0].contestants[:2]


def test_every_contestant_has_its_work() -> None:
    assert {contestant.kind for group in GROUPS for contestant in group.contestants} == set(WORKS)


def test_processes_are_not_charged_for_torch() -> None:
    said = "import sys, dqrm_cpu.bench.data_work, dqrm_cpu.bench.data_polars; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_reading_leaves_out_nothing(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"x" * 100)
    assert run_task(Task("read", str(tmp_path / "raw"), "", 1)).found == Found()
    with pytest.raises(FileNotFoundError):
        run_task(Task("read", str(tmp_path / "none"), "", 1))


def test_another_result_is_no_comparison() -> None:
    mine, theirs = Found(9, 2, 30, 1.0), Found(9, 2, 31, 1.0)
    outcomes = [Outcome(1.0, 1, mine), Outcome(1.0, 1, theirs)]
    with pytest.raises(DataError, match="polars_plain came to another result"):
        _require_same(DataCase("few", 9), [OURS, PEER], outcomes)


def test_missing_polars_announces_itself() -> None:
    with pytest.raises(AbsentError, match=r"pip install 'dqrm-cpu\[bench\]'"):
        require_package("polars_that_nobody_installed")
