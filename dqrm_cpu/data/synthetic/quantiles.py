"""Inverse distribution functions as tables that a kernel reads in a few nanoseconds.

A table has CELLS + 1 equally spaced points over all shares and FINE_CELLS + 1 over the last cell, where the rarest
values live. Read with linear interpolation and rounded down, they give ranks of categories or values of integers.
"""

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.synthetic.categorical_fields import CategoricalField
from dqrm_cpu.data.synthetic.integer_fields import IntegerField

CELLS = 4096
FINE_CELLS = 1024
POINTS = CELLS + 1 + FINE_CELLS + 1


def table_shares() -> NDArray[np.float64]:
    """The shares, in (0, 1), at which a table holds its points: coarse ones, then those of the last cell."""
    coarse = np.arange(CELLS + 1) / CELLS
    fine = 1 - 1 / CELLS + np.arange(FINE_CELLS + 1) / (FINE_CELLS * CELLS)
    return np.concatenate([coarse, fine])


def rank_quantiles(field: CategoricalField, num_ranks: int) -> NDArray[np.float32]:
    """Quantiles of the rank of a present cell; where num_ranks exceeds the field's own, its tail is stretched."""
    head = np.asarray(field.head_shares)
    own_ranks = field.num_values - field.first_id
    if not field.tail_ranks:
        edges, ranks = np.concatenate([[0], np.cumsum(head)]), np.arange(head.size + 1.0)
        return np.asarray(np.interp(table_shares(), edges / edges[-1], ranks), np.float32)
    tail = np.asarray(field.tail_shares)
    head_mass = head.sum() / (head.sum() + tail.sum())
    edges = np.concatenate([[0], np.cumsum(head) / head.sum() * head_mass])
    tail_edges = head_mass + np.concatenate([[0], np.cumsum(tail) / tail.sum()]) * (1 - head_mass)
    shares = table_shares()
    in_head = np.interp(shares, edges, np.arange(head.size + 1.0))
    in_tail = np.exp(np.interp(shares, tail_edges, np.log(field.tail_ranks)))
    if num_ranks > own_ranks:
        in_tail = head.size * (in_tail / head.size) ** (np.log(num_ranks / head.size) / np.log(own_ranks / head.size))
    return np.where(shares < head_mass, in_head, in_tail).astype(np.float32)


def integer_quantiles(field: IntegerField) -> NDArray[np.float32]:
    """Quantiles of the value of a present cell."""
    shares, values = np.asarray(field.points).T
    return np.asarray(np.interp(table_shares(), shares, values), np.float32)
