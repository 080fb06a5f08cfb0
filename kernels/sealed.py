"""Files that end in a checksum of what comes before it: compiled code in a cache, of which a flipped bit is a crash.

What reads such a file ignores what follows its own end, as the loader of shared libraries does.
"""

import contextlib
import hashlib
import os
import stat
import warnings
from pathlib import Path

_MARK = b"\ndqrm-cpu sha256 "
_DIGEST_BYTES = hashlib.sha256().digest_size
SEAL_BYTES = len(_MARK) + _DIGEST_BYTES


class CacheWarning(UserWarning):
    """Warns that compiled code is compiled again, or not kept."""


def seal(content: bytes) -> bytes:
    """Returns what to write after `content`."""
    return _MARK + hashlib.sha256(content).digest()


def is_whole(path: Path) -> bool:
    """Returns whether a file is there and ends in its seal; one that does not is removed, with a warning."""
    return read_sealed(path) is not None


def read_sealed(path: Path) -> bytes | None:
    """Returns what stands before the seal; None without a file. One without its seal is removed, with a warning."""
    try:
        # A FIFO would keep whoever opens it waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        warn(f"compiling again: {path} cannot be read ({error.strerror})")
        return None
    with os.fdopen(descriptor, "rb") as file:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            with contextlib.suppress(OSError):
                read = file.read()
                content, ending = read[:-SEAL_BYTES], read[-SEAL_BYTES:]
                if ending == seal(content):
                    return content
    warn(f"compiling again: {path} is damaged, and is thrown away")
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def replace_sealed(path: Path, content: bytes) -> None:
    """Writes a file and its seal under another name first: whoever reads at the same time finds it whole or not."""
    written = path.with_name(f"{path.name}.{os.getpid()}.writing")
    try:
        written.write_bytes(content + seal(content))
        written.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            written.unlink()
        raise


def warn(message: str) -> None:
    """Warns with one line on stderr, once."""
    warnings.warn_explicit(message, CacheWarning, "dqrm-cpu", 0)
