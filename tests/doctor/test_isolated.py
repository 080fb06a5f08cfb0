"""Probes run in processes of their own, and may die there."""

import os

import pytest

from dqrm_cpu.doctor.isolated import ProbeError, in_fresh_process


def answer() -> int:
    return os.getpid()


def abort() -> None:
    os.abort()


def refuse() -> None:
    raise ImportError("libmpi.so.12: cannot open shared object file\nand more")


def sleep() -> None:
    import time

    time.sleep(600)


def test_probe_runs_in_another_process() -> None:
    assert in_fresh_process(answer) != os.getpid()


@pytest.mark.parametrize(
    ("probe", "timeout_s", "message"),
    [
        (abort, 60, "the process died while it loaded the library"),
        (refuse, 60, "libmpi.so.12: cannot open shared object file"),
        (sleep, 0.5, "no answer within 0.5 s"),
    ],
)
def test_probe_that_does_not_answer(probe: object, timeout_s: float, message: str) -> None:
    with pytest.raises(ProbeError, match=f"^{message}$"):
        in_fresh_process(probe, timeout_s)  # type: ignore[arg-type]
