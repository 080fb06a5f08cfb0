"""Before the first step the ranks compare what they are about to do: one that runs something else ruins all."""

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dqrm_cpu.comm.transport import Json, Transport
from dqrm_cpu.errors import CommError

_ABSENT = "absent"
_SHOWN_AT_MOST = 20


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
    error = CommError(f"the ranks were not given the same work; start all with the same:\n  {lines}")
    error.unanimous = True
    raise error


def require_one_transport(names: Sequence[str]) -> None:
    """What each rank was given, by rank: over different ones they would wait until their patience ends."""
    holders: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        holders.setdefault(name, []).append(rank)
    if len(holders) > 1:
        raise CommError(
            f"the ranks were given different transports, {told_apart(holders)}: start all with the same "
            f"--comm.transport."
        )


def require_one_folder(option: str, names: Sequence[str], resolved: Sequence[str]) -> None:
    """What each rank was given for a folder, and where that leads, by rank; one of the two must be the same."""
    if len(set(names)) == 1 or len(set(resolved)) == 1:
        return
    holders: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        holders.setdefault(name, []).append(rank)
    error = CommError(
        f"the ranks were given different folders, {told_apart(holders)}: start all in one working directory with the "
        f"same {option}"
    )
    error.unanimous = True
    raise error


def _differences(documents: list[dict[str, str]]) -> Iterator[str]:
    """One line for each key that is not the same everywhere: `key: value on ranks 0-2, value on rank 3`."""
    for key in sorted({key for document in documents for key in document}):
        holders: dict[str, list[int]] = {}
        for rank, document in enumerate(documents):
            holders.setdefault(document.get(key, _ABSENT), []).append(rank)
        if len(holders) > 1:
            yield f"{key}: {told_apart(holders)}"


def _leaves(path: str, value: Json) -> Iterator[tuple[str, str]]:
    """Dotted path and JSON text of every value that holds no others."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}" if path else key, inner)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(f"{path}[{index}]", inner)
    else:
        yield path, json.dumps(value)


def told_apart(holders: Mapping[str, list[int]]) -> str:
    """What which ranks hold: `value on ranks 0-2, value on rank 3`."""
    return ", ".join(f"{value} on {ranks_in_words(ranks)}" for value, ranks in holders.items())


def ranks_in_words(ranks: list[int]) -> str:
    """`rank 3`, or `ranks 0-2, 5` for ascending ranks."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    words = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank {words}" if len(ranks) == 1 else f"ranks {words}"
