"""Generated rows beside the measured set, as Markdown tables."""

from collections.abc import Iterable

import numpy as np

from dqrm_cpu.data.synthetic import statistics
from dqrm_cpu.data.synthetic.fields import CATEGORICAL_FIELDS, INTEGER_FIELDS
from dqrm_cpu.data.synthetic.kernel import MISSING
from dqrm_cpu.data.synthetic.statistics import (
    CategoryStatistics,
    IntegerStatistics,
    describe_category,
    describe_integer,
    determination,
    missing_groups,
)
from dqrm_cpu.data.synthetic.stream import RawRows, SyntheticClicks

FUNCTIONS = (("C3", "C12"), ("C3", "C16"), ("C3", "C21"), ("C3", "C4"), ("C3", "C24"), ("C7", "C11"), ("C1", "C5"))
"""Pairs (cause, effect) of fields whose determination is shown; the last pair is independent."""


def kaggle_rows(seed: int, num_rows: int = statistics.MEASURED_ROWS) -> RawRows:
    """Returns the first rows of the generated data in the shape of the Criteo Kaggle set."""
    table_rows = tuple(field.num_values for field in CATEGORICAL_FIELDS)
    return SyntheticClicks(table_rows, len(INTEGER_FIELDS), seed).raw_rows(0, num_rows)


def describe_categories(raw: RawRows) -> tuple[CategoryStatistics, ...]:
    """Computes statistics of C1 to C26 of rows in the shape of the Criteo Kaggle set."""
    return tuple(describe_category(field.name, raw.ranks[t], raw.label) for t, field in enumerate(CATEGORICAL_FIELDS))


def describe_integers(raw: RawRows) -> tuple[IntegerStatistics, ...]:
    """Computes statistics of I1 to I13."""
    return tuple(
        describe_integer(field.name, raw.integers[:, d], int(MISSING)) for d, field in enumerate(INTEGER_FIELDS)
    )


def find_missing_groups(raw: RawRows) -> tuple[tuple[str, ...], ...]:
    """Groups fields that are missing together, integers first."""
    missing = {field.name: raw.integers[:, d] == MISSING for d, field in enumerate(INTEGER_FIELDS)}
    missing |= {field.name: raw.ranks[t] < 0 for t, field in enumerate(CATEGORICAL_FIELDS)}
    return missing_groups(missing)


def comparison_markdown(seed: int) -> str:
    """Writes all comparisons for one seed; every cell reads: generated / measured."""
    raw = kaggle_rows(seed)
    parts = [_whole_set(raw), _categories(raw), _heads(raw), _integers(raw), _structure(raw)]
    return "\n\n".join(parts) + "\n"


def _whole_set(raw: RawRows) -> str:
    generated, measured = describe_categories(raw), statistics.MEASURED_CATEGORIES
    rows = [
        ("clicks", _pair(float(raw.label.mean()), statistics.MEASURED_LABEL_MEAN)),
        (
            "distinct categorical values",
            _pair(sum(f.distinct[-1] for f in generated), sum(f.distinct[-1] for f in measured)),
        ),
        ("of these seen once", _pair(sum(f.seen_once for f in generated), sum(f.seen_once for f in measured))),
    ]
    return _table(("80,000 rows", "generated / measured"), rows)


def _categories(raw: RawRows) -> str:
    header = ("field", "missing", "distinct after 8,000", "after 80,000", "seen once", "unseen in the last 15%")
    rows = [
        (
            got.name,
            _pair(got.missing_share, real.missing_share),
            _pair(got.distinct[0], real.distinct[0]),
            _pair(got.distinct[-1], real.distinct[-1]),
            _pair(got.seen_once, real.seen_once),
            _pair(got.unseen_share, real.unseen_share),
        )
        for got, real in zip(describe_categories(raw), statistics.MEASURED_CATEGORIES, strict=True)
    ]
    return _table(header, rows)


def _heads(raw: RawRows) -> str:
    header = (
        "field",
        *(f"{what} of value {k + 1}" for k in range(2) for what in ("share", "clicks")),
        "clicks, deviation",
    )
    rows = []
    for got, real in zip(describe_categories(raw), statistics.MEASURED_CATEGORIES, strict=True):
        cells = [got.name]
        for k in range(2):
            cells.append(_pair(got.head_shares[k], real.head_shares[k]))
            cells.append(_pair(got.head_click_rates[k], real.head_click_rates[k]))
        cells.append(_pair(float(np.std(got.head_click_rates)), float(np.std(real.head_click_rates))))
        rows.append(tuple(cells))
    return _table(header, rows)


def _integers(raw: RawRows) -> str:
    header = ("field", "missing", "zero", "5%", "25%", "50%", "75%", "95%", "99%", "mean of log")
    rows = [
        (
            got.name,
            _pair(got.missing_share, real.missing_share),
            _pair(got.zero_share, real.zero_share),
            *(_pair(mine, theirs) for mine, theirs in zip(got.quantiles, real.quantiles, strict=True)),
            _pair(got.log_mean, real.log_mean),
        )
        for got, real in zip(describe_integers(raw), statistics.MEASURED_INTEGERS, strict=True)
    ]
    return _table(header, rows)


def _structure(raw: RawRows) -> str:
    place = {field.name: t for t, field in enumerate(CATEGORICAL_FIELDS)}
    rows = [
        (f"{cause} determines {effect}", f"{determination(raw.ranks[place[cause]], raw.ranks[place[effect]]):.4f}")
        for cause, effect in FUNCTIONS
    ]
    groups = "; ".join("+".join(group) for group in find_missing_groups(raw))
    return (
        _table(("hidden ids (generated only)", "share of rows"), rows) + f"\n\nMissing together, generated: {groups}."
    )


def _pair(generated: float, measured: float) -> str:
    return f"{_number(generated)} / {_number(measured)}"


def _number(value: float) -> str:
    if value == int(value) and abs(value) >= 1:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
