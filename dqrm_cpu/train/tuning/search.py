"""The search before training: trials on the first training rows, chosen on validation, recorded one by one."""

import gc
from collections.abc import Callable, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from dqrm_cpu.base.files import remove_leftovers
from dqrm_cpu.base.signals import StopRequest
from dqrm_cpu.comm.coordination import on_first_rank, on_first_rank_at_length
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import BadBatchError, rank_shares
from dqrm_cpu.data.source import DataSet
from dqrm_cpu.errors import ConfigError, TrainingError, unanimous
from dqrm_cpu.metrics.click import FIGURE_NAMES, ClickMetrics, defined
from dqrm_cpu.train.bad_batches import BadBatches
from dqrm_cpu.train.loop import total_steps
from dqrm_cpu.train.optimizers import LearningRate
from dqrm_cpu.train.progress import OnlyWarnings, Progress
from dqrm_cpu.train.run import RunRequest, SessionParts, hold_folder, open_parts
from dqrm_cpu.train.run_folder import refuse_run
from dqrm_cpu.train.run_place import holds_run
from dqrm_cpu.train.session import Session, build_session
from dqrm_cpu.train.state import Interrupted
from dqrm_cpu.train.tuning.candidates import SEARCHED, Values, describe, draw_candidates, searched_settings, with_values
from dqrm_cpu.train.tuning.halving import plan_rounds, steps_done
from dqrm_cpu.train.tuning.record import (
    SETTINGS_FILE,
    SearchRecord,
    new_record,
    read_record,
    record_path,
    write_record,
)

LONGEST_STEPS = 600
"""Of a trial in the last round. With fewer SGD at a low rate looks as if it would never learn."""

MOST_VALIDATION_ROWS = 1 << 17
"""The rows that score a trial: enough to tell AUCs apart by .002, and read within a second."""


@dataclass(frozen=True)
class TuneRequest:
    """A request to search before training: how many trials, and the settings that are given and not searched."""

    trials: int
    given: Set[str]


@dataclass(frozen=True)
class Tuned:
    """The outcome of a search: the values that it chose, the configuration to train, and how it was found."""

    values: Values
    config: Config
    record: SearchRecord


def tune(config: Config, request: RunRequest, asked: TuneRequest, transport: Transport) -> Tuned | Interrupted:
    """Searches, or goes on with a search that was interrupted; every rank calls it, before `train`."""
    given: list[str] = sorted(asked.given & set(SEARCHED))
    parts = open_parts(config, transport, tune=asked.trials, given=given)
    search = Search(
        config,
        request,
        transport,
        parts,
        SETTINGS_FILE,
        new=lambda: _new_search(config, request, asked, parts.data),
        variant=lambda values: TrialSetup(with_values(config, values), parts.data),
        option=f"--tune {asked.trials}",
        asked=asked.trials,
    )
    record = search.run()
    if isinstance(record, Interrupted):
        return record
    values = _chosen(record, request.asked)
    return Tuned(values, with_values(config, values), record)


class TrialSetup(NamedTuple):
    """The configuration that one trial of a search trains, and the rows that it trains on."""

    config: Config
    data: DataSet


@dataclass(frozen=True)
class Search:
    """A search that every rank takes part in: trials one after another, each recorded in a file of the run folder."""

    config: Config
    request: RunRequest
    transport: Transport
    parts: SessionParts
    file: str  # its name
    new: Callable[[], SearchRecord]  # begins the search; on rank 0
    variant: Callable[[Values], TrialSetup]
    option: str  # that asked for it
    asked: int = 0

    def run(self) -> SearchRecord | Interrupted:
        """Searches, or goes on with a search that was interrupted."""
        request, transport = self.request, self.transport
        with on_first_rank(transport, lambda: hold_folder(request)) or nullcontext():
            begun = on_first_rank_at_length(transport, self._begun)
            document = transport.broadcast_json(None if begun is None else begun.to_json())
            record = SearchRecord.from_json(record_path(request.run_dir, self.file), document)
            return record if record.is_complete else _searched(self, record)

    def _begun(self) -> SearchRecord:
        """Returns the search that is recorded in the run folder, or a new one."""
        request, folder = self.request, self.request.run_dir
        if not request.resume:
            refuse_run(folder)
        record = read_record(folder, self.file)
        if record is not None:
            if not request.resume:
                raise ConfigError(f"{folder} holds a search; go on with it by --resume auto, or give another --run-dir")
            remove_leftovers(folder)
            path, fingerprint = record_path(folder, self.file), self.parts.data.fingerprint
            record.require_same(path, self.config, self.asked, fingerprint, request.asked)
            return record
        if holds_run(folder):
            name = self.option.split()[0]
            raise ConfigError(f"the run in {folder} began without {name}; leave it out, or give another --run-dir")
        record = self.new()
        write_record(folder, record, self.file)
        return record


def _new_search(config: Config, request: RunRequest, asked: TuneRequest, data: DataSet) -> SearchRecord:
    searched = searched_settings(config, asked.given)
    if not searched:
        raise ConfigError(
            f"--tune {asked.trials} has nothing to search: {', '.join(SEARCHED)} are given or have no meaning here; "
            "leave one of them to the search, or leave out --tune"
        )
    candidates = draw_candidates(config, searched, asked.trials)
    rounds = plan_rounds(len(candidates), min(steps_of_run(config, data), LONGEST_STEPS))
    return new_record(config, asked.trials, data.fingerprint, rounds, candidates)


def _chosen(record: SearchRecord, asked: Set[str]) -> Values:
    """Returns what the search chose, but for what was given for this very call."""
    if record.chosen is None:
        raise unanimous(
            TrainingError(
                f"every one of the {len(record.trials)} trials diverged; check the data set (dqrm-cpu data head), or "
                "train without --tune and with a small --train.learning-rate"
            )
        )
    return {key: value for key, value in record.trials[record.chosen].values.items() if key not in asked}


def _searched(search: Search, record: SearchRecord) -> SearchRecord | Interrupted:
    """Runs the trials that are left, and records each as it ends."""
    request, transport = search.request, search.transport
    total = sum(part.steps * part.trials for part in record.rounds)
    begin = steps_done(record.rounds, record.trials)
    progress = (
        request.open_progress(begin, total, request.stream)
        if transport.rank == 0
        else OnlyWarnings(transport.rank, request.stream)
    )
    try:
        with StopRequest() as stop:
            runner = _TrialRunner(search, progress, stop)
            while (task := record.next_trial) is not None:
                number = task[1]
                steps, values = record.rounds[task[0]].steps, record.trials[number].values
                stopped, metrics = runner.run(values, steps, steps_done(record.rounds, record.trials))
                if not stopped:
                    record = record.with_score(number, metrics)
                    on_first_rank(transport, partial(write_record, request.run_dir, record, search.file))
                    _note(progress, record, number, steps, metrics)
                if stopped or runner.stop_requested_anywhere():
                    name = stop.signal_name or "a signal on another rank"
                    return Interrupted(request.run_dir, 0, name, searching=True)
    finally:
        progress.close()
    return record


def _note(progress: Progress, record: SearchRecord, number: int, steps: int, metrics: ClickMetrics | None) -> None:
    by = record.best_by
    outcome = "diverged" if metrics is None else f"validation {FIGURE_NAMES[by]} {defined(metrics.figure(by), '.4f')}"
    values = describe(record.trials[number].values)
    progress.note(f"trial {number + 1} of {len(record.trials)}, {steps:,} steps  {values}  {outcome}")


class _TrialRunner:
    """Trains candidates, each from the start and by itself."""

    def __init__(self, search: Search, progress: Progress, stop: StopRequest) -> None:
        self._search = search
        self._transport = search.transport
        self._progress = progress
        self._stop = stop

    def run(self, values: Values, steps: int, done: int) -> tuple[bool, ClickMetrics | None]:
        """Trains one candidate, with `done` steps of others before; returns whether it was stopped, and its metrics.

        None where it diverged.
        """
        config, data = self._search.variant(values)
        share = min(steps / steps_of_run(self._search.config, self._search.parts.data), 1.0)
        try:
            return self._trained(config, _with_few_validation_rows(data), steps, share, done)
        except TrainingError:  # every rank has the same numbers
            return False, None
        finally:
            gc.collect()  # so that never two models are in memory

    def stop_requested_anywhere(self) -> bool:
        """Says whether somebody asked any rank to stop; all ranks call it."""
        requested = np.array([self._stop.requested], dtype=np.int32)
        return bool(self._transport.allgather_small(requested).any())

    def _trained(
        self, config: Config, data: DataSet, steps: int, share: float, done: int
    ) -> tuple[bool, ClickMetrics | None]:
        device, kernels, _ = self._search.parts
        config = shortened_schedule(config, share)
        session = build_session(config, kernels, data, self._transport, device, share)
        train = config.train
        rate = LearningRate(train.learning_rate, train.warmup_steps, train.decay_start_step, train.decay_steps)
        for number in range(steps):
            if self._step(session, number, rate.at(number + 1), done):
                return True, None
        return False, session.evaluate(session.loaders.validation)

    def _step(self, session: Session, number: int, rate: float, done: int) -> bool:
        """Trains on global batch `number`; returns whether somebody asked to stop."""
        loader = session.loaders.train
        self._transport.progress.step = done + number + 1
        shares = loader.batches(number)
        try:
            outcome = session.step(number, shares, loader.global_size(number), rate, self._stop.requested)
        except BadBatchError as error:
            places = rank_shares(self._transport.rank, self._transport.size, self._search.config.comm.simulated_ranks)
            bad_batches = BadBatches(self._search.request.run_dir, loader, places.mine[0], places.total)
            raise bad_batches.refused(number, shares, error) from error
        self._progress.update(done + number + 1, outcome.loss)
        return outcome.stop_requested


def shortened_schedule(config: Config, share: float) -> Config:
    """Returns the configuration with schedules that are as far at the end of a trial as training is at its own."""
    train, quant = config.train, config.quant

    def shorter(steps: int) -> int:
        return min(steps, max(int(steps * share), 1))

    return replace(
        config,
        train=replace(
            train,
            warmup_steps=shorter(train.warmup_steps),
            decay_start_step=shorter(train.decay_start_step),
            decay_steps=shorter(train.decay_steps),
        ),
        quant=replace(quant, step_width_ramp_steps=shorter(quant.step_width_ramp_steps)),
    )


def steps_of_run(config: Config, data: DataSet) -> int:
    """Returns the steps that training takes by its settings."""
    return total_steps(config, -(-data.train.num_rows // config.train.batch_size))


def _with_few_validation_rows(data: DataSet) -> DataSet:
    part = data.validation
    return replace(data, validation=replace(part, num_rows=min(part.num_rows, MOST_VALIDATION_ROWS)))
