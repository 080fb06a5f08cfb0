"""Matrix products of the MLPs, forward and backward, through the fastest path of the machine for a precision."""

from typing import Protocol

import torch
from torch import Tensor


class Gemm(Protocol):
    """y = x W^T + b and its gradients: x [B, I], weight [O, I], bias [O] or none, grad [B, O], all of `dtype`."""

    name: str
    dtype: torch.dtype
    takes_transposed: bool  # its grad_weight is faster from the transpose of grad

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        """Returns [B, O], rectified where asked."""

    def grad_input(self, grad: Tensor, weight: Tensor) -> Tensor:
        """Returns the gradient of x, [B, I]."""

    def grad_weight(self, transposed: Tensor, x: Tensor, out: Tensor) -> None:
        """Writes [O, I]; transposed [O, B] is grad's transpose, contiguous or only a view of it."""


class TorchGemm:
    """FP32 through torch's own BLAS: any device."""

    name = "torch"
    dtype = torch.float32
    takes_transposed = False

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        y = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
        return y.relu_() if relu else y

    def grad_input(self, grad: Tensor, weight: Tensor) -> Tensor:
        return torch.mm(grad, weight)

    def grad_weight(self, transposed: Tensor, x: Tensor, out: Tensor) -> None:
        torch.mm(transposed, x, out=out)


class OneDnnGemm:
    """oneDNN's FP32 inner product, bias and rectifier fused: 1.5 to 2.4 times faster than BLAS on AVX-512."""

    name = "onednn"
    dtype = torch.float32
    takes_transposed = True

    def __init__(self) -> None:
        self._linear = torch.ops.mkldnn._linear_pointwise

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        y: Tensor = self._linear(x, weight, bias, "relu" if relu else "none", [], "")
        return y

    def grad_input(self, grad: Tensor, weight: Tensor) -> Tensor:
        x: Tensor = self._linear(grad, weight.t(), None, "none", [], "")
        return x

    def grad_weight(self, transposed: Tensor, x: Tensor, out: Tensor) -> None:
        out.copy_(self._linear(transposed, x.t(), None, "none", [], ""))


class Bf16Gemm(TorchGemm):
    """BF16 factors, FP32 sums: the units of a GPU, and of a CPU through oneDNN, as torch's own products reach them."""

    name = "bf16"
    dtype = torch.bfloat16


class OneDnnBf16Gemm(Bf16Gemm):
    """BF16 on a CPU, with bias and rectifier fused into the product."""

    name = "onednn-bf16"

    def __init__(self) -> None:
        self._linear = torch.ops.mkldnn._linear_pointwise

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        y: Tensor = self._linear(x, weight, bias, "relu" if relu else "none", [], "")
        return y


def select_gemm(precision: str, device: torch.device) -> Gemm:
    """Chooses for `fp32` oneDNN on a CPU whose torch carries it, else torch's BLAS; or `bf16`.

    Never chosen by timing: a resumed run must repeat its bits.
    """
    built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    usable = device.type == "cpu" and built_in and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if precision == "bf16":
        return OneDnnBf16Gemm() if usable else Bf16Gemm()
    return OneDnnGemm() if usable else TorchGemm()
