"""A folder for what numba compiles, which no two processes share and no other user can write to.

numba executes what it finds in its cache: whoever can write there can do what this user can.
"""

import atexit
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from dqrm_cpu.base.private import NotPrivateError, private_folder, shared_with_others

_CLAIM = "DQRM_CPU_CACHE_CLAIM"
_MOST_SLOTS = 1024
_COMPILED_SOURCES = tuple(Path(__file__).parent / part for part in ("kernels", "data"))


def choose_cache_folder() -> None:
    """Call once per process, before numba is imported, which is told by the environment; leaves a choice alone."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    # A child process inherits the environment, but a folder that its parent claimed is not its own.
    owner, _, claimed = os.environ.get(_CLAIM, "").partition(":")
    if chosen is None or (chosen == claimed and owner != str(os.getpid())):
        folder = claim_cache_folder(cache_roots()) or _passing_folder()
        os.environ.update({"NUMBA_CACHE_DIR": str(folder or ""), _CLAIM: f"{os.getpid()}:{folder or ''}"})
    elif chosen and chosen != claimed and (reason := shared_with_others(Path(chosen))):
        _warn(f"NUMBA_CACHE_DIR {chosen} {reason}, who may have put code there that is now executed")


def must_compile() -> bool:
    """Whether nothing is compiled yet for this machine and these sources: the first steps then take longer."""
    folder = os.environ.get("NUMBA_CACHE_DIR", "")
    return folder != "" and next(Path(folder).rglob("*.nbi"), None) is None


def claim_cache_folder(roots: Iterator[Path]) -> Path | None:
    """A folder for compiled kernels that no other living process uses, in the first root that can be written to.

    numba's cache is not made for several writers: two ranks that compile at once can leave an index that names the
    wrong code. Each process therefore locks a slot until it ends; the next process finds the slot warm.
    """
    for root in roots:
        for slot in range(_MOST_SLOTS):
            try:
                folder = private_folder(root, f"{platform.node()}-{_fingerprint()}", f"slot-{slot}")
                if _lock(folder / "lock"):
                    return folder
            except NotPrivateError as error:
                _warn(f"compiled kernels are not kept in {root}: {error}; remove it, or chmod 700 what is yours")
                break
            except OSError:
                break  # read-only, full, or without locks: the next root
    return None


def cache_roots() -> Iterator[Path]:
    """Folders of our own that may hold what this user compiles, the best first; they need not exist."""
    with contextlib.suppress(RuntimeError):  # a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dqrm-cpu"
    yield Path(tempfile.gettempdir()) / f"dqrm-cpu-{os.geteuid()}"


def _passing_folder() -> Path | None:
    """A folder for this process alone, where there is no other; None where even that cannot be."""
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


def _lock(path: Path) -> bool:
    """Whether this process now holds the lock; the descriptor stays open until it ends, which is what holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:
        os.close(descriptor)
        raise
    return True


def _fingerprint() -> str:
    """Changes with Python and with any source that numba compiles: it does not see that a called function changed."""
    stamp = hashlib.sha256(sys.version.encode())
    for path in sorted(path for folder in _COMPILED_SOURCES for path in folder.rglob("*.py")):
        status = path.stat()
        stamp.update(f"{path} {status.st_mtime_ns} {status.st_size}".encode())
    return stamp.hexdigest()[:16]
