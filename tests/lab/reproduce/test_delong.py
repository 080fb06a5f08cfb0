"""DeLong's test against its definition, a worked example and a bootstrap over rows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dqrm_cpu.lab.reproduce.pareto.delong import Placements, placements, rows_p
from dqrm_cpu.metrics.click import click_metrics

Logits = NDArray[np.float32]
Clicks = NDArray[np.bool_]


def placements_by_pairs(logits: Logits, clicks: Clicks) -> Placements:
    """Compares every click with every other row: what `placements` is, said slowly."""
    positive, negative = logits[clicks][:, None], logits[~clicks][None, :]
    wins = np.where(positive > negative, 1.0, np.where(positive == negative, 0.5, 0.0))
    return Placements(wins.mean(1), wins.mean(0))


@st.composite
def scored_rows(draw: st.DrawFn) -> tuple[Logits, Clicks]:
    """A few rows of both labels, many of them tied."""
    seed, count = draw(st.integers(0, 2**32 - 1)), draw(st.integers(2, 40))
    random = np.random.default_rng(seed)
    clicks = random.random(count) < 0.4
    clicks[:2] = True, False
    return random.integers(-3, 4, count).astype(np.float32), clicks


@settings(max_examples=60, deadline=None)
@given(scored_rows())
def test_placements_are_those_of_all_pairs(rows: tuple[Logits, Clicks]) -> None:
    mine, slow = placements(*rows), placements_by_pairs(*rows)
    np.testing.assert_allclose(mine.of_clicks, slow.of_clicks, atol=1e-12)
    np.testing.assert_allclose(mine.of_others, slow.of_others, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(scored_rows())
def test_their_means_are_the_auc(rows: tuple[Logits, Clicks]) -> None:
    mine = placements(*rows)
    assert mine.auc == pytest.approx(click_metrics(*rows).auc, abs=1e-12)
    assert float(mine.of_others.mean()) == pytest.approx(mine.auc, abs=1e-12)


def test_a_worked_example() -> None:
    """Clicks score 2 and 4, others 1, 2 and 3: placements 1.5/3 and 1; 1, .75 and .5."""
    clicks = np.array([True, True, False, False, False])
    mine = placements(np.array([2, 4, 1, 2, 3], np.float32), clicks)
    assert mine.of_clicks.tolist() == [0.5, 1.0]
    assert mine.of_others.tolist() == [1.0, 0.75, 0.5]
    assert mine.variance == pytest.approx(0.125 / 2 + 0.0625 / 3)
    other = placements(np.array([3, 4, 1, 2, 3], np.float32), clicks)
    difference = other.minus(mine)  # 1/3 and 0; 0, .25 and .0
    assert difference.variance == pytest.approx(np.var([1 / 3, 0], ddof=1) / 2 + np.var([0, 0.25, 0.25], ddof=1) / 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    (one, other), clicks = two_models(seed, 200)
    order = np.random.default_rng(seed).permutation(200)
    plain = placements(one, clicks).minus(placements(other, clicks))
    shuffled = placements(one[order], clicks[order]).minus(placements(other[order], clicks[order]))
    assert rows_p([plain], same_rows=True) == pytest.approx(rows_p([shuffled], same_rows=True))


def two_models(seed: int, count: int) -> tuple[tuple[Logits, Logits], Clicks]:
    """Scores of the same rows by two models that err together."""
    random = np.random.default_rng(seed)
    clicks = random.random(count) < 0.25
    clicks[:4] = True, False, True, False
    shared = random.normal(size=count) + clicks
    one, other = (shared + 0.5 * random.normal(size=count) for _ in range(2))
    return (one.astype(np.float32), other.astype(np.float32)), clicks


def test_the_variance_is_that_of_a_bootstrap_over_rows() -> None:
    (one, other), clicks = two_models(5, 1500)
    difference = placements(one, clicks).minus(placements(other, clicks))
    random, drawn = np.random.default_rng(1), []
    for _ in range(600):
        rows = random.integers(0, clicks.size, clicks.size)
        aucs = [click_metrics(logits[rows], clicks[rows]).auc for logits in (one, other)]
        drawn.append(aucs[0] - aucs[1])
    assert math.sqrt(difference.variance) == pytest.approx(float(np.std(drawn)), rel=0.12)


def test_equal_models_have_no_p() -> None:
    (one, _), clicks = two_models(2, 300)
    same = placements(one, clicks).minus(placements(one, clicks))
    assert math.isnan(rows_p([same], same_rows=True))


def test_p_is_as_often_small_as_it_says() -> None:
    """Two models that are equally good: 5% of the tests find a difference."""
    found = []
    for seed in range(400):
        (one, other), clicks = two_models(seed, 300)
        found.append(rows_p([placements(one, clicks).minus(placements(other, clicks))], same_rows=True))
    assert 0.025 < np.mean(np.array(found) < 0.05) < 0.085


def test_repetitions_on_the_same_rows_do_not_make_rows() -> None:
    """The same difference four times is no surer on one set of rows, and twice as sure on four."""
    (one, other), clicks = two_models(3, 400)
    difference = placements(one, clicks).minus(placements(other, clicks))
    alone = rows_p([difference], same_rows=True)
    assert rows_p([difference] * 4, same_rows=True) == pytest.approx(alone)
    z = abs(float(difference.of_clicks.mean())) / math.sqrt(difference.variance)
    assert rows_p([difference] * 4, same_rows=False) == pytest.approx(math.erfc(2 * z / math.sqrt(2)))


def test_a_single_click_says_nothing() -> None:
    clicks = np.array([True, False, False])
    one = placements(np.array([1, 2, 0], np.float32), clicks)
    assert math.isnan(one.variance)
