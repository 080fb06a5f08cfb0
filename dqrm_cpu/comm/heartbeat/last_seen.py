"""What a rank knows of the progress of the others, and which of them it would wait for in vain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Position = tuple[int, int]
"""The step under way, and the operations begun since the start: equal on ranks that wait for each other."""

_NAMED_AT_MOST = 8


@dataclass(frozen=True)
class _Report:
    step: int
    operations: int
    at_s: float  # on the monotonic clock of this process
    compiling: bool = False


class LastSeen:
    """The last known position of every other rank. One thread records them, other threads may ask."""

    def __init__(self, rank: int, silent_after_s: float) -> None:
        self._rank = rank
        self._silent_after_s = silent_after_s
        self._heard_from: dict[int, _Report] = {}
        self._reported_by_rank_0: list[tuple[int, int, int, float]] = []

    def record(self, rank: int, position: Sequence[int], now: float, compiling: bool = False) -> None:
        """Records a message of the rank itself, and whether it compiles (from rank 0: whether any rank does)."""
        step, operations = position
        self._heard_from[rank] = _Report(step, operations, now, compiling)

    def record_reported(self, others: Iterable[Sequence[float]], now: float) -> None:
        """Records what rank 0 found with `behind`; it replaces what it reported before."""
        self._reported_by_rank_0 = [
            (int(rank), int(step), int(operations), now - silence) for rank, step, operations, silence in others
        ]

    def forget(self, rank: int) -> None:
        """Drops a rank that left without an error."""
        self._heard_from.pop(rank, None)

    def behind(self, position: Position, now: float) -> list[tuple[int, int, int, float]]:
        """Returns rank, step, operations and seconds of silence of the ranks that are silent or behind `position`."""
        reports = dict(self._heard_from)
        rank_0 = reports.get(0)
        # What a silent rank 0 reported of the others is out of date.
        reported = self._reported_by_rank_0 if rank_0 is None or now - rank_0.at_s <= self._silent_after_s else []
        for rank, step, operations, at_s in reported:
            if rank != self._rank:
                reports.setdefault(rank, _Report(step, operations, at_s))
        return [
            (rank, seen.step, seen.operations, now - seen.at_s)
            for rank, seen in sorted(reports.items())
            if seen.operations < position[1] or now - seen.at_s > self._silent_after_s
        ][:_NAMED_AT_MOST]

    def any_compiling(self, now: float) -> bool:
        """Says whether any rank whose heartbeat is fresh compiles kernels."""
        reports = list(self._heard_from.values())
        return any(seen.compiling and now - seen.at_s <= self._silent_after_s for seen in reports)

    def silent(self, position: Position, now: float) -> set[int]:
        """Returns the ranks among `behind` that were not heard of for too long."""
        return {rank for rank, _, _, silence_s in self.behind(position, now) if silence_s > self._silent_after_s}

    def describe_missing(self, position: Position, now: float) -> str:
        """Names the silent ranks in a sentence, or if there are none, those that are late; empty if nobody is."""
        behind = self.behind(position, now)
        silent = [entry for entry in behind if entry[3] > self._silent_after_s]
        if silent:
            clauses = [
                f"rank {rank} was last heard of {silence:.1f} s ago, then {_at(step)}"
                for rank, step, _, silence in silent
            ]
        else:
            clauses = [f"rank {rank} is alive and still {_at(step)}" for rank, step, _, _ in behind]
        return f"R{'; '.join(clauses)[1:]}." if clauses else ""


def _at(step: int) -> str:
    return f"at step {step}" if step else "before step 1"
