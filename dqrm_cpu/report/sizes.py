"""How many bytes: models as trained and as shipped, and what ranks send each other at each step."""

import math
from collections.abc import Mapping, Sequence

import msgspec

from dqrm_cpu.base.decode import UnreadableError, decoded
from dqrm_cpu.quant.liveness import RowCounts
from dqrm_cpu.report.chart import BarChart, BarSegment, StackedBar, color
from dqrm_cpu.report.markup import paragraph, table
from dqrm_cpu.report.run_files import RunFiles

_PARTS = ("table rows (indices)", "table gradients (values)", "scales, counts, padding", "MLP gradients")


class _Files(msgspec.Struct):
    """`packed_files` of result.json; the sizes of earlier versions tell nothing of rows."""

    dense: int
    sparse: int | None = None
    rows: RowCounts | None = None
    updated_fp32: int | None = None
    updated_sparse: int | None = None


def packed_sizes(runs: Sequence[RunFiles]) -> list[str]:
    """Makes a table of the files that finished runs left, and of the part that rows never updated have in it."""
    rows = [row for run in runs if (row := _packed_row(run)) is not None]
    if not rows:
        return []
    head = (
        *("run", "packed (MB)", "without zero rows (MB)", "rows", "updated in training", "zero of these"),
        *("zero of the others", "updated rows alone: FP32 (MB)", "updated rows alone: without zero rows (MB)"),
        "smaller by",
    )
    return [
        table(head, rows),
        paragraph(
            "A row that training never updated is as it was drawn: that it is zero saves bytes, and is no achievement "
            "of quantization. The last three columns leave such rows out of both sizes.",
            "faint",
        ),
    ]


def _packed_row(run: RunFiles) -> list[str] | None:
    try:
        files = decoded((run.result or {}).get("packed_files"), _Files | None)  # type: ignore[arg-type]
    except UnreadableError:
        return None
    if files is None or files.rows is None:
        return None
    rows = files.rows
    zero_of_others = rows.never_updated - (rows.live - rows.live_updated)
    figures = [f"{files.dense / 1e6:,.2f}", _megabytes(files.sparse), f"{rows.rows:,}", f"{rows.updated:,}"]
    shares = [_share(rows.updated - rows.live_updated, rows.updated), _share(zero_of_others, rows.never_updated)]
    alone = [_megabytes(files.updated_fp32), _megabytes(files.updated_sparse)]
    ratio = f"{files.updated_fp32 / files.updated_sparse:.1f}x" if files.updated_fp32 and files.updated_sparse else "-"
    return [run.name, *figures, *shares, *alone, ratio]


def _megabytes(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1e6:,.2f}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def model_sizes(runs: Sequence[RunFiles]) -> BarChart:
    """Shows FP32 beside what the run's own bit widths come to."""
    bars = [
        StackedBar(f"{run.name}, {label}", [BarSegment(label, size, color(place), text)], text)
        for run in runs
        for place, (label, size) in enumerate((("FP32", run.sizes.fp32), ("as configured", run.sizes.packed)))
        for text in [f"{size / 1e6:,.1f} MB"]
    ]
    listed = "; ".join(
        f"{run.name} {run.sizes.fp32 / 1e6:,.1f} MB in FP32, {run.sizes.packed / 1e6:,.1f} MB packed "
        f"({run.sizes.fp32 / run.sizes.packed:.1f} times smaller)"
        for run in runs
    )
    caption = f"Tables and MLPs as trained, and packed at the widths that the run asks for. {listed}."
    return BarChart("sizes", caption, "model (MB)", bars)


def mean_bytes(run: RunFiles) -> tuple[float, float, float, float]:
    """Returns the means over the logged steps: indices, values, scales, MLPs."""
    rows = [row for row in run.of_phase("train") if math.isfinite(row.mlp_bytes)]
    count = max(len(rows), 1)
    return (
        sum(row.index_bytes for row in rows) / count,
        sum(row.value_bytes for row in rows) / count,
        sum(row.scale_bytes for row in rows) / count,
        sum(row.mlp_bytes for row in rows) / count,
    )


def bytes_per_step(sent: Mapping[str, tuple[float, float, float, float]]) -> BarChart | None:
    """Makes a bar for each that sends anything, by name: indices, values, scales, MLPs."""
    sending = {name: parts for name, parts in sent.items() if sum(parts)}
    if not sending:
        return None
    bars = [
        StackedBar(
            name,
            [
                BarSegment(label, part, color(number), f"{part / 1e3:,.1f} kB")
                for number, (label, part) in enumerate(zip(_PARTS, parts, strict=True))
            ],
            f"{sum(parts) / 1e3:,.0f} kB",
        )
        for name, parts in sending.items()
    ]
    listed = "; ".join(f"{bar.name} {bar.text}" for bar in bars)
    caption = f"Bytes that rank 0 sends to the other ranks at a step, by what they hold. {listed}."
    return BarChart("bytes", caption, "sent by rank 0 per step (kB)", bars)
