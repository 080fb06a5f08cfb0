"""A process killed in the middle of a save, at every touch of the disk and at random moments, costs no checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest

_SAVER = Path(__file__).with_name("crashing_saver.py")


@pytest.mark.parametrize("how", ["events", "moments"])
def test_the_newest_checkpoint_is_always_complete(tmp_path: Path, how: str) -> None:
    command = [sys.executable, str(_SAVER), str(tmp_path / "checkpoints"), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *crashes, last = done.stdout.splitlines()
    assert last == "done"
    assert sum(line.startswith("killed") for line in crashes) >= 20
