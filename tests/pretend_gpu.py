"""A GPU that is not there: tensors that say `cuda`, hold their values in host memory and compute them with torch's CPU
kernels, but behave towards the program as those of a GPU do.

NumPy and pointers are refused, an operation whose operands are on different devices fails, and only explicit copies
cross over. A program that gets along with it knows at every line on which side it is; the values are those of
`--device cpu --kernels torch`, to the bit. It tells nothing about real CUDA kernels, streams or memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


class PretendTensor(torch.Tensor):
    """Shape and type of `held`, on the GPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "PretendTensor":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=CUDA,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"pretend {self.held!r}"

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        raise RuntimeError("a pointer into the memory of the GPU")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class PretendGpu(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    asked = kwargs.get("device")
    crossing = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    if there and not crossing:
        here = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.dim() > 0]
        if here:
            raise RuntimeError(f"{func}: operands on cuda and on cpu")
    if func is torch.ops.aten.copy_.default:
        on_gpu = isinstance(args[0], PretendTensor)
    else:
        on_gpu = bool(there) if asked is None else torch.device(asked).type == "cuda"
    held = [leaf.held if isinstance(leaf, PretendTensor) else leaf for leaf in flat]
    held = [CPU if isinstance(leaf, torch.device) else leaf for leaf in held]
    args_held, kwargs_held = pytree.tree_unflatten(held, spec)
    if asked is not None:
        kwargs_held["device"] = CPU
    result = func(*args_held, **kwargs_held)
    if not on_gpu:
        return result
    return pytree.tree_map_only(torch.Tensor, lambda tensor: _wrapped(tensor, there), result)


def _wrapped(tensor: torch.Tensor, known: list[PretendTensor]) -> PretendTensor:
    """In-place operations give back what they were given."""
    for other in known:
        if tensor is other.held:
            return other
    return PretendTensor(tensor)


@contextmanager
def pretend_gpu(patch: Any) -> Iterator[None]:
    patch.setattr(torch.cuda, "_lazy_init", lambda: None)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]
    try:
        with PretendGpu():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)  # type: ignore[attr-defined]
