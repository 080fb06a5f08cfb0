"""What the processes of `bench data` report, and what it takes for a comparison."""

import subprocess
import sys
from pathlib import Path

import pytest

from dqrm_cpu.errors import DataError
from dqrm_cpu.lab.bench.data.data_benchmark import GROUPS, PREDICT_GROUP, require_package, require_same
from dqrm_cpu.lab.bench.data.data_process import WORKS, Contents, DataTask, ProcessFigures, run_task
from dqrm_cpu.lab.bench.harness.contestant import AbsentError

OURS, PEER = GROUPS[0].contestants[:2]


def test_every_contestant_has_its_work() -> None:
    assert {contestant.kind for group in (*GROUPS, PREDICT_GROUP) for contestant in group.contestants} == set(WORKS)


def test_processes_are_not_charged_for_torch() -> None:
    code = "import sys\nfrom dqrm_cpu.lab.bench.data import data_process, polars_prepare\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_reading_leaves_out_nothing(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"x" * 100)
    assert run_task(DataTask("read", str(tmp_path / "raw"), "", 1)).contents == Contents()
    with pytest.raises(FileNotFoundError):
        run_task(DataTask("read", str(tmp_path / "none"), "", 1))


def test_another_result_is_no_comparison() -> None:
    mine, theirs = Contents(9, 2, 30, 1.0), Contents(9, 2, 31, 1.0)
    figures = [ProcessFigures(1.0, 1, mine), ProcessFigures(1.0, 1, theirs)]
    with pytest.raises(DataError, match="polars_plain came to another result"):
        require_same(9, [OURS, PEER], figures)


def test_missing_polars_announces_itself() -> None:
    with pytest.raises(AbsentError, match=r"pip install 'dqrm-cpu\[bench\]'"):
        require_package("polars_that_nobody_installed")
