"""Checks of what may be there or not: oneCCL, IPEX, a GPU."""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.doctor.finding import Finding, Verdict
from dqrm_cpu.kernels.ccl import find_compiler, oneccl_files
from dqrm_cpu.profile.hardware import Fingerprint

_IPEX_TORCH = "2.8"


@dataclass(frozen=True)
class OneCclFacts:
    """What the transport over oneCCL would find; empty where it is not."""

    library: str  # for CPUs
    bindings: bool  # the archived torch-ccl
    compiler: str  # of C++, for the shim


def read_oneccl(prefix: Path = Path(sys.prefix)) -> OneCclFacts:
    """Looks for the files of `oneccl-devel` and for a compiler, without loading or running them."""
    files = oneccl_files(prefix)
    bindings = importlib.util.find_spec("oneccl_bindings_for_pytorch") is not None
    return OneCclFacts("" if files.missing else str(files.library), bindings, find_compiler(os.environ) or "")


def check_oneccl(machine: Fingerprint, facts: OneCclFacts) -> Finding:
    """An optional backend: transports mpi and gloo do without it."""
    version = machine.version("oneccl-devel")
    if facts.bindings:
        return Finding("oneccl", Verdict.OK, "oneccl_bindings_for_pytorch")
    if facts.library and not facts.compiler:
        mend = "apt-get install g++ (or dnf install gcc-c++), or set CXX"
        return Finding("oneccl", Verdict.WARNING, f"{version} is here, and no C++ compiler for its shim", mend)
    if facts.library:
        found = f"{version or 'version unknown'} ({facts.library}), shim by {facts.compiler}"
        return Finding("oneccl", Verdict.OK, found)
    if version:
        mend = "pip install --force-reinstall 'dqrm-cpu[oneccl]'"
        return Finding("oneccl", Verdict.WARNING, f"oneccl-devel {version} is installed without its files", mend)
    return Finding("oneccl", Verdict.OK, "not installed; mpi and gloo do without (pip install 'dqrm-cpu[oneccl]')")


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
