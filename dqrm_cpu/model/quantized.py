"""Which scales a model learns, and what its MLPs read, as the configuration's method wants it."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.model.layers import LayerShape
from dqrm_cpu.model.mlp import MakeWeights
from dqrm_cpu.model.weights import FormulaWeights, FoundMatrixScales, LearnedMatrixScales, uniform_weights
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


def quantized_weights(quant: QuantConfig, scales: Sequence[Tensor]) -> MakeWeights | None:
    """Of one MLP, whose learned scales are given; None: it stays in FP32."""
    bits, by_matrix = quant.mlp_bits, quant.mlp_granularity == "matrix"
    learned, found = learned_formula(quant, bits), found_formula(quant, bits)
    if bits == UNQUANTIZED:
        return None
    if learned is not None:
        return lambda source: FormulaWeights(source, learned, LearnedMatrixScales(learned, scales))
    if isinstance(found, Uniform):
        # The kernels know this one.
        return lambda source: uniform_weights(source, bits, by_matrix)
    if found is not None:
        return lambda source: FormulaWeights(source, found, FoundMatrixScales(found, by_matrix))
    return None
