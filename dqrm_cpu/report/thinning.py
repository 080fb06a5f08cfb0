"""Curves of few points: a run of a million steps logs more than a page of two megabytes, or a screen, can show."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def thinned(steps: npt.ArrayLike, values: npt.ArrayLike, most: int) -> tuple[Array, Array]:
    """steps[N], values[N, ...] as at most `most` points: each the mean of as many neighbours, at the last of them."""
    at, kept = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if at.size <= most:
        return at, kept
    size = -(-at.size // most)
    starts = np.arange(0, at.size, size)
    counts = np.diff(np.append(starts, at.size)).reshape(-1, *[1] * (kept.ndim - 1))
    return at[np.append(starts[1:], at.size) - 1], np.add.reduceat(kept, starts, axis=0) / counts
