"""Bins of predictions against an obvious computation, row by row."""

import math
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.base.decode import UnreadableError, decoded
from dqrm_cpu.metrics.click import ClickAccumulator
from dqrm_cpu.metrics.reliability import BINS_PER_UNIT, Reliability, merged_bins, reliability

_logit = st.floats(-40, 40, width=32) | st.sampled_from([0.0, -0.0, 0.25, -0.25, 14.75, 15.0, -15.0, 1e30, -1e30])
_rows = st.lists(st.tuples(_logit, st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 3.0])), max_size=60)


def by_hand(rows: list[tuple[float, bool, float]]) -> dict[int, list[float]]:
    """The sums of rows, clicks and probabilities by the number of the bin."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for logit, click, weight in rows:
        number = max(-15 * BINS_PER_UNIT, min(math.floor(logit * BINS_PER_UNIT), 15 * BINS_PER_UNIT - 1))
        probability = 1 / (1 + math.exp(-max(logit, -700.0)))
        for place, value in enumerate((1.0, float(click), probability)):
            sums[number][place] += weight * value
    return {number: of_bin for number, of_bin in sums.items() if of_bin[0]}


@given(_rows, st.booleans(), st.randoms())
def test_bins_are_those_of_adding_up_row_by_row(rows: list[tuple[float, bool, float]], weighted: bool, chance) -> None:  # type: ignore[no-untyped-def]
    rows = [(logit, click, weight if weighted else 1.0) for logit, click, weight in rows]
    found = binned(rows, weighted)
    sums = zip(found.rows, found.clicks, found.predicted, strict=True)
    shown = {found.first + place: list(of_bin) for place, of_bin in enumerate(sums) if of_bin[0]}
    expected = by_hand(rows)
    assert shown.keys() == expected.keys()
    for number, of_bin in expected.items():
        assert shown[number] == pytest.approx(of_bin, rel=1e-12)
    chance.shuffle(rows)
    assert binned(rows, weighted) == found, "the order of the rows changes a sum"


def binned(rows: list[tuple[float, bool, float]], weighted: bool) -> Reliability:
    logits, clicks, weights = (np.array([row[place] for row in rows]) for place in range(3))
    each = weights.astype(np.float32) if weighted else None
    return reliability(logits.astype(np.float32), clicks.astype(bool), each)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 20))
def test_merged_bins_lose_no_row_and_are_few(rows: list[int], most: int) -> None:
    all_rows, clicks, predicted = (tuple(count / part for count in rows) for part in (1, 2, 4))
    bins = Reliability(-3, all_rows, clicks, predicted)
    merged = merged_bins(bins, most)
    assert merged.shape[0] <= most
    assert [Fraction(total) for total in merged.sum(0)] == [Fraction(sum(rows)) / part for part in (1, 2, 4)]
    assert merged.size == 0 or merged[:, 0].min() >= sum(rows) / most


def test_a_whole_evaluation_has_bins_and_their_sums_are_its_calibration() -> None:
    chance = np.random.default_rng(1)
    clicks = ClickAccumulator()
    clicks._append(
        chance.normal(size=500).astype(np.float32), chance.random(500) < 0.3, np.empty((500, 0), np.int32), None
    )
    metrics = clicks.compute()
    assert metrics.reliability is not None
    assert sum(metrics.reliability.rows) == 500
    assert sum(metrics.reliability.predicted) / sum(metrics.reliability.clicks) == pytest.approx(metrics.calibration)


@pytest.mark.parametrize(
    "document",
    [
        {"first": 0, "rows": [1.0], "clicks": [], "predicted": [0.5]},
        {"first": 0, "rows": [1.0], "clicks": [-1.0], "predicted": [0.5]},
        {"first": 0, "rows": [1.0] * 999, "clicks": [0.0] * 999, "predicted": [0.5] * 999},
    ],
    ids=["a sum is missing", "negative", "too many"],
)
def test_bins_that_cannot_be_are_not_read(document: dict[str, object]) -> None:
    with pytest.raises(UnreadableError, match="bins"):
        decoded(document, Reliability)
