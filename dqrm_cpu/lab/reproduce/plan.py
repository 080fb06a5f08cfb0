"""From what is asked for to jobs: each is a training run, or an FP32 run quantized afterwards.

A job is named by all that decides its figures, so that experiments share runs and nothing is done twice.
"""

import ast
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from dqrm_cpu.config import Config, check_config, preset_config
from dqrm_cpu.config.schema import LARGEST_ENSEMBLE, flatten, unflatten
from dqrm_cpu.config.setting import Value
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest, read_manifest
from dqrm_cpu.data.store.run_data import SYNTHETIC, follow_data
from dqrm_cpu.lab.reproduce.experiments.definition import (
    Compression,
    Experiment,
    Family,
    Outside,
    Settings,
    Variant,
)
from dqrm_cpu.lab.reproduce.pareto.common_rows import common_rows
from dqrm_cpu.lab.reproduce.size_presets import SizePreset

_KEY_DIGITS = 16
_SMALL_SET_ROWS = 150_000
"""A data set of up to so many rows is never cut: MovieLens-100k, or a sample made for trying things out."""

_OF_THE_DATA = ("model.table_rows", "model.num_dense")

DECIDING = ("comm", "config", "data", "kernels", "metrics", "model", "quant", "train")
"""The parts of the package that decide the figures of a run."""

_OUTSIDE = "lab/reproduce"
"""The part that decides the figures of models that are not ours, beside those."""

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

# CPU seconds of one thread, measured by job of a seed of `pareto` on 2026-11-30 (AMD EPYC, Zen 5): 221 in all.
_STEP_S = 0.002  # of batch 128 on the small tables, with its share of drawing rows and of an epoch's scores
_STEP_FACTORS = {"hawq": 2.0, "lsq": 2.0, "pact": 2.0, "dorefa": 2.0}  # not the fused path, or whole tables every step
_CROSS_FACTOR = 3.5  # of a step with cross layers
_PER_RUN_S = 1.0  # building, saving, packing, scores that are kept
_COMPRESSION_S = {Compression.PER_TABLE: 0.5, Compression.ROW_WISE: 1.3}
_OUTSIDE_S = {Outside.LOGISTIC: 0.6, Outside.BOOSTED_TREES: 12.0}
_MEAN_S = 0.01
_REFERENCE_BATCH = 128


@dataclass(frozen=True)
class ReproduceRequest:
    """A request to run experiments. `source` is what --data.source takes."""

    size: SizePreset
    source: str
    seeds: tuple[int, ...]
    out: Path
    threads: int = 0


@dataclass(frozen=True)
class Job:
    """A piece of work. `label` is for people; jobs with one key are the same work, whatever experiments ask for it."""

    key: str
    label: str
    config: Config
    seed: int
    compression: Compression | None = None
    processes: int = 1
    histograms: bool = False
    keeps_scores: bool = False
    members: tuple["Job", ...] = ()  # of an ensemble, whose mean it is; it trains nothing
    outside: Outside | None = None

    @property
    def result_name(self) -> str:
        """The name of its result, and of the folder where that lies."""
        if self.members:
            return f"{self.key}-mean-of-{len(self.members)}"
        of = self.compression or self.outside
        return self.key if of is None else f"{self.key}-{of.value}"

    def folder(self, out: Path) -> Path:
        """Returns where its result lies."""
        return out / "runs" / self.result_name

    def training(self) -> "Job":
        """Returns the run that a compressed one starts from, or the first of an ensemble; itself otherwise."""
        return self.members[0] if self.members else replace(self, compression=None)

    def needs(self) -> tuple["Job", ...]:
        """Returns the runs that it starts from."""
        return self.members or (() if self.compression is None else (self.training(),))

    @property
    def estimated_s(self) -> float:
        """CPU seconds at the small scale; only their proportions matter once jobs have been timed."""
        if self.compression is not None:
            return _COMPRESSION_S[self.compression]
        if self.outside is not None:
            return _OUTSIDE_S[self.outside]
        if self.members:
            return _MEAN_S
        config, train = self.config, self.config.train
        steps = train.epochs * math.ceil(config.data.train_rows / train.batch_size)
        steps = min(steps, train.max_steps) if train.max_steps else steps
        width = (train.batch_size / _REFERENCE_BATCH + config.model.embedding_dim / 16) / 2
        ranks = 1 + 0.25 * (config.comm.simulated_ranks - 1)
        factor = _STEP_FACTORS.get(config.quant.method, 1.0)
        factor *= _CROSS_FACTOR if config.model.interaction == "cross" else 1.0
        return steps * _STEP_S * width * ranks * factor + _PER_RUN_S


@dataclass(frozen=True)
class Cell:
    """A variant of an experiment and its jobs: one a seed, none where it is the best of others."""

    variant: Variant
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class PlannedExperiment:
    """An experiment with the work that it needs; variants that these data cannot run are left out, and named."""

    experiment: Experiment
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...]
    same_rows: bool = False  # whether all seeds have the same rows: those of a prepared data set


def plan(experiments: Sequence[Experiment], request: ReproduceRequest) -> list[PlannedExperiment]:
    """Plans the jobs of experiments; nothing is run.

    Of a prepared data set the manifest is read, and its rows where a variant leaves out rare categories: they are
    written into `request.out` without those, once.
    """
    manifest = None if request.source == SYNTHETIC else read_manifest(Path(request.source))
    return [_planned(experiment, request, manifest) for experiment in experiments]


def jobs_of(planned: Sequence[PlannedExperiment]) -> list[Job]:
    """Returns each job once, seed by seed so that tables fill evenly, and before it the run that it starts from."""
    seeds = sorted({job.seed for one in planned for cell in one.cells for job in cell.jobs})
    jobs: dict[str, Job] = {}
    for one in planned:
        for seed in seeds:
            for job in (job for cell in one.cells for job in cell.jobs if job.seed == seed):
                for needed in (*job.needs(), job):
                    jobs.setdefault(needed.result_name, needed)
    return list(jobs.values())


def configuration(
    request: ReproduceRequest, manifest: Manifest | None, family: Family, variant: Variant, seed: int
) -> Config:
    """Returns the configuration of one run, fully resolved; the manifest is that of prepared data."""
    size = request.size
    given: dict[str, Value] = {
        **_size_settings(size.settings[family], manifest, caps_rows=size.caps_rows),
        "data.source": request.source,
        "seed": seed,
        "train.epochs": size.epochs_for(variant.epochs),
        "train.threads": request.threads,
        **variant.settings,
    }
    if "data.min_count" in variant.settings:
        given.pop("model.table_rows", None)  # tables of the ids that occur so often
    elif "model.table_rows" in given or variant.tables_divided_by > 1:
        given["data.min_count"] = 0  # tables of these sizes, into which generated ids are folded
    if variant.pretrain_epochs:
        given["quant.pretrain_epochs"] = size.epochs_for(variant.pretrain_epochs)
    config = unflatten({**flatten(preset_config(size.presets[family])), **given})
    rate = config.train.learning_rate * variant.learning_rate_times
    rows = tuple(-(-rows // variant.tables_divided_by) for rows in config.model.table_rows)
    config = replace(
        config, train=replace(config.train, learning_rate=rate), model=replace(config.model, table_rows=rows)
    )
    check_config(config)
    return follow_data(config, given.keys())


def run_key(config: Config, data_name: str, processes: int = 1, *salts: str) -> str:
    """Names a run: the same for whatever gives the same figures, so threads and the place of the data do not matter.

    `salts` are what else decides what its folder holds.
    """
    neutral = replace(
        config, data=replace(config.data, source=data_name), train=replace(config.train, threads=0)
    ).to_toml()
    parts = [neutral, data_name, source_digest(), *([processes] if processes > 1 else []), *salts]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_KEY_DIGITS]


@cache
def source_digest(parts: tuple[str, ...] = DECIDING) -> str:
    """Names the code that decides a run's figures, so that results of other code are not taken for its own.

    It is 16 hexadecimal digits of the packages that a run goes through; comments and docstrings change nothing.
    """
    package = Path(__file__).parent.parent.parent
    digest = hashlib.sha256()
    for part in parts:
        # Resolved, since `kernels` is a link and globbing does not follow one.
        folder = (package / part).resolve()
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{part}/{path.relative_to(folder)}\n{_undocumented(path.read_text())}\n".encode())
    return digest.hexdigest()[:16]


def _planned(experiment: Experiment, request: ReproduceRequest, manifest: Manifest | None) -> PlannedExperiment:
    cells, left_out = [], []
    seeds = request.seeds[:1] if experiment.one_seed else request.seeds
    for variant in experiment.variants:
        if not _can_run(variant, request, manifest):
            left_out.append(variant.name)
            continue
        if variant.outside is not None and variant.outside.missing:
            left_out.append(f"{variant.name} ({variant.outside.missing})")
            continue
        jobs = () if variant.best_of else (_job(experiment, variant, request, manifest, seed) for seed in seeds)
        cells.append(Cell(variant, tuple(jobs)))
    return PlannedExperiment(experiment, tuple(cells), tuple(left_out), same_rows=manifest is not None)


def _can_run(variant: Variant, request: ReproduceRequest, manifest: Manifest | None) -> bool:
    """Tables of prepared data cannot be made smaller: their ids need them."""
    if variant.small_tables and not request.size.caps_rows:
        return False
    return manifest is None or variant.tables_divided_by == 1


def _job(
    experiment: Experiment, variant: Variant, request: ReproduceRequest, manifest: Manifest | None, seed: int
) -> Job:
    if experiment.keeps_scores:  # so that no two seeds have a member in common
        variant = replace(variant, settings={**variant.settings, "weights_seed": 1 + LARGEST_ENSEMBLE * (seed - 1)})
    family = variant.family or experiment.family
    min_count = variant.settings.get("data.min_count")
    if manifest is not None and isinstance(min_count, int):
        request, manifest = _of_common_rows(request, manifest, family, min_count)
        variant = replace(variant, settings=_without(variant.settings, "data.min_count"))
    config = configuration(request, manifest, family, variant, seed)
    # Generated rows follow from the settings; prepared ones have a digest, wherever the folder lies.
    data_name = SYNTHETIC if manifest is None else f"prepared {manifest.digest()}"
    salts = ["scores"] if experiment.keeps_scores else []
    salts += [source_digest((_OUTSIDE,))] if variant.outside else []

    def job(one: Config) -> Job:
        key = run_key(one, data_name, variant.processes, *salts)
        of_variant = (seed, variant.compression, variant.processes, variant.histograms, experiment.keeps_scores)
        return Job(key, variant.name, one, *of_variant, outside=variant.outside)

    if variant.members == 1:
        return job(config)
    members = tuple(job(config.member(number)) for number in range(1, variant.members + 1))
    return replace(members[0], members=members)


def _of_common_rows(
    request: ReproduceRequest, manifest: Manifest, family: Family, min_count: int
) -> tuple[ReproduceRequest, Manifest]:
    """Returns the request for a prepared data set without its rare categories, which is written on first use."""
    cut = _size_settings(request.size.settings[family], manifest, caps_rows=request.size.caps_rows)
    num_rows = {part: manifest.num_rows(part) for part in PART_NAMES}
    num_rows |= {part: rows for part in PART_NAMES if isinstance(rows := cut.get(f"data.{part}_rows"), int)}
    name = f"{manifest.digest()}-of-{num_rows['train']}-min-count-{min_count}"
    folder = request.out / "data" / name
    return replace(request, source=str(folder)), common_rows(
        Path(request.source), manifest, num_rows, min_count, folder
    )


def _without(settings: Settings, key: str) -> Settings:
    return {name: value for name, value in settings.items() if name != key}


def _size_settings(settings: Settings, manifest: Manifest | None, *, caps_rows: bool) -> Settings:
    """Returns the settings of a size, less what a prepared data set decides itself."""
    if manifest is None:
        return settings
    rows = {f"data.{part}_rows": manifest.num_rows(part) for part in PART_NAMES}
    cut = caps_rows and sum(rows.values()) > _SMALL_SET_ROWS
    kept = {key: value for key, value in settings.items() if key not in (*_OF_THE_DATA, *rows)}
    for key, there in rows.items() if cut else ():
        if isinstance(wanted := settings.get(key), int):
            kept[key] = min(wanted, there)
    return kept


def _undocumented(source: str) -> str:
    """Returns the syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
