"""The data set of a run: which settings it decides, and where it lies now."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from dqrm_cpu.config import Config
from dqrm_cpu.data.store.manifest import PART_NAMES, holds_manifest, read_manifest
from dqrm_cpu.errors import DataError

SYNTHETIC = "synthetic"
"""The data source that needs no files."""

_PREPARED = "prepared "
"""Begins the fingerprint of prepared rows; the digest of their manifest follows."""


def follow_data(config: Config, given: Set[str], needed: Sequence[str] = PART_NAMES) -> Config:
    """Fills in what the data set decides, sizes of tables and of parts, except the dotted keys that were `given`.

    The parts that are `needed` must have rows. Generated data decide the sizes of tables where those are to hold the
    ids that occur; the sizes decide dimensions that are left to them. A folder without a manifest is left to whoever
    opens the data.
    """
    followed = _with_sizes(config, given, needed)
    return replace(followed, model=followed.model.with_named_dims())


def _with_sizes(config: Config, given: Set[str], needed: Sequence[str]) -> Config:
    directory = Path(config.data.source)
    if config.data.source == SYNTHETIC:
        return _following_ids(config) if config.data.min_count and "model.table_rows" not in given else config
    if not holds_manifest(directory):
        return config
    manifest = read_manifest(directory)
    model: dict[str, Any] = {"table_rows": manifest.table_rows, "num_dense": len(manifest.schema.features)}
    data: dict[str, Any] = {f"{part}_rows": manifest.num_rows(part) for part in PART_NAMES}
    for part in PART_NAMES:
        if manifest.num_rows(part) == 0 and part in needed:
            raise DataError(f"{directory} has no {part} rows; prepare it with a split that leaves some")
    followed = replace(
        config,
        model=replace(config.model, **{key: value for key, value in model.items() if f"model.{key}" not in given}),
        data=replace(config.data, **{key: value for key, value in data.items() if f"data.{key}" not in given}),
    )
    _ = followed.model.dims  # ConfigError where the settings name a table that the data do not have
    return followed


def _following_ids(config: Config) -> Config:
    # Imported here: the generator is compiled, and most settings are resolved without it.
    from dqrm_cpu.data.synthetic.known_ids import known_clicks

    return replace(config, model=replace(config.model, table_rows=known_clicks(config).table_rows))


def fingerprint_of(digest: str) -> str:
    """Returns the text by which a run names prepared rows."""
    return _PREPARED + digest


def find_data(source: str, run_dir: Path, fingerprint: str) -> Path:
    """Finds the folder with the rows that a run names by `fingerprint`, and that it recorded as `source`.

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
    """Yields the ends of the recorded path, longest first, below the run's folder and those above it, nearest first."""
    names = recorded.parts[1:] if recorded.is_absolute() else recorded.parts
    for above in (run_dir, *run_dir.parents):
        for first in range(len(names)):
            yield above.joinpath(*names[first:])


def _digest(folder: Path) -> str:
    try:
        return read_manifest(folder).digest()
    except DataError:  # a folder that only looks like the one that is wanted
        return ""
