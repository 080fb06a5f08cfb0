"""A row of metrics.jsonl, and how it is written: strict JSON, which has no NaN."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, Self

from dqrm_cpu.base.decode import UnreadableError, decoded
from dqrm_cpu.quant.liveness import Liveness
from dqrm_cpu.train.checkpoint_manifest import JSON
from dqrm_cpu.train.metrics import ClickMetrics
from dqrm_cpu.train.step_times import StepTimes

NOT_TIMED = StepTimes()

Phase = Literal["train", "validation", "test"]

_METRIC_NAMES = tuple(field.name for field in fields(ClickMetrics))
_LIVENESS_NAMES = tuple(field.name for field in fields(Liveness))


@dataclass(frozen=True)
class MetricsRow:
    """One line of metrics.jsonl, which is flat: fields of metrics, liveness and times stand there beside the others."""

    step: int  # steps done, over all epochs
    epoch: int  # counts from 1
    phase: Phase
    loss: float
    examples_per_second: float
    learning_rate: float
    metrics: ClickMetrics | None = None
    liveness: Liveness | None = None  # of the quantized tables, with each validation
    times: StepTimes = NOT_TIMED  # of rank 0, since the row before
    # Handed over by rank 0 for the other ranks, mean per step since the row before: see comm.accounting.
    index_bytes: float = math.nan
    value_bytes: float = math.nan
    scale_bytes: float = math.nan
    mlp_bytes: float = math.nan
    memory_bytes: float = math.nan  # held by rank 0
    skipped_batches: int = 0  # that were not sound, since the beginning of the run
    # Per table; empty where training is not quantized.
    scale_absmax: tuple[float, ...] = ()  # that the scale in use was found from; itself, where it is learned
    lookup_clip_rate: tuple[float, ...] = ()  # of the values that the step looked up
    failed_saves: int = 0  # in a row, up to here; written where there are any

    def is_of(self, num_tables: int) -> bool:
        """Whether what it says of each table it says of so many tables, or of none."""
        alive = self.liveness
        of_liveness = () if alive is None else [getattr(alive, name) for name in _LIVENESS_NAMES if "table_" in name]
        return {len(values) for values in (self.scale_absmax, self.lookup_clip_rate, *of_liveness)} <= {0, num_tables}

    def to_json(self) -> dict[str, JSON]:
        """Flat; NaN and infinities become null."""
        row = asdict(self)
        row |= (row.pop("metrics") or {}) | (row.pop("liveness") or {}) | row.pop("times")._asdict()
        if not self.failed_saves:
            del row["failed_saves"]
        return {name: strict_json(value) for name, value in row.items()}

    @classmethod
    def from_json(cls, row: Mapping[str, JSON]) -> Self:
        """What `to_json` wrote; null becomes NaN. Raises UnreadableError where it is anything else."""
        if not isinstance(row, Mapping):
            raise UnreadableError("is no metrics row")
        numbers = {name: _number(value) for name, value in row.items()}
        found = {name: numbers[name] for name in _METRIC_NAMES if name in numbers}
        alive = {name: numbers[name] for name in _LIVENESS_NAMES if name in numbers}
        times = [numbers.get(name, math.nan) for name in StepTimes._fields]
        return decoded({**numbers, "metrics": found or None, "liveness": alive or None, "times": times}, cls)


def strict_json(value: JSON) -> JSON:
    """The same value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: strict_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    return value


def _number(value: JSON) -> JSON:
    """NaN for null, also within a tuple."""
    if isinstance(value, list):
        return tuple(_number(item) for item in value)
    return math.nan if value is None else value
