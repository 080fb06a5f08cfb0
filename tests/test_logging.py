"""What is told to a user of the command line reaches the log of a program that uses the package as a library."""

import io
import logging
import subprocess
import sys

import pytest

from dqrm_cpu.train.progress import LineProgress, OnlyWarnings, Progress


@pytest.mark.parametrize("progress", [Progress(), LineProgress(0, 10, io.StringIO(), 10.0)], ids=["silent", "lines"])
def test_lines_that_stay_are_logged(progress: Progress, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dqrm_cpu")
    progress.note("step 1: 100% done")
    progress.warn("the disk is full")
    assert caplog.record_tuples == [
        ("dqrm_cpu.train.progress", logging.INFO, "step 1: 100% done"),
        ("dqrm_cpu.train.progress", logging.WARNING, "the disk is full"),
    ]


def test_ranks_beyond_the_first_log_what_only_they_know(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dqrm_cpu")
    stream = io.StringIO()
    progress = OnlyWarnings(1, stream)
    progress.note("step 1")
    progress.warn("two rows are not sound", alike=True)
    progress.warn("the disk is full")
    assert caplog.messages == ["the disk is full"]
    assert stream.getvalue() == "rank 1: warning: the disk is full\n"


def test_without_a_handler_nothing_is_shown() -> None:
    program = "import logging, dqrm_cpu; logging.getLogger('dqrm_cpu.train').warning('the disk is full')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == (b"", b"")
