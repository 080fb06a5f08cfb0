"""Prepares on a disk that stops answering: `stuck_preparation.py NUMBER prepare RAW --out OUT ...`.

The NUMBER-th file that a worker forces to the disk never gets there; standard output says `stuck` then. Started by
test_prepare_signals.py as a process of its own.
"""

import os
import sys
import threading
from typing import Any

from dqrm_cpu.cli.main import main


def stop_answering(number: int) -> None:
    """Lets the `number`-th call of fsync in a worker wait for ever."""
    fsync, lock, seen = os.fsync, threading.Lock(), 0

    def stuck_fsync(fd: Any) -> None:
        nonlocal seen
        if threading.current_thread().name.startswith("dqrm-prepare"):
            with lock:
                seen += 1
                is_last = seen == number
            if is_last:
                print("stuck", flush=True)
                threading.Event().wait()
        fsync(fd)

    os.fsync = stuck_fsync


if __name__ == "__main__":
    stop_answering(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
