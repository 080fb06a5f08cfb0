"""Which code this is: ranks with different sources, or libraries that compute differently, must not train as one."""

import hashlib
from importlib import metadata
from pathlib import Path

from dqrm_cpu import __version__

_PACKAGE = Path(__file__).parent.parent
_SOURCES = (".py", ".cpp")
_LIBRARIES = ("torch", "numba", "numpy")


def code_version(package: Path = _PACKAGE) -> dict[str, str]:
    """Returns the release, a digest of all sources as they are on disk, and the libraries that compute with them."""
    stamp = hashlib.sha256()
    # In a checkout the kernels are behind a link, which rglob alone would pass by.
    paths = {*package.rglob("*"), *(package / "kernels").rglob("*")}
    for path in sorted(path for path in paths if path.suffix in _SOURCES):
        stamp.update(f"{path.relative_to(package)}\0".encode())
        stamp.update(path.read_bytes())
    libraries = {name: installed_version(name) or "not installed" for name in _LIBRARIES}
    return {"release": __version__, "sources": stamp.hexdigest()[:16], **libraries}


def installed_version(name: str) -> str | None:
    """Returns the version of a distribution without importing it: IPEX changes torch, or fails, or takes seconds."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
