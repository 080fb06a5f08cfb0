"""Checks of what may be there or not: oneCCL, IPEX, a GPU."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.doctor.finding import Finding, Verdict
from dqrm_cpu.profile.hardware import Fingerprint

_IPEX_TORCH = "2.8"
_CCL_LIBRARIES = ("lib/ccl/cpu/lib/libccl.so", "lib/libccl.so")


@dataclass(frozen=True)
class OneCclFacts:
    """Where oneCCL is; empty where it is not."""

    library: str
    bindings: bool  # the archived torch-ccl


def read_oneccl(prefix: Path = Path(sys.prefix)) -> OneCclFacts:
    """Looks for the library of `oneccl-devel`, without loading it."""
    places = [prefix / name for name in _CCL_LIBRARIES]
    library = next((str(place) for place in places if place.exists()), "")
    return OneCclFacts(library, importlib.util.find_spec("oneccl_bindings_for_pytorch") is not None)


def check_oneccl(machine: Fingerprint, facts: OneCclFacts) -> Finding:
    """An optional backend: transports mpi and gloo do without it."""
    version = machine.version("oneccl-devel")
    if facts.library:
        return Finding("oneccl", Verdict.OK, f"{version or 'version unknown'} ({facts.library})")
    if facts.bindings:
        return Finding("oneccl", Verdict.OK, "oneccl_bindings_for_pytorch")
    if version:
        mend = "pip install --force-reinstall 'dqrm-cpu[oneccl]'"
        return Finding("oneccl", Verdict.WARNING, f"oneccl-devel {version} is installed without its libccl.so", mend)
    return Finding("oneccl", Verdict.OK, "not installed; mpi and gloo do without")


def check_ipex(machine: Fingerprint) -> Finding:
    """The last IPEX works with torch 2.8 alone; beside another torch its import fails."""
    version, torch = machine.version("intel-extension-for-pytorch"), machine.version("torch") or ""
    if version is None:
        return Finding("ipex", Verdict.OK, "not installed; not needed")
    if torch.startswith(f"{_IPEX_TORCH}."):
        return Finding("ipex", Verdict.NOTE, f"{version}; importing it replaces torch.embedding_bag")
    mend = "pip uninstall intel-extension-for-pytorch"
    return Finding("ipex", Verdict.WARNING, f"{version} does not load beside torch {torch}", mend)


def check_gpu(machine: Fingerprint, device: str) -> Finding:
    """Needed for device cuda only."""
    if machine.gpus:
        return Finding("gpu", Verdict.OK, ", ".join(machine.gpus))
    torch = machine.version("torch") or "torch"
    if device != "cuda":
        return Finding("gpu", Verdict.OK, "none; device cpu does without")
    cpu_only = "+cpu" in torch
    mend = "pip install torch from a CUDA index" if cpu_only else "check nvidia-smi and the driver, or --device cpu"
    return Finding("gpu", Verdict.FAIL, f"torch {torch} sees none, and the device is cuda", mend)
