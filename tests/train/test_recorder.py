"""Means of phases over the steps between two looks at the spans."""

import math

import pytest

from dqrm_cpu.timing import spans as spans_module
from dqrm_cpu.timing.spans import Spans
from dqrm_cpu.train.recorder import StepClock


def test_means_are_those_of_the_steps_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    monkeypatch.setattr(spans_module, "perf_counter_ns", lambda: now)
    spans = Spans()
    clock = StepClock(spans)

    def step(wire_ns: int, dense_ns: int, tables_ns: int) -> None:
        nonlocal now
        spans.begin_step()
        for span, spent in ((spans.wire, wire_ns), (spans.dense_update, dense_ns), (spans.embedding_update, tables_ns)):
            with span:
                now += spent
        spans.step_done()

    assert math.isnan(clock.since_last().wire_ms)
    step(10**9, 0, 0)
    clock.since_last()
    step(2_000_000, 500_000, 500_000)
    step(4_000_000, 500_000, 1_500_000)
    found = clock.since_last()
    assert (found.wire_ms, found.update_ms, found.merge_ms, found.ms_per_step) == (3.0, 1.5, 0.0, 4.5)
    step(1_000_000, 0, 0)
    assert clock.since_last().wire_ms == 1.0
