"""An ensemble: models of one data set that differ in their seed, trained one after another.

Each member is an ordinary run, in a folder of its own below that of the ensemble. A score is the mean of their logits:
its log loss is never above the mean of theirs, and a file of any format can hold it.
"""

import gc
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dqrm_cpu.base.decode import Json
from dqrm_cpu.base.signals import StopRequest
from dqrm_cpu.comm.coordination import on_first_rank
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.config.recorded import differences
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.export.model_files import PackedFiles
from dqrm_cpu.kernels.ensemble import mean_logits
from dqrm_cpu.metrics.click import ClickAccumulator
from dqrm_cpu.model.size import ModelBytes
from dqrm_cpu.train.checkpoint_folder import checkpoints_to_score, newest_config
from dqrm_cpu.train.run import RunRequest, hold_folder, open_parts, train
from dqrm_cpu.train.run_folder import RunFolder, read_result
from dqrm_cpu.train.run_place import checkpoints_folder, holds_run, member_folder, members_of
from dqrm_cpu.train.session import loaders_to_score, trained_session
from dqrm_cpu.train.state import Interrupted, MemberResult, PartResult, Result

_PARTS = ("validation", "test")


class Scored(NamedTuple):
    """Rows that were scored by the mean, and the seconds that the models took for them on this rank."""

    predictions: list[ClickAccumulator]
    seconds: float


class Wanted(NamedTuple):
    """Rows to score: parts of the data set of a configuration, with the ids of the tables `keys`."""

    config: Config
    parts: tuple[str, ...]
    keys: Sequence[int] = ()


def mean_predictions(
    config: Config,
    checkpoints: Sequence[Path],
    wanted: Sequence[Wanted],
    transport: Transport,
    warn: Callable[[str], object],
    advance: Callable[[int], object] | None = None,
) -> Scored:
    """Scores rows by the model of each checkpoint, and returns for each of `wanted` the means of their logits.

    One model is in memory at a time. Every rank calls it and has the rows of all; rank 0 warns. `advance` is told of
    the rows of the first of `wanted` that this rank has scored.
    """
    scored: list[list[ClickAccumulator]] = [[] for _ in wanted]
    seconds = 0.0
    for number, path in enumerate(checkpoints):
        session = trained_session(config, path, transport, warn if number == 0 else _said_before)
        for one, of_members in zip(wanted, scored, strict=True):
            loaders = loaders_to_score(one.config, one.parts, transport, session.model.device)
            told = advance if one is wanted[0] else None
            began = time.perf_counter()
            of_members.append(session.evaluate.predictions(*loaders, keys=one.keys, advance=told))
            seconds += time.perf_counter() - began
        del session
        if number + 1 < len(checkpoints):
            gc.collect()  # so that never two models are in memory
    for first, *others in scored:
        assert all(np.array_equal(first.clicks, other.clicks) for other in others), "members scored other rows"
        first.logits[:] = mean_logits(one.logits for one in (first, *others))
    return Scored([first for first, *_ in scored], seconds)


def _said_before(warning: str) -> None:
    """Takes a warning that the first model gave already."""


@dataclass(frozen=True)
class _Member:
    """A member as it is trained: its number from 1, settings, folder."""

    number: int
    config: Config
    folder: Path


def train_ensemble(config: Config, request: RunRequest, transport: Transport) -> Result | Interrupted:
    """Trains the members that are not trained yet, and scores their mean; every rank calls it."""
    fingerprint = open_parts(config, transport).data.fingerprint
    with on_first_rank(transport, lambda: hold_folder(request)) or nullcontext():
        log = on_first_rank(transport, lambda: _open_folder(config, request, fingerprint))
        try:
            result = _train_members(config, request, transport)
            if isinstance(result, Result) and log is not None:
                log.write_result(result.as_dict())
            return result
        finally:
            if log is not None:
                log.close()


def require_kind_of_run(run_dir: Path, ensemble: int) -> None:
    """Raises ConfigError where a folder holds a single run and an ensemble is asked for, or a larger one."""
    there = len(members_of(run_dir))
    if there > ensemble:
        raise ConfigError(
            f"{run_dir} holds an ensemble of {there} members, --ensemble is {ensemble}: an ensemble may grow; "
            "leave the option out to go on, or give another --run-dir"
        )
    if ensemble > 1 and not there and checkpoints_folder(run_dir).exists():
        raise ConfigError(
            f"{run_dir} holds a run of one model, --ensemble is {ensemble}: leave the option out to go on, or "
            "give another --run-dir"
        )


def _open_folder(config: Config, request: RunRequest, fingerprint: str) -> RunFolder:
    arguments = config.to_toml(), {**request.environment, "data": fingerprint}
    if request.resume and holds_run(request.run_dir):
        return RunFolder.reopen(request.run_dir, 0, *arguments)
    return RunFolder.create(request.run_dir, *arguments)


def _train_members(config: Config, request: RunRequest, transport: Transport) -> Result | Interrupted:
    count, results, step = config.ensemble, [], 0
    with StopRequest() as stop:
        for number in range(1, count + 1):
            member = _Member(number, config.member(number), member_folder(request.run_dir, number))
            requested = np.array([stop.requested], dtype=np.int32)
            if transport.allgather_small(requested).any():  # after the last step of the member before
                name = stop.signal_name or "a signal on another rank"
                return Interrupted(request.run_dir, step, name, member=number - 1)
            outcome = _member_result(member, replace(request, stop=stop), count, transport)
            if isinstance(outcome, Interrupted):
                return replace(outcome, run_dir=request.run_dir, member=number)
            results.append(outcome)
            step = outcome.steps
            if number < count:
                gc.collect()
        return _scored(config, request, results, transport)


def _member_result(member: _Member, request: RunRequest, count: int, transport: Transport) -> Result | Interrupted:
    """Trains a member, or goes on with it; one that is finished is read."""
    document = transport.broadcast_json(on_first_rank(transport, partial(_finished, member)))
    told = f"member {member.number} of {count}"
    if isinstance(document, dict):
        if transport.rank == 0:
            request.note(f"{told} is trained: {member.folder}")
        return Result.from_dict(document, member.folder)
    if transport.rank == 0:
        request.note(f"{told}: seed {member.config.training_seed}, {member.folder}")
    return train(member.config, replace(request, run_dir=member.folder, resume=True), transport)


def _finished(member: _Member) -> Json:
    """Reads the result of a member that was trained with these settings; None where there is something to do."""
    recorded = newest_config(checkpoints_folder(member.folder))
    if recorded is None or any(differences(recorded, member.config)):
        return None
    return read_result(member.folder)


def _scored(config: Config, request: RunRequest, members: Sequence[Result], transport: Transport) -> Result:
    """Scores validation and test rows by the best and by the last checkpoint of all members."""
    if transport.rank == 0:
        request.note(f"scoring validation and test rows by the mean of {len(members)} models")
    wanted = [Wanted(config, (part,)) for part in _PARTS]

    def score(which: str) -> Scored:
        paths = checkpoints_to_score(request.run_dir, which, len(members))
        return mean_predictions(config, paths, wanted, transport, request.warn)

    of_best = score("best")
    best = [one.compute() for one in of_best.predictions]
    same = all(member.best_step == member.steps for member in members)
    last = best if same else [one.compute() for one in score("last").predictions]
    validation, test = (PartResult(*metrics) for metrics in zip(best, last, strict=True))
    rows = sum(metrics.examples for metrics in best) / transport.size
    sizes = [member.model_bytes for member in members]
    return replace(
        members[0],
        run_dir=request.run_dir,
        steps=sum(member.steps for member in members),
        best_step=-1,
        validation=validation,
        test=test,
        model_bytes=ModelBytes(*(sum(each) for each in zip(*map(astuple, sizes), strict=True))),
        ms_per_step=float(np.mean([member.ms_per_step for member in members])),
        bytes_per_step=float(np.mean([member.bytes_per_step for member in members])),
        skipped_batches=sum(member.skipped_batches for member in members),
        packed_files=_packed_files([member.packed_files for member in members]),
        members=tuple(
            MemberResult.of(member, config.member(number).training_seed) for number, member in enumerate(members, 1)
        ),
        score_us_per_row=of_best.seconds / rows * 1e6 if rows else math.nan,
    )


def _packed_files(members: Sequence[PackedFiles | None]) -> PackedFiles | None:
    """Adds up the bytes of the members' files; what their tables are made of is in the results of each."""
    files = [one for one in members if one is not None]
    if len(files) < len(members):
        return None
    sparse = [one.sparse for one in files if one.sparse is not None]
    return PackedFiles(sum(one.dense for one in files), sum(sparse) if len(sparse) == len(files) else None)
