"""Where a training run stands, as a checkpoint holds it, and what a run is that finished or was interrupted."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dqrm_cpu.base.decode import Json, UnreadableError, decoded
from dqrm_cpu.comm.exchange.settings import NOTHING_SENT, SentBytes
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.model_files import PackedFiles
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.model.size import ModelBytes
from dqrm_cpu.train.metrics_log import LogMark

_TIMES = ("ms_per_step", "bytes_per_step", "score_us_per_row")


@dataclass
class RunState:
    """The state of a run, changed by the loop as it goes; plain values only, so that it writes as JSON."""

    step: int = 0
    data: str = ""  # fingerprint of the data set; empty in checkpoints of earlier versions
    identity: str = ""  # of schema and vocabulary; empty in earlier versions and where it is not known
    begun_from: str = ""  # the checkpoint of another run whose weights it began with; empty: they were drawn
    scale_refreshed_at: int = -1
    table_draws: int = 0  # how often the tables have begun anew
    snapshots: int = 0  # whose mean the saved weights are; 0: they are those of training
    first_evaluated_step: int = -1  # not known in checkpoints of earlier versions
    best_step: int = -1
    best_validation: ClickMetrics | None = None
    evaluated_step: int = -1
    last_validation: ClickMetrics | None = None
    saved_step: int = -1
    evaluations_without_better: int = 0
    skipped_batches: int = 0  # since the beginning of the run
    log: LogMark | None = None  # of metrics.jsonl; None in checkpoints of earlier versions
    window_loss: float = 0.0  # sum of the step losses since the last logged row
    window_steps: int = 0
    window_sent: SentBytes = NOTHING_SENT  # by this rank since then; that of rank 0 in a checkpoint

    def as_dict(self) -> dict[str, Any]:
        """Returns the form in a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunState":
        """Reads the state that `as_dict` wrote; of earlier versions, too, which had fewer fields."""
        try:
            state = decoded({name: value for name, value in values.items() if name != "log"}, cls)
        except UnreadableError as error:
            raise CheckpointError(f"the state of the checkpoint {error}; use another checkpoint") from error
        evaluated, chosen = state.evaluated_step >= 0, state.best_step >= 0
        if (evaluated and state.last_validation is None) or (
            (chosen or (evaluated and state.evaluated_step == state.step)) and state.best_validation is None
        ):
            raise CheckpointError(
                f"the state of the checkpoint names evaluated steps (the last {state.evaluated_step}, the best "
                f"{state.best_step}) and has no metrics of them; use another checkpoint"
            )
        return replace(state, log=LogMark.of_state(values))


@dataclass(frozen=True)
class PartResult:
    """Metrics of one part of the data at the checkpoint chosen on validation, and at the last one."""

    best: ClickMetrics
    last: ClickMetrics


@dataclass(frozen=True)
class MemberResult:
    """A member of an ensemble: its metrics are those of its best checkpoint."""

    seed: int
    steps: int
    best_step: int
    validation: ClickMetrics
    test: ClickMetrics
    ms_per_step: float

    @classmethod
    def of(cls, result: "Result", seed: int) -> "MemberResult":
        """Returns what an ensemble keeps of the result of a member."""
        validation, test = (replace(part.best, reliability=None) for part in (result.validation, result.test))
        return cls(seed, result.steps, result.best_step, validation, test, result.ms_per_step)

    def as_dict(self) -> dict[str, Json]:
        """Returns the form in result.json."""
        return {**asdict(self), "validation": self.validation.as_dict(), "test": self.test.as_dict()}


@dataclass(frozen=True)
class Result:
    """A finished training run."""

    run_dir: Path | None
    world_size: int
    simulated_ranks: int
    steps: int
    best_step: int  # -1: of an ensemble, whose members have each their own
    validation: PartResult
    test: PartResult
    model_bytes: ModelBytes
    ms_per_step: float
    bytes_per_step: float
    best_by: str = "auc"  # the setting train.best_by: what decided which step is the best
    skipped_batches: int = 0  # that were not sound; their steps count in `steps`
    packed_files: PackedFiles | None = None  # of the chosen checkpoint; None: an FP32 model
    members: tuple[MemberResult, ...] = ()  # of an ensemble, whose sizes and steps are those of all together
    score_us_per_row: float = math.nan  # of an ensemble, with reading the rows: all members one after another
    mean_ms_per_step: float = math.nan  # of this process; nowhere recorded, since the spans have it

    def as_dict(self) -> dict[str, Json]:
        """Returns the content of result.json."""
        return {
            "world_size": self.world_size,
            "simulated_ranks": self.simulated_ranks,
            "steps": self.steps,
            "best_step": self.best_step,
            "best_by": self.best_by,
            "skipped_batches": self.skipped_batches,
            "validation": _part(self.validation),
            "test": _part(self.test),
            "model_bytes": {
                "fp32": self.model_bytes.fp32,
                "int4": self.model_bytes.int4,
                "packed": self.model_bytes.packed,
            },
            "packed_files": asdict(self.packed_files) if self.packed_files else None,
            "ms_per_step": self.ms_per_step,
            "bytes_per_step": self.bytes_per_step,
            **self._of_ensemble(),
        }

    def _of_ensemble(self) -> dict[str, Json]:
        if not self.members:
            return {}
        return {
            "members": [member.as_dict() for member in self.members],
            "score_us_per_row": self.score_us_per_row,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Json], run_dir: Path | None) -> "Result":
        """Reads what `as_dict` wrote and JSON kept, with null for NaN; UnreadableError where it is anything else."""
        document = _with_times(values)
        members = values.get("members")
        if isinstance(members, list):
            document["members"] = [_member(member) for member in members]
        for name in ("validation", "test"):
            part = values.get(name)
            if isinstance(part, Mapping):
                document[name] = {which: _with_nan(metrics) for which, metrics in part.items()}
        return replace(decoded({**document, "run_dir": None}, cls), run_dir=run_dir)


@dataclass(frozen=True)
class Interrupted:
    """A run that stopped early because it was asked to, after saving."""

    run_dir: Path | None
    step: int
    signal: str
    searching: bool = False  # before training, while settings were tried out
    member: int = 0  # of an ensemble: the number of the member that had done `step`


def _with_times(values: Mapping[str, Json]) -> dict[str, Json]:
    return {name: math.nan if name in _TIMES and value is None else value for name, value in values.items()}


def _member(document: Json) -> Json:
    if not isinstance(document, Mapping):
        return document
    metrics = {name: _with_nan(document[name]) for name in ("validation", "test") if name in document}
    return {**_with_times(document), **metrics}


def _with_nan(metrics: Json) -> Json:
    if not isinstance(metrics, Mapping):
        return metrics
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def _part(part: PartResult) -> dict[str, Json]:
    return {"best": part.best.as_dict(), "last": part.last.as_dict()}
