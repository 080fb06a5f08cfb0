"""What a checkpoint keeps beside tensors comes back as it was, from earlier versions too, and nothing else does."""

import json
import math

import pytest

from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.train.metrics_log import LogMark
from dqrm_cpu.train.state import RunState

STATE = RunState(step=7, best_validation=ClickMetrics(0.5, 0.5, math.inf, 1.0, 1.0, 9), log=LogMark(2, 3))


def stored() -> dict[str, object]:
    document: dict[str, object] = json.loads(json.dumps(STATE.as_dict()))
    return document


def test_a_state_comes_back() -> None:
    assert RunState.from_dict(stored()) == STATE


def test_a_state_of_an_earlier_version_comes_back() -> None:
    found = RunState.from_dict({name: value for name, value in stored().items() if name not in ("log", "window_sent")})
    assert found.log is None
    assert found.step == 7


@pytest.mark.parametrize(
    "change",
    [{"step": "7"}, {"step": None}, {"best_validation": {"": 0}}, {"best_validation": 3}, {"window_sent": [1, "2"]}],
    ids=str,
)
def test_a_state_of_another_shape_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="use another checkpoint"):
        RunState.from_dict({**stored(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"evaluated_step": 7, "best_step": 7},
        {"evaluated_step": 5, "best_step": -1},
        {"evaluated_step": 7, "last_validation": stored()["best_validation"], "best_validation": None},
        {"best_step": 3, "best_validation": None},
    ],
    ids=str,
)
def test_a_state_that_was_evaluated_has_metrics(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="has no metrics of them; use another checkpoint"):
        RunState.from_dict({**stored(), **change})
