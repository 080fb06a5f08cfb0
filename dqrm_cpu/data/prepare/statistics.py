"""Smallest, largest and mean values of dense columns."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.compiled import kernel


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
