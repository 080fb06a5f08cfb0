"""A trained model as one packed file: codes, what they mean, the MLPs, the configuration.

`dense` holds the codes of every row. `sparse` holds those of live rows (any code that is not 0) alone, a bit for each
row that says whether it lives, and for every 512 rows how many live ones came before, so that a reader finds a row's
codes without scanning. docs/quantization.md lists the tensors.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.export.codes import pack_codes
from dqrm_cpu.export.layout import FORMATS, ROWS_PER_RANK
from dqrm_cpu.export.stream import Streamed, whole, write_tensors
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.size import packed_row_bytes
from dqrm_cpu.model.tables import table_names
from dqrm_cpu.quant.formula import Formula

_ROWS_AT_ONCE = 1 << 16


def write_model(path: Path, config: Config, model: Dlrm, scale: Tensor, layout: str, identity: str = "") -> int:
    """`layout` dense or sparse; scale f32[T] of the tables. Returns the bytes of the file.

    `identity`: that of the data's schema and vocabulary, as a run records it; empty where it is not known.
    """
    formula = model.table_formula
    assert formula is not None, "an FP32 model has no codes"
    bounds = pairwise(model.tables.row_offset.tolist())
    tensors: list[Streamed] = []
    for name, (first, end), of_table in zip(table_names(len(scale)), bounds, scale, strict=True):
        table = _Table(name, model.tables.weight[first:end], formula, of_table.view(1, 1), model.kernels)
        tensors += table.sparse() if layout == "sparse" else table.dense()
    tensors += _grid("tables", formula, scale)
    tensors += mlp_tensors(model)
    return write_tensors(path, tensors, metadata(config, layout, identity))


def metadata(config: Config, layout: str, identity: str) -> dict[str, str]:
    """What a reader must know before the tensors."""
    return {"format": FORMATS[-1], "layout": layout, "identity": identity, "config": config.to_toml()}


def has_sparse_layout(model: Dlrm) -> bool:
    """Where code 0 is exactly 0."""
    formula = model.table_formula
    return formula is not None and formula.grid(torch.ones(1)).offset is None


class _Table(NamedTuple):
    name: str
    weight: Tensor
    formula: Formula
    scale: Tensor
    kernels: Kernels

    def dense(self) -> list[Streamed]:
        return [self._codes(self.weight.shape[0], lambda: self._packed(None))]

    def sparse(self) -> list[Streamed]:
        alive = self._alive()
        live_rows = np.add.reduceat(alive, np.arange(0, len(alive), ROWS_PER_RANK), dtype=np.int32)
        before = np.cumsum(live_rows, dtype=np.int32) - live_rows
        bitmap = np.packbits(alive, bitorder="little")
        codes = self._codes(int(alive.sum()), lambda: self._packed(alive))
        return [whole(f"{self.name}.bitmap", bitmap), whole(f"{self.name}.rank", before), codes]

    def _alive(self) -> NDArray[np.bool_]:
        # Filled in place: small arrays between large ones that come and go would keep holes in the heap.
        alive = np.empty(self.weight.shape[0], dtype=np.bool_)
        stretches = np.split(alive, range(_ROWS_AT_ONCE, alive.size, _ROWS_AT_ONCE))
        for stretch, codes in zip(stretches, self._all_codes(), strict=True):
            stretch[:] = (codes != 0).any(1).cpu().numpy()
        return alive

    def _codes(self, rows: int, parts: Callable[[], Iterator[NDArray[np.generic]]]) -> Streamed:
        row_bytes = packed_row_bytes(self.weight.shape[1], self.formula.bits)
        return Streamed(f"{self.name}.codes", "uint8", (rows, row_bytes), parts)

    def _all_codes(self) -> Iterator[Tensor]:
        for part in torch.split(self.weight, _ROWS_AT_ONCE):
            yield self.formula.codes(part, self.scale)

    def _packed(self, alive: NDArray[np.bool_] | None) -> Iterator[NDArray[np.generic]]:
        first = 0
        for codes in self._all_codes():
            end = first + codes.shape[0]
            chosen = codes if alive is None else codes[torch.from_numpy(alive[first:end]).to(codes.device)]
            yield pack_codes(chosen.contiguous(), self.formula.bits, self.kernels)
            first = end


def mlp_tensors(model: Dlrm) -> list[Streamed]:
    """The MLPs: codes where they are quantized, biases likewise, and what the scales of their inputs follow from."""
    tensors: list[Streamed] = []
    maxima = model.inputs.running.cpu().numpy()
    for i, (name, layer, quantized) in enumerate(model.mlp_layers()):
        if quantized is None:
            tensors.append(whole(f"{name}.weight", layer.weight.cpu().numpy()))
        else:
            formula, scale = quantized
            codes = pack_codes(formula.codes(layer.weight, scale).contiguous(), formula.bits, model.kernels)
            tensors += [whole(f"{name}.codes", codes), *_grid(name, formula, scale.view(-1))]
        tensors += _bias(name, layer.bias, model)
        if len(maxima):
            tensors.append(whole(f"{name}.input_max", maxima[i : i + 1]))
    return tensors


def _bias(name: str, bias: Tensor, model: Dlrm) -> list[Streamed]:
    formula = model.bias_formula
    if formula is None:
        return [whole(f"{name}.bias", bias.cpu().numpy())]
    scale = formula.scale_of(bias.abs().amax().view(1))
    codes = pack_codes(formula.codes(bias.view(1, -1), scale.view(1, 1)), formula.bits, model.kernels)
    return [whole(f"{name}.bias_codes", codes), whole(f"{name}.bias_step", scale.cpu().numpy())]


def _grid(name: str, formula: Formula, scale: Tensor) -> list[Streamed]:
    grid = formula.grid(scale)
    step = whole(f"{name}.step", grid.step.cpu().numpy())
    return [step] if grid.offset is None else [step, whole(f"{name}.offset", grid.offset.cpu().numpy())]
