"""What quantization makes of the weights: histograms of a checkpoint's largest tables, codes over values."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dqrm_cpu.model.tables import table_names
from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.report.style import Canvas, Figure
from dqrm_cpu.train.checkpoint import find_checkpoint
from dqrm_cpu.train.checkpoint_rows import RowReader
from dqrm_cpu.train.run_folder import checkpoints_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_TABLES = 4
_BLOCKS, _BLOCK_ROWS = 64, 512
_PANEL_PX = 210
_BINS = 120


@dataclass(frozen=True)
class Sample:
    """Rows of one table: all of a small one, evenly spread blocks of a large one."""

    table: str
    values: npt.NDArray[np.float32]
    step: float


def weight_histograms(run: RunFiles, number: int) -> Figure | None:
    """None of a run that is not quantized or has no checkpoint yet; CheckpointError where one cannot be read."""
    folder = checkpoints_folder(run.path)
    if not run.quantized or not any(folder.glob("step-*")):
        return None
    path = find_checkpoint(folder, "best")
    samples = _samples(run, path)
    bits = run.config.quant.embedding_bits

    def draw(canvas: Canvas) -> "Drawing":
        drawing, panels = canvas.axes(len(samples), _PANEL_PX, columns=2)
        for axes, sample in zip(panels, samples, strict=False):
            _draw(axes, canvas, sample, bits)
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower left", ncols=1 if canvas.narrow else 2)
        return drawing

    zero = ", ".join(f"{s.table} {np.mean(np.abs(s.values) < s.step / 2):.0%}" for s in samples)
    caption = (
        f"{run.name}, {path.name}: weights of its largest tables and what INT{bits} makes of them. Exactly 0: {zero}."
    )
    return Figure(f"weights-{number}", caption, draw)


def _draw(axes: "Axes", canvas: Canvas, sample: Sample, bits: int) -> None:
    largest = 2 ** (bits - 1) - 1
    in_steps = sample.values.ravel() / sample.step
    codes = np.clip(np.rint(in_steps), -largest, largest)
    edges = np.linspace(-largest - 0.5, largest + 0.5, _BINS + 1)
    counts, _ = np.histogram(np.clip(in_steps, edges[0], edges[-1]), edges)
    values, of_codes = np.unique(codes, return_counts=True)
    total = in_steps.size
    axes.bar(values, of_codes / total * 100, width=0.8, color=canvas.color(1), alpha=0.55, label=f"INT{bits} codes")
    per_code = counts / total * 100 * (_BINS / (2 * largest + 1))
    axes.stairs(per_code, edges, color=canvas.color(0), linewidth=1.4, label="FP32 weights (per step of width)")
    axes.set(title=sample.table, xlabel="weight / step", ylabel="% of values", yscale="log", ylim=(1e-3, 200))
    axes.minorticks_off()


def _samples(run: RunFiles, checkpoint: Path) -> list[Sample]:
    rows = np.array(run.config.model.table_rows)
    starts = np.concatenate([[0], np.cumsum(rows)])
    largest = sorted(np.argsort(-rows, kind="stable")[:_TABLES].tolist())
    names = table_names(rows.size)
    reader = RowReader(checkpoint)
    steps = reader.read("scales.step", 0, rows.size)
    return [Sample(names[t], _spread(reader, int(starts[t]), int(rows[t])), float(steps[t])) for t in largest]


def _spread(reader: RowReader, start: int, count: int) -> npt.NDArray[np.float32]:
    if count <= _BLOCKS * _BLOCK_ROWS:
        return reader.read("tables", start, count)
    firsts = np.linspace(0, count - _BLOCK_ROWS, _BLOCKS).astype(int).tolist()
    return np.concatenate([reader.read("tables", start + first, _BLOCK_ROWS) for first in firsts])
