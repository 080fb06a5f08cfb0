"""Metrics of groups of rows: AUC within each user or item (GAUC), and all metrics of each value of a column."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.metrics.click import ClickMetrics, click_metrics


@dataclass(frozen=True)
class GroupedAuc:
    """The mean AUC within groups, each weighted by its rows or their weights; groups of one label have none."""

    gauc: float  # NaN where no group has both labels
    groups: int
    rows: int
    groups_left_out: int
    rows_left_out: int


@dataclass(frozen=True)
class Slice:
    """The metrics of the rows that share a value of a column."""

    value: int
    metrics: ClickMetrics


def grouped_auc(
    logits: NDArray[np.float32],
    clicks: NDArray[np.bool_],
    groups: NDArray[np.int64],
    weights: NDArray[np.float32] | None = None,
) -> GroupedAuc:
    """Computes GAUC of logits f32[N], clicks bool[N] and the group of each row i64[N]; their order changes no bit.

    Ties within a group count half. Everything that can be counted is counted in integers. With weights f32[N] a row
    counts as often as its weight says, in its group and among the groups; rows of weight 0 are no rows.
    """
    if weights is None:
        order = np.lexsort((logits, groups))
    else:
        counted_rows = np.flatnonzero(weights > 0)
        keys = (clicks, weights, logits, groups)
        order = counted_rows[np.lexsort(tuple(key[counted_rows] for key in keys))]
    logits, clicks, groups = logits[order], clicks[order], groups[order]
    if not order.size:
        return GroupedAuc(math.nan, 0, 0, 0, 0)
    count = np.int64 if weights is None else np.float64
    each = np.ones(1, np.int64) if weights is None else weights[order].astype(np.float64)
    new_group = np.r_[True, groups[1:] != groups[:-1]]
    # A run is all rows of a group with the same logit: among them, each pair of a click and a non-click counts half.
    run_starts = np.flatnonzero(new_group | np.r_[True, logits[1:] != logits[:-1]])
    run_clicks, run_others = (np.add.reduceat(each * of, run_starts, dtype=count) for of in (clicks, ~clicks))
    group_of_run = np.flatnonzero(new_group[run_starts])
    num_clicks, num_others = (np.add.reduceat(counts, group_of_run) for counts in (run_clicks, run_others))
    others_before = np.cumsum(run_others) - run_others
    others_before -= np.repeat(others_before[group_of_run], np.diff(np.r_[group_of_run, run_starts.size]))
    twice_wins = np.add.reduceat(run_clicks * (2 * others_before + run_others), group_of_run)
    amount, pairs = num_clicks + num_others, num_clicks * num_others
    counted = pairs > 0
    rows_of_group = np.diff(np.r_[run_starts[group_of_run], order.size])
    num_rows = int(rows_of_group[counted].sum())
    # Divided first: rows times pairs is beyond int64 for a group of three million rows.
    weighted = math.fsum((amount[counted] * (twice_wins[counted] / (2 * pairs[counted]))).tolist())
    return GroupedAuc(
        gauc=weighted / math.fsum(amount[counted].tolist()) if num_rows else math.nan,
        groups=int(np.count_nonzero(counted)),
        rows=num_rows,
        groups_left_out=int(np.count_nonzero(~counted)),
        rows_left_out=int(order.size) - num_rows,
    )


def slices(
    logits: NDArray[np.float32],
    clicks: NDArray[np.bool_],
    values: NDArray[np.int64],
    most: int,
    weights: NDArray[np.float32] | None = None,
) -> tuple[Sequence[Slice], ClickMetrics | None]:
    """Computes the metrics of each of the `most` most frequent values, and of all other rows; None: there are none.

    Values with equally many rows come in the order of the values.
    """
    distinct, of_row, counts = np.unique(values, return_inverse=True, return_counts=True)
    largest = np.lexsort((distinct, -counts))[:most]
    place = np.full(distinct.size, largest.size)
    place[largest] = np.arange(largest.size)
    of_row = place[of_row]
    order = np.argsort(of_row, kind="stable")
    bounds = np.searchsorted(of_row[order], np.arange(largest.size + 2))
    parts = [order[start:end] for start, end in pairwise(bounds)]

    def metrics_of(part: NDArray[np.int64]) -> ClickMetrics:
        return click_metrics(logits[part], clicks[part], None if weights is None else weights[part])

    largest_slices = [
        Slice(int(distinct[value]), metrics_of(part)) for value, part in zip(largest, parts[:-1], strict=True)
    ]
    return largest_slices, metrics_of(parts[-1]) if parts[-1].size else None
