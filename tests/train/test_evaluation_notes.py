"""Hints of training: where it learns nothing, where it only falls, and none for a curve as it should be."""

import math
from collections.abc import Sequence

import pytest

from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.train.evaluation_notes import EvaluationNotes
from dqrm_cpu.train.progress import Progress
from dqrm_cpu.train.state import RunState

DEMO_INT4 = [0.7296, 0.7435, 0.7522, 0.7566, 0.7600, 0.7638, 0.7651, 0.7645, 0.7635, 0.7544, 0.7434, 0.7160]
DEMO_INT4_ENTROPY = [0.897, 0.876, 0.868, 0.858, 0.864, 0.853, 0.853, 0.855, 0.891, 0.925, 0.909, 1.117]
DEMO_FP32 = [0.7281, 0.7448, 0.7542, 0.7593, 0.7633, 0.7649, 0.7620, 0.7540, 0.7372, 0.7155, 0.7063, 0.6871]
DEMO_FP32_ENTROPY = [0.892, 0.874, 0.863, 0.857, 0.857, 0.866, 0.895, 0.925, 0.942, 1.164, 1.070, 1.263]


class Collected(Progress):
    def __init__(self) -> None:
        self.hints: list[str] = []

    def note(self, text: str) -> None:
        self.hints.append(text)


def hints(aucs: Sequence[float], entropies: Sequence[float], steps: int = 469, by: str = "auc") -> list[str]:
    """The hints of a run with these evaluations, one every `steps`; the state is kept as the loop does."""
    progress, state = Collected(), RunState()
    notes = EvaluationNotes(progress, by)
    for number, (auc, entropy) in enumerate(zip(aucs, entropies, strict=True), start=1):
        metrics = ClickMetrics(auc, 0.7, entropy / 2, entropy, 1.0, 1000)
        state.step = number * steps
        state.first_evaluated_step = steps
        if metrics.is_better_than(state.best_validation, by):
            state.best_validation, state.best_step, state.evaluations_without_better = metrics, state.step, 0
        else:
            state.evaluations_without_better += 1
        state.last_validation, state.evaluated_step = metrics, state.step
        notes.hint(state)
    return progress.hints


@pytest.mark.parametrize("by", ["auc", "log-loss", "ne"])
@pytest.mark.parametrize(
    ("aucs", "entropies"), [(DEMO_INT4, DEMO_INT4_ENTROPY), (DEMO_FP32, DEMO_FP32_ENTROPY)], ids=["int4", "fp32"]
)
def test_the_demo_gets_no_hint(aucs: list[float], entropies: list[float], by: str) -> None:
    """Curves as they were measured: they rise, and overfit until they are worse than the click rate alone."""
    assert hints(aucs, entropies, by=by) == []


def test_a_plateau_is_told_once() -> None:
    """The column with 200 values in docs/tuning.md, before it learns."""
    told = hints([0.5089, 0.5376, 0.5924], [1.0004, 1.00004, 0.9988], steps=402)
    assert len(told) == 1
    assert told[0].startswith("hint: after 402 steps the loss is no better than")
    assert "--tune 8" in told[0]
    assert "\n" not in told[0]


@pytest.mark.parametrize(
    ("aucs", "entropies", "steps"),
    [
        ([0.5], [1.0], 199),  # too early to say
        ([0.51, 0.7], [0.99, 0.9], 400),
        ([math.nan, math.nan, math.nan], [math.nan, math.nan, math.nan], 400),
        ([0.7, 0.6, 0.699], [0.9, 0.95, 0.9], 400),  # within chance
        ([0.7, 0.6, 0.72], [0.9, 0.95, 0.9], 400),
        ([0.7, 0.6], [0.9, 0.95], 400),
    ],
)
def test_no_hint(aucs: list[float], entropies: list[float], steps: int) -> None:
    assert hints(aucs, entropies, steps) == []


def test_a_peak_at_the_first_evaluation_is_told_once() -> None:
    told = hints([0.7, 0.69, 0.68, 0.67], [0.9, 0.95, 0.97, 0.99], steps=400)
    assert len(told) == 1
    assert told[0].startswith("hint: validation was best at the first evaluation, step 400,")
    assert "--train.evaluate-every 100 " in told[0]


def test_a_run_of_an_earlier_version_has_no_first_evaluation() -> None:
    progress, metrics = Collected(), ClickMetrics(0.7, 0.7, 0.5, 0.9, 1.0, 100)
    worse = ClickMetrics(0.6, 0.7, 0.5, 0.9, 1.0, 100)
    state = RunState(
        step=30, best_step=10, best_validation=metrics, last_validation=worse, evaluations_without_better=2
    )
    EvaluationNotes(progress, "auc").hint(state)
    assert progress.hints == []
