"""What numbers are transformed by on their way to the model, as fitted once and kept in the manifest.

Light to import: the help of every command that reads a manifest comes by here.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import msgspec

from dqrm_cpu.errors import DataError

Text = Annotated[str, msgspec.Meta(max_length=4096)]
"""A text that a file of somebody else's making may hold."""

LOG, IDENTITY, STANDARD, QUANTILE, BUCKETS = "log", "identity", "standard", "quantile", "buckets"
TRANSFORMS = (LOG, IDENTITY, STANDARD, QUANTILE, BUCKETS)

_MOST_NUMBERS = 1 << 16


@dataclass(frozen=True)
class Transform:
    """How one column is transformed. `numbers` rise, but those of `standard`.

    identity: none. standard: the mean and the deviation. quantile: the values at evenly spaced quantiles, the smallest
    and the largest with them. buckets: the values at which a new bucket begins.
    """

    name: Text
    kind: Text
    numbers: Annotated[tuple[float, ...], msgspec.Meta(max_length=_MOST_NUMBERS)] = ()

    def __post_init__(self) -> None:
        numbers = self.numbers
        are_finite = all(map(math.isfinite, numbers))
        rises = are_finite and all(low <= high for low, high in pairwise(numbers))
        is_whole = {
            IDENTITY: not numbers,
            STANDARD: are_finite and len(numbers) == 2 and numbers[-1] > 0,
            QUANTILE: bool(numbers) and rises,
            BUCKETS: rises,
        }
        if not is_whole.get(self.kind, False):
            raise DataError(f"column {self.name} has a transform {self.kind[:80]!r} whose numbers cannot be")

    @property
    def num_buckets(self) -> int:
        """How many values the column can take, where it becomes a categorical one; a missing one comes on top."""
        return len(self.numbers) + 1
