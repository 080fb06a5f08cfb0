"""What the compiled generator reads and writes: flat records and arrays."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CATEGORY = np.dtype(
    [
        ("own_draw", np.uint64),  # number of the draw that decides the value
        ("missing_draw", np.uint64),
        ("world", np.uint64),  # what the effects of the values are hashed with
        ("hidden", np.int64),  # which hidden id it follows
        ("hidden_share", np.float64),  # in what share of the rows
        ("missing_share", np.float64),
        ("spread", np.float64),  # of the hashed effects
        ("num_heads", np.int64),  # ranks whose effects are given rather than hashed
    ],
    align=True,
)
"""A categorical field. Records, not an array for each property: numba counts references to arrays."""

INTEGER = np.dtype(
    [
        ("own_draw", np.uint64),
        ("missing_draw", np.uint64),
        ("missing_share", np.float64),
        ("activity", np.float64),  # how far the field leans on the hidden activity of the row
        ("slope", np.float64),
        ("spike", np.float64),
        ("missing_effect", np.float64),
    ],
    align=True,
)
"""An integer field."""

PAIR = np.dtype([("first", np.int64), ("second", np.int64), ("spread", np.float64)], align=True)
"""A product between two categorical fields, by their places."""

Records = NDArray[np.void]
Floats = NDArray[np.float32]


class World(NamedTuple):
    """What rows are drawn from: T categorical fields, D integer fields, H hidden ids, P pairs."""

    categories: Records  # CATEGORY[T]
    category_quantiles: Floats  # [T, POINTS]
    head_effects: Floats  # [T, HEADS + 1] of a missing cell, then of the commonest values
    integers: Records  # INTEGER[D]
    integer_quantiles: Floats  # [D, POINTS]
    hidden_draws: NDArray[np.uint64]  # [H]
    hidden_quantiles: Floats  # [H, POINTS]
    pairs: Records  # PAIR[P]


class StreamKeys(NamedTuple):
    """Which rows to make."""

    seed: np.uint64
    start: int
    bias: float  # of the log odds


class RawArrays(NamedTuple):
    """n raw rows."""

    integers: NDArray[np.int32]  # [n, D]
    ranks: NDArray[np.int32]  # [T, n]
    log_odds: NDArray[np.float32]  # [n] before the bias
    label: NDArray[np.float32]  # [n]


class Folding(NamedTuple):
    """How ranks become ids of T tables."""

    first_id: NDArray[np.int64]  # [T] 1 where id 0 stands for a missing cell
    rows: NDArray[np.int64]  # [T]
