"""A process killed in the middle of a save, at every touch of the disk and at random moments, costs no checkpoint."""

import subprocess
from pathlib import Path

import pytest

from launching import clean_environ
from prestart import python

_SAVER = Path(__file__).with_name("crashing_saver.py")


@pytest.mark.parametrize("how", ["events", "moments"])
def test_the_newest_checkpoint_is_always_complete(tmp_path: Path, how: str) -> None:
    environ = clean_environ()
    command = [*python(environ), str(_SAVER), str(tmp_path / "checkpoints"), how]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *crashes, last = done.stdout.splitlines()
    assert last == "done"
    assert sum(line.startswith("killed") for line in crashes) >= 20
