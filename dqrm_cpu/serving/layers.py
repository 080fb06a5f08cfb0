"""The fully connected layers of an exported model in NumPy: products in FP32, or of whole numbers.

Integer products: a weight that the file holds as codes of at most 8 bits is multiplied as it lies there. What it is
multiplied with is rounded to 8 bits, by a scale for each row, so that a row's result does not depend on others: 0 to
255 behind a rectifier, else -127 to 127. Sums are exact in int32.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.kernels.packed_arrays import LEAST_MAGNITUDE, MOST_INTEGER_INPUTS
from dqrm_cpu.serving.description import FLOAT_BITS, Description, LayerDescription
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.stored import BIAS_TENSORS, WEIGHT_TENSORS, Floats, finite, stored_matrix

INTEGER_BITS = 8
"""The most bits of codes that integer products take."""


class InputGrid(NamedTuple):
    """The scale of inputs that are rounded, and their least and largest code."""

    scale: np.float32
    least: int
    most: int

    @classmethod
    def of(cls, bits: int, largest: np.float32, unsigned: bool) -> "InputGrid":
        """Returns that of inputs up to `largest`, none of them negative if they are `unsigned`."""
        half = 1 << (bits - 1)
        least, most = (0, 2 * half - 1) if unsigned else (-half, half - 1)
        return cls(np.maximum(largest / np.float32(most), np.float32(1e-8)), least, most)


class FloatLayer:
    """One layer with its weight in FP32."""

    def __init__(self, layer: LayerDescription, weight: Floats, bias: Floats | None, grid: InputGrid | None) -> None:
        """`weight`: f32[outputs, inputs]; `bias`: f32[outputs]; `grid`: None where inputs are not rounded."""
        self.description = layer
        self._weight = np.ascontiguousarray(weight.T)
        self.bias, self.grid = bias, grid

    def __call__(self, x: Floats) -> Floats:
        """Returns f32[n, outputs] of f32[n, inputs]."""
        if self.grid is not None:
            scale, least, most = self.grid
            x = np.clip(np.rint(x * np.reciprocal(scale)), least, most) * scale
        return self.finish(x @ self._weight)

    def finish(self, y: Floats) -> Floats:
        """Adds the bias to products, and rectifies."""
        if self.bias is not None:
            y += self.bias
        return np.maximum(y, 0, out=y) if self.description.relu else y


class AffineLayer(FloatLayer):
    """One layer as a file has it, with its weight in FP32."""

    def __init__(self, file: MappedFile, layer: LayerDescription, model: Description, unsigned: bool) -> None:
        self.stored = stored_matrix(file, layer.name, (layer.outputs, layer.inputs), layer.bits, WEIGHT_TENSORS)
        bias: Floats | None = None
        if layer.has_bias:
            shape = (1, layer.outputs)
            bias = stored_matrix(file, layer.name, shape, model.bias_bits, BIAS_TENSORS).floats()[0]
        grid: InputGrid | None = None
        if model.activation_bits != FLOAT_BITS:
            largest = finite(file, f"{layer.name}.input_max", 1)[0]
            grid = InputGrid.of(model.activation_bits, largest, unsigned)
        super().__init__(layer, self.stored.floats(), bias, grid)

    @property
    def takes_integers(self) -> bool:
        """Tells whether its weight, and what it reads if that has codes, have codes of 8 bits or fewer."""
        about, stored = self.description, self.stored
        has_codes = stored.scale is not None and stored.offset is None and about.bits <= INTEGER_BITS
        fits_grid = self.grid is None or self.grid.most - self.grid.least < 1 << INTEGER_BITS
        return has_codes and fits_grid and about.inputs <= MOST_INTEGER_INPUTS


class IntegerLayer:
    """One layer that multiplies whole numbers."""

    def __init__(self, layer: AffineLayer, is_unsigned: bool, first_inputs: int) -> None:
        """`is_unsigned`: inputs are never negative; the first ones have a scale of their own, or all have one."""
        self.layer, self.description = layer, layer.description
        self.is_unsigned = is_unsigned if layer.grid is None else layer.grid.least == 0
        self.first_inputs = first_inputs if layer.grid is None else self.description.inputs
        # NumPy multiplies doubles fast, and sums of whole numbers are exact in them.
        self._codes = layer.stored.values.T.astype(np.float64)

    def __call__(self, x: Floats) -> Floats:
        """Returns f32[n, outputs] of f32[n, inputs]."""
        y: Any = 0
        for start, end in pairwise(sorted({0, self.first_inputs, x.shape[1]})):
            codes, scale = self._rounded(x[:, start:end])
            sums = codes.astype(np.float64) @ self._codes[start:end]
            # A number that is not finite makes the whole row so.
            with np.errstate(invalid="ignore"):
                y = y + sums.astype(np.float32) * scale[:, None]
        assert self.layer.stored.scale is not None
        return self.layer.finish(y * self.layer.stored.scale)

    def _rounded(self, x: Floats) -> tuple[Floats, Floats]:
        """Returns whole numbers f32[n, inputs], and f32[n] by which to multiply them."""
        largest = np.abs(x).max(axis=1, initial=0)
        inverse: NDArray[np.float32]
        if self.layer.grid is not None:
            scale, least, most = self.layer.grid
            scales = np.where(np.isnan(largest), np.float32(np.nan), scale)
            inverse = np.full_like(largest, np.reciprocal(scale))
        else:
            least, most = (0, 255) if self.is_unsigned else (-127, 127)
            scales = largest / np.float32(most)
            has_some = (largest >= LEAST_MAGNITUDE) & (largest < np.inf)
            inverse = np.zeros_like(largest)
            np.divide(np.float32(most), largest, out=inverse, where=has_some)
        with np.errstate(invalid="ignore"):
            codes = np.clip(np.rint(x * inverse[:, None]), least, most)
        codes[np.isnan(codes)] = 0
        return codes, scales
