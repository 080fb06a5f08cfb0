"""Statistics of raw click rows in which click data sets differ, and what was measured on the Criteo Kaggle set.

Categories are given as integers per cell, -1 where missing; which integer stands for which value does not matter. No
generated row depends on what was measured: categories over 80,000 consecutive rows at the start of the set, integers
over the first 8,000 of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.synthetic.fields import CATEGORICAL_FIELDS

GROWTH_ROWS = (8_000, 20_000, 40_000, 80_000)
"""After how many rows distinct values are counted."""

HELD_OUT_SHARE = 0.15
"""The last rows, in which a value counts as unseen if no earlier row has it."""

QUANTILE_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class CategoryStatistics:
    """The statistics of a categorical field; shares are of the present cells, except missing_share."""

    name: str
    missing_share: float
    distinct: tuple[int, ...]  # after GROWTH_ROWS
    seen_once: int
    unseen_share: float  # of the cells of the held-out rows
    head_shares: tuple[float, ...]  # of up to ten values, the commonest first
    head_click_rates: tuple[float, ...]


@dataclass(frozen=True)
class IntegerStatistics:
    """The statistics of an integer field; shares and quantiles are of the present cells, except missing_share."""

    name: str
    missing_share: float
    negative_share: float
    zero_share: float
    quantiles: tuple[float, ...]  # at QUANTILE_SHARES
    log_mean: float  # of log(max(x, 0) + 1)
    log_deviation: float


def describe_category(name: str, cells: NDArray[np.int32], label: NDArray[np.float32]) -> CategoryStatistics:
    """Computes the statistics of one categorical field, its cells in the order of the rows."""
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
    """Computes the statistics of one integer field, in which `missing` stands for a missing cell."""
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
    """Returns the share of the held-out rows' present cells whose value no earlier row has."""
    split = round(cells.size * (1 - HELD_OUT_SHARE))
    held_out = cells[split:]
    held_out = held_out[held_out >= 0]
    return float((~np.isin(held_out, cells[:split])).mean()) if held_out.size else 0.0


def determination(cause: NDArray[np.int32], effect: NDArray[np.int32]) -> float:
    """Returns how far one field is a function of another, the share of rows with the commonest effect of their cause.

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
    """Groups fields that are missing in the same rows, whose missing cells overlap with the group's first field's.

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


MEASURED_ROWS = 80_000
MEASURED_LABEL_MEAN = 0.224475

MEASURED_MISSING_GROUPS = (
    ("I1", "I10"),
    ("I3",),
    ("I4", "I13"),
    ("I5",),
    ("I6",),
    ("I7", "I9", "I11"),
    ("I8",),
    ("I12",),
    ("C3", "C4", "C12", "C16", "C21", "C24"),
    ("C6",),
    ("C19", "C20", "C25", "C26"),
    ("C22",),
)

# fmt: off
# Distinct values after 8,000, 20,000, 40,000 and 80,000 rows; values seen once; share of unseen cells in the last 15%.
_CATEGORIES = {
    "C1": ((157, 236, 337, 484), 249, 0.003417),
    "C2": ((370, 430, 463, 492), 24, 0.00075),
    "C3": ((4512, 10130, 18897, 35104), 29727, 0.4222),
    "C4": ((3361, 6927, 12027, 20798), 14990, 0.2279),
    "C5": ((53, 72, 94, 136), 51, 0.001167),
    "C6": ((7, 11, 11, 12), 1, 0.000191),
    "C7": ((2811, 4478, 5859, 7221), 1835, 0.0275),
    "C8": ((82, 128, 169, 235), 103, 0.001583),
    "C9": ((3, 3, 3, 3), 0, 0),
    "C10": ((2583, 4591, 6825, 9834), 4753, 0.07008),
    "C11": ((1904, 2651, 3190, 3674), 620, 0.01008),
    "C12": ((4330, 9653, 17909, 33174), 27821, 0.3992),
    "C13": ((1589, 2126, 2461, 2732), 308, 0.006167),
    "C14": ((22, 25, 26, 26), 1, 0),
    "C15": ((1833, 2784, 3717, 4804), 1600, 0.02442),
    "C16": ((3896, 8408, 15345, 27919), 22390, 0.3303),
    "C17": ((9, 9, 9, 9), 0, 0),
    "C18": ((1053, 1492, 1910, 2375), 655, 0.0105),
    "C19": ((480, 717, 943, 1199), 335, 0.009174),
    "C20": ((3, 3, 3, 3), 0, 0),
    "C21": ((4134, 9134, 16860, 31256), 25844, 0.3781),
    "C22": ((7, 10, 10, 10), 0, 0),
    "C23": ((12, 14, 14, 14), 0, 0),
    "C24": ((2151, 4078, 6599, 10556), 6270, 0.1029),
    "C25": ((37, 41, 46, 49), 5, 0.000139),
    "C26": ((1635, 3144, 5118, 8177), 4863, 0.1246),
}
# Shares missing, negative and zero; quantiles at 5, 25, 50, 75, 95 and 99%; mean and deviation of the logarithms.
_INTEGERS = {
    "I1": (0.4449, 0, 0.4788, (0, 0, 1, 3, 15, 44), 0.7887, 0.9736),
    "I2": (0, 0.1, 0.181, (-1, 0, 3, 37, 556.05, 2167.12), 2.11, 2.129),
    "I3": (0.1904, 0, 0.008307, (1, 2, 7, 20, 94, 306), 2.245, 1.283),
    "I4": (0.1939, 0, 0.07155, (0, 2, 4, 10, 28, 44), 1.73, 0.9625),
    "I5": (0.05031, 0, 0.01552, (4, 299, 2792.5, 10536.8, 51316.5, 302726), 7.278, 2.867),
    "I6": (0.252, 0, 0.06131, (0, 10, 41, 131, 590, 1742.25), 3.602, 1.8),
    "I7": (0.04784, 0, 0.2535, (0, 0, 3, 10, 57, 189.98), 1.531, 1.353),
    "I8": (0.001087, 0, 0.12, (0, 2, 7, 20, 42, 48), 2.049, 1.18),
    "I9": (0.04731, 0, 0.03131, (1, 10, 42, 124, 502.95, 1228.8), 3.62, 1.69),
    "I10": (0.445, 0, 0.5059, (0, 0, 0, 1, 2, 2.13), 0.3728, 0.3939),
    "I11": (0.04745, 0, 0.2662, (0, 0, 1, 2, 8, 22), 0.849, 0.736),
    "I12": (0.7723, 0, 0.7436, (0, 0, 0, 1, 4, 12.3), 0.2937, 0.604),
    "I13": (0.1938, 0, 0.05947, (0, 2, 5, 13, 38, 72.28), 1.888, 1.056),
}
# fmt: on

MEASURED_CATEGORIES = tuple(
    CategoryStatistics(
        field.name, field.missing_share, *_CATEGORIES[field.name], field.head_shares, field.head_click_rates
    )
    for field in CATEGORICAL_FIELDS
)
MEASURED_INTEGERS = tuple(IntegerStatistics(name, *values) for name, values in _INTEGERS.items())
