"""The files of a profile: profile.json, trace.json, and the folder that they are in."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqrm_cpu.config import Config
from dqrm_cpu.config.schema import flatten
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.lab.profiler.bandwidth import Bandwidth
from dqrm_cpu.lab.profiler.result import ProfilePlan, StepProfile, VariantProfile
from dqrm_cpu.lab.profiler.timeline import Event, Timeline
from dqrm_cpu.timing.phases import Phase
from dqrm_cpu.timing.spans import STEP_LABEL

_FORMAT = 2
_PHASE_LABELS = frozenset(phase.label for phase in Phase)
_MAIN = "main"


@dataclass(frozen=True)
class ProfileContext:
    """The subject of a profile, and the place where it was taken."""

    taken_at: str  # ISO 8601, UTC
    config: Config
    plan: ProfilePlan
    environment: Mapping[str, Any]
    bandwidths: Sequence[Bandwidth]


def write_files(folder: Path, profile: StepProfile, context: ProfileContext) -> list[Path]:
    """Writes profile.json and trace.json."""
    hosts = [place["host"] for place in context.environment["ranks"]]
    documents = {
        "profile.json": json.dumps(_profile_document(profile, context), indent=1),
        "trace.json": json.dumps(chrome_trace(profile.timelines, hosts)),
    }
    try:
        for name, text in documents.items():
            (folder / name).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return [folder / name for name in documents]


def make_folder(folder: Path) -> None:
    """Makes the folder of a profile's results; an error says that it cannot be written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def chrome_trace(ranks: Sequence[Timeline], hosts: Sequence[str]) -> dict[str, Any]:
    """Makes a Chrome trace, which Perfetto and chrome://tracing open: one process per rank, one track per thread.

    `ranks` are the timelines of all ranks, on a clock that all share. Times are microseconds since the first event.
    """
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


def _profile_document(profile: StepProfile, context: ProfileContext) -> dict[str, Any]:
    """Makes a document of plain values; milliseconds and bytes are per step."""
    return {
        "format": _FORMAT,
        "taken_at": context.taken_at,
        "warmup_steps": context.plan.warmup_steps,
        "measured_steps": context.plan.turn_steps * context.plan.rounds,
        "rounds": context.plan.rounds,
        "environment": context.environment,
        "settings": _plain(flatten(context.config)),
        "reading_floor_bytes_per_second": profile.floors.reading,
        "variants": {measured.name: _variant(measured, context) for measured in profile.variants},
    }


def _variant(measured: VariantProfile, context: ProfileContext) -> dict[str, Any]:
    own, asked = flatten(measured.variant.config), flatten(context.config)
    return {
        "about": measured.variant.about,
        "changed_settings": _plain({key: value for key, value in own.items() if value != asked[key]}),
        "ranks": [
            {**rank.summary.as_dict(), "covered": rank.summary.covered, "bytes_sent": rank.sent._asdict()}
            for rank in measured.ranks
        ],
        "bandwidth": [
            {
                "phase": one.phase.key,
                "bytes": one.bytes_per_step,
                "bytes_per_second": one.bytes_per_second,
                "floor_bytes_per_second": one.floor_bytes_per_second,
            }
            for one in context.bandwidths
            if one.variant == measured.name
        ],
    }


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


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


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder} cannot be written: {error.strerror}; give another --out")
