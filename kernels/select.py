"""Chooses the implementation of the kernels: numba on a CPU, torch elsewhere, IPEX's update where it is asked for."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from .interface import Kernels, KernelsUnavailableError
from .torch_kernels import TorchKernels


class UnknownKernelsError(KernelsUnavailableError):
    """The implementation asked for does not exist, or not on this device."""


def select_kernels(name: str, device: torch.device) -> Kernels:
    """Returns the kernels of that name for tensors on `device`; IpexUnavailableError where IPEX does not load."""
    if name != "auto" and name not in _IMPLEMENTATIONS:
        names = ", ".join(("auto", *_IMPLEMENTATIONS))
        raise UnknownKernelsError(f"kernels {name!r} do not exist; choose one of {names}")
    if name == "auto":
        name = "numba" if device.type == "cpu" else "torch"
    if name != "torch" and device.type != "cpu":
        raise UnknownKernelsError(f"kernels {name!r} run on a CPU only, not on {device}; choose auto or torch")
    return _IMPLEMENTATIONS[name]()


def _numba() -> Kernels:
    # Only here: a run on a GPU need not load numba.
    from .numba.kernels import NumbaKernels

    return NumbaKernels()


def _ipex() -> Kernels:
    # Only here: it needs an environment of its own.
    from .ipex_kernels import IpexKernels

    return IpexKernels()


_IMPLEMENTATIONS: Mapping[str, Callable[[], Kernels]] = MappingProxyType(
    {"numba": _numba, "torch": TorchKernels, "ipex": _ipex}
)
