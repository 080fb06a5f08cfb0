"""Click metrics from logits: exact AUC, accuracy, log loss, normalized entropy and calibration of a whole evaluation.

Every figure depends only on the multiset of (logit, label) pairs, to the bit: never on how they were split over batches
or ranks. Clicks and non-clicks are sorted apart, what can be counted is counted in integers, and sums run in FP64 over
the sorted values.
"""

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.errors import DataError, TrainingError

_Value = TypeVar("_Value", bound=np.generic)
_CHUNK = 1 << 20  # values in FP64 at a time, so that summing never doubles the memory of a large evaluation
_PAIR_BYTES = 5  # one f32 logit and one label byte


@dataclass(frozen=True)
class ClickMetrics:
    """NaN where a figure is not defined: auc needs both labels, normalized_entropy too, calibration needs a click."""

    auc: float  # the chance that a click ranks above a non-click; ties count half
    accuracy: float  # click predicted where the probability is above 0.5
    log_loss: float  # mean, in nats
    normalized_entropy: float  # log loss over that of always predicting the label rate
    calibration: float  # mean prediction over mean label
    examples: int
    skipped_rows: int = 0  # left out because they are not sound, where that was asked for

    def is_better_than(self, other: "ClickMetrics | None") -> bool:
        """By AUC; by log loss where neither has an AUC, for want of clicks or of anything else. NaN is never better."""
        if other is None:
            return True
        if math.isnan(self.auc) and math.isnan(other.auc):
            return self.log_loss < other.log_loss or (math.isnan(other.log_loss) and not math.isnan(self.log_loss))
        return self.auc > other.auc or (math.isnan(other.auc) and not math.isnan(self.auc))

    @property
    def why_no_auc(self) -> str:
        """In words, why AUC is undefined; empty where it is not."""
        if not math.isnan(self.auc):
            return ""
        if not self.examples:
            return "no rows"
        return "no clicks" if math.isnan(self.calibration) else "only clicks"


class ClickAccumulator:
    """Collects (logit, label) pairs of an evaluation; those of other ranks are added by `add_pairs`."""

    def __init__(self, capacity: int = 1 << 16) -> None:
        self._logits = np.empty(max(capacity, 1), np.float32)
        self._clicks = np.empty(max(capacity, 1), np.bool_)
        self._size = 0
        self.skipped_rows = 0
        """Rows that were left out."""

    @property
    def examples(self) -> int:
        return self._size

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """logits f32[B] and labels f32[B], each 0 or 1, on any device."""
        label_values = labels.detach().cpu().numpy().reshape(-1)
        clicks = label_values == 1
        if not np.all(clicks | (label_values == 0)):
            wrong = label_values[~(clicks | (label_values == 0))][0]
            raise DataError(f"a label is {wrong}, not 0 or 1; prepare the data set again, or check its label column")
        self._append(logits.detach().float().cpu().numpy().reshape(-1), clicks)

    def pairs(self) -> NDArray[np.uint8]:
        """All pairs as bytes, to travel to another rank: the logits, then the labels."""
        logits = self._logits[: self._size].view(np.uint8)
        return np.concatenate([logits, self._clicks[: self._size].view(np.uint8)])

    def add_pairs(self, pairs: NDArray[np.uint8]) -> None:
        """Adds what `pairs` returned elsewhere; several of them in any order give the same metrics."""
        count, rest = divmod(pairs.size, _PAIR_BYTES)
        if rest:
            raise ValueError(f"{pairs.size} bytes are no whole number of (logit, label) pairs")
        split = 4 * count
        # The copy aligns the logits: a message may start at any byte of its buffer.
        self._append(pairs[:split].copy().view(np.float32), pairs[split:].view(np.bool_))

    def clear(self) -> None:
        """Forgets the pairs, keeps the memory for the next evaluation."""
        self._size = self.skipped_rows = 0

    def compute(self) -> ClickMetrics:
        """Metrics of all pairs so far."""
        metrics = click_metrics(self._logits[: self._size], self._clicks[: self._size])
        return replace(metrics, skipped_rows=self.skipped_rows) if self.skipped_rows else metrics

    def _append(self, logits: NDArray[np.float32], clicks: NDArray[np.bool_]) -> None:
        if logits.size != clicks.size:
            raise ValueError(f"{logits.size} logits but {clicks.size} labels")
        end = self._size + logits.size
        if end > self._logits.size:
            capacity = max(end, 2 * self._logits.size)
            self._logits = _grown(self._logits, self._size, capacity)
            self._clicks = _grown(self._clicks, self._size, capacity)
        self._logits[self._size : end] = logits
        self._clicks[self._size : end] = clicks
        self._size = end


def defined(value: float, form: str) -> str:
    """A figure as text; `undefined` instead of NaN, as wide as `form` asks for."""
    return f"{'undefined':>{form.partition('.')[0].lstrip('<>') or '0'}}" if math.isnan(value) else f"{value:{form}}"


def click_metrics(logits: NDArray[np.float32], clicks: NDArray[np.bool_]) -> ClickMetrics:
    """Metrics of logits f32[N] and clicks bool[N] in any order."""
    _check_finite(logits)
    # Sorting is what makes the order of the examples irrelevant to everything below.
    positive, negative = np.sort(logits[clicks]), np.sort(logits[~clicks])
    num_positive, num_negative = positive.size, negative.size
    examples = num_positive + num_negative
    if examples == 0:
        return ClickMetrics(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    log_loss = math.fsum([_sum_softplus(-positive), _sum_softplus(negative)]) / examples
    predicted = math.fsum([_sum_sigmoid(positive), _sum_sigmoid(negative)])
    right = int(np.count_nonzero(positive > 0)) + int(np.count_nonzero(negative <= 0))
    return ClickMetrics(
        auc=_auc(positive, negative),
        accuracy=right / examples,
        log_loss=log_loss,
        normalized_entropy=_ratio(log_loss, _entropy(num_positive, num_negative)),
        calibration=_ratio(predicted, num_positive),
        examples=examples,
    )


def _auc(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    """Of all (click, non-click) pairs, the share ranked rightly; both arrays sorted."""
    num_pairs = positive.size * negative.size
    if num_pairs == 0:
        return math.nan
    twice_wins = 0
    for start in range(0, positive.size, _CHUNK):
        chunk = positive[start : start + _CHUNK]
        below = negative.searchsorted(chunk, side="left")
        not_above = negative.searchsorted(chunk, side="right")
        twice_wins += int(below.sum()) + int(not_above.sum())
    return twice_wins / (2 * num_pairs)  # integers of any size: one correctly rounded division


def _sum_softplus(values: NDArray[np.float32]) -> float:
    """Sum of log(1 + exp(v)), which neither overflows nor loses the small terms."""
    sums = []
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK].astype(np.float64)
        sums.append(float(np.sum(np.maximum(chunk, 0.0) + np.log1p(np.exp(-np.abs(chunk))))))
    return math.fsum(sums)


def _sum_sigmoid(values: NDArray[np.float32]) -> float:
    sums = []
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK].astype(np.float64)
        small = np.exp(-np.abs(chunk))  # at most 1: a large negative logit must not overflow
        sums.append(float(np.sum(np.where(chunk >= 0, 1.0, small) / (1.0 + small))))
    return math.fsum(sums)


def _entropy(num_positive: int, num_negative: int) -> float:
    """Entropy of the label rate, in nats; 0 when there is only one label."""
    examples = num_positive + num_negative
    return -math.fsum(count / examples * math.log(count / examples) for count in (num_positive, num_negative) if count)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _check_finite(logits: NDArray[np.float32]) -> None:
    wrong = logits.size - int(np.count_nonzero(np.isfinite(logits)))
    if wrong:
        raise TrainingError(
            f"{wrong} of {logits.size} predictions in the evaluation are not finite: the model has diverged; "
            "go back to an earlier checkpoint with a lower learning rate"
        )


def _grown(array: NDArray[_Value], size: int, capacity: int) -> NDArray[_Value]:
    larger = np.empty(capacity, array.dtype)
    larger[:size] = array[:size]
    return larger
