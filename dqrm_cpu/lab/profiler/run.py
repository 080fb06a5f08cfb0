"""Takes a profile: variants in interleaved rounds, so that a busy machine meets all alike; every rank calls it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from time import perf_counter_ns
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import RankShares, rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import DataSet, open_data
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.runner import rotated
from dqrm_cpu.lab.bench.harness.shared_tables import CPU, SharedTables
from dqrm_cpu.lab.profiler.bandwidth import (
    distinct_rows,
    looked_up_rows,
    reading_floor,
    row_bytes,
    row_floors,
    wire_floor,
)
from dqrm_cpu.lab.profiler.observers import IttMarks, Observers, TorchMarks
from dqrm_cpu.lab.profiler.profile_files import make_folder
from dqrm_cpu.lab.profiler.profiled_variant import ProfiledVariant, TrainingVariant, variants_of
from dqrm_cpu.lab.profiler.result import (
    Floors,
    ProfilePlan,
    RankProfile,
    SentPerStep,
    StepProfile,
    StepWork,
    VariantProfile,
)
from dqrm_cpu.lab.profiler.timeline import Recorder, Timeline
from dqrm_cpu.timing.spans import Observer
from dqrm_cpu.train.session import load_kernels

_TORCH_STEPS = 5
_FLOOR_STEPS = 16


class _RankShare(NamedTuple):
    """The results that a rank sends to the others."""

    profiles: tuple[RankProfile, ...]
    timeline: Timeline


def take_profile(
    config: Config, plan: ProfilePlan, transport: Transport, advance: Callable[[str], None]
) -> StepProfile:
    """Takes the profile; `advance` hears what is done next."""
    recorder = Recorder()
    data, shared = open_data(config), SharedTables(Case("profile", "", config))
    shared.kernels = load_kernels(config, CPU)
    observer = Observers([recorder, *([IttMarks()] if plan.itt else [])])
    variants = variants_of(config, transport.size, compare=plan.compare)
    profiled = [ProfiledVariant(variant, data, shared, transport, observer) for variant in variants]
    for one in profiled:
        advance(f"warming up: {one.variant.name}")
        one.run(1 + plan.warmup_steps)
        one.forget()
    recorder.forget()
    offset_ns = _clock_offset(transport)
    for number, order in enumerate(rotated(profiled, plan.rounds)):
        advance(f"round {number + 1} of {plan.rounds}")
        for one in order:
            _turn(one, plan.turn_steps, transport, observer, recorder)
    timeline = recorder.timeline(offset_ns)
    advance("what this machine can move")
    profiles = [_rank_profile(one, transport) for one in profiled]
    floors = _floors(config, data, profiled[0], transport)
    if plan.torch_folder is not None:
        advance("torch.profiler: this configuration once more")
        _torch_trace(ProfiledVariant(variants[0], data, shared, transport, TorchMarks()), transport, plan.torch_folder)
    return _gathered(variants, profiles, timeline, floors, transport)


def _turn(one: ProfiledVariant, steps: int, transport: Transport, observer: Observer, recorder: Recorder) -> None:
    """Ranks begin together: what one waits for at the start of a turn is no part of a step."""
    name = one.variant.name
    transport.barrier()
    start_ns = recorder.turn_begins()
    observer.begin(name)
    one.run(steps)
    observer.end(name, start_ns, perf_counter_ns())
    recorder.turn_ended(name, start_ns)


def _rank_profile(one: ProfiledVariant, transport: Transport) -> RankProfile:
    summary = one.spans.summary()
    sent = SentPerStep.of(one.sent, summary.step.count)
    floor = None
    # One message for all tables; the dense wire sums gigabytes instead.
    if transport.size > 1 and one.variant.config.comm.wire != "dense":
        floor = wire_floor(transport, round(sent.of_tables) // (transport.size - 1))
    return RankProfile(summary, sent, floor)


def _floors(config: Config, data: DataSet, one: ProfiledVariant, transport: Transport) -> Floors:
    """Measures all ranks at once, as they train, on batches that come next: no cache holds their rows yet."""
    shares = rank_shares(transport.rank, transport.size, config.comm.simulated_ranks)
    everyones = Loader(data.train, config.train.batch_size, RankShares(tuple(range(shares.total)), shares.total), CPU)
    batches = everyones.copies(one.num_steps, _FLOOR_STEPS)
    own = [[batch[mine] for mine in shares.mine] for batch in batches]
    merged, dims = shares.total > 1, config.model.dims
    changed = [distinct_rows(shares) for shares in (batches if merged else own)]
    work = StepWork(
        fmean(sum(row_bytes(looked_up_rows(share), dims) for share in shares if share.size) for shares in own),
        fmean(map(sum, changed)),
        fmean(row_bytes(rows, dims) for rows in changed),
        merged,
    )
    transport.barrier()
    rows = row_floors(one.model.groups, [share for shares in own for share in shares])
    return Floors(reading_floor(transport.size), rows, work)


def _clock_offset(transport: Transport) -> int:
    """Measures how far this host's clock is ahead of rank 0's, as exactly as ranks leave a barrier together."""
    transport.barrier()
    now = perf_counter_ns()
    return now - int(str(transport.broadcast_json(now)))


def _torch_trace(one: ProfiledVariant, transport: Transport, folder: Path) -> None:
    one.run(2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
        one.run(_TORCH_STEPS)
    make_folder(folder)  # each host has its own, unless they share a disk
    profiler.export_chrome_trace(str(folder / torch_file(transport.rank)))


def torch_file(rank: int) -> str:
    """Names torch.profiler's trace of a rank."""
    return f"torch-rank{rank}.json"


def _gathered(
    variants: Sequence[TrainingVariant],
    profiles: Sequence[RankProfile],
    timeline: Timeline,
    floors: Floors,
    transport: Transport,
) -> StepProfile:
    own = msgspec.msgpack.encode(_RankShare(tuple(profiles), timeline))
    ranks = [
        msgspec.msgpack.decode(part.tobytes(), type=_RankShare)
        for part in transport.allgatherv(np.frombuffer(own, dtype=np.uint8))
    ]
    by_variant = tuple(
        VariantProfile(variant, tuple(rank.profiles[number] for rank in ranks))
        for number, variant in enumerate(variants)
    )
    return StepProfile(by_variant, tuple(rank.timeline for rank in ranks), floors)
