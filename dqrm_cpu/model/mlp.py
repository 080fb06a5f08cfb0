"""A multilayer perceptron with an explicit backward and fake-quantized weights (paper 3.3, 4.2)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dqrm_cpu.kernels.interface import TILE, Kernels
from dqrm_cpu.model.activations import ReadInput
from dqrm_cpu.model.gemm import Gemm
from dqrm_cpu.model.layers import LayerParameters, LayerShape, split_parameters
from dqrm_cpu.model.weights import MlpWeights, WeightSource, plain_weights
from dqrm_cpu.quant.rounding import RoundingKey

MakeWeights = Callable[[WeightSource], MlpWeights]


class Mlp:
    """Layers over a flat parameter buffer; `forward` keeps what `backward` needs until the next forward."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        parameters: Tensor,
        quantized: MakeWeights | None,
        kernels: Kernels,
        gemm: Gemm,
        read_input: ReadInput,
    ) -> None:
        self.shapes = tuple(shapes)
        self.layers = split_parameters(parameters, shapes)
        self._kernels = kernels
        self._gemm = gemm
        self._read_input = read_input
        source = WeightSource(self.shapes, self.layers, kernels, gemm.dtype)
        self._plain = plain_weights(source)
        self._quantized = self._plain if quantized is None else quantized(source)
        self._weights = self._quantized
        self._lower_gradients = self._lower_precision_gradients()
        self._transposed = torch.empty(0)
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
        """Where the products leave the weights' gradients if not in FP32."""
        if self._gemm.dtype == torch.float32:
            return []
        return [torch.empty_like(layer.weight, dtype=self._gemm.dtype) for layer in self.layers]

    def forward(self, x: Tensor) -> Tensor:
        """x f32[B, inputs] to [B, outputs] in the products' precision."""
        x = x.to(self._gemm.dtype)
        self._inputs, self._outputs = [], []
        for i, (shape, used) in enumerate(zip(self.shapes, self._weights.layers, strict=True)):
            read = self._read_input(i, x)
            x = self._gemm.linear(read, used.weight, used.bias, shape.relu)
            self._inputs.append(read)
            self._outputs.append(x)
        return x

    def backward(
        self,
        grad: Tensor,
        gradients: Sequence[LayerParameters],
        scale_gradients: Sequence[Tensor],
        needs_grad_input: bool,
    ) -> Tensor | None:
        """Writes the gradients of parameters and of learned scales; returns that of the input where needed."""
        grad = grad.to(self._gemm.dtype, memory_format=torch.contiguous_format, copy=True)
        weights = [gradient.weight for gradient in gradients]
        products = self._lower_gradients or weights
        for i in reversed(range(len(self.shapes))):
            activation = self._outputs[i] if self.shapes[i].relu else None
            transposed = self._room_for_transpose(grad) if self._gemm.takes_transposed else None
            self._kernels.rectify_backward_(grad, activation, gradients[i].bias, transposed)
            turned = grad.t() if transposed is None else transposed[: grad.shape[1], : grad.shape[0]]
            self._gemm.grad_weight(turned, self._inputs[i], products[i])
            if i > 0 or needs_grad_input:
                grad = self._gemm.grad_input(grad, self._weights.layers[i].weight)
        if self._lower_gradients:
            torch._foreach_copy_(weights, self._lower_gradients)
        self._weights.backward_(gradients, scale_gradients)
        return grad if needs_grad_input else None

    def _room_for_transpose(self, grad: Tensor) -> Tensor:
        """f32 [O, B], both rounded up."""
        columns, rows = (-(-size // TILE) * TILE for size in grad.shape)
        if self._transposed.numel() < rows * columns:
            self._transposed = torch.empty(rows * columns, device=grad.device)
        return self._transposed[: rows * columns].view(rows, columns)
