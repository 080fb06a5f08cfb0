"""How large the models are, as trained and as shipped."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from dqrm_cpu.base.decode import UnreadableError, decoded
from dqrm_cpu.quant.liveness import RowCounts
from dqrm_cpu.report.markup import paragraph, table
from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.report.style import Canvas, Figure, beside_bar, row_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_BAR_PX, _AROUND_PX = 58, 70


class _Files(msgspec.Struct):
    """`packed_files` of result.json; the sizes of earlier versions tell nothing of rows."""

    dense: int
    sparse: int | None = None
    rows: RowCounts | None = None
    updated_fp32: int | None = None
    updated_sparse: int | None = None


def packed_sizes(runs: Sequence[RunFiles]) -> list[str]:
    """A table of the files that finished runs left, beside what rows that training never updated have to do with it."""
    rows = [row for run in runs if (row := _packed_row(run)) is not None]
    if not rows:
        return []
    head = (
        "run",
        "packed (MB)",
        "without zero rows (MB)",
        "rows",
        "updated in training",
        "zero of these",
        "zero of the others",
        "updated rows alone: FP32 (MB)",
        "updated rows alone: without zero rows (MB)",
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


def model_sizes(runs: Sequence[RunFiles]) -> Figure:
    """FP32 beside what the run's own bit widths come to."""

    def draw(canvas: Canvas) -> "Drawing":
        drawing, (axes,) = canvas.axes(1, _AROUND_PX + _BAR_PX * len(runs) + 20)
        for row, run in enumerate(runs):
            for place, (label, size) in enumerate((("FP32", run.sizes.fp32), ("as configured", run.sizes.packed))):
                y = row - 0.18 + 0.36 * place
                axes.barh(y, size / 1e6, height=0.32, color=canvas.color(place), label=label if row == 0 else None)
                beside_bar(axes, size / 1e6, y, f"{size / 1e6:,.1f} MB")
        axes.set(xlabel="model (MB)", yticks=range(len(runs)), ylim=(len(runs) - 0.5, -0.5))
        axes.set_yticklabels(row_names([run.name for run in runs], canvas))
        axes.set_xlim(0, (1.4 if canvas.narrow else 1.15) * max(run.sizes.fp32 for run in runs) / 1e6)
        axes.grid(axis="y", visible=False)
        drawing.legend(loc="outside lower left", ncols=2, handlelength=1.1)
        return drawing

    said = "; ".join(
        f"{run.name} {run.sizes.fp32 / 1e6:,.1f} MB in FP32, {run.sizes.packed / 1e6:,.1f} MB packed "
        f"({run.sizes.fp32 / run.sizes.packed:.1f} times smaller)"
        for run in runs
    )
    return Figure("sizes", f"Tables and MLPs as trained, and packed at the widths that the run asks for. {said}.", draw)
