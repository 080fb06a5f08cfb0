"""A training run from a configuration to its result: where it starts or resumes, what every rank agrees on."""

import logging
import tomllib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from dqrm_cpu.base.code_version import code_version
from dqrm_cpu.base.decode import Json
from dqrm_cpu.base.lock import FolderLock
from dqrm_cpu.base.signals import StopRequest
from dqrm_cpu.comm.coordination import gather_texts, on_first_rank, require_agreement
from dqrm_cpu.comm.sharding.placement import table_loads
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.config.recorded import MAY_CHANGE, config_to_record, differences, require_recorded
from dqrm_cpu.data.source import DataSet, open_data
from dqrm_cpu.data.store.schema import DataIdentity
from dqrm_cpu.errors import CheckpointError, ConfigError, unanimous
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.train.beginning import begin_with_parent
from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.checkpoint_folder import newest_config, read_state
from dqrm_cpu.train.checkpoint_shard import DamagedCheckpointError
from dqrm_cpu.train.loop import RunContext, TrainingLoop, total_steps
from dqrm_cpu.train.progress import OnlyWarnings, Progress, open_progress
from dqrm_cpu.train.run_folder import RunFolder, RunLog, recorded_init_from
from dqrm_cpu.train.run_place import checkpoints_folder, holds_run
from dqrm_cpu.train.session import Session, build_session, load_kernels, load_session
from dqrm_cpu.train.state import Interrupted, Result, RunState
from dqrm_cpu.train.working import Advance, unshown, working_on

_LOGGER = logging.getLogger(__name__)

_LOCK_FILE = ".lock"


@dataclass(frozen=True)
class RunRequest:
    """The parts of a request to train beside the configuration."""

    run_dir: Path
    resume: bool  # go on with the run in run_dir where there is one
    environment: Mapping[str, Json]
    stream: TextIO  # where progress goes; only rank 0 writes
    asked: frozenset[str] = frozenset()  # settings that somebody gave for this very call: a resumed run takes them
    open_progress: Callable[[int, int, TextIO], Progress] = open_progress  # of the first step, the last one, and stream
    stop: StopRequest | None = None  # of whoever trains several runs; None: this one has its own

    def note(self, text: str) -> None:
        """Tells what a run begins with."""
        _LOGGER.info(text)
        self.stream.write(f"{text}\n")

    def show_work(self, text: str, total: int) -> AbstractContextManager[Advance]:
        """Shows a piece of work that the run begins with."""
        return working_on(self.stream, text, total)

    def warn(self, text: str) -> None:
        """Tells what went wrong and does not end the run."""
        _LOGGER.warning(text)
        self.stream.write(f"warning: {text}\n")


class SessionParts(NamedTuple):
    """What a session is built from, beside the configuration and the transport."""

    device: torch.device
    kernels: Kernels
    data: DataSet


def train(config: Config, request: RunRequest, transport: Transport) -> Result | Interrupted:
    """Runs or resumes a training run; every rank calls it."""
    parts = open_parts(config, transport)
    with on_first_rank(transport, lambda: hold_folder(request)) or nullcontext():
        return _train_in_folder(config, request, transport, parts)


def open_parts(config: Config, transport: Transport, **asked: Json) -> SessionParts:
    """Loads the kernels and opens the data set, once every rank was given the same work and `asked` for the same."""
    device = torch.device(config.device)
    kernels = load_kernels(config, device)
    data = open_data(config)
    facts: dict[str, Json] = {
        "config": _shared_settings(config),
        "code": dict(code_version()),
        "kernels": kernels.name,
        "data": data.fingerprint,
        "world": transport.size,
        **asked,
    }
    require_agreement(transport, facts)
    return SessionParts(device, kernels, data)


def hold_folder(request: RunRequest) -> FolderLock:
    """Keeps every other command from training in the run folder until it is closed or this process ends."""
    folder = request.run_dir
    refusal = f"another dqrm-cpu train works in {folder}; wait until it has ended, or give another --run-dir"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder, _LOCK_FILE, refusal, ConfigError)
    except OSError as error:
        raise ConfigError(
            f"the run folder {folder} cannot be locked: {error}; remove what stands in the way, or give another "
            "--run-dir"
        ) from error
    if not lock.held:
        request.warn(f"the file system of {folder} has no locks: nothing keeps another command from training there")
    return lock


def _train_in_folder(
    config: Config, request: RunRequest, transport: Transport, parts: SessionParts
) -> Result | Interrupted:
    device, kernels, data = parts
    resume = bool(transport.broadcast_json(_goes_on(config, request)))
    store = CheckpointStore(
        checkpoints_folder(request.run_dir), config.train.keep_checkpoints, config=config_to_record(config)
    )
    if resume:
        on_first_rank(transport, lambda: _require_same_run(config, request, store, data))
    # A new run's folder comes first: whatever is wrong with it is said before gigabytes are allocated.
    new_log = RunLog() if resume else _open_log(config, request, transport, data.fingerprint, None)
    with (request.show_work if transport.rank == 0 else unshown)("making the model", 0):
        session = build_session(config, kernels, data, transport, device)
    if session.shards is not None and transport.rank == 0:
        request.note(session.shards.describe(table_loads(config)))
    state = _resumed_state(session, store, transport, request) if resume else None
    if state is None:
        state = _initial_state(session, config, data, transport, request)
    state.data, state.identity = data.fingerprint, str(data.identity or "")
    log = _open_log(config, request, transport, data.fingerprint, state) if resume else new_log
    total = total_steps(config, session.loaders.train.num_batches)
    progress = (
        request.open_progress(state.step, total, request.stream)
        if transport.rank == 0
        else OnlyWarnings(transport.rank, request.stream)
    )
    try:
        with StopRequest() if request.stop is None else nullcontext(request.stop) as stop:
            context = RunContext(transport, store, request.run_dir, log, progress, stop)
            return TrainingLoop(config, session, context, state).run()
    finally:
        progress.close()
        log.close()


def _shared_settings(config: Config) -> dict[str, Json]:
    """Returns what ranks must have alike: all settings but the path of the data, whose fingerprint they compare."""
    settings: dict[str, Json] = tomllib.loads(config.to_toml())
    section = settings["data"]
    assert isinstance(section, dict)
    del section["source"]
    return settings


def _open_log(
    config: Config, request: RunRequest, transport: Transport, fingerprint: str, state: RunState | None
) -> RunLog:
    """Opens rank 0's run folder: a new one, or one to go on with from `state`."""

    def open_folder() -> RunFolder:
        arguments = config.to_toml(), {**request.environment, "data": fingerprint}
        tensorboard, mlflow = config.train.tensorboard, config.train.mlflow
        if state is None:
            return RunFolder.create(request.run_dir, *arguments, tensorboard=tensorboard, mlflow=mlflow)
        folder = RunFolder.reopen(
            request.run_dir, state.step, *arguments, mark=state.log, tensorboard=tensorboard, mlflow=mlflow
        )
        for warning in folder.warnings:
            request.warn(warning)
        return folder

    return on_first_rank(transport, open_folder) or RunLog()


def _goes_on(config: Config, request: RunRequest) -> bool:
    """Says whether the folder holds a run to go on with.

    That is also one which was killed before the first checkpoint had all of the run that it was to begin with: the
    same --init-from begins it again.
    """
    folder = request.run_dir
    if not holds_run(folder):
        return False
    was_begun = bool(config.init_from) and recorded_init_from(folder) == config.init_from
    return request.resume or (was_begun and not CheckpointStore(checkpoints_folder(folder), keep=1).paths())


def _initial_state(
    session: Session, config: Config, data: DataSet, transport: Transport, request: RunRequest
) -> RunState:
    """Gives a new run the weights of its parent, if it has one."""
    if not config.init_from:
        return RunState()
    state, lines = begin_with_parent(session, config, data, transport, request.run_dir, request.stream)
    for line in lines if transport.rank == 0 else ():
        request.note(line)
    return state


def _resumed_state(
    session: Session, store: CheckpointStore, transport: Transport, request: RunRequest
) -> RunState | None:
    """Loads the newest checkpoint that is whole on every rank; None where there is none.

    Rank 0 finds it, or all together, where each reads rows of its own.
    """
    if session.shards is not None:
        return _resumed_together(session, store, transport, request)

    def load_newest() -> tuple[str, RunState] | None:
        tensors = session.tensors()
        resumed = store.load_newest(tensors, request.show_work)
        if resumed is None:
            return None
        for warning in resumed.warnings:
            request.warn(warning)
        state = RunState.from_dict(resumed.state)
        if state.step != resumed.step:
            raise CheckpointError(f"{resumed.path} holds step {state.step:,}; give it the name that it had")
        session.restored(state)
        request.note(f"resuming from {resumed.path}")
        return str(resumed.path), state

    loaded = on_first_rank(transport, load_newest)
    path = transport.broadcast_json(None if loaded is None else loaded[0])
    if path is None:
        return None
    return loaded[1] if loaded is not None else load_session(session, Path(str(path)))


def _resumed_together(
    session: Session, store: CheckpointStore, transport: Transport, request: RunRequest
) -> RunState | None:
    """Loads the newest checkpoint whose rows every rank could read."""
    damaged: list[str] = []
    names = on_first_rank(transport, lambda: [str(path) for path in reversed(store.paths())])
    paths = transport.broadcast_json(names)
    assert isinstance(paths, list)
    for path in map(str, paths):
        state, failure = None, ""
        try:
            state = load_session(session, Path(path), request.show_work if transport.rank == 0 else unshown)
        except DamagedCheckpointError as error:
            failure = str(error)
        except CheckpointError as error:  # of another model, which every rank finds
            raise unanimous(error) from error
        failures = [text for text in gather_texts(transport, failure) if text]
        if state is not None and not failures:
            for warning in damaged if transport.rank == 0 else ():
                request.warn(warning)
            if transport.rank == 0:
                request.note(f"resuming from {path}")
            return state
        damaged.append(failures[0])
    if damaged:
        raise unanimous(CheckpointError(f"no checkpoint is usable: {'; '.join(damaged)}; start a new run"))
    return None


def _require_same_run(config: Config, request: RunRequest, store: CheckpointStore, data: DataSet) -> None:
    """Requires the same rows, and the same settings but for those that may change or were given for this call."""
    _require_same_data(store, data)
    recorded = newest_config(checkpoints_folder(request.run_dir))
    if recorded is None:
        return
    began, asked = recorded.values.get("init_from", ""), config.init_from
    if asked != began and "init_from" in request.asked:
        raise CheckpointError(
            f"the run in {request.run_dir} began {f'with the weights of {began}' if began else 'with fresh weights'}: "
            f"--init-from {asked} is for a new one; leave it out to go on, or give another --run-dir"
        )
    changed = list(differences(recorded, config))
    allowed = MAY_CHANGE | request.asked
    require_recorded(recorded, [change for change in changed if change.key not in allowed])
    if changed:
        request.note(f"settings are not those of {recorded.path}: {'; '.join(map(str, changed))}")


def _require_same_data(store: CheckpointStore, data: DataSet) -> None:
    """Requires the data set of the run: with other rows it would be neither the old run nor a new one."""
    path = store.newest()
    if path is None:
        return
    try:
        state = read_state(path)
    except DamagedCheckpointError:  # reported where it is loaded, from an older one if there is one
        return
    trained_on = state.get("data")
    if trained_on and trained_on != data.fingerprint:
        identity = DataIdentity.from_text(str(state.get("identity", "")))
        difference = identity.difference(data.identity) if identity and data.identity else ""
        raise CheckpointError(
            f"{path} was trained on other data{f' (another {difference})' if difference else ''}: {trained_on}, and "
            f"now there is {data.fingerprint}; give the data set of the run with --data, or start a new run with "
            "another --run-dir"
        )
