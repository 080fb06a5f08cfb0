"""What a run tells of an evaluation: its figures in a line, and a warning where they are not what they seem."""

from dqrm_cpu.config import DataConfig
from dqrm_cpu.data.store.run_data import SYNTHETIC
from dqrm_cpu.metrics.click import FIGURE_NAMES, ClickMetrics, defined
from dqrm_cpu.train.progress import Progress
from dqrm_cpu.train.state import RunState

_LEARNS_NOTHING = 0.995
"""Normalized entropy from which a model knows little but the click rate: the demo's is .90 after an epoch."""

_LEAST_STEPS = 200
_EVALUATIONS_BELOW = 2
_LEAST_FALL = 0.002

_HONEST = 1.2  # times as many clicks predicted as there were, or as many times too few
_LEAST_ROWS = 1000  # below, chance alone may do that


class EvaluationNotes:
    """Tells of the evaluations of one run; `best_by` is the figure that decides which of them is the best."""

    def __init__(self, progress: Progress, best_by: str) -> None:
        self._progress = progress
        self._best_by = best_by
        self._warned_no_auc = False
        self._hinted = False

    def validated(self, place: str, metrics: ClickMetrics, better: bool) -> None:
        """Tells the figures of an evaluation on validation; `better` says that it is the best so far."""
        by = self._best_by
        entropy = f"  normalized entropy {defined(metrics.normalized_entropy, '.4f')}" if by == "ne" else ""
        how = "" if by == "auc" else f" by {FIGURE_NAMES[by]}"
        self._progress.note(
            f"{place}  validation AUC {defined(metrics.auc, '.4f')}  accuracy {metrics.accuracy:.2%}  "
            f"log loss {metrics.log_loss:.4f}{entropy}{f'  best so far{how}' if better else ''}"
        )

    def hint(self, state: RunState) -> None:
        """Says what to try where training learns next to nothing, or has gone down ever since the first evaluation."""
        last, best = state.last_validation, state.best_validation
        if last is None or best is None or self._hinted:
            return
        text = _nothing_learned(state.step, last, best)
        if state.best_step == state.first_evaluated_step and state.evaluations_without_better == _EVALUATIONS_BELOW:
            text = text or _only_fallen(state.first_evaluated_step, last, best, self._best_by)
        if text:
            self._hinted = True
            self._progress.note(f"hint: {text} (docs/tuning.md)")

    def warn_of_validation(self, metrics: ClickMetrics) -> None:
        """Warns of an evaluation without an AUC, once; and of one over fewer rows than there are."""
        if metrics.why_no_auc and not self._warned_no_auc:
            self._warned_no_auc = True
            self._progress.warn(
                f"the validation rows have {metrics.why_no_auc}: AUC is undefined; the best step is chosen by log loss",
                alike=True,
            )
        self.warn_of_skipped_rows(metrics, "validation")

    def warn_of_skipped_rows(self, metrics: ClickMetrics, part: str) -> None:
        """Warns of an evaluation over fewer rows of a part than there are."""
        if metrics.skipped_rows:
            self._progress.warn(
                f"{metrics.skipped_rows:,} {part} rows are not sound and were left out of the metrics",
                alike=True,
            )


def _nothing_learned(step: int, last: ClickMetrics, best: ClickMetrics) -> str:
    """Returns a hint where neither evaluation is better than the click rate alone; a model that overfits once was."""
    entropies = (last.normalized_entropy, best.normalized_entropy)
    if step < _LEAST_STEPS or not all(entropy >= _LEARNS_NOTHING for entropy in entropies):
        return ""
    return (
        f"after {step:,} steps the loss is no better than that of guessing by the click rate alone (normalized entropy "
        f"{last.normalized_entropy:.3f}): try --tune 8, another --train.learning-rate, or "
        "--train.optimizer rowwise-adagrad"
    )


def _only_fallen(first: int, last: ClickMetrics, best: ClickMetrics, by: str) -> str:
    """Returns a hint where the best was the first, by more than chance."""
    if not abs(best.figure(by) - last.figure(by)) > _LEAST_FALL:
        return ""
    return (
        f"validation was best at the first evaluation, step {first:,}, and has only become worse: try --tune 8, a "
        f"lower --train.learning-rate, or find the peak with --train.evaluate-every {max(first // 4, 1)}"
    )


def calibration_warning(metrics: ClickMetrics, part: str, data: DataConfig) -> str | None:
    """Says that probabilities are far from what happened, and the likely reason; None where they are not."""
    found = metrics.calibration
    if metrics.examples < _LEAST_ROWS or not (found > _HONEST or found < 1 / _HONEST):
        return None
    return f"{found:.2f} clicks are predicted on {part} rows for each that there was: {_likely_reason(found > 1, data)}"


def _likely_reason(too_many: bool, data: DataConfig) -> str:
    trained_too_far = "the model ranks better than it predicts; --train.best-by log-loss or evaluate --calibrate help"
    if data.source == SYNTHETIC:
        return trained_too_far
    if too_many:
        known = f" (now {data.negative_keep_rate:g})" if data.negative_keep_rate < 1 else ""
        return (
            "where the log lost rows without a click before training, --data.negative-keep-rate says what share is "
            f"left{known}; otherwise {trained_too_far}"
        )
    if data.negative_keep_rate < data.evaluation_keep_rate:
        return (
            "where these rows lost some without a click as the training rows did, say so with "
            f"--data.evaluation-keep-rate {data.negative_keep_rate:g}; otherwise {trained_too_far}"
        )
    return f"where clicks have become more frequent since training, train on newer rows; otherwise {trained_too_far}"
