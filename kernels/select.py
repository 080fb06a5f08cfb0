"""Chooses the implementation of the kernels: numba on a CPU, torch elsewhere."""

import torch

from .interface import Kernels
from .torch_impl import TorchKernels

NAMES = ("auto", "numba", "torch")


class UnknownKernelsError(ValueError):
    """The implementation asked for does not exist, or not on this device."""


def select_kernels(name: str, device: torch.device) -> Kernels:
    """`auto`, `numba` or `torch`, for tensors on `device`."""
    if name not in NAMES:
        raise UnknownKernelsError(f"kernels {name!r} do not exist; choose one of {', '.join(NAMES)}")
    if name == "torch" or (name == "auto" and device.type != "cpu"):
        return TorchKernels()
    if device.type != "cpu":
        raise UnknownKernelsError(f"kernels 'numba' run on a CPU only, not on {device}; choose auto or torch")
    # Only here: a run on a GPU need not load numba.
    from .numba_impl.kernels import NumbaKernels

    return NumbaKernels()
