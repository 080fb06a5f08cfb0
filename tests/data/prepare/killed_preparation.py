"""Prepares and is killed on the way: `killed_preparation.py RAW OUT NUMBER`, at the NUMBER-th touch of a file.

Started by test_prepare_restart.py as a process of its own; ends with status 0 if it was done before.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from dqrm_cpu.data.prepare.request import VocabularySettings
from preparing import prepared

_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate")
OPTIONS: dict[str, Any] = {
    "block_bytes": 1 << 13,
    "shard_rows": 100,
    "bad_rows": "quarantine",
    "vocabulary": VocabularySettings(min_count=2),
}


def die_at_touch(out: str, number: int) -> None:
    """Kills this process when it opens, renames or removes something in the folder for the `number`-th time."""
    seen = 0
    lock = threading.Lock()

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in _EVENTS and out in str(arguments[:2]):
            with lock:
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


if __name__ == "__main__":
    raw, out, number = sys.argv[1:]
    die_at_touch(out, int(number))
    prepared([Path(raw)], Path(out), **OPTIONS)
