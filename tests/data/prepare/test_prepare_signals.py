"""A signal stops `dqrm-cpu prepare`, which says how to go on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preparing import criteo_text

_PATIENCE_S = 90
_TEXT_BYTES = 52 << 20  # blocks enough that a step is written while more is awaited


@pytest.fixture(scope="module")
def text() -> bytes:
    piece = criteo_text(2000).encode()
    return piece * (_TEXT_BYTES // len(piece) + 1)


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "dqrm_cpu", "prepare", "-", "--format", "kaggle", "--out", str(out)]


def until_a_step_is_safe(out: Path, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _PATIENCE_S
    while not list(out.glob(".prepare/spool/*.rows")):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_stopped_and_goes_on(tmp_path: Path, text: bytes, number: signal.Signals) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(out), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(text)
    process.stdin.flush()
    until_a_step_is_safe(out, process)
    process.send_signal(number)
    assert process.wait(_PATIENCE_S) == 128 + number  # standard input is still open
    said = process.stderr.read().decode()
    process.stdin.close()
    assert f"stopped by {number.name} " in said
    assert "goes on from there" in said
    done = subprocess.run(command(out), input=text, capture_output=True, timeout=_PATIENCE_S, check=True)
    assert "going on behind row" in done.stderr.decode()
    rows = text.count(b"\n")
    assert f"{rows:,} rows" in done.stdout.decode()
