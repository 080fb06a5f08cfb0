"""Raw files as a command names them: one by one, by folders, by patterns, or by URLs of either kind."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from dqrm_cpu.data.prepare.sources.raw_file import STANDARD_INPUT
from dqrm_cpu.data.prepare.sources.remote import is_url, remote_facts, remote_names
from dqrm_cpu.data.store.manifest import holds_manifest
from dqrm_cpu.errors import ConfigError, DataError

_MARKS = "*?["
_WEB = ("http://", "https://")


def find_sources(names: Sequence[str]) -> list[str]:
    """Returns the files that names stand for, those of each folder or pattern in the order of the numbers in them.

    What begins with a dot or an underscore is left out in folders: programs mark there that they are done.
    """
    paths: list[str] = []
    for name in names:
        found = _found(name)
        if not found:
            kind = "pattern matches no file" if _is_pattern(name) else "folder holds no raw files"
            raise DataError(f"{name}: the {kind}; check its name")
        paths += found
    return paths


def require_different(paths: Sequence[str]) -> None:
    """Raises ConfigError where two names are those of one file, also by a link: its rows would count twice."""
    before: dict[object, str] = {}
    for path in paths:
        identity = _identity(path)
        if identity in before:
            first = before[identity]
            other = f", once by a link or another path, {path}" if path != first else ""
            raise ConfigError(f"a raw file is named twice: {first}{other}")
        before[identity] = path


def natural_order(name: str) -> list[tuple[int, str]]:
    """Returns what sorts names as a person does: day_2 before day_10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isascii() and part.isdecimal() else (-1, part) for part in parts]


def _identity(path: str) -> object:
    if path == STANDARD_INPUT or is_url(path):
        return path
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # whoever reads it says why it cannot be read
        return path
    return status.st_dev, status.st_ino


def _found(name: str) -> list[str]:
    if name == STANDARD_INPUT:
        return [name]
    is_pattern = _is_pattern(name)
    if is_url(name):
        if not is_pattern and not remote_facts(name).is_folder:
            return [name]
        return sorted((url for url, below in remote_names(name) if not _is_hidden(below)), key=natural_order)
    path = Path(name)
    try:
        if path.is_dir():
            _require_raw(path)
            inside = (one for one in path.rglob("*") if one.is_file())
            return sorted((str(one) for one in inside if not _is_hidden(str(one.relative_to(path)))), key=natural_order)
        if is_pattern and not path.exists():
            matches = glob.glob(name, recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
            return sorted((one for one in matches if Path(one).is_file()), key=natural_order)
    except (OSError, ValueError) as error:
        raise DataError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return [name]


def _require_raw(folder: Path) -> None:
    """Raises ConfigError for a folder of ours, whose files somebody would have to read as raw rows."""
    if holds_manifest(folder):
        raise ConfigError(f"{folder} is a prepared data set; name the raw files that it was prepared from, or others")
    if (folder / "config.toml").is_file() and (folder / "checkpoints").is_dir():
        raise ConfigError(f"{folder} is the folder of a run, which has no raw rows; name raw files")


def _is_pattern(name: str) -> bool:
    """Tells whether a name stands for others. A web address with a question mark has a query, such as a signature."""
    is_query = name.lower().startswith(_WEB) and "?" in name
    return not is_query and any(mark in name for mark in _MARKS)


def _is_hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in PurePosixPath(relative).parts)
