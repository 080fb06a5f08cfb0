"""A profile as a Chrome trace, which Perfetto and chrome://tracing open: one process per rank, one track per thread."""

from collections.abc import Sequence
from typing import Any

from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profile.spans import STEP_LABEL
from dqrm_cpu.profiler.timeline import Event, Timeline

_PHASE_LABELS = frozenset(phase.label for phase in Phase)
_MAIN = "main"


def chrome_trace(ranks: Sequence[Timeline], hosts: Sequence[str]) -> dict[str, Any]:
    """`ranks`: of each, on a clock that all share. Microseconds since the first event."""
    first = min((event.start_ns for timeline in ranks for event in timeline.events), default=0)
    trace: list[dict[str, Any]] = []
    for rank, timeline in enumerate(ranks):
        names = timeline.thread_names
        main = next((thread for thread, name in names.items() if name == _MAIN), 0)
        trace.append(_metadata("process_name", rank, main, {"name": f"rank {rank} on {hosts[rank]}"}))
        trace.append(_metadata("process_sort_index", rank, main, {"sort_index": rank}))
        for place, (thread, name) in enumerate(sorted(names.items(), key=lambda one: (one[0] != main, one[1], one[0]))):
            trace.append(_metadata("thread_name", rank, thread, {"name": name}))
            trace.append(_metadata("thread_sort_index", rank, thread, {"sort_index": place}))
        # Viewers nest what lies within: the longer first where two begin together.
        for event in sorted(timeline.events, key=lambda event: (event.start_ns, -event.end_ns)):
            trace.append(_complete(event, rank, first))
    return {"displayTimeUnit": "ms", "traceEvents": trace}


def _complete(event: Event, rank: int, first_ns: int) -> dict[str, Any]:
    category = "phase" if event.label in _PHASE_LABELS else "step" if event.label == STEP_LABEL else "turn"
    return {
        "name": event.label,
        "cat": category,
        "ph": "X",
        "pid": rank,
        "tid": event.thread,
        "ts": (event.start_ns - first_ns) / 1e3,
        "dur": (event.end_ns - event.start_ns) / 1e3,
    }


def _metadata(name: str, rank: int, thread: int, values: dict[str, str | int]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": rank, "tid": thread, "args": values}
