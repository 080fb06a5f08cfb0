"""Matrix products of the MLPs, forward and backward, through the fastest FP32 path of the machine."""

from typing import Protocol

import torch
from torch import Tensor


class Gemm(Protocol):
    """y = x W^T + b and its two gradients; x f32[B, I], weight f32[O, I], grad f32[B, O]."""

    name: str

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        """f32[B, O], rectified where asked."""

    def grad_input(self, grad: Tensor, weight: Tensor) -> Tensor:
        """f32[B, I]."""

    def grad_weight(self, grad: Tensor, x: Tensor, out: Tensor) -> None:
        """Writes f32[O, I]."""


class TorchGemm:
    """Torch's own BLAS: any device."""

    name = "torch"

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        y = torch.addmm(bias, x, weight.t())
        return y.relu_() if relu else y

    def grad_input(self, grad: Tensor, weight: Tensor) -> Tensor:
        return torch.mm(grad, weight)

    def grad_weight(self, grad: Tensor, x: Tensor, out: Tensor) -> None:
        torch.mm(grad.t(), x, out=out)


class OneDnnGemm:
    """oneDNN's FP32 inner product, bias and rectifier fused: 1.5 to 2.4 times faster than BLAS on AVX-512."""

    name = "onednn"

    def __init__(self) -> None:
        self._linear = torch.ops.mkldnn._linear_pointwise

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        y: Tensor = self._linear(x, weight, bias, "relu" if relu else "none", [], "")
        return y

    def grad_input(self, grad: Tensor, weight: Tensor) -> Tensor:
        x: Tensor = self._linear(grad, weight.t(), None, "none", [], "")
        return x

    def grad_weight(self, grad: Tensor, x: Tensor, out: Tensor) -> None:
        out.copy_(self._linear(grad.t(), x.t(), None, "none", [], ""))


def select_gemm(device: torch.device) -> Gemm:
    """oneDNN on a CPU whose torch carries it, else torch's BLAS.

    Never chosen by timing: a resumed run must repeat its bits.
    """
    built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    usable = device.type == "cpu" and built_in and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return OneDnnGemm() if usable else TorchGemm()
