"""Which scales a model learns, and what its MLPs read, as the configuration's method wants it."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.model.layers import LayerShape
from dqrm_cpu.model.mlp import MakeWeights
from dqrm_cpu.model.weights import (
    FormulaWeights,
    FoundMatrixScales,
    LearnedMatrixScales,
    MatrixScales,
    RoundedWeights,
    uniform_weights,
)
from dqrm_cpu.quant.formula import Formula
from dqrm_cpu.quant.learned import LearnedScales, split_scales
from dqrm_cpu.quant.select import found_formula, learned_formula
from dqrm_cpu.quant.uniform import Uniform


class ScaleCounts(NamedTuple):
    """How many scales are learned."""

    tables: int
    matrices: tuple[int, ...]  # of each layer, bottom to top

    @property
    def total(self) -> int:
        return self.tables + sum(self.matrices)

    def split(self, flat: Tensor) -> LearnedScales:
        """Views of f32[total]."""
        return split_scales(flat, self.tables, self.matrices)


def scale_counts(quant: QuantConfig, num_tables: int, layers: Sequence[LayerShape]) -> ScaleCounts:
    """None at all unless the method learns them."""
    if learned_formula(quant, quant.embedding_bits) is None:
        return ScaleCounts(0, ())
    if quant.mlp_bits == UNQUANTIZED:
        return ScaleCounts(num_tables, ())
    by_matrix = quant.mlp_granularity == "matrix"
    return ScaleCounts(num_tables, tuple(1 if by_matrix else layer.outputs for layer in layers))


class QuantizedMatrices(NamedTuple):
    """The formula of an MLP's matrices, and where their scales come from."""

    formula: Formula
    scales: MatrixScales


def quantized_matrices(quant: QuantConfig, scales: Sequence[Tensor]) -> QuantizedMatrices | None:
    """Of one MLP, whose learned scales are given; None: it stays in FP32."""
    bits, by_matrix = quant.mlp_bits, quant.mlp_granularity == "matrix"
    learned, found = learned_formula(quant, bits), found_formula(quant, bits)
    if bits == UNQUANTIZED or (learned is None and found is None):
        return None
    if learned is not None:
        return QuantizedMatrices(learned, LearnedMatrixScales(learned, scales))
    assert found is not None
    return QuantizedMatrices(found, FoundMatrixScales(found, by_matrix))


def quantized_weights(quant: QuantConfig, matrices: QuantizedMatrices | None) -> MakeWeights | None:
    """What one MLP reads when it is quantized; None: it stays in FP32."""
    bias_bits, by_matrix = quant.mlp_bias_bits, quant.mlp_granularity == "matrix"
    if matrices is None and bias_bits == UNQUANTIZED:
        return None
    if matrices is None or isinstance(matrices.formula, Uniform):
        # The kernels know this one.
        bits = UNQUANTIZED if matrices is None else quant.mlp_bits
        make = RoundedWeights if quant.mlp_rounding == "stochastic" else uniform_weights
        return lambda source: make(source._replace(bias_bits=bias_bits), bits, by_matrix)
    return lambda source: FormulaWeights(source._replace(bias_bits=bias_bits), *matrices)
