"""GPUs that are not there, for a process of a test: `install()` before anything is put on one.

A tensor that says `cuda` holds its values in host memory, and torch's CPU kernels compute them. Towards the program it
behaves as one on a GPU: NumPy and pointers are refused, operands on different devices too, and only explicit copies
cross over. A program that gets along with it knows at every line on which side its values are. They are those of
`--device cpu --kernels torch` with the same matrix products, to the bit. It tells nothing about CUDA's own kernels,
streams, memory or speed, nor about NCCL: that transport's class moves `cuda` tensors here over gloo.
"""

import ctypes
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dqrm_cpu.comm.transports import torch_distributed
from dqrm_cpu.comm.transports.launch import Launch

NUMBER = "PRETEND_GPUS"
"""The environment variable that says how many GPUs this host has; 1 without it."""
LIBRARY = "PRETEND_GPU_LIBRARY"
"""The environment variable that names what `build_library` built; without it each process builds its own."""

_HOST = torch.device("cpu")
_CROSSING = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class GpuTensor(torch.Tensor):
    """A tensor with the shape and type of `held`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "GpuTensor":
        made: GpuTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("cuda", 0),
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        raise RuntimeError("a pointer into the memory of a GPU")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _carried_out(operation, args, kwargs or {})


class PretendGpu(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of this thread, and counts those on the GPU."""

    operations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps torch from importing its compiler, only to switch it off: 2 seconds of a core in each process."""
        return False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _carried_out(operation, args, kwargs or {})
        self.operations += any(isinstance(leaf, GpuTensor) for leaf in pytree.tree_leaves(result))
        return result


def _carried_out(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves, shape = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    on_gpu = [tensor for tensor in tensors if isinstance(tensor, GpuTensor)]
    # Numbers of the host are operands everywhere: tensors without a dimension.
    if on_gpu and operation not in _CROSSING and any(t.dim() and not isinstance(t, GpuTensor) for t in tensors):
        raise RuntimeError(f"{operation}: some operands are on cuda and some on the cpu")
    if operation is torch.ops.aten.copy_.default:
        there = isinstance(args[0], GpuTensor)
    elif kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == "cuda"
    else:
        there = bool(on_gpu)
    held_args, held_kwargs = pytree.tree_unflatten([_held(leaf) for leaf in leaves], shape)
    result = operation(*held_args, **held_kwargs)
    return pytree.tree_map_only(torch.Tensor, lambda tensor: _on_gpu(tensor, on_gpu), result) if there else result


def _held(leaf: Any) -> Any:
    if isinstance(leaf, GpuTensor):
        return leaf.held
    return _HOST if isinstance(leaf, torch.device) else leaf


def _on_gpu(tensor: torch.Tensor, operands: list[GpuTensor]) -> GpuTensor:
    """Operations in place give back what they were given."""
    for operand in operands:
        if operand.held is tensor:
            return operand
    return GpuTensor(tensor)


def install() -> PretendGpu:
    """For the rest of this process, whose matrix products on the CPU become those that a GPU takes: torch's own."""
    number, chosen = int(os.environ.get(NUMBER, "1")), [0]

    def set_device(device: torch.device) -> None:
        chosen[0] = device.index

    cuda: Any = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available = lambda: True
    cuda.device_count = lambda: number
    cuda.set_device = set_device
    cuda.current_device = lambda: chosen[0]
    cuda.get_device_properties = _properties
    cuda.get_device_name = lambda device: f"pretended {device}"
    torch.backends.mkldnn.is_available = lambda: False
    _load_guard()
    _move_nccl_over_gloo()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") then copies where the mode sees it
    mode: PretendGpu = PretendGpu()  # type: ignore[no-untyped-call]
    mode.__enter__()  # type: ignore[no-untyped-call]
    return mode


def _properties(device: torch.device) -> SimpleNamespace:
    return SimpleNamespace(uuid=device.index, major=8, minor=0)


def _move_nccl_over_gloo() -> None:
    real = torch_distributed.nccl_backend
    distributed: Any = torch.distributed
    distributed.is_nccl_available = lambda: True

    def pretended(launch: Launch) -> torch_distributed.Backend:
        return replace(real(launch), torch_name="gloo")

    torch_distributed.nccl_backend = pretended


def _load_guard() -> None:
    if built := os.environ.get(LIBRARY):
        ctypes.CDLL(built)
        return
    with tempfile.TemporaryDirectory() as folder:
        ctypes.CDLL(str(build_library(Path(folder))))


def build_library(folder: Path) -> Path:
    """Compiles torch's device guard for GPUs that are not there, which takes some 4 s of a core."""
    package, library = Path(torch.__file__).parent, folder / "pretend_gpu.so"
    source = Path(__file__).with_suffix(".cpp")
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-shared", "-fPIC", f"-I{package}/include", str(source)]
    subprocess.run([*command, "-o", str(library), f"-L{package}/lib", "-lc10"], check=True)
    return library
