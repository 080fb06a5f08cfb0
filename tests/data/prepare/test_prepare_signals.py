"""A signal stops `dqrm-cpu prepare`, which says how to go on; a second one ends it at once."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dqrm_cpu.base.signals import SAME_EVENT_S
from dqrm_cpu.cli.main import main
from folders import files_of
from preparing import criteo_text
from prestart import python

_STUCK = Path(__file__).parent / "stuck_preparation.py"
_PATIENCE_S = 90
_TEXT_BYTES = 52 << 20  # blocks enough that a step is written while more is awaited


@pytest.fixture(scope="module")
def text() -> bytes:
    piece = criteo_text(2000).encode()
    return piece * (_TEXT_BYTES // len(piece) + 1)


def command(out: Path) -> list[str]:
    return [*python(os.environ), "-m", "dqrm_cpu", "prepare", "-", "--format", "kaggle", "--out", str(out)]


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
    stderr = process.stderr.read().decode()
    process.stdin.close()
    assert f"stopped by {number.name} " in stderr
    assert "goes on from there" in stderr
    done = subprocess.run(command(out), input=text, capture_output=True, timeout=_PATIENCE_S, check=True)
    assert "going on behind row" in done.stderr.decode()
    rows = text.count(b"\n")
    assert f"{rows:,} rows" in done.stdout.decode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A raw log, and what preparing it leaves."""
    folder = tmp_path_factory.mktemp("whole")
    raw = folder / "train.txt"
    raw.write_text(criteo_text(400))
    assert main(prepare_in_small_shards(raw, folder / "out")) == 0
    return raw, files_of(folder / "out")


def prepare_in_small_shards(raw: Path, out: Path) -> list[str]:
    return ["prepare", str(raw), "--format", "kaggle", "--out", str(out), "--shard-rows", "50", "--workers", "2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once_and_the_command_can_be_repeated(
    number: signal.Signals, whole: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    """The first one waits for what is under way, here for a disk that does not answer."""
    raw, expected = whole
    arguments = prepare_in_small_shards(raw, tmp_path / "out")
    process = subprocess.Popen([*python(os.environ), str(_STUCK), "3", *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"stuck\n"
        assert signals_until_it_ends(process, number) >= 2
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -number
    assert main(arguments) == 0
    assert files_of(tmp_path / "out") == expected


def signals_until_it_ends(process: "subprocess.Popen[bytes]", number: signal.Signals) -> int:
    """How many it took; they are far enough apart to count each for itself."""
    end = time.monotonic() + _PATIENCE_S
    sent = 0
    while process.poll() is None:
        assert time.monotonic() < end
        process.send_signal(number)
        sent += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SAME_EVENT_S * 1.2)
    return sent
