"""Checks of MPI: is there a launcher, is there a library, and do they belong together.

A launcher of another MPI than the library starts N separate runs of one rank each, and says nothing.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.doctor.finding import Finding, Verdict
from dqrm_cpu.doctor.isolated import ProbeError, in_fresh_process

_LAUNCHERS = ("mpirun", "mpiexec")
_INSTALL = "pip install 'dqrm-cpu[mpi]'"
_FAMILIES = (
    ("Intel MPI", ("Intel(R) MPI",)),
    ("Open MPI", ("Open MPI", "OpenRTE", "PRRTE", "open-mpi")),
    ("MVAPICH", ("MVAPICH",)),
    ("MPICH", ("MPICH", "HYDRA")),
)
_LAUNCHER_TIMEOUT_S = 20


@dataclass(frozen=True)
class MpiLibrary:
    """The library that mpi4py loads; `error` is empty when it loads."""

    installed: bool
    version: str = ""  # as the library states it
    path: str = ""
    error: str = ""


@dataclass(frozen=True)
class MpiLauncher:
    """A program that starts ranks."""

    path: str
    on_path: bool
    says: str  # its answer to --version; empty when it does not run


def read_library() -> MpiLibrary:
    """Loads mpi4py in a fresh process, without initializing MPI."""
    try:
        return in_fresh_process(_probe_library)
    except ProbeError as error:
        return MpiLibrary(installed=True, error=str(error))


def read_launchers(search_path: str, beside: Path = Path(sys.executable).parent) -> tuple[MpiLauncher, ...]:
    """Finds the launcher that a shell would find, and the one in the environment of this Python; each once."""
    launchers: dict[str, MpiLauncher] = {}
    for on_path, path in ((True, search_path), (False, str(beside))):
        place = next((place for name in _LAUNCHERS if (place := shutil.which(name, path=path))), None)
        if place is not None and place not in launchers:
            launchers[place] = MpiLauncher(place, on_path, _ask_version(place, path))
    return tuple(launchers.values())


def mpi_family(text: str) -> str:
    """Tells which MPI a version text speaks of; empty when it is none we know."""
    return next((family for family, marks in _FAMILIES if any(mark in text for mark in marks)), "")


def check_library(library: MpiLibrary, required: bool) -> Finding:
    """Looks at mpi4py and the libmpi under it."""
    bad = Verdict.FAIL if required else Verdict.NOTE
    if not library.installed:
        found = "mpi4py is not installed; only several processes over MPI need it"
        return Finding("mpi library", bad, found, _INSTALL)
    if library.error:
        bad = Verdict.FAIL if required else Verdict.WARNING
        return Finding("mpi library", bad, f"mpi4py does not load: {library.error}", _INSTALL)
    return Finding("mpi library", Verdict.OK, f"{library.version} ({library.path})")


def check_launcher(library: MpiLibrary, launchers: tuple[MpiLauncher, ...], required: bool) -> Finding:
    """Looks for mpirun, and whether it starts ranks of this library."""
    family = mpi_family(library.version)
    on_path = next((launcher for launcher in launchers if launcher.on_path), None)
    fitting = next((launcher for launcher in launchers if family and mpi_family(launcher.says) == family), None)
    mend = f'export PATH="{Path(fitting.path).parent}:$PATH"' if fitting else _INSTALL
    if on_path is None:
        bad = Verdict.FAIL if required and fitting is None else Verdict.NOTE
        beside = f"; there is {fitting.path}" if fitting else ""
        return Finding("mpi launcher", bad, f"neither mpirun nor mpiexec on PATH{beside}", mend)
    if not on_path.says:
        return Finding("mpi launcher", Verdict.WARNING, f"{on_path.path} does not run", mend)
    of = mpi_family(on_path.says)
    if not family:
        return Finding("mpi launcher", Verdict.NOTE, f"{on_path.path} ({of or 'unknown'}), no library to match")
    if of != family:
        found = f"{on_path.path} is of {of or 'an unknown MPI'}, the library is {family}"
        return Finding("mpi launcher", Verdict.FAIL if required else Verdict.WARNING, found, mend)
    return Finding("mpi launcher", Verdict.OK, f"{on_path.path} ({of})")


def _probe_library() -> MpiLibrary:
    try:
        import mpi4py
    except ModuleNotFoundError:
        return MpiLibrary(installed=False)
    # Initializing would join, or wait for, the job that this shell may be part of.
    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI

    maps = Path("/proc/self/maps").read_text()
    paths = {line.split()[-1] for line in maps.splitlines() if "/libmpi" in line.split()[-1]}
    return MpiLibrary(True, MPI.Get_library_version().splitlines()[0].strip(), min(paths, default="path unknown"))


def _ask_version(launcher: str, search_path: str) -> str:
    try:
        answer = subprocess.run(
            [launcher, "--version"],
            env={**os.environ, "PATH": f"{search_path}{os.pathsep}{os.environ.get('PATH', os.defpath)}"},
            capture_output=True,
            text=True,
            timeout=_LAUNCHER_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout + answer.stderr
