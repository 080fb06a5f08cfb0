"""The tables of a model under a method: how they are looked up, and what becomes of their gradient.

A method whose values are clamp(round(w / step)) * step takes the kernels' fused lookup; any other looks up FP32 rows
and applies its formula in plain torch before pooling. A straight-through gradient goes to the fused update as it is;
any other is summed by row first, then changed row by row. Stochastic rounding looks up FP32 rows, too, and rounds them
by the kernel of the integer wires.
"""

import torch
from torch import Tensor

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.torch_impl import gather_transform_pool
from dqrm_cpu.kernels.types import UNQUANTIZED, Bags, SparseGrad, Tables
from dqrm_cpu.quant.learned import table_scale_gradient
from dqrm_cpu.quant.rounding import RoundingKey, stochastic_values
from dqrm_cpu.quant.select import learned_formula, select_formula


class TableQuantizer:
    """Of a model's tables. `scale` f32[T] is what the method calls so."""

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

        With a key, by stochastic rounding, of a formula that has a step.
        """
        formula = self._formula
        if formula is None or not quantized:
            self._kernels.gather_quantize_pool(tables, bags, scale, UNQUANTIZED, out)
        elif key is not None:
            self._look_up_rounded(tables, bags, scale, out, formula.bits, key)
        elif formula.is_step:
            self._kernels.gather_quantize_pool(tables, bags, scale, formula.bits, out)
        else:
            gather_transform_pool(tables, bags, lambda rows, t: formula.values(rows, scale[t][:, None]), out)

    def _look_up_rounded(
        self, tables: Tables, bags: Bags, step: Tensor, out: Tensor, bits: int, key: RoundingKey
    ) -> None:
        pointer = _table_pointer(bags, tables.num_tables)

        def rounded(rows: Tensor, table: Tensor) -> Tensor:
            return stochastic_values(self._kernels, (rows, bags.ids.view(-1), pointer), step, bits, key)

        gather_transform_pool(tables, bags, rounded, out)

    def backward_(self, tables: Tables, grad: SparseGrad, scale: Tensor, scale_gradient: Tensor) -> None:
        """From the gradient of the quantized rows to that of the rows, in place; writes that of a learned scale."""
        if self._formula is None or self._formula.straight_through:
            return
        counts = grad.table_ptr.diff()
        first = tables.row_offset[:-1].to(grad.rows.device).repeat_interleave(counts)
        weight = tables.weight.index_select(0, first + grad.rows)
        of_scale = self._formula.backward_(weight, scale.repeat_interleave(counts)[:, None], grad.values)
        if of_scale is not None and self._learned is not None:
            scale_gradient.copy_(table_scale_gradient(self._learned, tables, grad, of_scale))


def _table_pointer(bags: Bags, num_tables: int) -> Tensor:
    """int64[T + 1]: where the ids of each table begin."""
    if bags.offsets is None:
        return torch.arange(num_tables + 1, device=bags.ids.device) * bags.ids.shape[1]
    return bags.offsets[:: (bags.offsets.numel() - 1) // num_tables]
