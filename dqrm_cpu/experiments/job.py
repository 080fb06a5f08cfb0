"""One piece of work: a training run, or an FP32 run quantized afterwards; named by all that decides its figures."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dqrm_cpu.config import Config
from dqrm_cpu.experiments.experiment import Compression, Experiment, Variant
from dqrm_cpu.experiments.request import DataIdentity, Request, can_run, configuration
from dqrm_cpu.experiments.source_digest import source_digest

_KEY_DIGITS = 16


@dataclass(frozen=True)
class Job:
    """`label` is for people; jobs with one key are the same work, whatever experiments ask for it."""

    key: str
    label: str
    config: Config
    seed: int
    compression: Compression | None = None
    processes: int = 1
    histograms: bool = False

    @property
    def result_name(self) -> str:
        """Of its outcome, and of the folder where that lies."""
        return self.key if self.compression is None else f"{self.key}-{self.compression.value}"

    def folder(self, out: Path) -> Path:
        return out / "runs" / self.result_name

    def training(self) -> "Job":
        """The run that a compressed one starts from; itself otherwise."""
        return replace(self, compression=None)


@dataclass(frozen=True)
class Cell:
    """A variant of an experiment and its jobs: one a seed, none where it is the best of others."""

    variant: Variant
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Planned:
    """An experiment with the work that it needs; variants that these data cannot run are left out, and named."""

    experiment: Experiment
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...]


def plan(experiments: Sequence[Experiment], request: Request) -> list[Planned]:
    """Nothing is run or read but the data's manifest."""
    data = DataIdentity(request.source)
    return [_planned(experiment, request, data) for experiment in experiments]


def jobs_of(planned: Sequence[Planned]) -> list[Job]:
    """Each once; what a compressed run starts from comes before it. Seed by seed, so that a table fills evenly."""
    seeds = sorted({job.seed for one in planned for cell in one.cells for job in cell.jobs})
    found: dict[tuple[str, Compression | None], Job] = {}
    for one in planned:
        for seed in seeds:
            for job in (job for cell in one.cells for job in cell.jobs if job.seed == seed):
                found.setdefault((job.key, None), job.training())
                found.setdefault((job.key, job.compression), job)
    return list(found.values())


def _planned(experiment: Experiment, request: Request, data: DataIdentity) -> Planned:
    cells = []
    for variant in experiment.variants:
        if can_run(variant, request, data):
            seeds = request.seeds[:1] if experiment.one_seed else request.seeds
            seeds = () if variant.best_of else seeds
            cells.append(Cell(variant, tuple(_job(experiment, variant, request, data, seed) for seed in seeds)))
    run = {cell.variant.name for cell in cells}
    left_out = tuple(variant.name for variant in experiment.variants if variant.name not in run)
    return Planned(experiment, tuple(cells), left_out)


def _job(experiment: Experiment, variant: Variant, request: Request, data: DataIdentity, seed: int) -> Job:
    config = configuration(request, data, variant.family or experiment.family, variant, seed)
    key = run_key(config, data.name, variant.processes)
    return Job(key, variant.name, config, seed, variant.compression, variant.processes, variant.histograms)


def run_key(config: Config, data_name: str, processes: int = 1) -> str:
    """The same for whatever gives the same figures: threads and the place of the data do not matter."""
    neutral = replace(
        config, data=replace(config.data, source=data_name), train=replace(config.train, threads=0)
    ).to_toml()
    said = json.dumps([neutral, data_name, source_digest(), *([processes] if processes > 1 else [])])
    return hashlib.sha256(said.encode()).hexdigest()[:_KEY_DIGITS]
