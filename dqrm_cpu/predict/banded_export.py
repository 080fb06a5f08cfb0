"""A trained run as a file of so many bytes: ids that training met often keep more bits, those that it hardly met none.

What stands for ids that are left out is chosen by the log loss of the validation rows, which is reported.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dqrm_cpu.base.files import working_folder_of
from dqrm_cpu.base.precision import FP32
from dqrm_cpu.data.common_ids import id_counts
from dqrm_cpu.data.source import Part
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.errors import ConfigError, DataError
from dqrm_cpu.export.bands.choice import Choice, ChosenBand, Plan
from dqrm_cpu.export.bands.classes import RankedRows, ranked_rows
from dqrm_cpu.export.bands.errors import SUBSTITUTES, model_rows, table_errors
from dqrm_cpu.export.bands.write import BandedModel, MemberRows, is_pinned
from dqrm_cpu.export.features import describe
from dqrm_cpu.export.packed_model import verify_packed
from dqrm_cpu.export.write import PackedWeights, write_models
from dqrm_cpu.metrics.click import ClickAccumulator, ClickMetrics
from dqrm_cpu.predict.exporting import PACKED, ExportRequest, FoundRun, found_run, require_place
from dqrm_cpu.predict.packed_scorer import PackedScorer, rows_in_file
from dqrm_cpu.predict.scorer import prepared_rows, sound_batches
from dqrm_cpu.predict.streamed_run import can_stream, open_streamed


@dataclass(frozen=True)
class BandedFile:
    """A file in bands, and what became of the rows."""

    path: Path
    budget: int
    num_bytes: int
    rows_by_bits: dict[int, int]  # how many rows have so many bits
    left_out: int  # ids without a row of their own
    cells_left_out: float  # the share of the training cells that hold them
    substitute: str  # what stands for them
    tried: dict[str, float]  # validation log loss by substitute
    estimated_error: float
    validation: ClickMetrics


@dataclass(frozen=True)
class BandedFiles:
    """Files of several budgets, beside the run itself."""

    files: tuple[BandedFile, ...]
    whole_bytes: int  # of the file with all rows at the run's own bits
    whole: ClickMetrics  # of that file, on the same validation rows
    rows: int  # of all tables


def export_in_bands(request: ExportRequest, budgets: Sequence[int], outs: Sequence[Path]) -> BandedFiles:
    """Writes a file for each budget, in bytes, of a run; each is read back to its end, and scores validation rows."""
    if request.format != PACKED:
        raise ConfigError(f"--budget makes packed files; {request.format} has no place for rows of different bits")
    if request.layout != "dense":
        raise ConfigError(f"--budget decides which rows are kept; leave out --layout {request.layout}")
    if request.calibrate:
        raise ConfigError(f"--budget and --calibrate {request.calibrate} do not go together; leave out one of them")
    for out in outs:
        require_place(out, PACKED, request.overwrite)
    run = found_run(request)
    if not run.manifest.num_rows("validation"):
        raise DataError(
            f"{run.folder} has no validation rows, by which --budget chooses what stands for ids that are left out; "
            "prepare it with some"
        )
    ranked, weights = _ranked(run, request), list(_weights(run, request))
    models = _models(run, ranked, weights, request)
    choices = {name: Choice(model.options) for name, model in models.items()}
    plans = [
        {name: choices[name].largest_within(budget, model.size_of) for name, model in models.items()}
        for budget in budgets
    ]
    whole_bytes, whole = _of_all_rows(run, weights, outs[0], request)
    files = tuple(
        _written(out, budget, run, ranked, models, its, request)
        for out, budget, its in zip(outs, budgets, plans, strict=True)
    )
    return BandedFiles(files, whole_bytes, whole, sum(rows.order.size for rows in ranked))


def _of_all_rows(
    run: FoundRun, weights: Sequence[PackedWeights], out: Path, request: ExportRequest
) -> tuple[int, ClickMetrics]:
    """Returns the bytes of the file that has all rows, and its metrics; it is written for a moment."""
    with working_folder_of(out) as folder:
        path, identity = folder / "dense.safetensors", str(run.trained.ids.identity or "")
        with request.show_work("writing all rows, to compare with", 0):
            size = write_models(path, run.trained.config, weights, "dense", identity, run.features)
        return size, _validated(path, run, request, "all rows")


def _ranked(run: FoundRun, request: ExportRequest) -> list[RankedRows]:
    """Counts the ids of the rows that the run was trained on."""
    config, manifest = run.trained.config, run.manifest
    described = describe(config, "dense", run.features)
    count = min(manifest.num_rows("train"), config.data.train_rows)
    part = Part(StoredRows(run.folder, manifest, "train"), 0, count)
    with request.show_work(f"counting ids of {run.folder}", count) as advance:
        counts = id_counts(part, config.model.table_rows, count, advance)
    return [ranked_rows(its, is_pinned(described, t)) for t, its in enumerate(counts)]


def _models(
    run: FoundRun, ranked: Sequence[RankedRows], weights: Sequence[PackedWeights], request: ExportRequest
) -> dict[str, BandedModel]:
    """Returns the model to write by what stands for ids that are left out."""
    config = run.trained.config
    is_float = config.quant.method == "ptq"  # so is an FP32 run by now
    members = []
    for number, its_weights in enumerate(weights, 1):
        assert its_weights.formula is not None, "an FP32 run is quantized when it is exported"
        tables = model_rows(its_weights.tables, its_weights.formula, its_weights.scale, is_float)
        rows = sum(its.order.size for its in ranked)
        with request.show_work(f"measuring errors of model {number}", rows) as advance:
            errors = []
            for table, its in zip(tables, ranked, strict=True):
                errors.append(table_errors(table, its))
                advance(its.order.size)
        members.append(MemberRows(tables, errors, its_weights.layers))
    identity = str(run.trained.ids.identity or "")
    return {name: BandedModel(config, identity, run.features, ranked, members, name) for name in SUBSTITUTES}


def _weights(run: FoundRun, request: ExportRequest) -> Iterator[PackedWeights]:
    """Opens the members; their tables are read from the disk where scales need no more than that."""
    first_rows = [np.zeros(1, np.int64) for _ in run.trained.config.model.table_rows]
    for member in run.members:
        if can_stream(member):
            yield open_streamed(member, first_rows, request.show_work).weights
        else:
            from dqrm_cpu.predict.whole_run import open_whole

            yield open_whole(member, first_rows, request.show_work).weights


def _written(
    out: Path,
    budget: int,
    run: FoundRun,
    ranked: Sequence[RankedRows],
    models: dict[str, BandedModel],
    plans: dict[str, Plan],
    request: ExportRequest,
) -> BandedFile:
    """Writes the file with whatever stands best for ids that are left out."""
    metrics: dict[str, ClickMetrics] = {}
    with working_folder_of(out) as folder:
        for name, model in models.items():
            path = folder / f"{name}.safetensors"
            with request.show_work(f"writing {out}, {name}", 0):
                size = model.write(path, plans[name])
                assert size <= budget, f"{size} bytes of {budget}"
                verify_packed(path)
            metrics[name] = _validated(path, run, request, f"{out}, {name}")
        best = min(SUBSTITUTES, key=lambda name: metrics[name].log_loss)
        num_bytes = models[best].write(out, plans[best])
    plan, by_bits = plans[best], models[best].rows_by_bits(plans[best])
    kept_cells = sum(_cells(its, bands) for its, bands in zip(ranked, plan.bands, strict=True))
    return BandedFile(
        path=out,
        budget=budget,
        num_bytes=num_bytes,
        rows_by_bits=by_bits,
        left_out=sum(its.order.size for its in ranked) - sum(by_bits.values()),
        cells_left_out=1 - kept_cells / max(sum(int(its.counts.sum()) for its in ranked), 1),
        substitute=best,
        tried={name: metrics[name].log_loss for name in SUBSTITUTES},
        estimated_error=plan.error,
        validation=metrics[best],
    )


def _cells(ranked: RankedRows, bands: Sequence[ChosenBand]) -> int:
    """Returns how many training cells hold ids that are kept."""
    return sum(int(ranked.counts[ranked.order[band.first : band.first + band.rows]].sum()) for band in bands)


def _validated(path: Path, run: FoundRun, request: ExportRequest, what: str) -> ClickMetrics:
    """Returns the metrics of a file on the run's validation rows, as a server scores them."""
    most = min(run.manifest.num_rows("validation"), run.trained.config.data.validation_rows)
    loader = prepared_rows(run.folder, run.manifest, "validation", most)
    scorer = PackedScorer(path, None, FP32, rows_in_file(path, run.folder, run.manifest))
    scored = ClickAccumulator(weighted=loader.is_weighted)
    with request.show_work(f"scoring validation rows: {what}", most) as advance:
        for batch, logits, _ in sound_batches(scorer, loader, skips_bad=False):
            scored.add(torch.from_numpy(logits), batch.label, weights=batch.weight)
            advance(batch.size)
    return scored.compute()
