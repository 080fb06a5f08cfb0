"""Statistics of raw click rows in which click data sets differ: what the generated data are compared by.

Categories are given as integers per cell, -1 where missing; which integer stands for which value does not matter.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROWTH_ROWS = (8_000, 20_000, 40_000, 80_000)
"""After how many rows distinct values are counted."""

HELD_OUT_SHARE = 0.15
"""The last rows, in which a value counts as unseen if no earlier row has it."""

QUANTILE_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class CategoryStatistics:
    """One categorical field; shares are of the present cells, except missing_share."""

    name: str
    missing_share: float
    distinct: tuple[int, ...]  # after GROWTH_ROWS
    seen_once: int
    unseen_share: float  # of the cells of the held-out rows
    head_shares: tuple[float, ...]  # of up to ten values, the commonest first
    head_click_rates: tuple[float, ...]


@dataclass(frozen=True)
class IntegerStatistics:
    """One integer field; shares and quantiles are of the present cells, except missing_share."""

    name: str
    missing_share: float
    negative_share: float
    zero_share: float
    quantiles: tuple[float, ...]  # at QUANTILE_SHARES
    log_mean: float  # of log(max(x, 0) + 1)
    log_deviation: float


def describe_category(name: str, cells: NDArray[np.int32], label: NDArray[np.float32]) -> CategoryStatistics:
    """Statistics of one categorical field in the order of its rows."""
    present = cells[cells >= 0]
    values, inverse, counts = np.unique(present, return_inverse=True, return_counts=True)
    clicks = np.bincount(inverse, weights=label[cells >= 0], minlength=values.size)
    top = np.argsort(-counts, kind="stable")[:10]
    total = max(present.size, 1)
    return CategoryStatistics(
        name=name,
        missing_share=1 - present.size / max(cells.size, 1),
        distinct=tuple(_count_distinct(cells[:rows]) for rows in GROWTH_ROWS if rows <= cells.size),
        seen_once=int((counts == 1).sum()),
        unseen_share=unseen_share(cells),
        head_shares=tuple(float(counts[k] / total) for k in top),
        head_click_rates=tuple(float(clicks[k] / counts[k]) for k in top),
    )


def describe_integer(name: str, cells: NDArray[np.int32], missing: int) -> IntegerStatistics:
    """Statistics of one integer field, in which `missing` stands for a missing cell."""
    present = cells[cells != missing].astype(np.float64)
    if present.size == 0:
        nothing = float("nan")
        return IntegerStatistics(name, 1.0, 0.0, 0.0, (nothing,) * len(QUANTILE_SHARES), nothing, nothing)
    logs = np.log1p(np.maximum(present, 0))
    return IntegerStatistics(
        name=name,
        missing_share=1 - present.size / cells.size,
        negative_share=float((present < 0).mean()),
        zero_share=float((present == 0).mean()),
        quantiles=tuple(float(q) for q in np.quantile(present, QUANTILE_SHARES)),
        log_mean=float(logs.mean()),
        log_deviation=float(logs.std()),
    )


def unseen_share(cells: NDArray[np.int32]) -> float:
    """The share of the held-out rows' present cells whose value no earlier row has."""
    split = round(cells.size * (1 - HELD_OUT_SHARE))
    held_out = cells[split:]
    held_out = held_out[held_out >= 0]
    return float((~np.isin(held_out, cells[:split])).mean()) if held_out.size else 0.0


def determination(cause: NDArray[np.int32], effect: NDArray[np.int32]) -> float:
    """How far one field is a function of another: the share of rows that have the commonest effect of their cause.

    Rows whose cause comes only once, which determine anything, and rows with a missing cell are left out.
    """
    both = (cause >= 0) & (effect >= 0)
    pairs = cause[both].astype(np.int64) << 32 | effect[both].astype(np.int64)
    pairs, counts = np.unique(pairs, return_counts=True)
    causes, place = np.unique(pairs >> 32, return_inverse=True)
    largest, total = np.zeros(causes.size, np.int64), np.zeros(causes.size, np.int64)
    np.maximum.at(largest, place, counts)
    np.add.at(total, place, counts)
    repeated = total > 1
    return float(largest[repeated].sum() / total[repeated].sum()) if repeated.any() else float("nan")


def missing_groups(missing: dict[str, NDArray[np.bool_]], overlap: float = 0.9) -> tuple[tuple[str, ...], ...]:
    """Fields that are missing in the same rows: those whose missing cells overlap with the group's first field's.

    The overlap is the rows in which both are missing over the rows in which either is. Fields never missing are left
    out.
    """
    groups: list[list[str]] = []
    for name, cells in missing.items():
        if not cells.any():
            continue
        for group in groups:
            first = missing[group[0]]
            if (first & cells).sum() >= overlap * (first | cells).sum():
                group.append(name)
                break
        else:
            groups.append([name])
    return tuple(tuple(group) for group in groups)


def _count_distinct(cells: NDArray[np.int32]) -> int:
    return int(np.unique(cells[cells >= 0]).size)
