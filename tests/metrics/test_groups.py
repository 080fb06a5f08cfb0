"""Grouped metrics against the obvious loops."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.metrics.click import click_metrics
from dqrm_cpu.metrics.groups import grouped_auc, slices

Rows = list[tuple[int, bool, int]]
ROWS = st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(-2, 4)), max_size=40)


def arrays(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits, clicks, groups = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(logits, np.float32), np.array(clicks, np.bool_), np.array(groups, np.int64)


def pairs_ranked_rightly(rows: Rows) -> float:
    """AUC as it is defined, over all pairs; NaN without a pair."""
    clicked = [logit for logit, click, _ in rows if click]
    others = [logit for logit, click, _ in rows if not click]
    wins = [(a > b) + 0.5 * (a == b) for a in clicked for b in others]
    return sum(wins) / len(wins) if wins else math.nan


@given(ROWS)
def test_the_grouped_auc_is_the_mean_of_each_groups_weighted_by_its_rows(rows: Rows) -> None:
    by_group = [[row for row in rows if row[2] == group] for group in range(-2, 5)]
    counted = [group for group in by_group if not math.isnan(pairs_ranked_rightly(group))]
    found = grouped_auc(*arrays(rows))
    num_rows = sum(map(len, counted))
    assert (found.groups, found.rows) == (len(counted), num_rows)
    assert found.rows + found.rows_left_out == len(rows)
    assert found.groups + found.groups_left_out == len({group for _, _, group in rows})
    if counted:
        expected = sum(len(group) * pairs_ranked_rightly(group) for group in counted) / num_rows
        assert found.gauc == pytest.approx(expected, abs=1e-12)
    else:
        assert math.isnan(found.gauc)


def test_a_group_of_millions_of_rows_has_the_auc_of_its_rows() -> None:
    clicks = np.tile(np.array([True, False, False, True]), 1 << 20)
    logits = np.tile(np.array([2, 0, 1, 0], np.float32), 1 << 20)
    found = grouped_auc(logits, clicks, np.zeros(clicks.size, np.int64))
    assert (found.gauc, found.rows) == (0.625, 1 << 22)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_bit(rows: Rows, random: Random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert repr(grouped_auc(*arrays(rows))) == repr(grouped_auc(*arrays(shuffled)))


@given(ROWS, st.integers(1, 4))
def test_slices_are_the_metrics_of_the_rows_with_each_value(rows: Rows, most: int) -> None:
    logits, clicks, values = arrays(rows)
    found, rest = slices(logits, clicks, values, most)
    counts = {value: int((values == value).sum()) for value in values.tolist()}
    largest = sorted(counts, key=lambda value: (-counts[value], value))[:most]
    assert [part.value for part in found] == largest
    for part in found:
        mine = values == part.value
        assert repr(part.metrics) == repr(click_metrics(logits[mine], clicks[mine]))
    others = ~np.isin(values, largest)
    assert repr(rest) == repr(click_metrics(logits[others], clicks[others]) if others.any() else None)
