"""What a run writes down of itself: rows of metrics.jsonl, of the steps since the row before and of evaluations."""

import math

from dqrm_cpu.comm.exchange.sent_bytes import NOTHING_SENT, SentBytes
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.profile.memory import resident_bytes
from dqrm_cpu.quant.clipping import clip_rates
from dqrm_cpu.quant.liveness import Liveness
from dqrm_cpu.train.metrics import ClickMetrics
from dqrm_cpu.train.metrics_row import MetricsRow, Phase
from dqrm_cpu.train.progress import Progress
from dqrm_cpu.train.run_folder import RunLog
from dqrm_cpu.train.session import Session
from dqrm_cpu.train.state import RunState
from dqrm_cpu.train.step_times import StepClock


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
        """Of the last step, from 1."""
        return max(self._state.step - 1, 0) // self._session.loaders.train.num_batches + 1

    def stepped(self, loss: float, sent: SentBytes) -> None:
        """After every step."""
        state = self._state
        state.window_loss += loss
        state.window_steps += 1
        state.window_sent = state.window_sent.plus(sent)

    def log_training(self, rate: float, batch: Batch | None) -> None:
        """A row of the steps since the one before; `batch` is the last, None if it was skipped."""
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

    def log_metrics(self, phase: Phase, metrics: ClickMetrics, rate: float, alive: Liveness | None = None) -> None:
        """A row of an evaluation."""
        place = self._state.step, self.epoch, phase
        row = MetricsRow(*place, metrics.log_loss, math.nan, rate, metrics, alive, failed_saves=self.failed_saves)
        self._write(row)

    def _write(self, row: MetricsRow) -> None:
        told = self._log.log(row)
        if told is not None:
            self._progress.warn(told)

    def _scales_of(self, batch: Batch) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per table: what the scale in use was found from, and the share of the values of `batch` beyond it."""
        model, scale = self._session.model, self._session.scales.state
        formula = model.table_formula
        if formula is None or not self._session.step.is_quantized_at(self._state.step - 1):
            return (), ()
        rates = clip_rates(formula, model.tables, model.bags(batch), scale.step)
        return tuple(scale.absmax.tolist()), tuple(rates.tolist())
