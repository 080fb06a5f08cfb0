"""A layer in products of whole numbers, in NumPy: slow, and in the order of operations that its formulas have."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.kernels.hashing import splitmix64
from dqrm_cpu.kernels.integer_layers import IntegerShape
from dqrm_cpu.kernels.packed_arrays import LEAST_MAGNITUDE

Floats = NDArray[np.float32]
Codes = NDArray[np.int64]

_F = np.float32
_ROWS_OF_BIAS_SUM = 48


class Weight(NamedTuple):
    """The codes of a weight [outputs, inputs] and the scale of each row."""

    codes: Codes
    scale: Floats


class Read(NamedTuple):
    """The codes of what a layer read [B, inputs], and the scales of each row's blocks f32[B, blocks]."""

    codes: Codes
    scales: Floats


class Gradients(NamedTuple):
    """The gradients that the backward of a layer returns."""

    inputs: Floats
    weight: Floats
    bias: Floats


def blocks_of(shape: IntegerShape) -> list[slice]:
    """Returns the columns of either block."""
    first = slice(0, shape.first_inputs)
    return [first] if shape.first_inputs == shape.inputs else [first, slice(shape.first_inputs, shape.inputs)]


def code_weight(weight: Floats, largest_code: int) -> Weight:
    """Rounds each row to codes up to the largest."""
    limit = _F(largest_code)
    scale = np.maximum(np.abs(weight).max(axis=1) / limit, _F(1e-8))
    return Weight(_nearest(weight * (_F(1) / scale)[:, None], limit), scale)


def read_rows(shape: IntegerShape, x: Floats) -> Read:
    """Rounds each block of each row."""
    steps = _F(255 if shape.is_unsigned else 127)
    codes, scales = np.zeros(x.shape, np.int64), []
    for block in blocks_of(shape):
        factor, scale = scale_of(np.abs(x[:, block]).max(axis=1), steps)
        codes[:, block] = np.rint(x[:, block] * factor[:, None])
        scales.append(scale)
    return Read(codes, np.stack(scales, axis=1))


def forward(shape: IntegerShape, weight: Weight, bias: Floats, read: Read) -> Floats:
    """Returns y."""
    out = None
    for number, block in enumerate(blocks_of(shape)):
        sums = (read.codes[:, block] @ weight.codes[:, block].T).astype(_F) * read.scales[:, number, None]
        out = sums if out is None else sums + out
    assert out is not None
    y = out * weight.scale + bias
    return np.where(y < 0, _F(0), y) if shape.relu else y


def backward(
    shape: IntegerShape, weight: Weight, read: Read, grad: Floats, activation: Floats | None, key: int
) -> Gradients:
    """Returns the gradients of input, weight and bias."""
    if activation is not None:
        grad = np.where(activation > 0, grad, _F(0))
    words = chance_words(key, *grad.shape)
    upper, lower = ((half.astype(_F) * _F(2.0**-16)) for half in (words >> np.uint32(16), words & np.uint32(0xFFFF)))
    folded = grad * weight.scale
    factor, scale = scale_of(np.abs(folded).max(axis=1), _F(127))
    codes = _by_chance(folded * factor[:, None], upper)
    inputs = (codes @ weight.codes).astype(_F) * scale[:, None]
    of_weight = np.zeros((shape.outputs, shape.inputs), _F)
    for number, block in enumerate(blocks_of(shape)):
        folded = grad * read.scales[:, number, None]
        factor, scale = scale_of(np.abs(folded).max(axis=0), _F(127))
        codes = _by_chance(folded * factor, lower)
        of_weight[:, block] = (codes.T @ read.codes[:, block]).astype(_F) * scale[:, None]
    return Gradients(inputs, of_weight, _bias_sums(grad))


def scale_of(most: Floats, steps: np.float32) -> tuple[Floats, Floats]:
    """Returns by what to multiply numbers of which none is larger, and by what their codes."""
    usable = most >= LEAST_MAGNITUDE
    return np.where(usable, steps / np.where(usable, most, _F(1)), _F(0)), most / steps


def chance_words(key: int, rows: int, columns: int) -> NDArray[np.uint32]:
    """Returns 32 random bits for each element."""
    words = np.array([splitmix64(key, row) for row in range(rows)], np.uint64)[:, None]
    low, high = words.astype(np.uint32), (words >> np.uint64(32)).astype(np.uint32)
    x = low ^ (np.arange(columns, dtype=np.uint32) * np.uint32(0x9E3779B9))
    x = ((x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD)) ^ high
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x735A2D97)
    folded: NDArray[np.uint32] = x ^ (x >> np.uint32(15))
    return folded


def _nearest(scaled: Floats, limit: np.float32) -> Codes:
    codes: Codes = np.clip(np.rint(scaled), -limit, limit).astype(np.int64)
    return codes


def _by_chance(scaled: Floats, chance: Floats) -> Codes:
    codes: Codes = np.clip(np.floor(scaled + chance), -127, 127).astype(np.int64)
    return codes


def _bias_sums(grad: Floats) -> Floats:
    """Sums rows one after the other, 48 of them at a time, and those sums."""
    total = np.zeros(grad.shape[1], _F)
    for start in range(0, len(grad), _ROWS_OF_BIAS_SUM):
        part = np.zeros_like(total)
        for row in grad[start : start + _ROWS_OF_BIAS_SUM]:
            part = part + row
        total = total + part
    return total
