"""What a rank knows of where the others are, and which of them it would wait for in vain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Place = tuple[int, int]
"""The step under way, and the operations begun since the start: equal on ranks that wait for each other."""

_NAMED_AT_MOST = 8


@dataclass(frozen=True)
class _Sighting:
    step: int
    operations: int
    at_s: float  # on the monotonic clock of this process
    compiling: bool = False


class Attendance:
    """Last sightings, by rank. One thread notes, others may ask."""

    def __init__(self, rank: int, silent_after_s: float) -> None:
        self._rank = rank
        self._silent_after_s = silent_after_s
        self._seen: dict[int, _Sighting] = {}
        self._hearsay: list[tuple[int, int, int, float]] = []

    def note(self, rank: int, place: Sequence[int], now: float, compiling: bool = False) -> None:
        """Heard of the rank itself, and whether it compiles (of rank 0: whether any rank does)."""
        step, operations = place
        self._seen[rank] = _Sighting(step, operations, now, compiling)

    def note_hearsay(self, others: Iterable[Sequence[float]], now: float) -> None:
        """What `behind` of rank 0 said; it replaces what it said before."""
        self._hearsay = [
            (int(rank), int(step), int(operations), now - silence) for rank, step, operations, silence in others
        ]

    def forget(self, rank: int) -> None:
        """The rank left in peace."""
        self._seen.pop(rank, None)

    def behind(self, place: Place, now: float) -> list[tuple[int, int, int, float]]:
        """Rank, step, operations and seconds of silence of those that are silent or did not come as far as `place`."""
        sightings = dict(self._seen)
        host = sightings.get(0)
        # What a silent rank 0 said of others is out of date.
        hearsay = self._hearsay if host is None or now - host.at_s <= self._silent_after_s else []
        for rank, step, operations, at_s in hearsay:
            if rank != self._rank:
                sightings.setdefault(rank, _Sighting(step, operations, at_s))
        return [
            (rank, seen.step, seen.operations, now - seen.at_s)
            for rank, seen in sorted(sightings.items())
            if seen.operations < place[1] or now - seen.at_s > self._silent_after_s
        ][:_NAMED_AT_MOST]

    def compiling(self, now: float) -> bool:
        """Says whether any rank whose heartbeat is fresh compiles kernels."""
        sightings = list(self._seen.values())
        return any(seen.compiling and now - seen.at_s <= self._silent_after_s for seen in sightings)

    def silent(self, place: Place, now: float) -> set[int]:
        """The ranks among `behind` that were not heard of for too long."""
        return {rank for rank, _, _, silence_s in self.behind(place, now) if silence_s > self._silent_after_s}

    def absent(self, place: Place, now: float) -> str:
        """`behind` in words: the silent, or if there are none, those that are late."""
        behind = self.behind(place, now)
        silent = [entry for entry in behind if entry[3] > self._silent_after_s]
        if silent:
            told = [
                f"rank {rank} was last heard of {silence:.1f} s ago, then {_at(step)}"
                for rank, step, _, silence in silent
            ]
        else:
            told = [f"rank {rank} lives and is still {_at(step)}" for rank, step, _, _ in behind]
        return f"R{'; '.join(told)[1:]}." if told else ""


def _at(step: int) -> str:
    return f"at step {step}" if step else "before step 1"
