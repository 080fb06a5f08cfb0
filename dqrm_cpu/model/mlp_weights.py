"""What the products of an MLP read: its parameters, or copies of them, quantized or of lower precision."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.types import UNQUANTIZED, RowCopy
from dqrm_cpu.model.layers import LayerParameters
from dqrm_cpu.model.shapes import LayerShape
from dqrm_cpu.quant.formula import Formula, FoundScale, LearnedScale, largest_code
from dqrm_cpu.quant.learned import initial_matrix_scales, matrix_scale_gradient
from dqrm_cpu.quant.methods import Uniform, found_formula, learned_formula, uniform_scale
from dqrm_cpu.quant.rounding import RoundingKey, stochastic_matrix

_LARGEST_BYTE = 127


class WeightSource(NamedTuple):
    """The parameters of one MLP, and what the products want."""

    shapes: tuple[LayerShape, ...]
    layers: tuple[LayerParameters, ...]
    kernels: Kernels
    dtype: torch.dtype
    bias_bits: int = UNQUANTIZED  # below: each bias is one row with a scale of its own, by max|b|, straight through


class MlpWeights(Protocol):
    """The weights that an MLP's products read: `layers` stay in place, `follow` makes them those of the parameters.

    The key of `follow` is that of stochastic rounding; None: to the nearest.
    """

    layers: tuple[LayerParameters, ...]

    def follow(self, key: RoundingKey | None) -> None: ...

    def begin_learning_scales(self) -> None:
        """Writes where scales start, if they are learned."""

    def backward_(self, gradients: Sequence[LayerParameters], scale_gradients: Sequence[Tensor]) -> None:
        """Turns gradients of what was read into those of the parameters, in place; writes those of learned scales."""


MakeWeights = Callable[[WeightSource], MlpWeights]


class CopiedWeights:
    """Copies that a kernel makes, or the parameters themselves where it has none to make; straight-through."""

    def __init__(self, source: WeightSource, layers: tuple[LayerParameters, ...], copies: Sequence[RowCopy]) -> None:
        self.layers = layers
        self._copy = source.kernels.row_copier(list(copies))

    def follow(self, key: RoundingKey | None) -> None:
        assert key is None, "these copies are rounded to the nearest"
        self._copy()

    def begin_learning_scales(self) -> None:
        pass

    def backward_(self, gradients: Sequence[LayerParameters], scale_gradients: Sequence[Tensor]) -> None:
        pass


def plain_weights(source: WeightSource) -> CopiedWeights:
    """Returns the parameters themselves, or copies in the products' precision."""
    if source.dtype == torch.float32:
        return CopiedWeights(source, source.layers, ())
    layers = _allocate_layers(source)
    return CopiedWeights(source, layers, [copy for copies in _all_copies(source, layers) for copy in copies])


def uniform_weights(source: WeightSource, bits: int, by_matrix: bool) -> CopiedWeights:
    """Returns copies under the scale of max|W| of each output row (channel-wise), or of the matrix."""
    layers = _allocate_layers(source)
    return CopiedWeights(source, layers, _uniform_copies(source, layers, bits, by_matrix))


def _uniform_copies(
    source: WeightSource, layers: Sequence[LayerParameters], bits: int, by_matrix: bool
) -> list[RowCopy]:
    copies = []
    for weight, *bias in _all_copies(source, layers):
        source_rows, target_rows = weight.source, weight.target
        if by_matrix:
            source_rows, target_rows = source_rows.view(1, -1), target_rows.view(1, -1)
        copies += [RowCopy(source_rows, target_rows, bits), *bias]
    return copies


class RoundedWeights(CopiedWeights):
    """The copies of `uniform_weights`, rounded by chance where there is a key."""

    def __init__(self, source: WeightSource, bits: int, by_matrix: bool) -> None:
        layers = _allocate_layers(source)
        super().__init__(source, layers, _uniform_copies(source, layers, bits, by_matrix))
        self._source = source
        self._bits = bits
        self._by_matrix = by_matrix

    def follow(self, key: RoundingKey | None) -> None:
        super().follow(None)
        if key is None:
            return
        for i, (layer, used) in enumerate(zip(self._source.layers, self.layers, strict=True)):
            rows = layer.weight.view(1, -1) if self._by_matrix else layer.weight
            scale = uniform_scale(rows.abs().amax(1), self._bits)
            used.weight.copy_(stochastic_matrix(self._source.kernels, layer.weight, scale, self._bits, key.of(i)))


class MatrixScales(Protocol):
    """Scales f32[rows, 1] or f32[1, 1] of the layers of an MLP."""

    def of(self, layer: int, weight: Tensor) -> Tensor:
        """Returns the scales to use with the weights as they stand."""

    def begin(self, layer: int, weight: Tensor) -> None:
        """Writes where they start, if they are learned."""

    def write_gradient(self, layer: int, of_scale: Tensor, out: Sequence[Tensor]) -> None:
        """Writes the gradient of the layer's scales, one of `out`, from that by element of its weight."""


class FormulaWeights:
    """Copies quantized by any formula, in plain torch."""

    def __init__(self, source: WeightSource, formula: Formula, scales: MatrixScales) -> None:
        self.layers = _allocate_layers(source)
        self._parameters = source.layers
        self._formula = formula
        self._scales = scales
        self._copy_biases = source.kernels.row_copier(
            [c for _, *bias in _all_copies(source, self.layers) for c in bias]
        )
        self._in_use: list[Tensor] = []

    def follow(self, key: RoundingKey | None) -> None:
        assert key is None, "a formula has its own rounding"
        self._in_use = [self._scales.of(i, layer.weight) for i, layer in enumerate(self._parameters)]
        for used, layer, scale in zip(self.layers, self._parameters, self._in_use, strict=True):
            used.weight.copy_(self._formula.values(layer.weight, scale))
        self._copy_biases()

    def begin_learning_scales(self) -> None:
        for i, layer in enumerate(self._parameters):
            self._scales.begin(i, layer.weight)

    def backward_(self, gradients: Sequence[LayerParameters], scale_gradients: Sequence[Tensor]) -> None:
        for i, (layer, scale, gradient) in enumerate(zip(self._parameters, self._in_use, gradients, strict=True)):
            of_scale = self._formula.backward_(layer.weight, scale, gradient.weight)
            if of_scale is not None:
                self._scales.write_gradient(i, of_scale, scale_gradients)


class FoundMatrixScales:
    """Scales found from max|W|, at every step."""

    def __init__(self, formula: FoundScale, by_matrix: bool) -> None:
        self._formula = formula
        self._by_matrix = by_matrix

    def of(self, layer: int, weight: Tensor) -> Tensor:
        rows = weight.view(1, -1) if self._by_matrix else weight
        return self._formula.scale_of(rows.abs().amax(1)).view(-1, 1)

    def begin(self, layer: int, weight: Tensor) -> None:
        pass

    def write_gradient(self, layer: int, of_scale: Tensor, out: Sequence[Tensor]) -> None:
        raise AssertionError("a scale that is found has no gradient")


class LearnedMatrixScales:
    """Scales that are parameters; before training has begun, where it would start."""

    def __init__(self, formula: LearnedScale, scales: Sequence[Tensor]) -> None:
        self._formula = formula
        self._scales = tuple(scales)

    def of(self, layer: int, weight: Tensor) -> Tensor:
        scale = self._scales[layer]
        return scale if bool(scale.any()) else self._initial(layer, weight)

    def begin(self, layer: int, weight: Tensor) -> None:
        self._scales[layer].copy_(self._initial(layer, weight))

    def _initial(self, layer: int, weight: Tensor) -> Tensor:
        rows = weight if self._scales[layer].numel() == weight.shape[0] else weight.view(1, -1)
        return initial_matrix_scales(self._formula, rows)

    def write_gradient(self, layer: int, of_scale: Tensor, out: Sequence[Tensor]) -> None:
        out[layer].copy_(matrix_scale_gradient(self._formula, of_scale, self._scales[layer]))


class QuantizedMatrices(NamedTuple):
    """The formula of an MLP's matrices, and where their scales come from."""

    formula: Formula
    scales: MatrixScales


def quantized_matrices(quant: QuantConfig, scales: Sequence[Tensor]) -> QuantizedMatrices | None:
    """Returns what quantizes one MLP, whose learned scales are given; None: it stays in FP32."""
    bits, by_matrix = quant.mlp_bits, quant.mlp_granularity == "matrix"
    learned, found = learned_formula(quant, bits), found_formula(quant, bits)
    if bits == UNQUANTIZED or (learned is None and found is None):
        return None
    if learned is not None:
        return QuantizedMatrices(learned, LearnedMatrixScales(learned, scales))
    assert found is not None
    return QuantizedMatrices(found, FoundMatrixScales(found, by_matrix))


def quantized_weights(quant: QuantConfig, matrices: QuantizedMatrices | None) -> MakeWeights | None:
    """Returns what makes the weights that one MLP reads when it is quantized; None: it stays in FP32."""
    bias_bits, by_matrix = quant.mlp_bias_bits, quant.mlp_granularity == "matrix"
    if matrices is None and bias_bits == UNQUANTIZED:
        return None
    if matrices is None or isinstance(matrices.formula, Uniform):
        # The kernels know this one.
        bits = UNQUANTIZED if matrices is None else quant.mlp_bits
        make = RoundedWeights if quant.mlp_rounding == "stochastic" else uniform_weights
        return lambda source: make(source._replace(bias_bits=bias_bits), bits, by_matrix)
    return lambda source: FormulaWeights(source._replace(bias_bits=bias_bits), *matrices)


def largest_row_code(quant: QuantConfig, matrices: QuantizedMatrices | None) -> int:
    """Returns the largest code of quantized weights whose rows are multiples of their largest number over it; or 127.

    Those of a learned scale, of one for a whole matrix, or rounded by chance need not reach it.
    """
    by_row = quant.mlp_granularity != "matrix" and quant.mlp_rounding == "nearest"
    if matrices is None or not isinstance(matrices.formula, Uniform) or not by_row:
        return _LARGEST_BYTE
    return min(largest_code(quant.mlp_bits), _LARGEST_BYTE)


def _allocate_layers(source: WeightSource) -> tuple[LayerParameters, ...]:
    """Allocates copies of the weights, and of biases where there are any that the products do not read as they are."""
    exact = source.dtype == torch.float32 and source.bias_bits == UNQUANTIZED
    return tuple(
        LayerParameters(
            torch.empty_like(layer.weight, dtype=source.dtype),
            layer.bias if exact or not layer.bias.numel() else torch.empty_like(layer.bias, dtype=source.dtype),
        )
        for layer in source.layers
    )


def _all_copies(source: WeightSource, layers: Sequence[LayerParameters]) -> Iterator[list[RowCopy]]:
    """Yields for each layer the copy of its weight, unquantized, and that of its bias if there is one."""
    for layer, used in zip(source.layers, layers, strict=True):
        copies = [RowCopy(layer.weight, used.weight, UNQUANTIZED)]
        if used.bias is not layer.bias:
            copies.append(RowCopy(layer.bias.view(1, -1), used.bias.view(1, -1), source.bias_bits))
        yield copies
