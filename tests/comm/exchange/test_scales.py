"""From every rank's abs-max to one scale."""

import numpy as np
import pytest

from dqrm_cpu.comm.exchange.codec import ScaleRule, require_finite
from dqrm_cpu.errors import TrainingError


def scales(rule: ScaleRule, *absmax: list[float]) -> list[float]:
    found: list[float] = rule.scales(np.array(absmax, dtype=np.float32)).tolist()
    return found


def test_max_covers_every_rank() -> None:
    assert scales(ScaleRule(2), [2, 8], [6, 4]) == [3, 4]


def test_mean_lies_between_the_ranks() -> None:
    assert scales(ScaleRule(2, mean=True), [2, 8], [6, 4]) == [2, 3]


def test_mean_does_not_overflow() -> None:
    assert scales(ScaleRule(1, mean=True), [3e38], [3e38]) == [pytest.approx(3e38)]


def test_the_first_serves_the_others_unless_it_has_nothing() -> None:
    assert scales(ScaleRule(2, first_only=True), [2, 0], [6, 4]) == [1, 2]


@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-38])
def test_a_scale_is_never_zero(tiny: float) -> None:
    assert scales(ScaleRule(127), [tiny]) == [1]


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_what_is_not_finite_names_group_and_rank(value: float, word: str) -> None:
    absmax = np.ones((3, 4), np.float32)
    absmax[2, 1] = value
    with pytest.raises(TrainingError, match=f"table 1 holds {word} on rank 2") as refused:
        require_finite(absmax, "table")
    assert refused.value.unanimous
