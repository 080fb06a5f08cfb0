"""Chooses the implementation of the kernels: numba on a CPU, torch elsewhere, IPEX's update where it is asked for."""

import torch

from .interface import Kernels, KernelsUnavailableError
from .torch_impl import TorchKernels

NAMES = ("auto", "numba", "torch", "ipex")


class UnknownKernelsError(KernelsUnavailableError):
    """The implementation asked for does not exist, or not on this device."""


def select_kernels(name: str, device: torch.device) -> Kernels:
    """`auto` or one of the others, for tensors on `device`; IpexUnavailableError where IPEX does not load."""
    if name not in NAMES:
        raise UnknownKernelsError(f"kernels {name!r} do not exist; choose one of {', '.join(NAMES)}")
    if name == "torch" or (name == "auto" and device.type != "cpu"):
        return TorchKernels()
    if device.type != "cpu":
        raise UnknownKernelsError(f"kernels {name!r} run on a CPU only, not on {device}; choose auto or torch")
    if name == "ipex":
        # Only here: it needs an environment of its own.
        from .ipex_impl import IpexKernels

        return IpexKernels()
    # Only here: a run on a GPU need not load numba.
    from .numba_impl.kernels import NumbaKernels

    return NumbaKernels()
