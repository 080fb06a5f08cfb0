"""A profile as a Chrome trace, which Perfetto and chrome://tracing open: one track per rank and thread."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profile.spans import STEP_LABEL
from dqrm_cpu.profiler.observers import Event

_PHASE_LABELS = frozenset(phase.label for phase in Phase)


def chrome_trace(ranks: Sequence[Iterable[Event]], hosts: Sequence[str]) -> dict[str, Any]:
    """`ranks`: the events of each, on a clock that all share. Microseconds since the first."""
    everything = [list(events) for events in ranks]
    first = min((event.start_ns for events in everything for event in events), default=0)
    trace: list[Mapping[str, Any]] = []
    for rank, events in enumerate(everything):
        trace.append(_metadata("process_name", rank, 0, f"rank {rank} on {hosts[rank]}"))
        trace.append({**_metadata("process_sort_index", rank, 0, ""), "args": {"sort_index": rank}})
        for thread in sorted({event.thread for event in events}):
            trace.append(_metadata("thread_name", rank, thread, f"rank {rank}, thread {thread}"))
        # Viewers nest what lies within: the longer first where two begin together.
        for event in sorted(events, key=lambda event: (event.start_ns, -event.end_ns)):
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


def _metadata(name: str, rank: int, thread: int, text: str) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": rank, "tid": thread, "args": {"name": text}}
