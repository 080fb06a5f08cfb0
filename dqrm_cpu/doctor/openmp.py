"""Check of the OpenMP runtimes: of two, each with threads of its own, both would fight for the same cores."""

import re
from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.doctor.finding import Finding, Verdict
from dqrm_cpu.doctor.isolated import ProbeError, in_fresh_process

_RUNTIME = re.compile(r"/lib(gomp|iomp5|omp)[-.][^/]*$")
_SHARED_RUNTIME = "libgomp.so.1"


@dataclass(frozen=True)
class OpenmpFacts:
    """What a training process has mapped once its kernels have run."""

    runtimes: tuple[str, ...]  # paths of shared libraries
    error: str = ""


def read_openmp() -> OpenmpFacts:
    """Loads what training loads, in the same order, in a fresh process."""
    try:
        return in_fresh_process(_probe)
    except ProbeError as error:
        return OpenmpFacts((), str(error))


def mapped_runtimes(maps: str) -> tuple[str, ...]:
    """The OpenMP runtimes in the text of /proc/self/maps."""
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if len(line.split(maxsplit=5)) == 6}
    return tuple(sorted(path for path in paths if _RUNTIME.search(path)))


def check_openmp(facts: OpenmpFacts) -> Finding:
    """One runtime, on which torch and the kernels run."""
    if facts.error:
        mend = "pip install --force-reinstall torch numba"
        return Finding("openmp", Verdict.FAIL, f"the kernels do not run beside torch: {facts.error}", mend)
    found = ", ".join(facts.runtimes) or "none mapped"
    if len(facts.runtimes) > 1:
        mend = f"export LD_PRELOAD={_SHARED_RUNTIME}"
        return Finding("openmp", Verdict.WARNING, f"{len(facts.runtimes)} runtimes: {found}", mend)
    return Finding("openmp", Verdict.OK, found)


def _probe() -> OpenmpFacts:
    import torch

    from dqrm_cpu.kernels.interface import KernelsUnavailableError
    from dqrm_cpu.kernels.select import select_kernels

    try:
        select_kernels("numba", torch.device("cpu"))
    except KernelsUnavailableError as error:
        return OpenmpFacts((), str(error))
    return OpenmpFacts(mapped_runtimes(Path("/proc/self/maps").read_text()))
