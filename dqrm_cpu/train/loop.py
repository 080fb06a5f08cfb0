"""The training loop: steps, evaluations, checkpoints, the choice of the best on validation, the report on test."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from dqrm_cpu.base.memory import peak_bytes
from dqrm_cpu.base.signals import StopRequest
from dqrm_cpu.comm.coordination import on_first_rank, on_first_rank_at_length
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import BadBatchError, Batch, rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.errors import CheckpointError, DqrmError, TrainingError, unanimous
from dqrm_cpu.export.model_files import PASSES_TO_PACK, PackedFiles, pack_model
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.size import model_bytes
from dqrm_cpu.timing.span_file import SpanFile, SpanFileError
from dqrm_cpu.train.bad_batches import BadBatches
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.evaluation_notes import EvaluationNotes, calibration_warning
from dqrm_cpu.train.optimizers import LearningRate
from dqrm_cpu.train.progress import Progress
from dqrm_cpu.train.recorder import RunRecorder
from dqrm_cpu.train.run_folder import RunLog
from dqrm_cpu.train.saver import Saver
from dqrm_cpu.train.session import Session, load_session, whole_model
from dqrm_cpu.train.state import Interrupted, PartResult, Result, RunState
from dqrm_cpu.train.thread_count import ThreadCount, is_crowded

_ROWS_OF_MOMENTS = 5_000_000
"""So many rows of tables are packed in a moment; more take seconds to minutes."""

PACKED_FOLDER = "packed"
"""Of a run folder: the packed model."""


@dataclass(frozen=True)
class RunContext:
    """The context of a run: the other ranks, the disk, the progress display and requests to stop.

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

    def __init__(self, config: Config, session: Session, context: RunContext, state: RunState) -> None:
        train = config.train
        self._config = config
        self._session = session
        self._context = context
        self._state = state
        self._learning_rate = LearningRate(
            train.learning_rate, train.warmup_steps, train.decay_start_step, train.decay_steps
        )
        self._batches_per_epoch = session.loaders.train.num_batches
        self._saver = Saver(
            context.transport,
            context.checkpoints,
            context.log,
            context.progress,
            goes_on=train.on_disk_full == "continue-without-saving",
        )
        self._recorder = RunRecorder(config, session, state, context.log, context.progress)
        self._first_step = state.step
        self._total = total_steps(config, self._batches_per_epoch)
        self._ahead: tuple[int, list[Batch]] | None = None  # the number of a batch, and its shares
        self._bytes_sent = 0
        shares = rank_shares(context.transport.rank, context.transport.size, config.comm.simulated_ranks)
        self._bad_batches = BadBatches(context.run_dir, session.loaders.train, shares.mine[0], shares.total)
        self._notes = EvaluationNotes(context.progress, train.best_by)
        self._loss = math.nan  # of the last step that was not skipped
        self._spans = SpanFile(context.run_dir, context.transport.rank, state.step)
        self._threads = ThreadCount(torch.get_num_threads(), context.progress.note, crowded=is_crowded())

    def run(self) -> Result | Interrupted:
        """Trains to the end, or to where somebody asks to stop."""
        try:
            return self._run()
        finally:
            self._threads.restore()

    def _run(self) -> Result | Interrupted:
        total, state, train = self._total, self._state, self._config.train
        if self._config.init_from and state.step == 0 and state.saved_step < 0:
            self._save(best=False)  # from here on, the run to begin with is not needed any more
        while state.step < total and not self._stopped_early():
            stop_requested = self._one_step() and state.step < total
            if state.step == total or self._due(train.evaluate_every or self._batches_per_epoch):
                self._evaluate_validation()
            if self._saver.tried_step < state.step and (stop_requested or self._due(train.checkpoint_every)):
                self._save(best=False)
            if stop_requested:
                signal_name = self._context.stop.signal_name or "a signal on another rank"
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
            self._context.log.write_interrupted(state.step, signal_name)
        except DqrmError as error:  # the checkpoint is what counts
            self._context.progress.warn(str(error))
        return Interrupted(self._context.run_dir, state.step, signal_name)

    def _one_step(self) -> bool:
        state, loader, transport = self._state, self._session.loaders.train, self._context.transport
        self._saver.leave_step(state)
        number = state.step
        transport.progress.step = number + 1
        rate = self._learning_rate.at(state.step + 1)
        spans = self._session.model.spans
        sent = self._session.step.sent
        spans.begin_step()
        shares = self._shares(number)
        try:
            outcome = self._session.step(
                *(number, shares, loader.global_size(number), rate, self._context.stop.requested),
                upcoming=None if number + 1 == self._total else lambda: self._upcoming(number + 1),
            )
        except BadBatchError as error:
            raise self._bad_batches.refused(number, shares, error) from error
        except TrainingError as error:
            raise self._placed(error) from error
        self._threads.step_took(spans.step_done())
        newly_sent = self._session.step.sent.minus(sent)
        self._bytes_sent += sum(newly_sent)
        state.step += 1
        if self._session.average is not None:
            self._session.average.stepped(state.step)
        if outcome.skipped:
            state.skipped_batches += 1
            warning = self._bad_batches.skipped(number, shares, outcome, state.skipped_batches)
            if warning:
                self._context.progress.warn(warning, alike=True)
        else:
            self._loss = outcome.loss
            self._recorder.stepped(outcome.loss, newly_sent)
        self._context.progress.update(state.step, self._loss)
        if self._due(self._config.train.log_every):
            self._recorder.log_training(rate, None if outcome.skipped else shares[0])
        return outcome.stop_requested

    def _shares(self, number: int) -> list[Batch]:
        """Returns this process' shares of a batch, which the step before may have asked for already."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == number:
            return ahead[1]
        with self._session.model.spans.data:
            return self._session.loaders.train.batches(number)

    def _upcoming(self, number: int) -> list[Batch]:
        shares = self._shares(number)
        self._ahead = number, shares
        return shares

    def _placed(self, error: TrainingError) -> TrainingError:
        """Returns the error of a step that diverged, with the step, and the checkpoint to go back to."""
        saved = self._state.saved_step
        last = f"the last checkpoint is that of step {saved:,}" if saved >= 0 else "there is no checkpoint yet"
        placed = TrainingError(f"step {self._state.step + 1:,}: {error} ({last})")
        placed.unanimous = error.unanimous
        return placed

    def _due(self, period: int) -> bool:
        return period > 0 and self._state.step % period == 0

    def _stopped_early(self) -> bool:
        train, state = self._config.train, self._state
        # Of the last one too: where log loss decides, the best is not always the one with the highest AUC.
        rated = [metrics for metrics in (state.best_validation, state.last_validation) if metrics is not None]
        reached = any(0 < train.early_stop_auc <= metrics.auc for metrics in rated)
        patience = train.early_stop_patience
        return reached or (patience > 0 and state.evaluations_without_better >= patience)

    def _evaluate_validation(self) -> None:
        """Evaluates, notes whether this is the best so far, and saves."""
        state = self._state
        metrics = self._evaluate(self._session.loaders.validation)
        self._notes.warn_of_validation(metrics)
        better = metrics.is_better_than(state.best_validation, self._config.train.best_by)
        state.evaluations_without_better = 0 if better else state.evaluations_without_better + 1
        if better:
            self._saver.note_best(state, metrics)
        if state.evaluated_step < 0:
            state.first_evaluated_step = state.step
        state.last_validation, state.evaluated_step = metrics, state.step
        counts_here = self._context.transport.rank == 0 or self._session.shards is not None
        with self._session.as_scored():
            alive = self._session.evaluate.liveness() if counts_here else None
        self._recorder.log_metrics("validation", metrics, self._rate_of_last_step(), alive)
        self._notes.validated(f"step {state.step:,}  epoch {self._recorder.epoch}", metrics, better)
        self._notes.hint(state)
        if better or self._config.train.checkpoint_every == 0:
            self._save(better)

    def _rate_of_last_step(self) -> float:
        return self._learning_rate.at(max(self._state.step, 1))

    def _evaluate(self, loader: Loader) -> ClickMetrics:
        context, rows = self._context, loader.num_rows // self._context.transport.size
        with (
            self._session.model.spans.evaluation,
            context.progress.show_work(f"scoring the {loader.part_name} rows", rows) as advance,
            self._session.as_scored(),
        ):
            return self._session.evaluate(loader, advance=advance)

    def _save(self, best: bool) -> None:
        """Saves: rank 0 writes, the others wait."""
        with self._session.model.spans.checkpoint:
            self._saver.save(self._session, self._state, best)
        self._recorder.failed_saves = self._saver.failed
        self._write_spans()

    def _write_spans(self) -> None:
        try:
            self._spans.write(self._state.step, self._session.model.spans.summary(), peak_bytes())
        except SpanFileError as error:  # times are not worth a run
            self._context.progress.warn(str(error))

    def _finish(self) -> Result:
        state = self._state
        if state.evaluated_step != state.step:
            self._evaluate_validation()
        assert state.best_validation is not None
        assert state.last_validation is not None
        warning = calibration_warning(state.best_validation, "validation", self._config.data)
        if warning:
            self._context.progress.warn(warning, alike=True)
        test_last = self._evaluate(self._session.loaders.test)
        self._notes.warn_of_skipped_rows(test_last, "test")
        if self._saver.failed and state.saved_step < state.step:
            self._save(best=False)
        test_best = test_last if state.best_step == state.step else self._test_at_best()
        sizes = model_bytes(self._config)
        missing: list[str] = []
        timed, steps = self._session.model.spans.summary().step, state.step - self._first_step
        result = Result(
            run_dir=self._context.run_dir,
            world_size=self._context.transport.size,
            simulated_ranks=self._config.comm.simulated_ranks,
            steps=state.step,
            best_step=state.best_step,
            best_by=self._config.train.best_by,
            validation=PartResult(best=state.best_validation, last=state.last_validation),
            test=PartResult(best=test_best, last=test_last),
            model_bytes=sizes,
            ms_per_step=timed.median_ms if timed.count else math.nan,
            mean_ms_per_step=timed.mean_ms if timed.count else math.nan,
            bytes_per_step=self._bytes_sent / steps if steps else 0.0,
            skipped_batches=state.skipped_batches,
            packed_files=self._packed_unless(missing),
        )
        self._recorder.log_metrics("test", test_last, self._rate_of_last_step())
        self._write_spans()
        self._write_result(result, missing)
        return result

    def _packed_unless(self, missing: list[str]) -> PackedFiles | None:
        """Packs the model unless that fails: it can be packed at any time, and without it the run is still a run."""
        try:
            with self._session.as_scored():
                return self._pack()
        except CheckpointError as error:
            missing.append(f"the packed model ({error}); dqrm-cpu compress {self._context.run_dir} makes one")
            return None

    def _write_result(self, result: Result, missing: list[str]) -> None:
        """Raises on every rank if anything of the finished run is not on the disk."""
        state, best = self._state, result.test.best
        try:
            on_first_rank(self._context.transport, lambda: self._context.log.write_result(result.as_dict()))
        except DqrmError as error:
            missing.append(f"result.json ({error}); test AUC is {best.auc:.4f}, log loss {best.log_loss:.4f}")
        if self._saver.failed and state.saved_step < state.step:
            missing.append(f"the weights of step {state.step:,}; {self._saver.on_disk()}")
        if missing:
            raise unanimous(TrainingError(f"training is complete, but not on the disk: {'; '.join(missing)}"))

    def _pack(self) -> PackedFiles | None:
        """Writes, on rank 0, the chosen checkpoint, which the session holds by now, as it would be shipped."""
        session, context = self._session, self._context
        if session.model.table_formula is None:
            return None
        folder, scale = context.run_dir / PACKED_FOLDER, session.scales.for_evaluation()
        identity = self._state.identity
        if sum(self._config.model.table_rows) > _ROWS_OF_MOMENTS:
            context.progress.note("writing the packed model, which reads all rows of the tables")
        threads = torch.get_num_threads()

        def pack() -> PackedFiles:
            torch.set_num_threads(threads)  # of whatever thread this is
            with context.progress.show_work("writing the packed model", PASSES_TO_PACK) as advance:
                return pack_model(folder, self._config, self._whole(), scale, identity, advance)

        # Sharded tables are larger than other ranks would wait for.
        do = on_first_rank if session.shards is None else on_first_rank_at_length
        return do(context.transport, pack)

    def _whole(self) -> Dlrm:
        """Returns the chosen model with all of its rows: of tables on several ranks, as its checkpoint has them."""
        session, context = self._session, self._context
        if session.shards is None:
            return session.model
        path = context.checkpoints.best(self._state.best_step)
        if path is None:
            raise CheckpointError(f"the best checkpoint is gone from {context.run_dir}")
        return whole_model(self._config, session.model.kernels, path, context.run_dir)

    def _test_at_best(self) -> ClickMetrics:
        """Computes test metrics of the chosen checkpoint; the last weights are on disk already."""
        path = self._context.checkpoints.best(self._state.best_step)
        if path is None:
            raise CheckpointError(
                f"the best checkpoint is gone from {self._context.run_dir}; the last one is still there"
            )
        load_session(self._session, path, self._context.progress.show_work)
        return self._evaluate(self._session.loaders.test)


def total_steps(config: Config, batches_per_epoch: int) -> int:
    """Counts the steps that the configuration trains."""
    steps = config.train.epochs * batches_per_epoch
    return min(steps, config.train.max_steps) if config.train.max_steps else steps
