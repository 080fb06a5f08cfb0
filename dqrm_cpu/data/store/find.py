"""Where the data set of a run lies now: at the place that the run recorded, or where both were moved together."""

from collections.abc import Iterator
from pathlib import Path

from dqrm_cpu.data.store.manifest import holds_manifest, read_manifest
from dqrm_cpu.errors import DataError

_PREPARED = "prepared "
"""Begins the fingerprint of prepared rows; the digest of their manifest follows."""


def fingerprint_of(digest: str) -> str:
    """How a run names prepared rows."""
    return _PREPARED + digest


def find_data(source: str, run_dir: Path, fingerprint: str) -> Path:
    """The folder with the rows that a run names by `fingerprint`, which recorded it as `source`.

    That place is taken if it holds a data set; whether the rows are the same is for others to say. Otherwise the same
    path is looked for below the run's folder and each folder above it, and only the rows of the fingerprint are taken.
    """
    recorded = Path(source)
    if holds_manifest(recorded):
        return recorded
    digest = fingerprint.removeprefix(_PREPARED) if fingerprint.startswith(_PREPARED) else ""
    if digest:
        for folder in _candidates(recorded, run_dir.absolute()):
            if holds_manifest(folder) and _digest(folder) == digest:
                return folder
    named = f"the one with fingerprint {digest} (dqrm-cpu data show DIR prints it)" if digest else "it"
    raise DataError(
        f"the run in {run_dir} was trained on {source}, and there is no data set there, nor at that path beside the "
        f"run; give {named} with --data DIR"
    )


def _candidates(recorded: Path, run_dir: Path) -> Iterator[Path]:
    """The ends of the recorded path, longest first, below the run's folder and those above it, nearest first."""
    names = recorded.parts[1:] if recorded.is_absolute() else recorded.parts
    for above in (run_dir, *run_dir.parents):
        for first in range(len(names)):
            yield above.joinpath(*names[first:])


def _digest(folder: Path) -> str:
    try:
        return read_manifest(folder).digest()
    except DataError:  # a folder that only looks like the one that is wanted
        return ""
