"""Fully connected layers with an explicit backward and fake-quantized weights (paper 3.3, 4.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dqrm_cpu.kernels.interface import TILE
from dqrm_cpu.model.activations import ReadInput
from dqrm_cpu.model.gemm import Gemm
from dqrm_cpu.model.layers import LayerParameters
from dqrm_cpu.model.mlp_weights import MakeWeights, WeightSource, plain_weights
from dqrm_cpu.quant.rounding import RoundingKey


class LinearLayers:
    """Layers over views of a flat parameter buffer; subclasses say in which order, and what happens between them."""

    def __init__(self, source: WeightSource, quantized: MakeWeights | None, gemm: Gemm, read_input: ReadInput) -> None:
        self.shapes = source.shapes
        self.layers = source.layers
        self._kernels = source.kernels
        self._gemm = gemm
        self._read_input = read_input
        self._plain = plain_weights(source)
        self._quantized = self._plain if quantized is None else quantized(source)
        self._weights = self._quantized
        self._lower_gradients = self._lower_precision_gradients()
        self._transposed = torch.empty(0)
        self._unwanted_sums = torch.empty(0)
        self._inputs: list[Tensor] = []  # as the products read them
        self._outputs: list[Tensor] = []

    def begin_learning_scales(self) -> None:
        """Writes where learned scales start, from the weights as they stand."""
        self._quantized.begin_learning_scales()

    def follow_weights(self, quantized: bool, key: RoundingKey | None = None) -> None:
        """Makes what the products read follow the parameters; once per step, before any forward of it."""
        self._weights = self._quantized if quantized else self._plain
        self._weights.follow(key)

    def _lower_precision_gradients(self) -> list[Tensor]:
        """Allocates what the products write the weights' gradients to if not in FP32."""
        if self._gemm.dtype == torch.float32:
            return []
        return [torch.empty_like(layer.weight, dtype=self._gemm.dtype) for layer in self.layers]

    def _forget(self) -> None:
        """Frees what the backward of the latest forward needed."""
        self._inputs, self._outputs = [], []

    def _apply(self, x: Tensor) -> Tensor:
        """Returns what the next layer makes of x, and keeps what its backward needs until `_forget`."""
        i = len(self._outputs)
        shape, used = self.shapes[i], self._weights.layers[i]
        read = self._read_input(i, x)
        y = self._gemm.linear(read, used.weight, used.bias if shape.has_bias else None, shape.relu)
        self._inputs.append(read)
        self._outputs.append(y)
        return y

    def _backward_layer(self, i: int, grad: Tensor, gradients: Sequence[LayerParameters]) -> None:
        """Writes the gradients of layer i's parameters; sets grad [B, outputs] to 0 where its rectifier did so."""
        shape = self.shapes[i]
        activation = self._outputs[i] if shape.relu else None
        transposed = self._room_for_transpose(grad) if self._gemm.takes_transposed else None
        sums = gradients[i].bias if shape.has_bias else self._room_for_sums(shape.outputs)
        self._kernels.rectify_backward_(grad, activation, sums, transposed)
        turned = grad.t() if transposed is None else transposed[: grad.shape[1], : grad.shape[0]]
        product = self._lower_gradients[i] if self._lower_gradients else gradients[i].weight
        self._gemm.grad_weight(turned, self._inputs[i], product)

    def _grad_input(self, i: int, grad: Tensor) -> Tensor:
        """Returns the gradient of what layer i read, after `_backward_layer`."""
        return self._gemm.grad_input(grad, self._weights.layers[i].weight)

    def _complete(self, gradients: Sequence[LayerParameters], scale_gradients: Sequence[Tensor]) -> None:
        """Turns the gradients of what was read into those of parameters and learned scales, once all are there."""
        if self._lower_gradients:
            torch._foreach_copy_([gradient.weight for gradient in gradients], self._lower_gradients)
        self._weights.backward_(gradients, scale_gradients)

    def _room_for_transpose(self, grad: Tensor) -> Tensor:
        """Returns f32 [O, B] for the transpose of a gradient, both rounded up."""
        columns, rows = (-(-size // TILE) * TILE for size in grad.shape)
        if self._transposed.numel() < rows * columns:
            self._transposed = torch.empty(rows * columns, device=grad.device)
        return self._transposed[: rows * columns].view(rows, columns)

    def _room_for_sums(self, size: int) -> Tensor:
        """Returns f32[size] for the sums that would be the gradient of a bias."""
        if self._unwanted_sums.numel() < size:
            self._unwanted_sums = torch.empty(size, device=self.layers[0].weight.device)
        return self._unwanted_sums[:size]
