"""Checks of libraries that training loads or may load: OpenMP runtimes, oneCCL, IPEX, CUDA."""

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.base.hardware import Fingerprint
from dqrm_cpu.doctor.finding import Finding, Verdict
from dqrm_cpu.doctor.isolated import ProbeError, in_fresh_process
from dqrm_cpu.kernels.ccl import find_compiler, oneccl_files

_OPENMP_RUNTIME = re.compile(r"/lib(gomp|iomp5|omp)[-.][^/]*$")
_SHARED_OPENMP = "libgomp.so.1"
_IPEX_TORCH = "2.8"


@dataclass(frozen=True)
class OpenmpFacts:
    """The OpenMP runtimes that a training process has mapped once its kernels have run."""

    runtimes: tuple[str, ...]  # paths of shared libraries
    error: str = ""


def read_openmp() -> OpenmpFacts:
    """Loads what training loads, in the same order, in a fresh process."""
    try:
        return in_fresh_process(_probe_openmp)
    except ProbeError as error:
        return OpenmpFacts((), str(error))


def mapped_runtimes(maps: str) -> tuple[str, ...]:
    """Finds the OpenMP runtimes in the text of /proc/self/maps."""
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if len(line.split(maxsplit=5)) == 6}
    return tuple(sorted(path for path in paths if _OPENMP_RUNTIME.search(path)))


def check_openmp(facts: OpenmpFacts) -> Finding:
    """Looks for a second runtime, whose threads would fight with those of the first for the same cores."""
    if facts.error:
        mend = "pip install --force-reinstall torch numba"
        return Finding("openmp", Verdict.FAIL, f"the kernels do not run beside torch: {facts.error}", mend)
    found = ", ".join(facts.runtimes) or "none mapped"
    if len(facts.runtimes) > 1:
        mend = f"export LD_PRELOAD={_SHARED_OPENMP}"
        return Finding("openmp", Verdict.WARNING, f"{len(facts.runtimes)} runtimes: {found}", mend)
    return Finding("openmp", Verdict.OK, found)


@dataclass(frozen=True)
class OneCclFacts:
    """The files that the transport over oneCCL would find; empty where there is none."""

    library: str  # for CPUs
    bindings: bool  # the archived torch-ccl
    compiler: str  # of C++, for the shim


def read_oneccl(prefix: Path = Path(sys.prefix)) -> OneCclFacts:
    """Looks for the files of `oneccl-devel` and for a compiler, without loading or running them."""
    files = oneccl_files(prefix)
    bindings = importlib.util.find_spec("oneccl_bindings_for_pytorch") is not None
    return OneCclFacts("" if files.missing else str(files.library), bindings, find_compiler(os.environ) or "")


def check_oneccl(machine: Fingerprint, facts: OneCclFacts) -> Finding:
    """Looks at an optional backend: transports mpi and gloo do without it."""
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
    """Looks for IPEX beside another torch than 2.8, where its import fails."""
    version, torch = machine.version("intel-extension-for-pytorch"), machine.version("torch") or ""
    if version is None:
        return Finding("ipex", Verdict.OK, "not installed; not needed")
    if torch.startswith(f"{_IPEX_TORCH}."):
        return Finding("ipex", Verdict.NOTE, f"{version}; importing it replaces torch.embedding_bag")
    mend = "pip uninstall intel-extension-for-pytorch"
    return Finding("ipex", Verdict.WARNING, f"{version} does not load beside torch {torch}", mend)


def check_gpu(machine: Fingerprint, device: str) -> Finding:
    """Looks for a GPU, which device cuda needs."""
    if machine.gpus:
        return Finding("gpu", Verdict.OK, ", ".join(machine.gpus))
    torch = machine.version("torch") or "torch"
    if device != "cuda":
        return Finding("gpu", Verdict.OK, "none; device cpu does without")
    cpu_only = "+cpu" in torch
    mend = "pip install torch from a CUDA index" if cpu_only else "check nvidia-smi and the driver, or --device cpu"
    return Finding("gpu", Verdict.FAIL, f"torch {torch} sees none, and the device is cuda", mend)


def _probe_openmp() -> OpenmpFacts:
    import torch

    from dqrm_cpu.kernels.interface import KernelsUnavailableError
    from dqrm_cpu.kernels.select import select_kernels

    try:
        select_kernels("numba", torch.device("cpu"))
    except KernelsUnavailableError as error:
        return OpenmpFacts((), str(error))
    return OpenmpFacts(mapped_runtimes(Path("/proc/self/maps").read_text()))
