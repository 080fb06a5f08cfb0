"""Where the time of a run goes: spans that are always on, because they cost a fraction of a percent of a step.

    with spans.gather_quantize:
        ...

A span adds its nanoseconds to its phase; `step_done` copies the sums of a step into a ring of preallocated rows, which
become statistics whenever it is full. Nothing grows, whatever the length of a run. Spans never nest: phases add up.
"""

from array import array
from collections.abc import Mapping
from time import perf_counter_ns
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from dqrm_cpu.timing.durations import Durations, Summary
from dqrm_cpu.timing.phases import STEP_PHASES, Phase

STEP_LABEL = "step"

_RING_STEPS = 1024
_COUNTED = (*STEP_PHASES, Phase.WIRE_HIDDEN)
_WALL = len(_COUNTED)  # the column behind those of the phases


class Observer(Protocol):
    """An observer of every span as it begins and ends; there is one only while profiling."""

    def begin(self, label: str) -> None: ...

    def end(self, label: str, start_ns: int, end_ns: int) -> None: ...


class Span:
    """A context manager for one phase, used again and again."""

    __slots__ = ("_phase", "_start", "_totals")

    def __init__(self, phase: Phase, totals: "array[int]") -> None:
        self._phase = int(phase)
        self._totals = totals
        self._start = 0

    def __enter__(self) -> None:
        self._start = perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._totals[self._phase] += perf_counter_ns() - self._start


class ObservedSpan(Span):
    """A span that an observer sees as well."""

    __slots__ = ("_label", "_observer")

    def __init__(self, phase: Phase, totals: "array[int]", observer: Observer) -> None:
        super().__init__(phase, totals)
        self._label = phase.label
        self._observer = observer

    def __enter__(self) -> None:
        self._observer.begin(self._label)
        self._start = perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = perf_counter_ns()
        self._totals[self._phase] += end - self._start
        self._observer.end(self._label, self._start, end)


class OffStepSpan:
    """A span of what is no part of a step: only an observer sees it. One thread at a time."""

    def __init__(self, label: str, observer: Observer | None) -> None:
        self._label = label
        self._observer = observer
        self._start = 0

    def __enter__(self) -> None:
        if self._observer is not None:
            self._observer.begin(self._label)
        self._start = perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = perf_counter_ns()
        self._took(end - self._start)
        if self._observer is not None:
            self._observer.end(self._label, self._start, end)

    def _took(self, nanoseconds: int) -> None:
        """Records the time; a subclass keeps it."""


class BetweenStepsSpan(OffStepSpan):
    """A span of what happens between steps; every time is a sample of its own."""

    def __init__(self, phase: Phase, durations: Durations, observer: Observer | None) -> None:
        super().__init__(phase.label, observer)
        self._durations = durations

    def _took(self, nanoseconds: int) -> None:
        self._durations.add(np.array([nanoseconds]))


class SpanSummary(NamedTuple):
    """The sums of a rank's spans: of a whole step, and of every phase that it went through.

    Samples of a phase are its sums over each step; evaluations and checkpoints are counted one by one.
    """

    step: Summary
    phases: Mapping[Phase, Summary]

    @property
    def covered(self) -> float:
        """The share of the steps' time that is inside spans."""
        return self.share_of(*STEP_PHASES)

    def share_of(self, *phases: Phase) -> float:
        """Returns the share of the steps' time that is inside these phases."""
        inside = sum(self.phases[phase].total_ms for phase in phases if phase in self.phases)
        return inside / self.step.total_ms if self.step.total_ms else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Returns the summary as files hold it."""
        phases = {phase.key: summary.as_dict() for phase, summary in self.phases.items()}
        return {"step": self.step.as_dict(), "phases": phases}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `as_dict` gave; other keys are passed over."""
        stored = values["phases"]
        phases = {phase: Summary(**stored[phase.key]) for phase in Phase if phase.key in stored}
        return cls(Summary(**values["step"]), phases)


class Spans:
    """The spans of a rank's main thread, and what they add up to; `wire_beside` is for a thread that sends."""

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer
        self._totals = array("q", bytes(8 * (_WALL + 1)))  # of the step under way
        self._row = np.frombuffer(self._totals, dtype=np.int64)
        self._ring = np.zeros((_RING_STEPS, _WALL + 1), dtype=np.int64)
        self._filled = 0
        self._warm = False
        self._step_start = 0
        self._durations = {phase: Durations() for phase in Phase}
        self._step_durations = Durations()
        self.data = self._span(Phase.DATA)
        self.scale = self._span(Phase.SCALE)
        self.mlp_quantize = self._span(Phase.MLP_QUANTIZE)
        self.gather_quantize = self._span(Phase.GATHER_QUANTIZE)
        self.mlp_forward = self._span(Phase.MLP_FORWARD)
        self.interaction = self._span(Phase.INTERACTION)
        self.loss = self._span(Phase.LOSS)
        self.mlp_backward = self._span(Phase.MLP_BACKWARD)
        self.coalesce = self._span(Phase.COALESCE)
        self.quantize_gradients = self._span(Phase.QUANTIZE_GRADIENTS)
        self.wire = self._span(Phase.WIRE)
        # Of another thread: an observer sees it, and the step does not count it.
        self.wire_beside = self._uncounted(Phase.WIRE)
        self.merge = self._span(Phase.MERGE)
        self.mlp_exchange = self._span(Phase.MLP_EXCHANGE)
        self.embedding_update = self._span(Phase.EMBEDDING_UPDATE)
        self.dense_update = self._span(Phase.DENSE_UPDATE)
        self.evaluation = self._between_steps_span(Phase.EVALUATION)
        self.checkpoint = self._between_steps_span(Phase.CHECKPOINT)

    def wire_hidden(self, nanoseconds: int) -> None:
        """Counts so long that a message was under way in another thread, and nobody waited for it."""
        self._totals[Phase.WIRE_HIDDEN] += max(0, nanoseconds)

    def _span(self, phase: Phase) -> Span:
        return self._adding(phase, self._totals)

    def _uncounted(self, phase: Phase) -> Span:
        return self._adding(phase, array("q", bytes(8 * len(_COUNTED))))

    def _adding(self, phase: Phase, totals: "array[int]") -> Span:
        if self._observer is None:
            return Span(phase, totals)
        return ObservedSpan(phase, totals, self._observer)

    def _between_steps_span(self, phase: Phase) -> BetweenStepsSpan:
        return BetweenStepsSpan(phase, self._durations[phase], self._observer)

    def aside(self, label: str) -> OffStepSpan:
        """Returns a context manager for what another thread does meanwhile, such as reading ahead."""
        return OffStepSpan(label, self._observer)

    def begin_step(self) -> None:
        """Starts the clock of a step; what the model spent on anything else since the last one is not the step's."""
        self._row.fill(0)
        if self._observer is not None:
            self._observer.begin(STEP_LABEL)
        self._step_start = perf_counter_ns()

    def step_done(self) -> float:
        """Notes the step that `begin_step` began, but for the first, which compiles; returns its seconds."""
        end = perf_counter_ns()
        if self._observer is not None:
            self._observer.end(STEP_LABEL, self._step_start, end)
        if self._warm:
            self._totals[_WALL] = end - self._step_start
            self._ring[self._filled] = self._row
            self._filled += 1
            if self._filled == _RING_STEPS:
                self._drain()
        self._warm = True
        return (end - self._step_start) * 1e-9

    def forget(self) -> None:
        """Forgets everything so far, which was to warm up."""
        self._drain()
        for durations in (*self._durations.values(), self._step_durations):
            durations.clear()

    def summary(self) -> SpanSummary:
        """Returns what everything so far added up to."""
        self._drain()
        summaries = {phase: durations.summary() for phase, durations in self._durations.items()}
        used = {phase: summary for phase, summary in summaries.items() if summary.total_ms}
        return SpanSummary(self._step_durations.summary(), used)

    def _drain(self) -> None:
        rows = self._ring[: self._filled]
        for phase in _COUNTED:
            self._durations[phase].add(rows[:, phase])
        self._step_durations.add(rows[:, _WALL])
        self._filled = 0
