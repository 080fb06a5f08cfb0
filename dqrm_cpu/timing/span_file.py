"""Where each rank's spans are kept in a run folder: spans/rank0.json, spans/rank1.json, ..."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import replace_file, set_aside, unwritable
from dqrm_cpu.errors import DqrmError
from dqrm_cpu.timing.durations import Summary
from dqrm_cpu.timing.phases import Phase
from dqrm_cpu.timing.spans import SpanSummary

_FOLDER = "spans"
_FORMAT = 1


class SpanFileError(DqrmError):
    """An error of spans that cannot be written or read."""


@dataclass(frozen=True)
class RankSpans:
    """The contents of one rank's file, begun anew by a resumed run: `first_step` is where the process began."""

    rank: int
    first_step: int
    last_step: int
    peak_memory_bytes: int
    summary: SpanSummary


class SpanFile:
    """The file of a rank's spans: written whole or not at all, at every checkpoint and at the end."""

    def __init__(self, run_dir: Path, rank: int, first_step: int) -> None:
        self._path = run_dir / _FOLDER / f"rank{rank}.json"
        self._rank, self._first_step = rank, first_step
        self._begun = False

    def write(self, step: int, summary: SpanSummary, peak_memory_bytes: int) -> None:
        """Replaces what it wrote before; what an interrupted run left stays as rank0-until-step-000001234.json."""
        spans = RankSpans(self._rank, self._first_step, step, peak_memory_bytes, summary)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._begun and self._path.exists():
                set_aside(self._path, f"until-step-{self._first_step:09d}")
            self._begun = True
        except OSError as error:
            raise unwritable(self._path, error, SpanFileError) from error
        replace_file(self._path, [(json.dumps(_plain(spans), indent=1) + "\n").encode()], SpanFileError)


def read_spans(run_dir: Path) -> tuple[RankSpans, ...]:
    """Reads the spans of all ranks in their order; none from a run that has not saved yet, or is older than spans."""
    paths = sorted((run_dir / _FOLDER).glob("rank*.json"), key=lambda path: (len(path.name), path.name))
    return tuple(_read(path) for path in paths if "-" not in path.name)


class _Document(msgspec.Struct):
    """A file of format 1; phases by their keys."""

    format: Literal[1]
    rank: int
    first_step: int
    last_step: int
    peak_memory_bytes: int
    step: Summary
    phases: dict[str, Summary]


def _read(path: Path) -> RankSpans:
    try:
        content = read_json(path)
        version = decoded(content, dict[str, Any]).get("format")
        if isinstance(version, int) and version != _FORMAT:
            raise SpanFileError(
                f"{path} has format {str(version)[:20]}, this version reads {_FORMAT}; use the dqrm-cpu that wrote it, "
                "or remove it to do without"
            )
        document = decoded(content, _Document)
    except (OSError, UnreadableError) as error:
        raise SpanFileError(f"{path} holds no spans (it {error}); remove it to do without") from error
    phases = {phase: document.phases[phase.key] for phase in Phase if phase.key in document.phases}
    summary = SpanSummary(document.step, phases)
    return RankSpans(document.rank, document.first_step, document.last_step, document.peak_memory_bytes, summary)


def _plain(spans: RankSpans) -> Mapping[str, Any]:
    return {
        "format": _FORMAT,
        "rank": spans.rank,
        "pid": os.getpid(),
        "first_step": spans.first_step,
        "last_step": spans.last_step,
        "peak_memory_bytes": spans.peak_memory_bytes,
        **spans.summary.as_dict(),
    }
