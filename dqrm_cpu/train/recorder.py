"""What a run writes down of itself: rows of metrics.jsonl, of the steps since the row before and of evaluations."""

import math
import time
from dataclasses import replace

from dqrm_cpu.base.memory import resident_bytes
from dqrm_cpu.comm.exchange.settings import NOTHING_SENT, SentBytes
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.quant.liveness import Liveness, clip_rates
from dqrm_cpu.timing.phases import Phase
from dqrm_cpu.timing.spans import Spans
from dqrm_cpu.train.metrics_row import MetricsRow, RunPhase, StepTimes
from dqrm_cpu.train.progress import Progress
from dqrm_cpu.train.run_folder import RunLog
from dqrm_cpu.train.session import Session
from dqrm_cpu.train.state import RunState

_PHASES = (
    (Phase.COALESCE,),
    (Phase.QUANTIZE_GRADIENTS,),
    (Phase.WIRE,),
    (Phase.WIRE_HIDDEN,),
    (Phase.MERGE,),
    (Phase.MLP_EXCHANGE,),
    (Phase.EMBEDDING_UPDATE, Phase.DENSE_UPDATE),
)


class StepClock:
    """Reads the spans of a run from time to time."""

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._steps = 0
        self._totals_ms = [0.0] * len(StepTimes._fields)

    def since_last(self) -> StepTimes:
        """Returns the times of the steps since the last call that the spans counted; NaN where there are none."""
        summary = self._spans.summary()
        steps = summary.step.count - self._steps
        known = summary.phases
        of_phases = [sum(known[phase].total_ms for phase in group if phase in known) for group in _PHASES]
        totals_ms = [summary.step.total_ms, *of_phases]
        spent_ms = [total - before for total, before in zip(totals_ms, self._totals_ms, strict=True)]
        self._steps, self._totals_ms = summary.step.count, totals_ms
        return StepTimes(*(spent / steps for spent in spent_ms)) if steps else StepTimes()


class RunRecorder:
    """Sums up in `state`, which a checkpoint holds, what the next row says."""

    def __init__(self, config: Config, session: Session, state: RunState, log: RunLog, progress: Progress) -> None:
        self._config = config
        self._session = session
        self._state = state
        self._log = log
        self._progress = progress
        self.failed_saves = 0
        """In a row; the loop counts them."""
        self._clock = StepClock(session.model.spans)

    @property
    def epoch(self) -> int:
        """The epoch of the last step, from 1."""
        return max(self._state.step - 1, 0) // self._session.loaders.train.num_batches + 1

    def stepped(self, loss: float, sent: SentBytes) -> None:
        """Adds a step to the row that comes."""
        state = self._state
        state.window_loss += loss
        state.window_steps += 1
        state.window_sent = state.window_sent.plus(sent)

    def log_training(self, rate: float, batch: Batch | None) -> None:
        """Writes a row of the steps since the one before; `batch` is the last, None if it was skipped."""
        state = self._state
        times, sent = self._clock.since_last(), state.window_sent
        absmax, rates = self._scales_of(batch) if batch is not None else ((), ())
        steps = state.window_steps or math.nan  # every one may have been skipped
        row = MetricsRow(
            step=state.step,
            epoch=self.epoch,
            phase="train",
            loss=state.window_loss / steps,
            examples_per_second=self._config.train.batch_size / times.ms_per_step * 1e3,
            learning_rate=rate,
            times=times,
            index_bytes=sent.indices / steps,
            value_bytes=sent.values / steps,
            scale_bytes=sent.scales / steps,
            mlp_bytes=sent.mlp / steps,
            memory_bytes=resident_bytes(),
            skipped_batches=state.skipped_batches,
            scale_absmax=absmax,
            lookup_clip_rate=rates,
            failed_saves=self.failed_saves,
        )
        state.window_loss, state.window_steps, state.window_sent = 0.0, 0, NOTHING_SENT
        self._write(row)

    def log_metrics(self, phase: RunPhase, metrics: ClickMetrics, rate: float, alive: Liveness | None = None) -> None:
        """Writes a row of an evaluation."""
        place = self._state.step, self.epoch, phase
        row = MetricsRow(*place, metrics.log_loss, math.nan, rate, metrics, alive, failed_saves=self.failed_saves)
        self._write(row)

    def _write(self, row: MetricsRow) -> None:
        warning = self._log.log(replace(row, logged_at=time.time()))
        if warning is not None:
            self._progress.warn(warning)

    def _scales_of(self, batch: Batch) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns, per table, the max|W| that the scale in use was found from, and the share of `batch` beyond it."""
        model, scale = self._session.model, self._session.scales.state
        formula = model.table_formula
        if formula is None or not self._session.step.is_quantized_at(self._state.step - 1):
            return (), ()
        if self._session.shards is not None:  # the rows looked up are elsewhere
            return tuple(scale.absmax.tolist()), ()
        rates = clip_rates(formula, model.groups, model.bags(batch), scale.scale)
        return tuple(scale.absmax.tolist()), tuple(rates.tolist())
