"""A folder for what numba compiles, shared by this user's processes, which no other user can write to.

numba executes what it finds in its cache: whoever can write there can do what this user can.
"""

import atexit
import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from dqrm_cpu.base.cgroup import usable_cores
from dqrm_cpu.base.private import NotPrivateError, private_folder, shared_with_others

_CHOSEN = "DQRM_CPU_KERNEL_CACHE"
_COMPILED_SOURCES = tuple(Path(__file__).parent.parent / part for part in ("kernels", "data"))


def choose_cache_folder() -> None:
    """Chooses the folder, once per process and before numba is imported, which reads the environment.

    A NUMBA_CACHE_DIR that the user set is left alone.
    """
    configured = os.environ.get("NUMBA_CACHE_DIR")
    # A child process inherits the environment; the folder that its parent chose is for the sources of its parent.
    if configured is None or configured == os.environ.get(_CHOSEN):
        folder = find_cache_folder(cache_roots()) or _passing_folder()
        os.environ["NUMBA_CACHE_DIR"] = os.environ[_CHOSEN] = str(folder or "")
    elif configured and (reason := shared_with_others(Path(configured))):
        _warn(f"NUMBA_CACHE_DIR {configured} {reason}, who may have put code there that is now executed")


def must_compile(part: str, module: str = "") -> bool:
    """Says whether nothing of a folder of sources is compiled yet, for this machine: its first use then takes longer.

    numba keeps what it compiled by the names of those folders: `numba` and `parse` are compiled by different commands.
    With the name of a module, whether nothing of that one is: training and exported files use different ones.
    """
    folder = os.environ.get("NUMBA_CACHE_DIR", "")
    pattern = f"{part}_*/{module}.*.nbc" if module else f"{part}_*/*.nbc"
    return folder != "" and next(Path(folder).rglob(pattern), None) is None


def compiling_note(part: str, before: str, module: str = "") -> str:
    """Says that something is compiled now, `before` what a user waits for; empty where that was done already."""
    if not must_compile(part, module):
        return ""
    what = {"numba": "kernels", "parse": "parser"}
    return f"compiling the {what[part]}, once for this machine: about 10 s before the first {before}"


@contextlib.contextmanager
def compiling_ahead(alone: bool) -> Iterator[None]:
    """Has a process beside this one compile the kernels of a training step, where they are not yet.

    It ends with what is inside, at the latest. There is none where only one core is free: not `alone`, as with other
    ranks, which wait for each other's kernels.
    """
    if not alone or not sys.executable or not must_compile("numba", "update") or usable_cores() < 2:
        yield
        return
    folder = os.environ["NUMBA_CACHE_DIR"]
    command = [sys.executable, "-m", "dqrm_cpu.kernels.compile_ahead", folder]
    nothing = subprocess.DEVNULL
    try:
        helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing)
    except OSError:  # no more processes, or no memory: this one compiles all that it needs
        yield
        return
    with helper:
        try:
            yield
        finally:
            helper.kill()


def find_cache_folder(roots: Iterator[Path]) -> Path | None:
    """Finds the folder for kernels compiled on this host from these sources, in the first root that takes it."""
    for root in roots:
        try:
            folder = private_folder(root, f"{platform.node()}-{_fingerprint()}")
            if os.access(folder, os.W_OK):
                return folder
        except NotPrivateError as error:
            _warn(f"compiled kernels are not kept in {root}: {error}; remove it, or chmod 700 what is yours")
        except OSError:
            continue  # read-only, or full: the next root
    return None


def cache_roots() -> Iterator[Path]:
    """Yields folders of our own that may hold what this user compiles, the best first; they need not exist."""
    with contextlib.suppress(RuntimeError):  # a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dqrm-cpu"
    yield Path(tempfile.gettempdir()) / f"dqrm-cpu-{os.geteuid()}"


def _passing_folder() -> Path | None:
    """Makes a folder for this process alone, where there is no other; None where even that cannot be."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="dqrm-cpu-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        private_folder(folder)
    except OSError as error:
        _warn(f"compiled kernels are not kept, every process compiles its own: {error}")
        return None
    _warn(f"compiled kernels are kept in {folder} until this process ends: set XDG_CACHE_HOME to a folder of yours")
    return folder


def _warn(message: str) -> None:
    warnings.warn_explicit(message, UserWarning, "dqrm-cpu", 0)


def _fingerprint() -> str:
    """Changes with Python and with any source that numba compiles: it does not see that a called function changed."""
    stamp = hashlib.sha256(sys.version.encode())
    for path in sorted(path for folder in _COMPILED_SOURCES for path in folder.rglob("*.py")):
        status = path.stat()
        stamp.update(f"{path} {status.st_mtime_ns} {status.st_size}".encode())
    return stamp.hexdigest()[:16]
