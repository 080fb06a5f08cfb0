"""Work that one rank does for all, whose failure is everybody's."""

from collections.abc import Callable
from typing import Any, TypeVar

from dqrm_cpu import errors
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.errors import DqrmError

_Value = TypeVar("_Value")


def on_first_rank(transport: Transport, action: Callable[[], _Value]) -> _Value | None:
    """Runs `action` on rank 0 while the others wait; its value there, None elsewhere.

    A DqrmError is raised again on every rank, and an OSError as one: none runs ahead of a checkpoint that failed.
    """
    value: _Value | None = None
    failure: list[Any] | None = None
    if transport.rank == 0:
        try:
            value = action()
        except DqrmError as error:
            failure = [type(error).__name__, str(error)]
        except OSError as error:  # the others would wait for a rank that has ended
            where = f"{error.filename}: " if error.filename else ""
            failure = [DqrmError.__name__, f"{where}{error.strerror or error}; check the file, its folder and the disk"]
    told = transport.broadcast_json(failure)
    if isinstance(told, list):
        shared = _error_type(told[0])(told[1])
        shared.unanimous = True
        raise shared
    return value


def _error_type(name: str) -> type[DqrmError]:
    kind = getattr(errors, name, DqrmError)
    assert issubclass(kind, DqrmError)
    return kind
