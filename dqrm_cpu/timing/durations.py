"""Statistics of durations in constant memory: exact total, count and extremes, quantiles from a histogram."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Nanoseconds = npt.NDArray[np.int64]

_BINS_PER_DOUBLING = 64  # a quantile is within 1.1% of a duration that was observed
_DOUBLINGS = 50  # up to 13 days
_NUM_BINS = _BINS_PER_DOUBLING * _DOUBLINGS


@dataclass(frozen=True)
class Summary:
    """The distribution of `count` samples, in milliseconds."""

    count: int
    min_ms: float
    median_ms: float
    p95_ms: float
    max_ms: float
    total_ms: float

    @property
    def mean_ms(self) -> float:
        return self.total_ms / self.count if self.count else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures by their names, as files hold them."""
        return asdict(self)


class Durations:
    """The distribution of samples in nanoseconds, which are themselves forgotten."""

    def __init__(self) -> None:
        self._bins = np.zeros(_NUM_BINS, dtype=np.int64)
        self._count = 0
        self._total = 0
        self._least, self._most = 0, 0

    def clear(self) -> None:
        """Forgets everything that was observed."""
        self._bins.fill(0)
        self._count = self._total = self._least = self._most = 0

    def add(self, samples: Nanoseconds) -> None:
        """Counts samples, int64[n]."""
        if samples.size == 0:
            return
        least, most = int(samples.min()), int(samples.max())
        self._least = min(self._least, least) if self._count else least
        self._most = max(self._most, most)
        self._count += samples.size
        self._total += int(samples.sum())
        bins = (np.log2(np.maximum(samples, 1)) * _BINS_PER_DOUBLING).astype(np.int64)
        self._bins += np.bincount(np.minimum(bins, _NUM_BINS - 1), minlength=_NUM_BINS)

    def summary(self) -> Summary:
        """Returns what was observed so far."""
        return Summary(
            self._count,
            self._least * 1e-6,
            self._quantile(0.5) * 1e-6,
            self._quantile(0.95) * 1e-6,
            self._most * 1e-6,
            self._total * 1e-6,
        )

    def _quantile(self, share: float) -> float:
        """Returns the middle of the bin in which that sample lies, never beyond the extremes."""
        if not self._count:
            return 0.0
        bin_number = int(np.searchsorted(np.cumsum(self._bins), share * (self._count - 1), side="right"))
        middle = float(2.0 ** ((bin_number + 0.5) / _BINS_PER_DOUBLING))
        return min(max(middle, float(self._least)), float(self._most))
