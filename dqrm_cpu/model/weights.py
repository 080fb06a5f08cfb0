"""What the products of an MLP read: its parameters, or copies of them, quantized or of lower precision."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.types import UNQUANTIZED, RowCopy
from dqrm_cpu.model.layers import LayerParameters, LayerShape
from dqrm_cpu.quant.formula import Formula, FoundScale, LearnedScale
from dqrm_cpu.quant.learned import initial_matrix_scales, matrix_scale_gradient
from dqrm_cpu.quant.rounding import RoundingKey, stochastic_matrix
from dqrm_cpu.quant.uniform import quantization_step


class WeightSource(NamedTuple):
    """The parameters of one MLP, and what the products want."""

    shapes: tuple[LayerShape, ...]
    layers: tuple[LayerParameters, ...]
    kernels: Kernels
    dtype: torch.dtype
    bias_bits: int = UNQUANTIZED  # below: each bias is one row with a scale of its own, by max|b|, straight through


class MlpWeights(Protocol):
    """`layers` stay where they are; `follow` makes them those of the parameters.

    Its key is that of stochastic rounding; None: to the nearest.
    """

    layers: tuple[LayerParameters, ...]

    def follow(self, key: RoundingKey | None) -> None: ...

    def begin_learning_scales(self) -> None:
        """Writes where scales start, if they are learned."""

    def backward_(self, gradients: Sequence[LayerParameters], scale_gradients: Sequence[Tensor]) -> None:
        """From gradients of what was read to those of the parameters, in place; writes those of learned scales."""


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
    """Unquantized."""
    if source.dtype == torch.float32:
        return CopiedWeights(source, source.layers, ())
    layers = _room(source)
    return CopiedWeights(source, layers, [copy for copies in _all_copies(source, layers) for copy in copies])


def uniform_weights(source: WeightSource, bits: int, by_matrix: bool) -> CopiedWeights:
    """Symmetric, with the step of max|W| of each output row (channel-wise), or of the matrix."""
    layers = _room(source)
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
    """As `uniform_weights`, and where there is a key rounded by chance."""

    def __init__(self, source: WeightSource, bits: int, by_matrix: bool) -> None:
        layers = _room(source)
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
            step = quantization_step(rows.abs().amax(1), self._bits)
            used.weight.copy_(stochastic_matrix(self._source.kernels, layer.weight, step, self._bits, key.of(i)))


class MatrixScales(Protocol):
    """Scales f32[rows, 1] or f32[1, 1] of the layers of an MLP."""

    def of(self, layer: int, weight: Tensor) -> Tensor:
        """Those to use with the weights as they stand."""

    def begin(self, layer: int, weight: Tensor) -> None:
        """Writes where they start, if they are learned."""

    def write_gradient(self, layer: int, of_scale: Tensor, out: Sequence[Tensor]) -> None:
        """From the gradient by element of the layer's weight; into that of its scales, one of `out`."""


class FormulaWeights:
    """Any formula, in plain torch."""

    def __init__(self, source: WeightSource, formula: Formula, scales: MatrixScales) -> None:
        self.layers = _room(source)
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
    """From max|W|, at every step."""

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
    """Parameters; where training would start, before it has begun."""

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


def _room(source: WeightSource) -> tuple[LayerParameters, ...]:
    """For copies of the weights, and of the biases where the products do not read them as they are."""
    exact = source.dtype == torch.float32 and source.bias_bits == UNQUANTIZED
    return tuple(
        LayerParameters(
            torch.empty_like(layer.weight, dtype=source.dtype),
            layer.bias if exact else torch.empty_like(layer.bias, dtype=source.dtype),
        )
        for layer in source.layers
    )


def _all_copies(source: WeightSource, layers: Sequence[LayerParameters]) -> Iterator[list[RowCopy]]:
    """Of each layer: the weight's, unquantized, and the bias' if it is copied."""
    for layer, used in zip(source.layers, layers, strict=True):
        copies = [RowCopy(layer.weight, used.weight, UNQUANTIZED)]
        if used.bias is not layer.bias:
            copies.append(RowCopy(layer.bias.view(1, -1), used.bias.view(1, -1), source.bias_bits))
        yield copies
