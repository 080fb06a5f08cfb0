"""A multilayer perceptron with an explicit backward and fake-quantized weights (paper 3.3, 4.2: per output row)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.kernels.interface import TILE, Kernels
from dqrm_cpu.kernels.types import UNQUANTIZED, RowCopy
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
        self._parameters = parameters
        self._kernels = kernels
        self._gemm = gemm
        self._used = self._parameters_in_use(weight_bits)
        self.quantize_weights = kernels.row_copier(list(self._copies(weight_bits)))
        """Makes the weights in use follow the parameters; once per step, before any forward of it."""
        self._lower_gradients = self._lower_precision_gradients()
        self._transposed = torch.empty(0)
        self._activations: list[Tensor] = []

    def _parameters_in_use(self, weight_bits: int) -> tuple[LayerParameters, ...]:
        """What the products read: the parameters themselves, or copies, quantized or of lower precision."""
        if self._gemm.dtype != torch.float32:
            lower = torch.empty_like(self._parameters, dtype=self._gemm.dtype)
            return split_parameters(lower, self.shapes)
        if weight_bits == UNQUANTIZED:
            return self.layers
        return tuple(LayerParameters(torch.empty_like(layer.weight), layer.bias) for layer in self.layers)

    def _lower_precision_gradients(self) -> list[Tensor]:
        """Where the products leave the weights' gradients if not in FP32."""
        if self._gemm.dtype == torch.float32:
            return []
        return [torch.empty_like(used.weight) for used in self._used]

    def _copies(self, weight_bits: int) -> Iterator[RowCopy]:
        for layer, used in zip(self.layers, self._used, strict=True):
            if used.weight is not layer.weight:
                yield RowCopy(layer.weight, used.weight, weight_bits)
            if used.bias is not layer.bias:
                yield RowCopy(layer.bias.view(-1, 1), used.bias.view(-1, 1), UNQUANTIZED)

    def forward(self, x: Tensor) -> Tensor:
        """x f32[B, inputs] to [B, outputs] in the products' precision."""
        x = x.to(self._gemm.dtype)
        self._activations = [x]
        for shape, used in zip(self.shapes, self._used, strict=True):
            x = self._gemm.linear(x, used.weight, used.bias, shape.relu)
            self._activations.append(x)
        return x

    def backward(self, grad: Tensor, gradients: Sequence[LayerParameters], needs_grad_input: bool) -> Tensor | None:
        """Writes the parameters' gradients (straight through the quantizer); returns that of the input where needed."""
        grad = grad.to(self._gemm.dtype, memory_format=torch.contiguous_format, copy=True)
        weights = [gradient.weight for gradient in gradients]
        products = self._lower_gradients or weights
        for i in reversed(range(len(self.shapes))):
            activation = self._activations[i + 1] if self.shapes[i].relu else None
            transposed = self._room_for_transpose(grad) if self._gemm.takes_transposed else None
            self._kernels.rectify_backward_(grad, activation, gradients[i].bias, transposed)
            turned = grad.t() if transposed is None else transposed[: grad.shape[1], : grad.shape[0]]
            self._gemm.grad_weight(turned, self._activations[i], products[i])
            if i > 0 or needs_grad_input:
                grad = self._gemm.grad_input(grad, self._used[i].weight)
        if self._lower_gradients:
            torch._foreach_copy_(weights, self._lower_gradients)
        return grad if needs_grad_input else None

    def _room_for_transpose(self, grad: Tensor) -> Tensor:
        """f32 [O, B], both rounded up."""
        columns, rows = (-(-size // TILE) * TILE for size in grad.shape)
        if self._transposed.numel() < rows * columns:
            self._transposed = torch.empty(rows * columns, device=grad.device)
        return self._transposed[: rows * columns].view(rows, columns)
