"""A row of the fault table: what is done to what, how many cases there are, and how one is tried."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from case_files import CaseFiles
from forked_commands import Lab
from outcomes import Verdict


@dataclass(frozen=True)
class Row:
    """`name` stands on the command line, `fault` and `how` in docs/reliability.md.

    `share` is how many cases a full campaign tries; `size` is how many there are, where they are enumerated, and
    otherwise the share; `sample` is how many the tests try. `run` tries case `number`, whose choices come from the
    generator that it gets.
    """

    name: str
    fault: str
    how: str
    share: int
    run: Callable[[Lab, random.Random, int], Verdict]
    size: Callable[[CaseFiles], int]
    sample: int = 1


def chance(seed: int, row: str, number: int) -> random.Random:
    """The generator of one case: the same whichever other cases are tried."""
    return random.Random(f"{seed}/{row}/{number}")


def shuffled(size: int, number: int) -> int:
    """Number `number` of a fixed order in which the first few stand for all."""
    order = list(range(size))
    random.Random(size).shuffle(order)
    return order[number % size]


def nominal(share: int) -> Callable[[CaseFiles], int]:
    """The size of a row whose cases are drawn rather than enumerated."""
    return lambda case_files: share
