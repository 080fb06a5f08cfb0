"""Which code this is: ranks with different sources, or libraries that compute differently, must not train as one."""

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

from dqrm_cpu import __version__

_PACKAGE = Path(__file__).parent.parent
_SOURCES = (".py", ".cpp")
_LIBRARIES = ("torch", "numba", "numpy")


def code_version(package: Path | None = None) -> dict[str, str]:
    """Returns the release, a digest of all sources, and the libraries that compute with them.

    Of another package the sources are those on disk now; of this one as the first to ask found them: what runs here
    does not change with a file that is edited afterwards, and reading all takes 20 ms of each run of a search.
    """
    sources = _own_sources() if package is None else _digest(package)
    libraries = {name: installed_version(name) or "not installed" for name in _LIBRARIES}
    return {"release": __version__, "sources": sources, **libraries}


@cache
def _own_sources() -> str:
    return _digest(_PACKAGE)


def _digest(package: Path) -> str:
    stamp = hashlib.sha256()
    # In a checkout the kernels are behind a link, which rglob alone would pass by.
    paths = {*package.rglob("*"), *(package / "kernels").rglob("*")}
    for path in sorted(path for path in paths if path.suffix in _SOURCES):
        stamp.update(f"{path.relative_to(package)}\0".encode())
        stamp.update(path.read_bytes())
    return stamp.hexdigest()[:16]


def installed_version(name: str) -> str | None:
    """Returns the version of a distribution without importing it: IPEX changes torch, or fails, or takes seconds."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
