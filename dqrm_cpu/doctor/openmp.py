"""Check of the OpenMP runtimes: torch and numba must share one, or two pools of threads fight for the same cores."""

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
    numba_layer: str  # omp, tbb, workqueue
    error: str = ""


def read_openmp() -> OpenmpFacts:
    """Loads what training loads, in the same order, in a fresh process."""
    try:
        return in_fresh_process(_probe)
    except ProbeError as error:
        return OpenmpFacts((), "", str(error))


def mapped_runtimes(maps: str) -> tuple[str, ...]:
    """The OpenMP runtimes in the text of /proc/self/maps."""
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if len(line.split(maxsplit=5)) == 6}
    return tuple(sorted(path for path in paths if _RUNTIME.search(path)))


def check_openmp(facts: OpenmpFacts) -> Finding:
    """One runtime, and numba on it."""
    if facts.error:
        mend = "pip install --force-reinstall torch numba"
        return Finding("openmp", Verdict.FAIL, f"torch and numba do not load together: {facts.error}", mend)
    found = ", ".join(facts.runtimes) or "none mapped"
    if facts.numba_layer != "omp":
        mend = "apt-get install libgomp1, and unset NUMBA_THREADING_LAYER"
        return Finding("openmp", Verdict.WARNING, f"numba runs on its {facts.numba_layer} layer; {found}", mend)
    if len(facts.runtimes) > 1:
        mend = f"export LD_PRELOAD={_SHARED_RUNTIME}"
        return Finding("openmp", Verdict.WARNING, f"{len(facts.runtimes)} runtimes: {found}", mend)
    return Finding("openmp", Verdict.OK, found)


def _probe() -> OpenmpFacts:
    # The import of this module imported dqrm_cpu, which prepares one runtime for both before either is loaded.
    import numba
    import torch
    from numba.np.ufunc import threading_layer

    torch.ones(1).sum()
    numba.get_num_threads()  # starts numba's threads, which maps its runtime
    return OpenmpFacts(mapped_runtimes(Path("/proc/self/maps").read_text()), threading_layer())
