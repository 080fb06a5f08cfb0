"""Reads all files of a folder, so that tests can compare it with another folder."""

from pathlib import Path


def files_of(folder: Path, without: str = "") -> dict[str, bytes]:
    """The content of every file below a folder, by its path there, but of those that are called `without`."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != without)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
