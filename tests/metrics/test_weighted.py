"""Metrics of rows with weights: a row counts as often as its weight says."""

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dqrm_cpu.metrics.click import ClickAccumulator, ClickMetrics, click_metrics
from dqrm_cpu.metrics.groups import grouped_auc, slices
from dqrm_cpu.metrics.reliability import reliability

Row = tuple[float, bool, int, float]
"""Logit, click, group, weight."""

_logits = st.one_of(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 30.0]), st.floats(-20, 20, width=32))
_fractions = st.floats(2**-10, 8, width=32)
WHOLE = st.lists(st.tuples(_logits, st.booleans(), st.integers(0, 2), st.integers(0, 4).map(float)), max_size=40)
ROWS = st.lists(st.tuples(_logits, st.booleans(), st.integers(0, 2), _fractions), min_size=1, max_size=40)


def arrays(rows: list[Row]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64], NDArray[np.float32]]:
    logits, clicks, groups, weights = zip(*rows, strict=True) if rows else ((), (), (), ())
    return (
        np.array(logits, np.float32),
        np.array(clicks, np.bool_),
        np.array(groups, np.int64),
        np.array(weights, np.float32),
    )


def metrics(rows: list[Row]) -> ClickMetrics:
    logits, clicks, _, weights = arrays(rows)
    return click_metrics(logits, clicks, weights)


def same_figures(one: ClickMetrics, other: ClickMetrics, rel: float) -> bool:
    pairs = zip(one.as_dict().items(), other.as_dict().values(), strict=True)
    return all(key == "examples" or a == pytest.approx(b, rel=rel, abs=1e-13, nan_ok=True) for (key, a), b in pairs)


@given(WHOLE)
def test_a_whole_weight_stands_for_so_many_equal_rows(rows: list[Row]) -> None:
    logits, clicks, groups, weights = arrays(rows)
    times = weights.astype(np.int64)
    repeated = np.repeat(logits, times), np.repeat(clicks, times)
    assert same_figures(click_metrics(logits, clicks, weights), click_metrics(*repeated), rel=1e-11)
    found, expected = grouped_auc(logits, clicks, groups, weights), grouped_auc(*repeated, np.repeat(groups, times))
    assert found.gauc == pytest.approx(expected.gauc, rel=1e-11, nan_ok=True)
    assert found.groups == expected.groups


@given(ROWS)
def test_the_figures_are_those_of_the_formulas(rows: list[Row]) -> None:
    logits, clicks, _, weights = (array.astype(np.float64) for array in arrays(rows))
    p = 1 / (1 + np.exp(-logits))
    found, total, clicked = metrics(rows), weights.sum(), (weights * clicks).sum()
    loss = (weights * np.logaddexp(0, np.where(clicks == 1, -logits, logits))).sum() / total
    assert found.log_loss == pytest.approx(loss, rel=1e-9)
    assert found.accuracy == pytest.approx((weights * ((logits > 0) == (clicks == 1))).sum() / total, rel=1e-9)
    assert found.examples == len(rows)
    if clicked:
        assert found.calibration == pytest.approx((weights * p).sum() / clicked, rel=1e-9)
    if 0 < clicked < total:
        rate = clicked / total
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        assert found.normalized_entropy == pytest.approx(loss / entropy, rel=1e-6)
    pairs = [(u * v, (a > b) + 0.5 * (a == b)) for a, c, _, u in rows for b, d, _, v in rows if c and not d]
    if pairs:
        expected = sum(weight * win for weight, win in pairs) / sum(weight for weight, _ in pairs)
        assert found.auc == pytest.approx(expected, rel=1e-9)
    else:
        assert math.isnan(found.auc)


@given(ROWS, st.randoms(use_true_random=False))
def test_neither_order_nor_ranks_change_a_bit(rows: list[Row], random: Random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert repr(metrics(shuffled)) == repr(metrics(rows))
    keyed = [arrays(order) for order in (rows, shuffled)]
    assert len({repr(grouped_auc(*order)) for order in keyed}) == 1
    gathered = ClickAccumulator(capacity=1, num_keys=1, weighted=True)
    for part in (shuffled[::2], shuffled[1::2]):
        logits, clicks, groups, weights = (torch.from_numpy(array) for array in arrays(part))
        rank = ClickAccumulator(capacity=1, num_keys=1, weighted=True)
        rank.add(logits, clicks.float(), groups.int()[:, None], weights)
        gathered.add_pairs(rank.pairs())
    all_logits, all_clicks, _, all_weights = arrays(rows)
    expected = replace(metrics(rows), reliability=reliability(all_logits, all_clicks, all_weights))
    assert repr(gathered.compute()) == repr(expected)
    assert sorted(gathered.keys(0).tolist()) == sorted(group for _, _, group, _ in rows)


@given(ROWS)
def test_only_the_ratios_of_weights_count(rows: list[Row]) -> None:
    doubled = [(logit, click, group, 2 * weight) for logit, click, group, weight in rows]
    assert repr(metrics(doubled)) == repr(metrics(rows))


def test_rows_without_weight_count_for_nothing() -> None:
    rows: list[Row] = [(1.0, True, 0, 0.0), (-1.0, False, 1, 0.0)]
    found = metrics(rows)
    assert (found.examples, math.isnan(found.auc), math.isnan(found.log_loss)) == (2, True, True)
    assert grouped_auc(*arrays(rows)).groups == 0


def test_slices_take_the_weights_of_their_rows() -> None:
    rows: list[Row] = [(0.5, True, 0, 2.0), (-0.5, True, 0, 1.0), (1.0, False, 1, 3.0), (2.0, True, 2, 1.0)]
    parts, others = slices(*arrays(rows)[:3], 1, arrays(rows)[3])
    assert parts[0].metrics == metrics(rows[:2])
    assert repr(others) == repr(metrics(rows[2:]))


def test_rows_with_and_without_weights_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="others have none"):
        ClickAccumulator(weighted=True).add(torch.zeros(1), torch.zeros(1))
