"""Smallest, largest and mean values of columns."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.compiled import kernel

_ROWS_AT_ONCE = 64


@kernel
def dense_statistics(dense: NDArray[np.float32], out: Any) -> None:
    """Sums, minima and maxima of the columns of f32[n, D] into f64[3, D]."""
    sums, low, high = out[0], out[1], out[2]
    sums[:] = 0.0
    low[:] = np.inf
    high[:] = -np.inf
    for i in range(dense.shape[0]):
        for d in range(dense.shape[1]):
            value = np.float64(dense[i, d])
            sums[d] += value
            low[d] = min(low[d], value)
            high[d] = max(high[d], value)


def largest_in_columns(records: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The largest word of each column, many rows at a time: NumPy is quick along long rows."""
    count, width = records.shape
    whole = count - count % _ROWS_AT_ONCE
    wide = records[:whole].reshape(-1, _ROWS_AT_ONCE * width).max(axis=0, initial=0)
    found: NDArray[np.uint32] = np.concatenate([wide.reshape(-1, width), records[whole:]]).max(axis=0)
    return found
