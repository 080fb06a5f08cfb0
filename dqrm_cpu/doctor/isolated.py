"""Runs a probe in a process of its own: a broken native library may abort it, and libraries loaded here do not show."""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeVar, cast

T = TypeVar("T")


class ProbeError(Exception):
    """The probe did not come back; the message says how it ended."""


@dataclass(frozen=True)
class _Refusal:
    reason: str


def in_fresh_process(probe: Callable[[], T], timeout_s: float = 60.0) -> T:
    """Returns what `probe`, a function of a module, returns in a freshly started interpreter."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_answer, args=(probe, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            raise ProbeError(f"no answer within {timeout_s:g} s")
        answer = receiver.recv()
    except EOFError:
        raise ProbeError("the process died while it loaded the library") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(answer, _Refusal):
        raise ProbeError(answer.reason)
    return cast(T, answer)


def _send_answer(probe: Callable[[], object], sender: Connection) -> None:
    try:
        sender.send(probe())
    except (ImportError, OSError, RuntimeError) as error:
        sender.send(_Refusal((str(error) or type(error).__name__).splitlines()[0]))
