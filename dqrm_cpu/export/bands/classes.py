"""Ids in the order of how often training met them, in classes of about the same frequency."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEAST_OF_CLASS = np.array([1, 2, 3, 4, 8, 16, 64, 256, 4096])
"""The counts with which a class begins. Each is a band with 16 bytes of its own: few where ids are few."""


@dataclass(frozen=True)
class RankedRows:
    """The rows of a table in the order in which a file may keep them: by class, the most frequent first.

    Row 0, for what is missing, unknown or left out, is a class of its own, and the first one. Of a table whose ids
    follow from a rule (`is_pinned`: buckets of numbers, hashes) all rows are one class, in their order, and none can
    be left out.
    """

    order: NDArray[np.int32]  # the row at each place
    bounds: tuple[int, ...]  # the first place of each class, and the number of rows
    counts: NDArray[np.int64]  # of each row, how many training cells hold it
    is_pinned: bool

    @property
    def num_classes(self) -> int:
        """How many classes have rows."""
        return len(self.bounds) - 1

    def class_of_rows(self) -> NDArray[np.uint8]:
        """Returns the class of each row, uint8[rows]."""
        found = np.empty(self.order.size, np.uint8)
        found[self.order] = np.repeat(np.arange(self.num_classes, dtype=np.uint8), np.diff(self.bounds))
        return found


def ranked_rows(counts: NDArray[np.int64], is_pinned: bool) -> RankedRows:
    """Orders the rows of a table by counts int64[rows]; rows of one count stay in their order."""
    if is_pinned:
        return RankedRows(np.arange(counts.size, dtype=np.int32), (0, counts.size), counts, True)
    order = np.argsort(-counts[1:], kind="stable").astype(np.int32) + np.int32(1)
    of_places = np.searchsorted(_LEAST_OF_CLASS, counts[order], side="right")
    begin = 1 + np.flatnonzero(np.diff(of_places, prepend=-1))
    bounds = (0, *begin.tolist(), counts.size)
    return RankedRows(np.concatenate([np.zeros(1, np.int32), order]), bounds, counts, False)
