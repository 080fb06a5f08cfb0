"""A multilayer perceptron with an explicit backward and fake-quantized weights (paper 3.3, 4.2: per output row)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.model.gemm import Gemm


@dataclass(frozen=True)
class LayerShape:
    """One fully connected layer."""

    inputs: int
    outputs: int
    relu: bool

    @property
    def num_parameters(self) -> int:
        return self.outputs * (self.inputs + 1)


def layer_shapes(inputs: int, outputs: Sequence[int], last_relu: bool) -> tuple[LayerShape, ...]:
    """The layers of an MLP whose last layer is rectified only where `last_relu` says so."""
    widths = (inputs, *outputs)
    last = len(outputs) - 1
    return tuple(LayerShape(widths[i], widths[i + 1], last_relu or i < last) for i in range(len(outputs)))


@dataclass(frozen=True)
class LayerParameters:
    """Views of one layer in a flat buffer."""

    weight: Tensor  # f32[outputs, inputs]
    bias: Tensor  # f32[outputs]


def split_parameters(flat: Tensor, shapes: Sequence[LayerShape]) -> tuple[LayerParameters, ...]:
    """Views of each layer's weight and bias, laid out one after the other in `flat`."""
    return tuple(_views(flat, shapes))


def _views(flat: Tensor, shapes: Sequence[LayerShape]) -> Iterator[LayerParameters]:
    at = 0
    for shape in shapes:
        weights = shape.outputs * shape.inputs
        weight = flat[at : at + weights].view(shape.outputs, shape.inputs)
        bias = flat[at + weights : at + shape.num_parameters]
        yield LayerParameters(weight, bias)
        at += shape.num_parameters


def initialize_(shapes: Sequence[LayerShape], layers: Sequence[LayerParameters], generator: torch.Generator) -> None:
    """DLRM's initialization: weights N(0, 2 / (in + out)), biases N(0, 1 / out), variances given."""
    for shape, layer in zip(shapes, layers, strict=True):
        weight = torch.randn(shape.outputs, shape.inputs, generator=generator)
        bias = torch.randn(shape.outputs, generator=generator)
        layer.weight.copy_(weight * (2.0 / (shape.inputs + shape.outputs)) ** 0.5)
        layer.bias.copy_(bias * (1.0 / shape.outputs) ** 0.5)


class Mlp:
    """Layers over a flat parameter buffer; `forward` keeps what `backward` needs until the next forward."""

    def __init__(
        self, shapes: Sequence[LayerShape], parameters: Tensor, weight_bits: int, kernels: Kernels, gemm: Gemm
    ) -> None:
        self.shapes = tuple(shapes)
        self.layers = split_parameters(parameters, shapes)
        self._weight_bits = weight_bits
        self._kernels = kernels
        self._gemm = gemm
        self._quantized = None if weight_bits == UNQUANTIZED else [torch.empty_like(x.weight) for x in self.layers]
        self._used = self._weights_in_use()
        self._activations: list[Tensor] = []

    def _weights_in_use(self) -> list[Tensor]:
        """What the products read: the parameters themselves, their quantized copies, or lower precision copies."""
        exact = self._quantized or [layer.weight for layer in self.layers]
        return exact if self._gemm.dtype == torch.float32 else [weight.to(self._gemm.dtype) for weight in exact]

    def quantize_weights(self) -> None:
        """Makes the weights in use follow the parameters; once per step, before any forward of it."""
        exact = [layer.weight for layer in self.layers]
        if self._quantized is not None:
            for weight, quantized in zip(exact, self._quantized, strict=True):
                self._kernels.fake_quantize_rows(weight, self._weight_bits, quantized)
            exact = self._quantized
        if self._gemm.dtype != torch.float32:
            torch._foreach_copy_(self._used, exact)

    def forward(self, x: Tensor) -> Tensor:
        """x f32[B, inputs] to [B, outputs] in the products' precision."""
        x = x.to(self._gemm.dtype)
        self._activations = [x]
        for shape, layer, used in zip(self.shapes, self.layers, self._used, strict=True):
            x = self._gemm.linear(x, used, layer.bias, shape.relu)
            self._activations.append(x)
        return x

    def backward(self, grad: Tensor, gradients: Sequence[LayerParameters], needs_grad_input: bool) -> Tensor | None:
        """Writes the parameters' gradients (straight through the quantizer); returns that of the input where needed."""
        grad = grad.to(self._gemm.dtype)
        for i in reversed(range(len(self.shapes))):
            if self.shapes[i].relu:
                grad = torch.ops.aten.threshold_backward(grad, self._activations[i + 1], 0)
            self._gemm.grad_weight(grad, self._activations[i], gradients[i].weight)
            torch.sum(grad, 0, dtype=torch.float32, out=gradients[i].bias)
            if i == 0 and not needs_grad_input:
                return None
            grad = self._gemm.grad_input(grad, self._used[i])
        return grad
