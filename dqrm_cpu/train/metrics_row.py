"""A row of metrics.jsonl, and how it is written: strict JSON, which has no NaN."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, NamedTuple, Self

from dqrm_cpu.base.decode import Json, UnreadableError, decoded
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.quant.liveness import Liveness


class StepTimes(NamedTuple):
    """Mean times per step on this rank, in milliseconds.

    `wire_ms` and `mlp_exchange_ms` include waiting for the others; `wire_hidden_ms` is what a message took while the
    step went on, and adds nothing to it.
    """

    ms_per_step: float = math.nan
    coalesce_ms: float = math.nan
    quantize_ms: float = math.nan
    wire_ms: float = math.nan
    wire_hidden_ms: float = math.nan
    merge_ms: float = math.nan
    mlp_exchange_ms: float = math.nan
    update_ms: float = math.nan


NOT_TIMED = StepTimes()

RunPhase = Literal["train", "validation", "test"]

_METRIC_NAMES = tuple(field.name for field in fields(ClickMetrics))
_LIVENESS_NAMES = tuple(field.name for field in fields(Liveness))


@dataclass(frozen=True)
class MetricsRow:
    """One line of metrics.jsonl, which is flat: fields of metrics, liveness and times stand there beside the others."""

    step: int  # steps done, over all epochs
    epoch: int  # counts from 1
    phase: RunPhase
    loss: float
    examples_per_second: float
    learning_rate: float
    metrics: ClickMetrics | None = None
    liveness: Liveness | None = None  # of the quantized tables, with each validation
    times: StepTimes = NOT_TIMED  # of rank 0, since the row before
    # Handed over by rank 0 for the other ranks, mean per step since the row before: see SentBytes.
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
    logged_at: float = math.nan  # seconds since 1970; not written where it is not known

    def is_of(self, num_tables: int) -> bool:
        """Says whether what it holds of each table it holds of so many tables, or of none."""
        alive = self.liveness
        of_liveness = () if alive is None else [getattr(alive, name) for name in _LIVENESS_NAMES if "table_" in name]
        return {len(values) for values in (self.scale_absmax, self.lookup_clip_rate, *of_liveness)} <= {0, num_tables}

    def to_json(self) -> dict[str, Json]:
        """Returns a flat document; NaN and infinities become null."""
        row = asdict(self)
        del row["metrics"]
        row |= self.metrics.as_dict() if self.metrics else {}
        row |= (row.pop("liveness") or {}) | row.pop("times")._asdict()
        if not self.failed_saves:
            del row["failed_saves"]
        if math.isnan(self.logged_at):
            del row["logged_at"]
        return {name: strict_json(value) for name, value in row.items()}

    @classmethod
    def from_json(cls, row: Mapping[str, Json]) -> Self:
        """Reads what `to_json` wrote; null becomes NaN. Raises UnreadableError where it is anything else."""
        if not isinstance(row, Mapping):
            raise UnreadableError("is no metrics row")
        numbers = {name: _number(value) for name, value in row.items()}
        evaluated = {name: numbers[name] for name in _METRIC_NAMES if name in numbers}
        alive = {name: numbers[name] for name in _LIVENESS_NAMES if name in numbers}
        times = [numbers.get(name, math.nan) for name in StepTimes._fields]
        return decoded({**numbers, "metrics": evaluated or None, "liveness": alive or None, "times": times}, cls)


def strict_json(value: Json) -> Json:
    """Returns the value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: strict_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    return value


def _number(value: Json) -> Json:
    """Returns a number, NaN for null, also within a tuple."""
    if isinstance(value, list):
        return tuple(_number(item) for item in value)
    return math.nan if value is None else value


def decoded_metrics(figures: Mapping[str, Json]) -> ClickMetrics:
    """Reads metrics that were written as strict JSON; raises UnreadableError where they are none."""
    return decoded({name: _number(value) for name, value in figures.items()}, ClickMetrics)
