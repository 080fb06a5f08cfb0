"""How long steps took, and their phases between backward and new weights, from one row of metrics.jsonl to the next."""

import math
from typing import NamedTuple

from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profile.spans import Spans

_PHASES = (
    (Phase.COALESCE,),
    (Phase.QUANTIZE_GRADIENTS,),
    (Phase.WIRE,),
    (Phase.WIRE_HIDDEN,),
    (Phase.MERGE,),
    (Phase.MLP_EXCHANGE,),
    (Phase.EMBEDDING_UPDATE, Phase.DENSE_UPDATE),
)


class StepTimes(NamedTuple):
    """Mean milliseconds per step on this rank. `wire_ms` and `mlp_exchange_ms` include waiting for the others;
    `wire_hidden_ms` is what a message took while the step went on, and adds nothing to it."""

    ms_per_step: float = math.nan
    coalesce_ms: float = math.nan
    quantize_ms: float = math.nan
    wire_ms: float = math.nan
    wire_hidden_ms: float = math.nan
    merge_ms: float = math.nan
    mlp_exchange_ms: float = math.nan
    update_ms: float = math.nan


class StepClock:
    """Reads the spans of a run from time to time."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._steps = 0
        self._totals_ms = [0.0] * len(StepTimes._fields)

    def since_last(self) -> StepTimes:
        """Of the steps since the last call that the spans counted; NaN without any, as of the first, which compiles."""
        summary = self._spans.summary()
        steps = summary.step.count - self._steps
        known = summary.phases
        of_phases = [sum(known[phase].total_ms for phase in group if phase in known) for group in _PHASES]
        totals_ms = [summary.step.total_ms, *of_phases]
        spent_ms = [total - before for total, before in zip(totals_ms, self._totals_ms, strict=True)]
        self._steps, self._totals_ms = summary.step.count, totals_ms
        return StepTimes(*(spent / steps for spent in spent_ms)) if steps else StepTimes()
