"""Tests of processes that are forked instead of started: they end as those that Python starts."""

from launching import run_gloo

LEFT_OPEN = """
import threading
from concurrent.futures import ThreadPoolExecutor
threading.kept = ThreadPoolExecutor(1)
print(threading.kept.submit(int, 3).result())
"""


def test_an_executor_that_nobody_closed_does_not_keep_a_process() -> None:
    world = run_gloo(["-c", LEFT_OPEN], 1, timeout_s=20).check()
    assert world.ranks[0].stdout == "3\n"
