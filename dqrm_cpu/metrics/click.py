"""Click metrics from logits: exact AUC, accuracy, log loss, normalized entropy and calibration of a whole evaluation.

Every figure depends only on the multiset of (logit, label) pairs, to the bit: never on how they were split over batches
or ranks. Clicks and non-clicks are sorted apart, what can be counted is counted in integers, and sums run in FP64 over
the sorted values. Rows may have weights: then each counts as often as its weight says.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.errors import DataError, TrainingError
from dqrm_cpu.metrics.calibration import sigmoid
from dqrm_cpu.metrics.reliability import Reliability, reliability
from dqrm_cpu.metrics.weighted import CHUNK, WeightedRows, weighted_auc

_Value = TypeVar("_Value", bound=np.generic)
_PAIR_BYTES = 5  # one f32 logit and one label byte
_WEIGHT_BYTES = 4  # an f32, where rows have weights
_KEY_BYTES = 4  # an int32 id of a column by which rows are grouped
_FIGURES = {"auc": "auc", "log-loss": "log_loss", "ne": "normalized_entropy"}

FIGURE_NAMES: Mapping[str, str] = {"auc": "AUC", "log-loss": "log loss", "ne": "normalized entropy"}
"""How texts name the metrics that `--train.best-by` chooses from."""


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
    reliability: Reliability | None = None  # of whole evaluations

    def is_better_than(self, other: "ClickMetrics | None", by: str = "auc") -> bool:
        """Compares by one figure (auc, log-loss or ne), or by log loss where neither has it. NaN is never better.

        A higher AUC is better, a lower log loss, a lower normalized entropy.
        """
        if other is None:
            return True
        mine, theirs = self.figure(by), other.figure(by)
        if math.isnan(mine) and math.isnan(theirs):
            mine, theirs, by = self.log_loss, other.log_loss, "log-loss"
        if math.isnan(mine) or math.isnan(theirs):
            return math.isnan(theirs) and not math.isnan(mine)
        return mine > theirs if by == "auc" else mine < theirs

    def figure(self, by: str) -> float:
        """Returns the figure that decides which of two evaluations is better: auc, log-loss or ne."""
        return float(getattr(self, _FIGURES[by]))

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values by name, without bins where there are none."""
        values = asdict(self)
        if self.reliability is None:
            del values["reliability"]
        return values

    @property
    def why_no_auc(self) -> str:
        """Says why AUC is undefined; empty where it is not."""
        if not math.isnan(self.auc):
            return ""
        if not self.examples:
            return "no rows"
        return "no clicks" if math.isnan(self.calibration) else "only clicks"


class ClickAccumulator:
    """Collects (logit, label) pairs of an evaluation; those of other ranks are added by `add_pairs`.

    With each pair it keeps `num_keys` ids, of the columns by which the rows are grouped, and where rows are `weighted`
    the weight of its row.
    """

    def __init__(self, capacity: int = 1 << 16, num_keys: int = 0, weighted: bool = False) -> None:
        self._num_keys = num_keys
        self._weights = np.empty(max(capacity, 1), np.float32) if weighted else None
        self._logits = np.empty(max(capacity, 1), np.float32)
        self._clicks = np.empty(max(capacity, 1), np.bool_)
        self._keys = np.empty((max(capacity, 1), num_keys), np.int32)
        self._size = 0
        self.skipped_rows = 0
        """Rows that were left out."""

    @property
    def examples(self) -> int:
        return self._size

    @property
    def logits(self) -> NDArray[np.float32]:
        """All logits so far, f32[N]."""
        return self._logits[: self._size]

    @property
    def clicks(self) -> NDArray[np.bool_]:
        """The label of each, bool[N]."""
        return self._clicks[: self._size]

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """The weight of each, f32[N]; None where every row counts once."""
        return None if self._weights is None else self._weights[: self._size]

    def keys(self, number: int) -> NDArray[np.int64]:
        """The ids of one of the columns by which the rows are grouped, i64[N]."""
        return self._keys[: self._size, number].astype(np.int64)

    def add(self, logits: Tensor, labels: Tensor, keys: Tensor | None = None, weights: Tensor | None = None) -> None:
        """logits f32[B], labels f32[B], each 0 or 1, keys int32[B, num_keys] and weights f32[B], on any device."""
        label_values = labels.detach().cpu().numpy().reshape(-1)
        clicks = label_values == 1
        if not np.all(clicks | (label_values == 0)):
            wrong = label_values[~(clicks | (label_values == 0))][0]
            raise DataError(f"a label is {wrong}, not 0 or 1; prepare the data set again, or check its label column")
        key_values = np.empty((clicks.size, 0), np.int32) if keys is None else keys.cpu().numpy()
        weight_values = None if weights is None else weights.cpu().numpy()
        self._append(logits.detach().float().cpu().numpy().reshape(-1), clicks, key_values, weight_values)

    def pairs(self) -> NDArray[np.uint8]:
        """All pairs as bytes, to travel to another rank: the logits, then the labels, the keys, and any weights."""
        parts = (self.logits, self.clicks, self._keys[: self._size].reshape(-1), self.weights)
        return np.concatenate([part.view(np.uint8) for part in parts if part is not None])

    def add_pairs(self, pairs: NDArray[np.uint8]) -> None:
        """Adds what `pairs` returned elsewhere; several of them in any order give the same metrics."""
        unweighted_bytes = _PAIR_BYTES + _KEY_BYTES * self._num_keys
        count, rest = divmod(pairs.size, unweighted_bytes + (0 if self._weights is None else _WEIGHT_BYTES))
        if rest:
            raise ValueError(f"{pairs.size} bytes are no whole number of (logit, label) pairs")
        logits, clicks, keys, weights = np.split(pairs, [4 * count, _PAIR_BYTES * count, unweighted_bytes * count])
        # The copies align the numbers: a message may start at any byte of its buffer.
        key_values = keys.copy().view(np.int32).reshape(count, self._num_keys)
        weight_values = None if self._weights is None else weights.copy().view(np.float32)
        self._append(logits.copy().view(np.float32), clicks.view(np.bool_), key_values, weight_values)

    def clear(self) -> None:
        """Forgets the pairs, keeps the memory for the next evaluation."""
        self._size = self.skipped_rows = 0

    def compute(self) -> ClickMetrics:
        """Metrics of all pairs so far."""
        metrics = click_metrics(self.logits, self.clicks, self.weights)
        binned = reliability(self.logits, self.clicks, self.weights) if metrics.examples else None
        return replace(metrics, skipped_rows=self.skipped_rows, reliability=binned)

    def _append(
        self,
        logits: NDArray[np.float32],
        clicks: NDArray[np.bool_],
        keys: NDArray[np.int32],
        weights: NDArray[np.float32] | None,
    ) -> None:
        if logits.size != clicks.size:
            raise ValueError(f"{logits.size} logits but {clicks.size} labels")
        if keys.shape != (logits.size, self._num_keys):
            raise ValueError(f"{logits.size} logits with {self._num_keys} keys each, but keys [{keys.shape}]")
        if (weights is None) != (self._weights is None):
            raise ValueError("some rows have weights and others have none")
        end = self._size + logits.size
        if end > self._logits.size:
            capacity = max(end, 2 * self._logits.size)
            self._logits = _grown(self._logits, self._size, capacity)
            self._clicks = _grown(self._clicks, self._size, capacity)
            self._keys = _grown(self._keys, self._size, capacity)
            self._weights = None if self._weights is None else _grown(self._weights, self._size, capacity)
        self._logits[self._size : end] = logits
        self._clicks[self._size : end] = clicks
        self._keys[self._size : end] = keys
        if self._weights is not None:
            self._weights[self._size : end] = weights
        self._size = end


def defined(value: float, form: str) -> str:
    """Formats a figure; `undefined` instead of NaN, as wide as `form` asks for."""
    return f"{'undefined':>{form.partition('.')[0].lstrip('<>') or '0'}}" if math.isnan(value) else f"{value:{form}}"


def click_metrics(
    logits: NDArray[np.float32], clicks: NDArray[np.bool_], weights: NDArray[np.float32] | None = None
) -> ClickMetrics:
    """Computes the metrics of logits f32[N] and clicks bool[N] in any order; weights f32[N] or None: each counts once.

    Rows of weight 0 count in `examples` only.
    """
    _check_finite(logits)
    if weights is not None:
        return _weighted_metrics(logits, clicks, weights)
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


def _weighted_metrics(
    logits: NDArray[np.float32], clicks: NDArray[np.bool_], weights: NDArray[np.float32]
) -> ClickMetrics:
    """Computes the metrics of rows that count as often as their weights say."""
    positive, negative = WeightedRows(logits[clicks], weights[clicks]), WeightedRows(logits[~clicks], weights[~clicks])
    total = positive.total + negative.total
    log_loss = _ratio(math.fsum([positive.sum_of(lambda x: _softplus(-x)), negative.sum_of(_softplus)]), total)
    predicted = math.fsum([positive.sum_of(sigmoid), negative.sum_of(sigmoid)])
    right = (
        positive.sum_of(lambda x: (x > 0).astype(np.float64)),
        negative.sum_of(lambda x: (x <= 0).astype(np.float64)),
    )
    return ClickMetrics(
        auc=weighted_auc(positive, negative),
        accuracy=_ratio(sum(right), total),
        log_loss=log_loss,
        normalized_entropy=_ratio(log_loss, _entropy(positive.total, negative.total) if total else 0.0),
        calibration=_ratio(predicted, positive.total),
        examples=logits.size,
    )


def _auc(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    """Computes the share of all (click, non-click) pairs that are ranked rightly; both arrays sorted."""
    num_pairs = positive.size * negative.size
    if num_pairs == 0:
        return math.nan
    twice_wins = 0
    for start in range(0, positive.size, CHUNK):
        chunk = positive[start : start + CHUNK]
        below = negative.searchsorted(chunk, side="left")
        not_above = negative.searchsorted(chunk, side="right")
        twice_wins += int(below.sum()) + int(not_above.sum())
    return twice_wins / (2 * num_pairs)  # integers of any size: one correctly rounded division


def _sum_softplus(values: NDArray[np.float32]) -> float:
    """Sums log(1 + exp(v)) without overflow and without losing the small terms."""
    sums = []
    for start in range(0, values.size, CHUNK):
        sums.append(float(np.sum(_softplus(values[start : start + CHUNK].astype(np.float64)))))
    return math.fsum(sums)


def _sum_sigmoid(values: NDArray[np.float32]) -> float:
    sums = []
    for start in range(0, values.size, CHUNK):
        sums.append(float(np.sum(sigmoid(values[start : start + CHUNK].astype(np.float64)))))
    return math.fsum(sums)


def _softplus(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.maximum(values, 0.0) + np.log1p(np.exp(-np.abs(values)))
    return result


def _entropy(num_positive: float, num_negative: float) -> float:
    """Computes the entropy of the label rate, in nats, from counts or weights; 0 when there is only one label."""
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
    larger = np.empty((capacity, *array.shape[1:]), array.dtype)
    larger[:size] = array[:size]
    return larger
