"""What ranks decide together: that all do the same work, and what one rank does for all."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np

from dqrm_cpu import errors
from dqrm_cpu.base.decode import Json
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.errors import CommError, DqrmError, unanimous

_Value = TypeVar("_Value")

_ABSENT = "absent"
_SHOWN_AT_MOST = 20
_TOLD_EVERY_S = 5.0


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
    shared = transport.broadcast_json(failure)
    if isinstance(shared, list):
        raise unanimous(_error_type(shared[0])(shared[1]))
    return value


def on_first_rank_at_length(transport: Transport, action: Callable[[], _Value]) -> _Value | None:
    """Does what `on_first_rank` does with an action that may take longer than ranks wait for each other.

    It runs in a thread, beside which rank 0 tells the others every few seconds that it goes on.
    """
    if transport.rank:
        while transport.broadcast_json(None):
            pass
        return on_first_rank(transport, action)
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(action)
        while transport.broadcast_json(bool(wait([future], _TOLD_EVERY_S).not_done)):
            pass
        return on_first_rank(transport, future.result)


def require_agreement(transport: Transport, document: Mapping[str, Json]) -> None:
    """Raises the same CommError on every rank unless all passed equal documents; it names keys, values and ranks."""
    payload = np.frombuffer(json.dumps(dict(document), sort_keys=True).encode(), dtype=np.uint8)
    texts = [message.tobytes() for message in transport.allgatherv(payload)]
    if all(text == texts[0] for text in texts):
        return
    differences = list(_differences([dict(_leaves("", json.loads(text))) for text in texts]))
    shown = differences[:_SHOWN_AT_MOST]
    if len(differences) > len(shown):
        shown.append(f"and {len(differences) - len(shown)} more")
    lines = "\n  ".join(shown)
    raise unanimous(CommError(f"the ranks were not given the same work; start all with the same:\n  {lines}"))


def gather_texts(transport: Transport, text: str) -> list[str]:
    """Returns the text of each rank, by rank."""
    payload = np.frombuffer(text.encode(), dtype=np.uint8)
    return [part.tobytes().decode() for part in transport.allgatherv(payload)]


def require_one_transport(names: Sequence[str]) -> None:
    """Raises CommError unless every rank was given the same transport, `names` by rank.

    Over different ones the ranks would wait for each other until the timeout.
    """
    holders = _ranks_by_value(names)
    if len(holders) > 1:
        raise CommError(
            f"the ranks were given different transports, {_values_and_ranks(holders)}: start all with the same "
            f"--comm.transport."
        )


def require_one_folder(option: str, names: Sequence[str], resolved: Sequence[str]) -> None:
    """Raises the same CommError on every rank unless all were given one folder.

    `names` holds what each rank was given, by rank, and `resolved` where that leads: one of the two must be the same.
    """
    if len(set(names)) == 1 or len(set(resolved)) == 1:
        return
    raise unanimous(
        CommError(
            f"the ranks were given different folders, {_values_and_ranks(_ranks_by_value(names))}: start all in one "
            f"working directory with the same {option}"
        )
    )


def format_ranks(ranks: list[int]) -> str:
    """Writes ascending ranks as `rank 3`, or `ranks 0-2, 5`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"


def _differences(documents: list[dict[str, str]]) -> Iterator[str]:
    """Yields a line for each key that is not the same everywhere: `key: value on ranks 0-2, value on rank 3`."""
    for key in sorted({key for document in documents for key in document}):
        holders = _ranks_by_value([document.get(key, _ABSENT) for document in documents])
        if len(holders) > 1:
            yield f"{key}: {_values_and_ranks(holders)}"


def _leaves(path: str, value: Json) -> Iterator[tuple[str, str]]:
    """Yields the dotted path and JSON text of every value that holds no others."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}" if path else key, inner)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(f"{path}[{index}]", inner)
    else:
        yield path, json.dumps(value)


def _ranks_by_value(values: Sequence[str]) -> dict[str, list[int]]:
    holders: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        holders.setdefault(value, []).append(rank)
    return holders


def _values_and_ranks(holders: Mapping[str, list[int]]) -> str:
    """Writes which ranks hold what: `value on ranks 0-2, value on rank 3`."""
    return ", ".join(f"{value} on {format_ranks(ranks)}" for value, ranks in holders.items())


def _error_type(name: str) -> type[DqrmError]:
    kind = getattr(errors, name, DqrmError)
    assert issubclass(kind, DqrmError)
    return kind
