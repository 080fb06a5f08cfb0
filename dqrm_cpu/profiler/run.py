"""Takes a profile: variants in interleaved rounds, so that a busy machine meets all alike; every rank calls it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch

from dqrm_cpu.bench.arena import CPU, Arenas
from dqrm_cpu.bench.cases import Case
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.shards import Shards, shards_of
from dqrm_cpu.data.source import DataSet, open_data
from dqrm_cpu.profile.spans import Observer
from dqrm_cpu.profiler.floors import distinct_rows, reading_floor, row_floors, wire_floor
from dqrm_cpu.profiler.folder import make_folder
from dqrm_cpu.profiler.observers import IttMarks, Observers, TorchMarks
from dqrm_cpu.profiler.result import Floors, Profile, RankProfile, SentPerStep, StepWork, VariantProfile
from dqrm_cpu.profiler.timeline import Recorder, Timeline
from dqrm_cpu.profiler.trainee import Trainee
from dqrm_cpu.profiler.variants import Variant, variants_of
from dqrm_cpu.train.session import load_kernels

_TORCH_STEPS = 5
_FLOOR_STEPS = 16


@dataclass(frozen=True)
class ProfilePlan:
    """How much is run, and who else listens."""

    warmup_steps: int
    measured_steps: int  # of each variant, over all rounds
    rounds: int
    compare: bool = False
    itt: bool = False
    torch_folder: Path | None = None  # where torch.profiler's traces go; None: it is not asked

    @property
    def turn_steps(self) -> int:
        return max(self.measured_steps // self.rounds, 1)


def take_profile(config: Config, plan: ProfilePlan, transport: Transport, advance: Callable[[str], None]) -> Profile:
    """`advance` hears what is done next."""
    recorder = Recorder()
    data, arenas = open_data(config), Arenas(Case("profile", "", config))
    arenas.kernels = load_kernels(config, CPU)
    observer = Observers([recorder, *([IttMarks()] if plan.itt else [])])
    variants = variants_of(config, transport.size, compare=plan.compare)
    trainees = [Trainee(variant, data, arenas, transport, observer) for variant in variants]
    for trainee in trainees:
        advance(f"warming up: {trainee.variant.name}")
        trainee.run(1 + plan.warmup_steps)
        trainee.forget()
    recorder.forget()
    offset_ns = _clock_offset(transport)
    for number in range(plan.rounds):
        advance(f"round {number + 1} of {plan.rounds}")
        first = number % len(trainees)
        for trainee in (*trainees[first:], *trainees[:first]):
            _turn(trainee, plan.turn_steps, transport, observer, recorder)
    timeline = recorder.timeline(offset_ns)
    advance("what this machine can move")
    profiles = [_rank_profile(trainee, transport) for trainee in trainees]
    floors = _floors(config, data, trainees[0], transport)
    if plan.torch_folder is not None:
        advance("torch.profiler: this configuration once more")
        _torch_trace(Trainee(variants[0], data, arenas, transport, TorchMarks()), transport, plan.torch_folder)
    return _gathered(variants, profiles, timeline, floors, transport)


def _turn(trainee: Trainee, steps: int, transport: Transport, observer: Observer, recorder: Recorder) -> None:
    """Ranks begin together: what one waits for at the start of a turn is no part of a step."""
    name = trainee.variant.name
    transport.barrier()
    start_ns = recorder.turn_begins()
    observer.begin(name)
    trainee.run(steps)
    observer.end(name, start_ns, perf_counter_ns())
    recorder.turn_ended(name, start_ns)


def _rank_profile(trainee: Trainee, transport: Transport) -> RankProfile:
    summary = trainee.spans.summary()
    sent = SentPerStep.of(trainee.sent, summary.step.count)
    floor = None
    # One message for all tables; the dense wire sums gigabytes instead.
    if transport.size > 1 and trainee.variant.config.comm.wire != "dense":
        floor = wire_floor(transport, round(sent.of_tables) // (transport.size - 1))
    return RankProfile(summary, sent, floor)


def _floors(config: Config, data: DataSet, trainee: Trainee, transport: Transport) -> Floors:
    """Of all ranks at once, as they train; on batches that come next, so that no cache holds their rows yet."""
    shards = shards_of(transport.rank, transport.size, config.comm.simulated_ranks)
    everyones = Loader(data.train, config.train.batch_size, Shards(tuple(range(shards.total)), shards.total), CPU)
    batches = everyones.copies(trainee.done, _FLOOR_STEPS)
    own = [[shares[mine] for mine in shards.mine] for shares in batches]
    merged = shards.total > 1
    work = StepWork(
        fmean(sum(share.ids.numel() for share in shares) for shares in own),
        fmean(distinct_rows(shares) for shares in (batches if merged else own)),
        merged,
    )
    transport.barrier()
    rows = row_floors(trainee.model.tables, [share for shares in own for share in shares])
    return Floors(reading_floor(transport.size), rows, work)


def _clock_offset(transport: Transport) -> int:
    """Of this host's clock over that of rank 0, as exactly as ranks leave a barrier together."""
    transport.barrier()
    now = perf_counter_ns()
    return now - int(str(transport.broadcast_json(now)))


def _torch_trace(trainee: Trainee, transport: Transport, folder: Path) -> None:
    trainee.run(2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
        trainee.run(_TORCH_STEPS)
    make_folder(folder)  # each host has its own, unless they share a disk
    profiler.export_chrome_trace(str(folder / torch_file(transport.rank)))


def torch_file(rank: int) -> str:
    """The name of torch.profiler's trace of a rank."""
    return f"torch-rank{rank}.json"


def _gathered(
    variants: Sequence[Variant],
    profiles: Sequence[RankProfile],
    timeline: Timeline,
    floors: Floors,
    transport: Transport,
) -> Profile:
    own = {"profiles": [profile.as_list() for profile in profiles], "timeline": timeline.as_list()}
    payload = np.frombuffer(json.dumps(own).encode(), dtype=np.uint8)
    of_ranks: list[dict[str, Any]] = [json.loads(part.tobytes()) for part in transport.allgatherv(payload)]
    by_variant = tuple(
        VariantProfile(variant, tuple(RankProfile.from_list(rank["profiles"][number]) for rank in of_ranks))
        for number, variant in enumerate(variants)
    )
    return Profile(by_variant, tuple(Timeline.from_list(rank["timeline"]) for rank in of_ranks), floors)
