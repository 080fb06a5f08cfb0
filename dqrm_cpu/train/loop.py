"""The training loop: steps, evaluations, checkpoints, the choice of the best on validation, the report on test."""

import math
from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.comm.coordination import on_first_rank
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import BadBatchError
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.shards import shards_of
from dqrm_cpu.errors import CheckpointError, DqrmError, TrainingError, unanimous
from dqrm_cpu.export.pack import PackedFiles, pack_model
from dqrm_cpu.model.size import model_bytes
from dqrm_cpu.profile.memory import peak_bytes
from dqrm_cpu.profile.span_file import SpanFile, SpanFileError
from dqrm_cpu.train.bad_batches import BadBatches
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.interrupt import StopRequest
from dqrm_cpu.train.metrics import ClickMetrics, defined
from dqrm_cpu.train.progress import Progress
from dqrm_cpu.train.recorder import RunRecorder
from dqrm_cpu.train.result import Interrupted, PartResult, Result
from dqrm_cpu.train.run_folder import RunLog
from dqrm_cpu.train.saver import Saver
from dqrm_cpu.train.schedule import LearningRate
from dqrm_cpu.train.session import Session, load_session
from dqrm_cpu.train.state import RunState

PACKED_FOLDER = "packed"
"""Of a run folder: the packed model."""


@dataclass(frozen=True)
class Surroundings:
    """What a loop needs of the world outside: the other ranks, the disk, somebody who watches or stops it.

    Every rank reads checkpoints; only rank 0 writes them, and only its log keeps anything.
    """

    transport: Transport
    checkpoints: CheckpointStore
    run_dir: Path
    log: RunLog
    progress: Progress
    stop: StopRequest


class TrainingLoop:
    """Drives a session from where `state` stands to the end of training."""

    def __init__(self, config: Config, session: Session, surroundings: Surroundings, state: RunState) -> None:
        train = config.train
        self._config = config
        self._session = session
        self._around = surroundings
        self._state = state
        self._learning_rate = LearningRate(
            train.learning_rate, train.warmup_steps, train.decay_start_step, train.decay_steps
        )
        self._batches_per_epoch = session.loaders.train.num_batches
        self._saver = Saver(
            surroundings.transport,
            surroundings.checkpoints,
            surroundings.log,
            surroundings.progress,
            goes_on=train.on_disk_full == "continue-without-saving",
        )
        self._recorder = RunRecorder(config, session, state, surroundings.log, surroundings.progress)
        self._first_step = state.step
        self._bytes_sent = 0
        shards = shards_of(surroundings.transport.rank, surroundings.transport.size, config.comm.simulated_ranks)
        self._bad_batches = BadBatches(surroundings.run_dir, session.loaders.train, shards.mine[0], shards.total)
        self._said_no_auc = False
        self._loss = math.nan  # of the last step that was not skipped
        self._spans = SpanFile(surroundings.run_dir, surroundings.transport.rank, state.step)

    def run(self) -> Result | Interrupted:
        """Trains to the end, or to where somebody asks to stop."""
        total = total_steps(self._config, self._batches_per_epoch)
        state, train = self._state, self._config.train
        while state.step < total and not self._stopped_early():
            stop_requested = self._one_step() and state.step < total
            if state.step == total or self._due(train.evaluate_every or self._batches_per_epoch):
                self._evaluate_validation()
            if self._saver.tried_step < state.step and (stop_requested or self._due(train.checkpoint_every)):
                self._save(best=False)
            if stop_requested:
                signal_name = self._around.stop.signal_name or "a signal on another rank"
                return self._interrupted(signal_name)
        return self._finish()

    def _interrupted(self, signal_name: str) -> Interrupted:
        state = self._state
        if state.saved_step < state.step:
            raise unanimous(
                CheckpointError(
                    f"stopped by {signal_name} after step {state.step:,}, which could not be saved; "
                    f"{self._saver.on_disk()}; free some space, then go on by --resume auto"
                )
            )
        try:
            self._around.log.write_interrupted(state.step, signal_name)
        except DqrmError as error:  # the checkpoint is what counts
            self._around.progress.warn(str(error))
        return Interrupted(self._around.run_dir, state.step, signal_name)

    def _one_step(self) -> bool:
        state, loader, transport = self._state, self._session.loaders.train, self._around.transport
        self._saver.leave_step(state)
        number = state.step
        transport.step = number + 1
        rate = self._learning_rate.at(state.step + 1)
        spans = self._session.model.spans
        sent = self._session.step.sent
        spans.begin_step()
        with spans.data:
            shares = loader.batches(number)
        try:
            outcome = self._session.step(number, shares, loader.global_size(number), rate, self._around.stop.requested)
        except BadBatchError as error:
            raise self._bad_batches.refused(number, shares, error) from error
        except TrainingError as error:
            raise self._placed(error) from error
        spans.step_done()
        newly_sent = self._session.step.sent.minus(sent)
        self._bytes_sent += sum(newly_sent)
        state.step += 1
        if outcome.skipped:
            state.skipped_batches += 1
            warning = self._bad_batches.skipped(number, shares, outcome, state.skipped_batches)
            if warning:
                self._around.progress.note(warning)
        else:
            self._loss = outcome.loss
            self._recorder.stepped(outcome.loss, newly_sent)
        self._around.progress.update(state.step, self._loss)
        if self._due(self._config.train.log_every):
            self._recorder.log_training(rate, None if outcome.skipped else shares[0])
        return outcome.stop_requested

    def _placed(self, error: TrainingError) -> TrainingError:
        """The error of a step that diverged, with the step, and the checkpoint to go back to."""
        saved = self._state.saved_step
        last = f"the last checkpoint is that of step {saved:,}" if saved >= 0 else "there is no checkpoint yet"
        placed = TrainingError(f"step {self._state.step + 1:,}: {error} ({last})")
        placed.unanimous = error.unanimous
        return placed

    def _due(self, period: int) -> bool:
        return period > 0 and self._state.step % period == 0

    def _stopped_early(self) -> bool:
        train, state = self._config.train, self._state
        reached = train.early_stop_auc > 0 and _auc(state.best_validation) >= train.early_stop_auc
        patience = train.early_stop_patience
        return reached or (patience > 0 and state.evaluations_without_better >= patience)

    def _evaluate_validation(self) -> None:
        """Evaluates, notes whether this is the best so far, and saves."""
        state = self._state
        metrics = self._evaluate(self._session.loaders.validation)
        self._say_what_misleads(metrics)
        better = metrics.is_better_than(state.best_validation)
        state.evaluations_without_better = 0 if better else state.evaluations_without_better + 1
        if better:
            self._saver.note_best(state, metrics)
        state.last_validation, state.evaluated_step = metrics, state.step
        alive = self._session.evaluate.liveness() if self._around.transport.rank == 0 else None
        self._recorder.log_metrics("validation", metrics, self._rate_of_last_step(), alive)
        best = "  best so far" if better else ""
        self._around.progress.note(
            f"step {state.step:,}  epoch {self._recorder.epoch}  validation AUC {defined(metrics.auc, '.4f')}  "
            f"accuracy {metrics.accuracy:.2%}  log loss {metrics.log_loss:.4f}{best}"
        )
        if better or self._config.train.checkpoint_every == 0:
            self._save(better)

    def _say_what_misleads(self, metrics: ClickMetrics) -> None:
        """Of an evaluation without an AUC, once; and of one over fewer rows than there are."""
        note = self._around.progress.note
        if metrics.why_no_auc and not self._said_no_auc:
            self._said_no_auc = True
            note(
                f"warning: the validation rows have {metrics.why_no_auc}: AUC is undefined; the best step is chosen by "
                "log loss"
            )
        self._say_what_is_left_out(metrics, "validation")

    def _say_what_is_left_out(self, metrics: ClickMetrics, part: str) -> None:
        if metrics.skipped_rows:
            self._around.progress.note(
                f"warning: {metrics.skipped_rows:,} {part} rows are not sound and were left out of the metrics"
            )

    def _rate_of_last_step(self) -> float:
        return self._learning_rate.at(max(self._state.step, 1))

    def _evaluate(self, loader: Loader) -> ClickMetrics:
        with self._session.model.spans.evaluation:
            return self._session.evaluate(loader)

    def _save(self, best: bool) -> None:
        """Rank 0 writes, the others wait."""
        with self._session.model.spans.checkpoint:
            self._saver.save(self._session, self._state, best)
        self._recorder.failed_saves = self._saver.failed
        self._write_spans()

    def _write_spans(self) -> None:
        try:
            self._spans.write(self._state.step, self._session.model.spans.summary(), peak_bytes())
        except SpanFileError as error:  # times are not worth a run
            self._around.progress.warn(str(error))

    def _finish(self) -> Result:
        state = self._state
        if state.evaluated_step != state.step:
            self._evaluate_validation()
        assert state.best_validation is not None
        assert state.last_validation is not None
        test_last = self._evaluate(self._session.loaders.test)
        self._say_what_is_left_out(test_last, "test")
        if self._saver.failed and state.saved_step < state.step:
            self._save(best=False)
        test_best = test_last if state.best_step == state.step else self._test_at_best()
        sizes = model_bytes(self._config)
        missing: list[str] = []
        timed, steps = self._session.model.spans.summary().step, state.step - self._first_step
        result = Result(
            run_dir=self._around.run_dir,
            world_size=self._around.transport.size,
            simulated_ranks=self._config.comm.simulated_ranks,
            steps=state.step,
            best_step=state.best_step,
            validation=PartResult(best=state.best_validation, last=state.last_validation),
            test=PartResult(best=test_best, last=test_last),
            model_bytes=sizes,
            ms_per_step=timed.median_ms if timed.count else math.nan,
            bytes_per_step=self._bytes_sent / steps if steps else 0.0,
            skipped_batches=state.skipped_batches,
            packed_files=self._packed_unless(missing),
        )
        self._recorder.log_metrics("test", test_last, self._rate_of_last_step())
        self._write_spans()
        self._write_result(result, missing)
        return result

    def _packed_unless(self, missing: list[str]) -> PackedFiles | None:
        """A packed model can be made from the checkpoint at any time: without it the run is still a run."""
        try:
            return self._pack()
        except CheckpointError as error:
            missing.append(f"the packed model ({error}); dqrm-cpu compress {self._around.run_dir} makes one")
            return None

    def _write_result(self, result: Result, missing: list[str]) -> None:
        """Raises on every rank if anything of the finished run is not on the disk."""
        state, best = self._state, result.test.best
        try:
            on_first_rank(self._around.transport, lambda: self._around.log.write_result(result.as_dict()))
        except DqrmError as error:
            missing.append(f"result.json ({error}); test AUC is {best.auc:.4f}, log loss {best.log_loss:.4f}")
        if self._saver.failed and state.saved_step < state.step:
            missing.append(f"the weights of step {state.step:,}; {self._saver.on_disk()}")
        if missing:
            raise unanimous(TrainingError(f"training is complete, but not on the disk: {'; '.join(missing)}"))

    def _pack(self) -> PackedFiles | None:
        """Rank 0 writes the chosen checkpoint, which the session holds by now, as it would be shipped."""
        session, around = self._session, self._around
        if session.model.table_formula is None:
            return None
        folder, scale = around.run_dir / PACKED_FOLDER, session.scales.for_evaluation()
        identity = self._state.identity
        return on_first_rank(around.transport, lambda: pack_model(folder, self._config, session.model, scale, identity))

    def _test_at_best(self) -> ClickMetrics:
        """Test metrics of the chosen checkpoint; the last weights are on disk already."""
        path = self._around.checkpoints.best(self._state.best_step)
        if path is None:
            raise CheckpointError(
                f"the best checkpoint is gone from {self._around.run_dir}; the last one is still there"
            )
        load_session(self._session, path)
        return self._evaluate(self._session.loaders.test)


def _auc(metrics: ClickMetrics | None) -> float:
    return -1.0 if metrics is None else metrics.auc


def total_steps(config: Config, batches_per_epoch: int) -> int:
    """How long the configuration trains."""
    steps = config.train.epochs * batches_per_epoch
    return min(steps, config.train.max_steps) if config.train.max_steps else steps
