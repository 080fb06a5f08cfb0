"""What the kernels of an MLP of whole numbers know of its layers: a record of int64 for each.

All but numbers are addresses. In an array, so that the number of layers needs no compiling of its own.
"""

from typing import NamedTuple

from ..jit.compile import inlined
from ..jit.memory import long_at
from .integer_panels import IntegerProduct


class CodedWeight(NamedTuple):
    """A weight and its panels."""

    values: int  # f32[O, I]
    outputs: int
    first_inputs: int  # of the first block, all or fewer
    more_inputs: int  # of the second
    codes: int  # int8, rows `stride` bytes apart, either block beginning at a multiple of FOUR
    stride: int
    forward: int  # panels of outputs
    backward: int  # panels of the inputs of the first block, then of those of the second
    scale: int  # f32[O]
    zero: int  # what is added to the codes of inputs
    first_sums: int  # int32[2, O in whole panels]: what the forward's sums of either block begin with
    first_sums_back: int  # int32[inputs of either block in whole panels]: the same of input gradients
    bias: int  # f32[O]
    used_bias: int  # f32[O in whole panels], its copy


class OutputGradient(NamedTuple):
    """The gradient of a layer's outputs and what belongs to it."""

    grad: int  # f32[B, O], changed in place
    activation: int  # f32[B, O]; 0: no rectifier
    outputs: int
    weight_scale: int  # f32[O]
    row_scales: int  # f32[B, 2] of what the layer read
    bias: int  # f32[O]: its gradient
    bias_sums: int  # scratch: f32[items, O]
    maxima: int  # scratch: f32[items, 2, O]
    grad_x: int  # f32[B, inputs]: the gradient of what the layer read; 0: not wanted
    inputs: int


class BlockGradient(NamedTuple):
    """The addresses and sizes that the weight gradient of one block of inputs is computed from."""

    panels: int  # uint8 panels of what the layer read, four rows side by side
    inputs: int  # of the block; 0: there is none
    zero: int  # what was added to what the layer read
    out: int  # f32, rows `out_stride` floats apart, from the block's first column on
    out_stride: int
    codes: int  # int8 panels of outputs
    scales: int  # f32[panels of outputs, 2, PANEL]: by what to multiply columns to have codes, and their sums


class LayerRecord(NamedTuple):
    """Everything about one layer, as Python writes it."""

    weight: CodedWeight
    product: IntegerProduct
    out: int  # f32[B, O], and room for an item's rows
    gradient: OutputGradient
    first_back: IntegerProduct  # what gives the gradient of the inputs of the first block
    more_back: IntegerProduct
    first: BlockGradient
    more: BlockGradient


_WEIGHT, _PRODUCT, _GRADIENT, _BLOCK = (
    len(kind._fields) for kind in (CodedWeight, IntegerProduct, OutputGradient, BlockGradient)
)
RECORD_LONGS = _WEIGHT + 3 * _PRODUCT + 1 + _GRADIENT + 2 * _BLOCK

_AT_PRODUCT = 8 * _WEIGHT
_AT_OUT = _AT_PRODUCT + 8 * _PRODUCT
_AT_GRADIENT = _AT_OUT + 8
_AT_BACK = _AT_GRADIENT + 8 * _GRADIENT
_AT_BLOCKS = _AT_BACK + 16 * _PRODUCT


def flat_record(record: LayerRecord) -> list[int]:
    """Returns the numbers of a record in their order."""
    return [number for part in record for number in (part if isinstance(part, tuple) else (part,))]


@inlined
def weight_at(records: int, layer: int) -> CodedWeight:
    """Reads a layer's weight."""
    p = records + 8 * RECORD_LONGS * layer
    return CodedWeight(
        long_at(p, 0),
        long_at(p, 1),
        long_at(p, 2),
        long_at(p, 3),
        long_at(p, 4),
        long_at(p, 5),
        long_at(p, 6),
        long_at(p, 7),
        long_at(p, 8),
        long_at(p, 9),
        long_at(p, 10),
        long_at(p, 11),
        long_at(p, 12),
        long_at(p, 13),
    )


@inlined
def product_at(records: int, layer: int) -> IntegerProduct:
    """Reads a layer's forward product."""
    return _product(records + 8 * RECORD_LONGS * layer + _AT_PRODUCT)  # type: ignore[no-any-return]


@inlined
def product_back_at(records: int, layer: int, block: int) -> IntegerProduct:
    """Reads the product that gives the gradient of a block of a layer's inputs."""
    return _product(records + 8 * RECORD_LONGS * layer + _AT_BACK + 8 * _PRODUCT * block)  # type: ignore[no-any-return]


@inlined
def _product(p: int) -> IntegerProduct:
    return IntegerProduct(
        long_at(p, 0),
        long_at(p, 1),
        long_at(p, 2),
        long_at(p, 3),
        long_at(p, 4),
        long_at(p, 5),
        long_at(p, 6),
        long_at(p, 7),
        long_at(p, 8),
        long_at(p, 9),
        long_at(p, 10),
        long_at(p, 11),
        long_at(p, 12),
    )


@inlined
def output_at(records: int, layer: int) -> int:
    """Reads where a layer's output goes."""
    return long_at(records + 8 * RECORD_LONGS * layer + _AT_OUT, 0)  # type: ignore[no-any-return]


@inlined
def gradient_at(records: int, layer: int) -> OutputGradient:
    """Reads the gradient of a layer's outputs."""
    p = records + 8 * RECORD_LONGS * layer + _AT_GRADIENT
    return OutputGradient(
        long_at(p, 0),
        long_at(p, 1),
        long_at(p, 2),
        long_at(p, 3),
        long_at(p, 4),
        long_at(p, 5),
        long_at(p, 6),
        long_at(p, 7),
        long_at(p, 8),
        long_at(p, 9),
    )


@inlined
def block_at(records: int, layer: int, block: int) -> BlockGradient:
    """Reads what makes the gradient of the weight of a block."""
    p = records + 8 * RECORD_LONGS * layer + _AT_BLOCKS + 8 * _BLOCK * block
    return BlockGradient(
        long_at(p, 0), long_at(p, 1), long_at(p, 2), long_at(p, 3), long_at(p, 4), long_at(p, 5), long_at(p, 6)
    )
