"""Sources elsewhere: objects behind URLs, read with fsspec, which is imported only where there are any."""

import importlib
import io
import re
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import urlsplit

from isal import isal_zlib

from dqrm_cpu.errors import DataError

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_READ_AHEAD_BYTES = 8 << 20
_VERSION_NAMES = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "created", "updated", "generation")
"""What changes with an object, of what stores tell about it: each has names of its own."""


class RemoteFacts(NamedTuple):
    """Facts about a remote object that its store tells without sending it."""

    is_folder: bool
    bytes: int
    version: int  # another number where it is another object: of its time and tag, where the store has them


def is_url(path: str) -> bool:
    """Tells whether a name is a URL, such as s3://bucket/log.gz."""
    return _URL.match(path) is not None


def without_secrets(path: str) -> str:
    """Returns a URL without user and password, and a web address without its query, where signatures stand."""
    if not is_url(path):
        return path
    parts = urlsplit(path)
    query = "" if parts.scheme in ("http", "https") else parts.query
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query).geturl()


def remote_facts(url: str) -> RemoteFacts:
    """Asks about an object; DataError where nobody can say."""
    system, path = _system(url)
    try:
        info = system.info(path)
        version = isal_zlib.crc32(repr([info.get(name) for name in _VERSION_NAMES]).encode())
    except Exception as error:
        raise _unreadable(url, error) from error
    size = info.get("size")
    if size is None and info.get("type") != "directory":
        raise DataError(f"{url} does not say how long it is; download it, or pipe it into standard input: prepare -")
    return RemoteFacts(info.get("type") == "directory", int(size or 0), version)


def open_remote(url: str) -> BinaryIO:
    """Opens an object for reading."""
    system, path = _system(url)
    try:
        return cast(BinaryIO, _RemoteStream(system.open(path, "rb", block_size=_READ_AHEAD_BYTES)))
    except Exception as error:
        raise _unreadable(url, error) from error


class _RemoteStream(io.RawIOBase):
    """An opened object whose failures are OSErrors: stores raise errors of classes of their own."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def readinto(self, buffer: Any) -> int:
        """Reads as many bytes as there are; 0 at the end."""
        view = memoryview(buffer).cast("B")
        try:
            piece = self._stream.read(len(view))
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}".partition("\n")[0]) from error
        view[: len(piece)] = piece
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def remote_names(url: str) -> list[tuple[str, str]]:
    """Lists the objects below a folder, or those that match a pattern: their URLs, and their names below the folder."""
    system, path = _system(url)
    folder = re.split(r"[^/]*[*?\[]", path, maxsplit=1)[0].rstrip("/")
    try:
        found = system.find(path) if folder == path.rstrip("/") else system.glob(path)
    except Exception as error:
        raise _unreadable(url, error) from error
    return [(str(system.unstrip_protocol(name)), str(name)[len(folder) :].lstrip("/")) for name in found]


def _system(url: str) -> tuple[Any, str]:
    try:
        core: Any = importlib.import_module("fsspec.core")
        system, path = core.url_to_fs(url)
    except ImportError as error:
        package = f" ({error})" if "fsspec" not in str(error) else ""
        raise DataError(f"{url} is read with fsspec: pip install 'dqrm-cpu[remote]'{package}") from None
    except Exception as error:
        raise _unreadable(url, error) from error
    return system, str(path)


def _unreadable(url: str, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return DataError(f"{without_secrets(url)} cannot be read: {reason}; is the address right, and may you read it?")
