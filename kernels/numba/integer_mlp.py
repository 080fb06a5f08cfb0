"""The layers of an MLP whose products in training are of whole numbers: the memory that its kernels work on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..integer_layers import IntegerShape, LayerTensors
from .integer_panels import FOUR, GROUP_BYTES, SIGNED_ZERO, IntegerProduct, groups_of
from .integer_records import BlockGradient, CodedWeight, LayerRecord, OutputGradient, flat_record
from .integer_training import ROWS_PER_ITEM, Rows, backward_layers, forward_layers
from .integer_weights import code_weights
from .panels import PANEL

_WHOLE_VECTOR = 64
"""Bytes that a vector may write behind what it was asked for."""


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class _LayerMemory:
    """Tensors of one layer, those of a batch as large as the largest so far."""

    def __init__(self, shape: IntegerShape) -> None:
        self.shape = shape
        self.blocks = shape.first_inputs, shape.inputs - shape.first_inputs
        self.zero = 0 if shape.is_unsigned else SIGNED_ZERO
        self.stride = sum(_whole(inputs, FOUR) for inputs in self.blocks) + _WHOLE_VECTOR
        self.input_panels = [_whole(inputs, PANEL) // PANEL for inputs in self.blocks]
        self.output_panels = _whole(shape.outputs, PANEL) // PANEL
        groups, wide, back = sum(map(groups_of, self.blocks)), self.output_panels * PANEL, sum(self.input_panels)
        self.forward = torch.zeros(self.output_panels * groups * GROUP_BYTES, dtype=torch.int8)
        self.backward = torch.zeros(back * groups_of(shape.outputs) * GROUP_BYTES, dtype=torch.int8)
        self.codes = torch.zeros(_whole(shape.outputs, FOUR) * self.stride + _WHOLE_VECTOR, dtype=torch.int8)
        self.scale, self.bias = torch.zeros(wide), torch.zeros(wide)
        self.first_sums = torch.zeros(2, wide, dtype=torch.int32)
        self.first_sums_back = torch.zeros(back * PANEL, dtype=torch.int32)
        self.ones, self.no_bias = torch.ones(back * PANEL), torch.zeros(back * PANEL)
        self.column_scales = torch.zeros(2, self.output_panels, 2, PANEL)

    def allocate(self, rows: int) -> None:
        """Allocates what a batch of so many rows, in whole items, needs."""
        shape, items, panel_bytes = self.shape, rows // ROWS_PER_ITEM, rows * GROUP_BYTES // FOUR
        self.out, self.grad = (torch.zeros(rows, shape.outputs) for _ in range(2))
        self.row_scales = torch.zeros(rows, 2)
        self.panels = torch.zeros(sum(self.input_panels) * panel_bytes, dtype=torch.uint8)
        self.gradient_panels = torch.zeros(2, self.output_panels * panel_bytes, dtype=torch.int8)
        self.bias_sums, self.maxima = torch.zeros(items, shape.outputs), torch.zeros(items, 2, shape.outputs)


class NumbaIntegerLayers:
    """Implements `integer_layers.IntegerLayers`."""

    def __init__(self, shapes: Sequence[IntegerShape]) -> None:
        self._layers = [_LayerMemory(shape) for shape in shapes]
        widest = max(_whole(shape.outputs, FOUR) for shape in shapes) + _WHOLE_VECTOR
        # Rows of all layers lie equally far apart: threads work on different layers at a time.
        self._strides = max(layer.stride for layer in self._layers), widest
        self._used: tuple[LayerTensors, ...] = ()
        self._batch = 0
        self._allocate(ROWS_PER_ITEM)

    def _allocate(self, rows: int) -> None:
        """Allocates what a batch of so many rows needs, and keeps it.

        Fresh memory of a few MB would cost as much as a product: the system clears it page by page.
        """
        self._rows = rows
        for layer in self._layers:
            layer.allocate(rows)
        self._input_gradient = torch.zeros(rows, self._layers[0].shape.inputs)
        self._codes = [torch.zeros(rows * stride + _WHOLE_VECTOR, dtype=torch.uint8) for stride in self._strides]
        self._gradient_scales = torch.zeros(rows, 2)
        self._written: dict[tuple[int, ...], Tensor] = {}

    def follow(self, layers: Sequence[LayerTensors], largest_code: int) -> None:
        self._used = tuple(layers)
        code_weights(self._records((), False).data_ptr(), len(layers), np.float32(largest_code))

    def forward(self, x: Tensor) -> Tensor:
        self._batch = x.shape[0]
        if self._batch > self._rows:
            self._allocate(_whole(self._batch, ROWS_PER_ITEM))
        forward_layers(self._rows_of(self._records((), False), 0), x.data_ptr(), x.stride(0))
        return self._layers[-1].out[: self._batch]

    def backward(self, grad: Tensor, key: int, gradients: Sequence[LayerTensors], wants_input: bool) -> Tensor | None:
        self._layers[-1].grad[: self._batch].copy_(grad)
        backward_layers(self._rows_of(self._records(gradients, wants_input), key))
        return self._input_gradient[: self._batch] if wants_input else None

    def _rows_of(self, records: Tensor, key: int) -> Rows:
        return Rows(records.data_ptr(), len(self._layers), self._batch, self._rows // FOUR, np.uint64(key))

    def _records(self, gradients: Sequence[LayerTensors], wants_input: bool) -> Tensor:
        """Returns the layers' records, written when an address is met for the first time."""
        met = (wants_input, *(t.data_ptr() for layer in (*self._used, *gradients) for t in (layer.weight, layer.bias)))
        if met not in self._written:
            of_layers: Sequence[LayerTensors | None] = gradients or [None] * len(self._layers)
            records = [flat_record(self._record(i, one, wants_input)) for i, one in enumerate(of_layers)]
            self._written[met] = torch.tensor(records)
        return self._written[met]

    def _record(self, i: int, gradient: LayerTensors | None, wants_input: bool) -> LayerRecord:
        layer, used = self._layers[i], self._used[i]
        shape = layer.shape
        weight = CodedWeight(
            used.weight.data_ptr(),
            shape.outputs,
            *layer.blocks,
            layer.codes.data_ptr(),
            layer.stride,
            layer.forward.data_ptr(),
            layer.backward.data_ptr(),
            layer.scale.data_ptr(),
            layer.zero,
            layer.first_sums.data_ptr(),
            layer.first_sums_back.data_ptr(),
            used.bias.data_ptr(),
            layer.bias.data_ptr(),
        )
        grad_x = self._place_of_input_gradient(i, wants_input)
        output_gradient = OutputGradient(
            layer.grad.data_ptr(),
            layer.out.data_ptr() if shape.relu else 0,
            shape.outputs,
            layer.scale.data_ptr(),
            layer.row_scales.data_ptr(),
            0 if gradient is None else gradient.bias.data_ptr(),
            layer.bias_sums.data_ptr(),
            layer.maxima.data_ptr(),
            grad_x,
            shape.inputs,
        )
        return LayerRecord(
            weight,
            self._product(layer),
            layer.out.data_ptr(),
            output_gradient,
            self._product_back(layer, 0),
            self._product_back(layer, 1),
            self._block(layer, 0, gradient),
            self._block(layer, 1, gradient),
        )

    def _place_of_input_gradient(self, i: int, wants_input: bool) -> int:
        if i > 0:
            return self._layers[i - 1].grad.data_ptr()
        return self._input_gradient.data_ptr() if wants_input else 0

    def _product(self, layer: _LayerMemory) -> IntegerProduct:
        shape = layer.shape
        return IntegerProduct(
            layer.forward.data_ptr(),
            layer.first_sums.data_ptr(),
            shape.inputs,
            shape.first_inputs,
            layer.zero,
            0,
            shape.outputs,
            layer.scale.data_ptr(),
            layer.bias.data_ptr(),
            int(shape.relu),
            self._codes[0].data_ptr(),
            self._strides[0],
            layer.row_scales.data_ptr(),
        )

    def _product_back(self, layer: _LayerMemory, block: int) -> IntegerProduct:
        """Returns the product that gives the gradient of a block of inputs."""
        outputs, panel = layer.shape.outputs, block * layer.input_panels[0]
        return IntegerProduct(
            layer.backward.data_ptr() + panel * groups_of(outputs) * GROUP_BYTES,
            layer.first_sums_back.data_ptr() + 4 * panel * PANEL,
            outputs,
            outputs,
            SIGNED_ZERO,
            0,
            layer.blocks[block],
            layer.ones.data_ptr(),
            layer.no_bias.data_ptr(),
            0,
            self._codes[1].data_ptr(),
            self._strides[1],
            self._gradient_scales.data_ptr(),
        )

    def _block(self, layer: _LayerMemory, block: int, gradient: LayerTensors | None) -> BlockGradient:
        panel_bytes = self._rows * GROUP_BYTES // FOUR
        return BlockGradient(
            layer.panels.data_ptr() + block * layer.input_panels[0] * panel_bytes,
            layer.blocks[block],
            layer.zero,
            0 if gradient is None else gradient.weight.data_ptr() + 4 * block * layer.blocks[0],
            layer.shape.inputs,
            layer.gradient_panels[block].data_ptr(),
            layer.column_scales[block].data_ptr(),
        )
