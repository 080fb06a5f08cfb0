"""Tests of processes that are forked instead of started: they end as those that Python starts."""

import fcntl
import signal
import subprocess
from pathlib import Path

from launching import clean_environ, run_gloo
from prestart import kill, python

LEFT_OPEN = """
import threading
from concurrent.futures import ThreadPoolExecutor
threading.kept = ThreadPoolExecutor(1)
print(threading.kept.submit(int, 3).result())
"""


def test_an_executor_that_nobody_closed_does_not_keep_a_process() -> None:
    world = run_gloo(["-c", LEFT_OPEN], 1, timeout_s=20).check()
    assert world.ranks[0].stdout == "3\n"


LOCKS = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(600)
"""


def test_what_is_killed_holds_no_lock(tmp_path: Path) -> None:
    environ, path = clean_environ(), tmp_path / "lock"
    for _ in range(20):
        command = [*python(environ), "-c", LOCKS, str(path)]
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            kill(process)
            assert process.returncode == -signal.SIGKILL
            with path.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
