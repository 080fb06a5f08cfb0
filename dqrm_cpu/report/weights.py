"""What quantization makes of the weights: histograms of a checkpoint's largest tables, codes over values."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrm_cpu.model.shapes import table_names, table_places
from dqrm_cpu.report.chart import Axis, Curve, CurveChart, Mark, Panel, color
from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.checkpoint_rows import RowReader
from dqrm_cpu.train.run_place import checkpoints_folder

_TABLES = 4
_BLOCKS, _BLOCK_ROWS = 64, 512
_BINS = 120


@dataclass(frozen=True)
class Sample:
    """Rows of one table: all of a small one, evenly spread blocks of a large one."""

    table: str
    values: npt.NDArray[np.float32]
    scale: float


def weight_histograms(run: RunFiles, number: int) -> CurveChart | None:
    """Shows the weights of a run; None where it is not quantized or has no checkpoint."""
    folder = checkpoints_folder(run.path)
    if not run.quantized or not any(folder.glob("step-*")):
        return None
    path = find_checkpoint(folder, "best")
    samples = _samples(run, path)
    bits = run.config.quant.embedding_bits

    zero = ", ".join(f"{s.table} {np.mean(np.abs(s.values) < s.scale / 2):.0%}" for s in samples)
    caption = (
        f"{run.name}, {path.name}: weights of its largest tables and what INT{bits} makes of them. Exactly 0: {zero}."
    )
    panels = [_panel(sample, bits) for sample in samples]
    return CurveChart(f"weights-{number}", caption, [Axis("weight / scale")], panels)


def _panel(sample: Sample, bits: int) -> Panel:
    largest = 2 ** (bits - 1) - 1
    scaled = sample.values.ravel() / sample.scale
    codes = np.clip(np.rint(scaled), -largest, largest)
    edges = np.linspace(-largest - 0.5, largest + 0.5, _BINS + 1)
    counts, _ = np.histogram(np.clip(scaled, edges[0], edges[-1]), edges)
    values, of_codes = np.unique(codes, return_counts=True)
    shares = of_codes / scaled.size * 100
    per_code = counts / scaled.size * 100 * (_BINS / (2 * largest + 1))
    some = np.where(per_code > 0, per_code, np.nan)  # a logarithm shows no 0
    return Panel(
        sample.table,
        "% of values",
        [
            Curve(f"INT{bits} codes", [values.tolist()], shares.tolist(), color(1), Mark.BARS),
            Curve("FP32 weights (per width of a code)", [edges[:-1].tolist()], some.tolist(), color(0), Mark.STEPS),
        ],
        log_y=True,
        y_range=(1e-3, 200),
    )


def _samples(run: RunFiles, checkpoint: Path) -> list[Sample]:
    rows = np.array(run.config.model.table_rows)
    places = table_places(run.config.model)
    largest = sorted(np.argsort(-rows, kind="stable")[:_TABLES].tolist())
    names = table_names(rows.size)
    reader = RowReader(checkpoint)
    scales = reader.read("scales.step", 0, rows.size)
    samples = []
    for t in largest:
        tensor, start = places[t]
        samples.append(Sample(names[t], _spread(reader, tensor, start, int(rows[t])), float(scales[t])))
    return samples


def _spread(reader: RowReader, tensor: str, start: int, count: int) -> npt.NDArray[np.float32]:
    if count <= _BLOCKS * _BLOCK_ROWS:
        return reader.read(tensor, start, count)
    firsts = np.linspace(0, count - _BLOCK_ROWS, _BLOCKS).astype(int).tolist()
    return np.concatenate([reader.read(tensor, start + first, _BLOCK_ROWS) for first in firsts])
