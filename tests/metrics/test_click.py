"""Click metrics against brute force, and their independence of how examples are split."""

import math
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from dqrm_cpu.errors import DataError, TrainingError
from dqrm_cpu.metrics.click import ClickAccumulator, ClickMetrics

Pairs = list[tuple[float, int]]

_few_values = st.sampled_from([-2.0, -0.5, -0.0, 0.0, 0.5, 1.0, 30.0, -200.0])
_logits = st.one_of(_few_values, st.floats(-100, 100, width=32))
_pairs = st.lists(st.tuples(_logits, st.integers(0, 1)), min_size=1, max_size=60)


def _add(accumulator: ClickAccumulator, pairs: Pairs) -> None:
    logits, labels = [logit for logit, _ in pairs], [float(label) for _, label in pairs]
    accumulator.add(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32))


def _metrics(pairs: Pairs) -> ClickMetrics:
    accumulator = ClickAccumulator(capacity=1)
    _add(accumulator, pairs)
    return accumulator.compute()


def _same(one: ClickMetrics, other: ClickMetrics) -> bool:
    return repr(one) == repr(other)  # equal to the bit, NaN included


@settings(deadline=None)
@given(_pairs)
def test_auc_counts_pairs_ranked_rightly_and_ties_by_half(pairs: Pairs) -> None:
    positive = [logit for logit, label in pairs if label]
    negative = [logit for logit, label in pairs if not label]
    auc = _metrics(pairs).auc
    if not positive or not negative:
        assert math.isnan(auc)
    else:
        halves = sum(2 * (p > n) + (p == n) for p in positive for n in negative)
        assert auc == halves / (2 * len(positive) * len(negative))


@settings(deadline=None)
@given(_pairs)
def test_accuracy_counts_probabilities_above_one_half(pairs: Pairs) -> None:
    assert _metrics(pairs).accuracy == sum((logit > 0) == bool(label) for logit, label in pairs) / len(pairs)


@settings(deadline=None)
@given(_pairs)
def test_log_loss_is_that_of_the_probabilities(pairs: Pairs) -> None:
    # -log(sigmoid(z)) = log(1 + exp(-z)), exact in the tails where 1 - sigmoid(z) is not
    losses = [np.logaddexp(0.0, -logit if label else logit) for logit, label in pairs]
    assert _metrics(pairs).log_loss == pytest.approx(math.fsum(losses) / len(losses), rel=1e-12)


@settings(deadline=None)
@given(_pairs)
def test_calibration_and_normalized_entropy_follow_from_the_label_rate(pairs: Pairs) -> None:
    metrics, rate = _metrics(pairs), sum(label for _, label in pairs) / len(pairs)
    predicted = math.fsum(1 / (1 + math.exp(-logit)) for logit, _ in pairs) / len(pairs)
    assert math.isnan(metrics.calibration) if rate == 0 else metrics.calibration == pytest.approx(predicted / rate)
    if rate in (0, 1):
        assert math.isnan(metrics.normalized_entropy)
    else:
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        assert metrics.normalized_entropy == pytest.approx(metrics.log_loss / entropy)


@settings(deadline=None)
@given(_pairs, st.randoms(use_true_random=False), st.lists(st.integers(0, 60), max_size=5))
def test_neither_order_nor_batches_nor_ranks_change_a_bit(pairs: Pairs, random: Random, cuts: list[int]) -> None:
    shuffled = random.sample(pairs, len(pairs))
    bounds = sorted([0, len(pairs), *(min(cut, len(pairs)) for cut in cuts)])
    ranks = [ClickAccumulator(capacity=1) for _ in range(3)]
    for number, (start, end) in enumerate(pairwise(bounds)):
        _add(ranks[number % 3], shuffled[start:end])
    gathered = ClickAccumulator(capacity=1)
    for rank in ranks:
        gathered.add_pairs(rank.pairs())
    assert _same(gathered.compute(), _metrics(pairs))


@settings(deadline=None)
@given(npst.arrays(np.float32, st.integers(1, 50), elements=st.floats(-5, 5, width=32)), st.randoms())
def test_pairs_may_start_at_any_byte_of_a_message(logits: NDArray[np.float32], random: Random) -> None:
    labels = torch.tensor([float(random.random() < 0.5) for _ in logits])
    accumulator, received = ClickAccumulator(), ClickAccumulator()
    accumulator.add(torch.from_numpy(logits), labels)
    received.add_pairs(np.concatenate([np.zeros(3, np.uint8), accumulator.pairs()])[3:])
    assert _same(received.compute(), accumulator.compute())


def test_large_evaluations_agree_across_chunks() -> None:
    # Larger than the chunks of the sums: half of the clicks tie with the one non-click value, half rank above.
    num = 1_200_000
    logits = torch.cat([torch.zeros(2 * num), torch.ones(num)])
    labels = torch.cat([torch.zeros(num), torch.ones(2 * num)])
    accumulator = ClickAccumulator()
    accumulator.add(logits, labels)
    metrics = accumulator.compute()
    assert metrics.auc == 0.75
    assert metrics.log_loss == pytest.approx((2 * math.log(2) + math.log1p(math.exp(-1))) / 3, rel=1e-12)
    assert metrics.examples == 3 * num


def test_extreme_logits_lose_nothing() -> None:
    metrics = _metrics([(-1000.0, 1), (1000.0, 1), (-1000.0, 0), (1000.0, 0)])
    assert metrics.log_loss == 500.0
    assert metrics.calibration == 1.0


def test_no_examples_give_nan() -> None:
    metrics = ClickAccumulator().compute()
    assert metrics.examples == 0
    assert math.isnan(metrics.auc)


def test_clear_forgets_the_pairs() -> None:
    accumulator = ClickAccumulator()
    _add(accumulator, [(1.0, 0), (2.0, 1)])
    accumulator.clear()
    _add(accumulator, [(1.0, 1)])
    assert accumulator.examples == 1
    assert accumulator.compute().accuracy == 1.0


@pytest.mark.parametrize("label", [2.0, -1.0, 0.5, math.nan])
def test_a_label_other_than_0_and_1_is_refused(label: float) -> None:
    with pytest.raises(DataError, match="not 0 or 1"):
        ClickAccumulator().add(torch.zeros(2), torch.tensor([1.0, label]))


@pytest.mark.parametrize("logit", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_not_finite_are_an_error(logit: float) -> None:
    accumulator = ClickAccumulator()
    accumulator.add(torch.tensor([0.0, logit]), torch.tensor([0.0, 1.0]))
    with pytest.raises(TrainingError, match="1 of 2 predictions"):
        accumulator.compute()


def test_logits_and_labels_must_pair_up() -> None:
    with pytest.raises(ValueError, match="3 logits but 2 labels"):
        ClickAccumulator().add(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="pairs"):
        ClickAccumulator().add_pairs(np.zeros(6, np.uint8))


_figure = st.sampled_from([math.nan, 0.25, 0.5, 0.75])
_rated = st.builds(ClickMetrics, _figure, _figure, _figure, _figure, _figure, st.just(8))


@given(_rated, _rated, st.sampled_from(["auc", "log-loss", "ne"]))
def test_the_better_of_two_has_the_better_figure_and_nan_is_never_better(
    one: ClickMetrics, other: ClickMetrics, by: str
) -> None:
    def order(metrics: ClickMetrics) -> tuple[float, float]:
        """Higher is better; log loss decides where neither has the figure."""
        figure = {"auc": metrics.auc, "log-loss": -metrics.log_loss, "ne": -metrics.normalized_entropy}[by]
        worst = -math.inf
        if math.isnan(figure):
            return worst, worst if math.isnan(metrics.log_loss) else -metrics.log_loss
        return figure, 0.0

    assert one.is_better_than(other, by) == (order(one) > order(other))
    assert one.is_better_than(None, by)
