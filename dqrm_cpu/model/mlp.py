"""A multilayer perceptron with an explicit backward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dqrm_cpu.model.layers import LayerParameters
from dqrm_cpu.model.linear_layers import LinearLayers


class Mlp(LinearLayers):
    """Layers one after the other; `forward` keeps what `backward` needs until the next forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps x f32[B, inputs] to [B, outputs] in the products' precision."""
        self._forget()
        x = x.to(self._gemm.dtype)
        for _ in self.shapes:
            x = self._apply(x)
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
        for i in reversed(range(len(self.shapes))):
            self._backward_layer(i, grad, gradients)
            if i > 0 or needs_grad_input:
                grad = self._grad_input(i, grad)
        self._complete(gradients, scale_gradients)
        return grad if needs_grad_input else None
