"""Spans: what is inside them adds up, per step, and nothing else does."""

import json
from pathlib import Path

import pytest

from dqrm_cpu.timing import spans as spans_module
from dqrm_cpu.timing.phases import STEP_PHASES, Phase
from dqrm_cpu.timing.span_file import SpanFile, SpanFileError, read_spans
from dqrm_cpu.timing.spans import Spans


class Clock:
    """Moves on by a microsecond at every look."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1000
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(spans_module, "perf_counter_ns", clock)
    return clock


def warm_spans() -> Spans:
    """The first step, which compiles, is not counted."""
    spans = Spans()
    spans.begin_step()
    with spans.coalesce:
        pass
    spans.step_done()
    return spans


def one_step(spans: Spans) -> float:
    spans.begin_step()
    with spans.data:
        pass
    for _ in range(2):
        with spans.mlp_forward:
            pass
    return spans.step_done()


@pytest.mark.parametrize("steps", [1, 1023, 1024, 3000])
def test_a_step_is_the_sum_of_its_spans(steps: int) -> None:
    spans = warm_spans()
    seconds = [one_step(spans) for _ in range(steps)]
    summary = spans.summary()
    assert seconds == [pytest.approx(7e-6)] * steps  # seven looks lie between the first and the last
    assert set(summary.phases) == {Phase.DATA, Phase.MLP_FORWARD}
    assert summary.step.count == summary.phases[Phase.DATA].count == steps
    assert summary.phases[Phase.MLP_FORWARD].total_ms == pytest.approx(2e-3 * steps)
    assert summary.phases[Phase.MLP_FORWARD].median_ms == pytest.approx(2e-3)
    assert summary.covered == pytest.approx(3 / 7)


def test_what_the_model_does_between_steps_is_not_the_steps() -> None:
    spans = warm_spans()
    one_step(spans)
    with spans.evaluation:
        for _ in range(10):
            with spans.mlp_forward:
                pass
    with spans.evaluation:
        pass
    one_step(spans)
    summary = spans.summary()
    assert summary.phases[Phase.MLP_FORWARD].total_ms == pytest.approx(4e-3)
    assert summary.phases[Phase.EVALUATION].count == 2
    assert summary.phases[Phase.EVALUATION].max_ms == pytest.approx(21e-3)
    assert summary.covered == pytest.approx(3 / 7), "evaluations are no part of a step"


def test_a_failure_inside_a_span_comes_through() -> None:
    spans = Spans()
    with pytest.raises(ValueError, match="inside"), spans.wire:
        raise ValueError("inside")


def test_every_phase_has_its_span() -> None:
    spans = Spans()
    assert all(hasattr(spans, phase.key) for phase in Phase)
    assert [int(phase) for phase in STEP_PHASES] == list(range(len(STEP_PHASES)))
    assert len({phase.label for phase in Phase}) == len(Phase)


def test_an_observer_sees_begin_and_end_in_order() -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[tuple[object, ...]] = []

        def begin(self, label: str) -> None:
            self.heard.append(("begin", label))

        def end(self, label: str, start_ns: int, end_ns: int) -> None:
            self.heard.append(("end", label, end_ns - start_ns))

    listener = Listener()
    spans = Spans(listener)
    spans.begin_step()
    spans.step_done()
    listener.heard.clear()
    spans.begin_step()
    with spans.scale:
        pass
    spans.step_done()
    with spans.checkpoint:
        pass
    assert listener.heard == [
        ("begin", "step"),
        ("begin", "scale"),
        ("end", "scale", 1000),
        ("end", "step", 3000),
        ("begin", "checkpoint"),
        ("end", "checkpoint", 1000),
    ]
    assert spans.summary().phases[Phase.SCALE].total_ms == pytest.approx(1e-3)


def test_files_give_back_what_was_written(tmp_path: Path) -> None:
    spans = warm_spans()
    one_step(spans)
    for rank in (10, 0, 9):
        SpanFile(tmp_path, rank, first_step=0).write(1, spans.summary(), peak_memory_bytes=123)
    found = read_spans(tmp_path)
    assert [one.rank for one in found] == [0, 9, 10]
    assert (found[0].first_step, found[0].last_step, found[0].peak_memory_bytes) == (0, 1, 123)
    assert found[0].summary == spans.summary()


def test_a_resumed_run_keeps_what_it_found(tmp_path: Path) -> None:
    spans = warm_spans()
    one_step(spans)
    before = SpanFile(tmp_path, 0, first_step=0)
    before.write(20, spans.summary(), 1)
    before.write(40, spans.summary(), 1)
    SpanFile(tmp_path, 0, first_step=40).write(60, spans.summary(), 1)
    assert {path.name for path in (tmp_path / "spans").iterdir()} == {"rank0.json", "rank0-until-step-000000040.json"}
    assert [(one.first_step, one.last_step) for one in read_spans(tmp_path)] == [(40, 60)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"format": ' + "9" * 6_000 + "}",
        '{"format": "1"}',
        json.dumps({"format": 1, "step": {}}),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "spans").mkdir()
    (tmp_path / "spans" / "rank0.json").write_text(text)
    with pytest.raises(SpanFileError, match="holds no spans"):
        read_spans(tmp_path)
