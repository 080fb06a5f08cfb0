"""A short round of chaos; what counts as growth."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos import Chaos, calm_arguments, lasting_result
from dqrm_cpu.cli.main import main
from growth import MEMORY_TOLERANCE, WARM_UP_STEPS, Sample, growth, too_much
from outcomes import Done

_STEPS = 105  # for events to come before the end on a machine that is quicker


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_killed_and_a_stopped_rank_change_nothing(tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    assert main(calm_arguments(calm, ranks=2, steps=_STEPS)) == 0
    chaos = Chaos(tmp_path, 2, "gloo", _STEPS, random.Random(0))
    chaos.round(lasting_result(calm), ["kill one", "stop one for a while"])
    assert chaos.problems == []
    assert chaos.counts == {"rounds": 1, "starts": 2, "resumes": 1, "kill one": 1, "stop one for a while": 1}


def test_another_end_than_the_calm_one_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chaos = Chaos(tmp_path, 2, "gloo", _STEPS, random.Random(0))
    monkeypatch.setattr("chaos.lasting_result", lambda run: "other weights")
    monkeypatch.setattr(chaos, "_start", lambda run, event: _finish(run))
    chaos.round("the calm run's weights", [])
    assert chaos.problems == ["2 ranks over gloo: the end of a disturbed run is not that of the calm one"]


def test_nothing_happens_once_the_time_is_up(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, 2, "gloo", _STEPS, random.Random(0))
    chaos.counts["rounds"] = 1
    assert list(chaos.draw_events(time.monotonic() - 1)) == []


_SAID = "dqrm-cpu: disk full"


@pytest.mark.parametrize(
    ("event", "ends", "problems"),
    [
        ("full disk", [Done(1, False, "", _SAID), Done(1, False, "", "")], 0),  # told once
        ("full disk", [Done(1, False, "", ""), Done(1, False, "", "")], 2),  # not told
        ("kill one", [Done(137, True, "", ""), Done(1, False, "", _SAID)], 0),
        ("kill one", [Done(137, True, "", ""), Done(137, True, "", "", timed_out=True)], 1),  # waits for ever
        ("kill one", [Done(137, True, "", ""), Done(139, True, "", "")], 1),
        ("TERM one", [Done(143, False, "", ""), Done(143, True, "", "")], 0),
        ("TERM one", [Done(143, False, "", ""), Done(137, True, "", "")], 1),
        ("stop one for a while", [Done(0, False, "", ""), Done(1, False, "", _SAID)], 1),
        ("nothing", [Done(0, False, "", ""), Done(0, False, "", "")], 0),
    ],
)
def test_ends_that_are_problems(tmp_path: Path, event: str, ends: list[Done], problems: int) -> None:
    chaos = Chaos(tmp_path, 2, "gloo", _STEPS, random.Random(0))
    chaos._judge(event, ends)
    assert len(chaos.problems) == problems


def test_chaos_that_watched_no_rank_is_a_problem(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, 2, "gloo", _STEPS, random.Random(0))
    chaos.require_watched()
    assert len(chaos.problems) == 1


_FLAT = [Sample(steps, 100 << 20, 20, 8) for steps in range(0, 1000, 10)]
_LAST_STEP = 985


@pytest.mark.parametrize(
    ("name", "leak"),
    [
        ("memory", lambda one: one._replace(memory=one.memory + MEMORY_TOLERANCE * one.steps // 500)),
        ("descriptors", lambda one: one._replace(descriptors=one.descriptors + one.steps // 500)),
        ("threads", lambda one: one._replace(threads=one.threads + (one.steps > 700))),
    ],
)
def test_what_leaks_is_growth(name: str, leak: Callable[[Sample], Sample]) -> None:
    gained = growth([leak(one) for one in _FLAT], _LAST_STEP)
    assert gained is not None
    (line,) = too_much(gained)
    assert line.startswith(f"{name} grew by ")


def test_what_comes_and_goes_is_no_growth() -> None:
    busy = [one._replace(descriptors=25, threads=9, memory=300 << 20) if one.steps % 30 else one for one in _FLAT]
    gained = growth(busy, _LAST_STEP)
    assert gained is not None
    assert too_much(gained) == []


def test_a_warm_up_and_the_end_are_no_growth() -> None:
    def held(one: Sample) -> Sample:
        return one._replace(memory=one.steps << 20) if not WARM_UP_STEPS <= one.steps <= _LAST_STEP else one

    gained = growth([held(one) for one in _FLAT], _LAST_STEP)
    assert gained is not None
    assert too_much(gained) == []


def test_a_process_that_ended_early_is_not_judged() -> None:
    assert growth([one for one in _FLAT if one.steps < WARM_UP_STEPS + 30], _LAST_STEP) is None


def _finish(run: Path) -> bool:
    run.mkdir()
    (run / "result.json").touch()
    return True
