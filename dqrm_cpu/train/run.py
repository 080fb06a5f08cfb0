"""A training run from a configuration to its result: where it starts or resumes, what every rank agrees on."""

import tomllib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from dqrm_cpu.base.lock import FolderLock
from dqrm_cpu.comm.coordination import on_first_rank, require_agreement
from dqrm_cpu.comm.transport import Json, Transport
from dqrm_cpu.config import Config
from dqrm_cpu.config.recorded import MAY_CHANGE, config_to_record, differences, require_recorded
from dqrm_cpu.data.source import DataSet, open_data
from dqrm_cpu.data.store.identity import DataIdentity
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.profile.code import code_version
from dqrm_cpu.train.checkpoint import CheckpointStore, newest_config, read_state
from dqrm_cpu.train.checkpoint_manifest import JSON
from dqrm_cpu.train.checkpoint_shard import DamagedCheckpointError
from dqrm_cpu.train.interrupt import StopRequest
from dqrm_cpu.train.loop import Surroundings, TrainingLoop, total_steps
from dqrm_cpu.train.progress import OnlyWarnings, Progress, open_progress
from dqrm_cpu.train.result import Interrupted, Result
from dqrm_cpu.train.run_folder import NoRunLog, RunFolder, RunLog, checkpoints_folder, holds_run
from dqrm_cpu.train.session import Session, build_session, load_kernels, load_session, restore_scales
from dqrm_cpu.train.state import RunState

_LOCK_FILE = ".lock"


@dataclass(frozen=True)
class RunRequest:
    """What was asked for beside the configuration."""

    run_dir: Path
    resume: bool  # go on with the run in run_dir where there is one
    environment: Mapping[str, JSON]
    stream: TextIO  # where progress goes; only rank 0 writes
    asked: frozenset[str] = frozenset()  # settings that somebody gave for this very call: a resumed run takes them


def train(config: Config, request: RunRequest, transport: Transport) -> Result | Interrupted:
    """Runs or resumes; every rank calls it."""
    device = torch.device(config.device)
    kernels = load_kernels(config, device)
    data = open_data(config)
    facts: dict[str, Json] = {
        "config": _shared_settings(config),
        "code": dict(code_version()),
        "kernels": kernels.name,
        "data": data.fingerprint,
        "world": transport.size,
    }
    require_agreement(transport, facts)
    with on_first_rank(transport, lambda: _hold_folder(request)) or nullcontext():
        return _train_in_folder(config, request, transport, device, kernels, data)


def _hold_folder(request: RunRequest) -> FolderLock:
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
        request.stream.write(
            f"warning: the file system of {folder} has no locks: nothing keeps another command from training there\n"
        )
    return lock


def _train_in_folder(
    config: Config, request: RunRequest, transport: Transport, device: torch.device, kernels: Kernels, data: DataSet
) -> Result | Interrupted:
    resume = bool(transport.broadcast_json(request.resume and holds_run(request.run_dir)))
    store = CheckpointStore(
        checkpoints_folder(request.run_dir), config.train.keep_checkpoints, config=config_to_record(config)
    )
    if resume:
        on_first_rank(transport, lambda: _require_same_run(config, request, store, data))
    # A new run's folder comes first: whatever is wrong with it is said before gigabytes are allocated.
    new_log = NoRunLog() if resume else _open_log(config, request, transport, data.fingerprint, None)
    session = build_session(config, kernels, data, transport, device)
    state = _resumed_state(session, store, transport, request) if resume else RunState()
    state.data, state.identity = data.fingerprint, str(data.identity or "")
    log = _open_log(config, request, transport, data.fingerprint, state) if resume else new_log
    total = total_steps(config, session.loaders.train.num_batches)
    progress = _open_progress(request, transport, state.step, total)
    try:
        with StopRequest() as stop:
            around = Surroundings(transport, store, request.run_dir, log, progress, stop)
            return TrainingLoop(config, session, around, state).run()
    finally:
        progress.close()
        log.close()


def _shared_settings(config: Config) -> dict[str, Json]:
    """What ranks must have alike: all settings but the path of the data, whose fingerprint they compare."""
    settings: dict[str, Json] = tomllib.loads(config.to_toml())
    section = settings["data"]
    assert isinstance(section, dict)
    del section["source"]
    return settings


def _open_log(
    config: Config, request: RunRequest, transport: Transport, fingerprint: str, state: RunState | None
) -> RunLog:
    """Rank 0's run folder: a new one, or one to go on with from `state`."""

    def open_folder() -> RunFolder:
        arguments = config.to_toml(), {**request.environment, "data": fingerprint}
        if state is None:
            return RunFolder.create(request.run_dir, *arguments, tensorboard=config.train.tensorboard)
        folder = RunFolder.reopen(
            request.run_dir, state.step, *arguments, mark=state.log, tensorboard=config.train.tensorboard
        )
        for warning in folder.warnings:
            request.stream.write(f"warning: {warning}\n")
        return folder

    return on_first_rank(transport, open_folder) or NoRunLog()


def _resumed_state(session: Session, store: CheckpointStore, transport: Transport, request: RunRequest) -> RunState:
    """Rank 0 finds the newest checkpoint that is whole; the others read the same one. None yet: from the start."""

    def load_newest() -> tuple[str, RunState] | None:
        tensors = session.tensors()
        resumed = store.load_newest(tensors)
        if resumed is None:
            return None
        for warning in resumed.warnings:
            request.stream.write(f"warning: {warning}\n")
        state = RunState.from_dict(resumed.state)
        if state.step != resumed.step:
            raise CheckpointError(f"{resumed.path} holds step {state.step:,}; give it the name that it had")
        restore_scales(session, tensors, state)
        request.stream.write(f"resuming from {resumed.path}\n")
        return str(resumed.path), state

    found = on_first_rank(transport, load_newest)
    path = transport.broadcast_json(None if found is None else found[0])
    if path is None:
        return RunState()
    return found[1] if found is not None else load_session(session, Path(str(path)))


def _require_same_run(config: Config, request: RunRequest, store: CheckpointStore, data: DataSet) -> None:
    """What goes on must read the same rows and train by the same settings, but for those that somebody changes."""
    _require_same_data(store, data)
    recorded = newest_config(checkpoints_folder(request.run_dir))
    if recorded is None:
        return
    changed = list(differences(recorded, config))
    allowed = MAY_CHANGE | request.asked
    require_recorded(recorded, [change for change in changed if change.key not in allowed])
    if changed:
        request.stream.write(f"settings are not those of {recorded.path}: {'; '.join(map(str, changed))}\n")


def _require_same_data(store: CheckpointStore, data: DataSet) -> None:
    """A resumed run that reads other rows would be neither the old run nor a new one."""
    path = store.newest()
    if path is None:
        return
    try:
        state = read_state(path)
    except DamagedCheckpointError:  # told where it is loaded, from an older one if there is one
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


def _open_progress(request: RunRequest, transport: Transport, step: int, total: int) -> Progress:
    return (
        open_progress(step, total, request.stream)
        if transport.rank == 0
        else OnlyWarnings(transport.rank, request.stream)
    )
