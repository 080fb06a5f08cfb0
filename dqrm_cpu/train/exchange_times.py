"""How long the phases between backward and new weights took, from one row of metrics.jsonl to the next."""

import math
from typing import NamedTuple

from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profile.spans import Spans

_PHASES = (
    (Phase.COALESCE,),
    (Phase.QUANTIZE_GRADIENTS,),
    (Phase.WIRE,),
    (Phase.MERGE,),
    (Phase.MLP_EXCHANGE,),
    (Phase.EMBEDDING_UPDATE, Phase.DENSE_UPDATE),
)


class ExchangeTimes(NamedTuple):
    """Mean milliseconds per step on this rank. `wire_ms` and `mlp_exchange_ms` include waiting for the others."""

    coalesce_ms: float = math.nan
    quantize_ms: float = math.nan
    wire_ms: float = math.nan
    merge_ms: float = math.nan
    mlp_exchange_ms: float = math.nan
    update_ms: float = math.nan


class ExchangeClock:
    """Reads the spans of a run from time to time."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._steps = 0
        self._totals_ms = [0.0] * len(_PHASES)

    def since_last(self) -> ExchangeTimes:
        """Of the steps since the last call that the spans counted; NaN without any."""
        summary = self._spans.summary()
        steps = summary.step.count - self._steps
        known = summary.phases
        totals_ms = [sum(known[phase].total_ms for phase in group if phase in known) for group in _PHASES]
        spent_ms = [total - before for total, before in zip(totals_ms, self._totals_ms, strict=True)]
        self._steps, self._totals_ms = summary.step.count, totals_ms
        return ExchangeTimes(*(spent / steps for spent in spent_ms)) if steps else ExchangeTimes()
