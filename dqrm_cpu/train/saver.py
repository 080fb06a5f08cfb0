"""Saves a run, rank 0 for all, and follows --train.on-disk-full where the disk does not take it."""

from collections.abc import Callable, Mapping

from dqrm_cpu.base.decode import Json
from dqrm_cpu.comm.coordination import on_first_rank
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.errors import DqrmError
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.progress import Progress
from dqrm_cpu.train.run_folder import RunLog
from dqrm_cpu.train.session import Session
from dqrm_cpu.train.state import RunState


class Saver:
    """Saves a run; every rank learns of a save that failed: all stop with the same error, or all go on without it."""

    def __init__(
        self,
        transport: Transport,
        checkpoints: CheckpointStore,
        log: RunLog,
        progress: Progress,
        goes_on: bool,
    ) -> None:
        self._transport = transport
        self._checkpoints = checkpoints
        self._log = log
        self._progress = progress
        self._goes_on = goes_on
        self._best_before: tuple[ClickMetrics | None, int] | None = None
        self.failed = 0
        """Saves that failed in a row."""
        self.tried_step = -1
        """The step of the last one, whether it failed or not."""

    def save(self, session: Session, state: RunState, best: bool) -> None:
        """Saves the state and the weights; `best` marks them as the best so far."""
        session.model.require_finite_mlps()
        session.gather()
        state.scale_refreshed_at = session.scales.state.refreshed_at
        state.table_draws = session.model.table_draws
        state.snapshots = 0 if session.average is None else session.average.count
        self.tried_step = state.step
        saved_before, state.saved_step = state.saved_step, state.step
        best = best or self._best_before is not None  # of a save that failed and is tried again

        def write() -> str | None:
            try:
                state.log = self._log.sync()
                show_work = self._progress.show_work
                self._checkpoints.save(state.step, session.tensors(), state.as_dict(), best, show_work)
            except (DqrmError, OSError) as error:
                if not self._goes_on:
                    raise
                return str(error)
            return None

        failure = self._on_first_rank(write) if session.shards is None else self._save_together(session, state, best)
        if failure is None:
            self.failed, self._best_before = 0, None
            return
        self.failed += 1
        state.saved_step = saved_before
        if self._transport.rank == 0:
            self._progress.warn(
                f"step {state.step:,} is not saved: {failure}. Training goes on (--train.on-disk-full), "
                f"{self.on_disk()}; the next checkpoint is tried again"
            )

    def _on_first_rank(self, write: Callable[[], str | None]) -> Json:
        failure: Json = on_first_rank(self._transport, write)
        return self._transport.broadcast_json(failure) if self._goes_on else failure

    def _save_together(self, session: Session, state: RunState, best: bool) -> str | None:
        """Has each rank write the rows that are its own; returns on every rank what failed, where that may be."""

        def describe() -> Mapping[str, Json]:
            state.log = self._log.sync()
            return state.as_dict()

        try:
            self._checkpoints.save_together(self._transport, state.step, session.stored(), describe, best)
        except DqrmError as error:
            if not self._goes_on or not error.unanimous:
                raise
            return str(error)
        return None

    def note_best(self, state: RunState, metrics: ClickMetrics) -> None:
        """Makes this step the best so far, until training leaves it without having saved it."""
        self._best_before = (state.best_validation, state.best_step)
        state.best_validation, state.best_step = metrics, state.step

    def leave_step(self, state: RunState) -> None:
        """Forgets a best step that is not on the disk: it is gone, and the one before is the best again."""
        if self._best_before is not None:
            state.best_validation, state.best_step = self._best_before
            self._best_before = None

    def on_disk(self) -> str:
        """Says in words what a resumed run would find."""
        try:
            newest = self._checkpoints.newest()
        except OSError as error:
            return f"what is on the disk cannot be read ({error.strerror})"
        return f"on the disk is {newest}" if newest else "there is no checkpoint on the disk"
