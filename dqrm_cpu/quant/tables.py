"""The tables of a model under a method: how they are looked up, and what becomes of their gradient.

A method whose values are clamp(round(w / scale)) * scale takes the kernels' fused lookup; any other looks up FP32 rows
and applies its formula in plain torch before pooling. A straight-through gradient goes to the fused update as it is;
any other is summed by row first, then changed row by row. Stochastic rounding looks up FP32 rows, too, and rounds them
by the kernel of the integer wires.
"""

import torch
from torch import Tensor

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.torch_kernels import gather_transform_pool
from dqrm_cpu.kernels.types import UNQUANTIZED, Bags, SparseGrad, Tables
from dqrm_cpu.quant.learned import table_scale_gradient
from dqrm_cpu.quant.methods import learned_formula, select_formula
from dqrm_cpu.quant.rounding import RoundingKey, stochastic_values


class TableQuantizer:
    """Looks tables up quantized, and turns gradients back. `scale` f32[T] is what the method calls so."""

    def __init__(self, quant: QuantConfig, kernels: Kernels) -> None:
        self._formula = select_formula(quant, quant.embedding_bits)
        self._learned = learned_formula(quant, quant.embedding_bits)
        self._kernels = kernels

    @property
    def straight_through(self) -> bool:
        """Whether the tables' gradient may go from the pooled vectors straight into the update."""
        return self._formula is None or self._formula.straight_through

    def look_up(
        self, tables: Tables, bags: Bags, scale: Tensor, out: Tensor, quantized: bool, key: RoundingKey | None = None
    ) -> None:
        """Pools the rows, quantized where that is asked for, into out[:, 1:, :] of [B, F, D].

        With a key, by stochastic rounding, of a formula with a fused lookup.
        """
        formula = self._formula
        if formula is None or not quantized:
            self._kernels.gather_quantize_pool(tables, bags, scale, UNQUANTIZED, out)
        elif key is not None:
            self._look_up_rounded(tables, bags, scale, out, formula.bits, key)
        elif formula.has_fused_lookup:
            self._kernels.gather_quantize_pool(tables, bags, scale, formula.bits, out)
        else:
            gather_transform_pool(tables, bags, lambda rows, t: formula.values(rows, scale[t][:, None]), out)

    def _look_up_rounded(
        self, tables: Tables, bags: Bags, scale: Tensor, out: Tensor, bits: int, key: RoundingKey
    ) -> None:
        pointer = _table_pointer(bags, tables.num_tables)

        def rounded(rows: Tensor, table: Tensor) -> Tensor:
            return stochastic_values(self._kernels, (rows, bags.ids.view(-1), pointer), scale, bits, key)

        gather_transform_pool(tables, bags, rounded, out)

    def backward_(self, tables: Tables, grad: SparseGrad, scale: Tensor) -> Tensor | None:
        """Turns the gradient of the quantized rows into the rows' own, in place; returns that of learned scales f32[T].

        None: they are not learned.
        """
        if self._formula is None or self._formula.straight_through:
            return None
        counts = grad.table_ptr.diff()
        first = tables.row_offset[:-1].to(grad.rows.device).repeat_interleave(counts)
        weight = tables.weight.index_select(0, first + grad.rows)
        of_scale = self._formula.backward_(weight, scale.repeat_interleave(counts)[:, None], grad.values)
        if of_scale is None or self._learned is None:
            return None
        return table_scale_gradient(self._learned, tables, grad, of_scale)


def _table_pointer(bags: Bags, num_tables: int) -> Tensor:
    """Returns int64[T + 1]: where the ids of each table begin."""
    if bags.offsets is None:
        return torch.arange(num_tables + 1, device=bags.ids.device) * bags.ids.shape[1]
    return bags.offsets[:: (bags.offsets.numel() - 1) // num_tables]
