"""Settings that a prepared data set decides where the user did not: sizes of tables and of parts."""

from collections.abc import Sequence, Set
from pathlib import Path

from dqrm_cpu.config import Config
from dqrm_cpu.config.schema import flatten, unflatten
from dqrm_cpu.config.setting import Value
from dqrm_cpu.data.store.manifest import PART_NAMES, holds_manifest, read_manifest
from dqrm_cpu.errors import DataError

SYNTHETIC = "synthetic"
"""The data source that needs no files."""


def follow_data(config: Config, given: Set[str], needed: Sequence[str] = PART_NAMES) -> Config:
    """The configuration with what the data set decides filled in, except the dotted keys that were `given`.

    The parts that are `needed` must have rows. Generated data decide nothing. A folder without a manifest is left to
    whoever opens the data.
    """
    directory = Path(config.data.source)
    if config.data.source == SYNTHETIC or not holds_manifest(directory):
        return config
    manifest = read_manifest(directory)
    decided: dict[str, Value] = {
        "model.table_rows": manifest.table_rows,
        "model.num_dense": manifest.schema.num_dense,
    }
    for part in PART_NAMES:
        if manifest.num_rows(part) == 0 and part in needed:
            raise DataError(f"{directory} has no {part} rows; prepare it with a split that leaves some")
        decided[f"data.{part}_rows"] = manifest.num_rows(part)
    kept = {key: value for key, value in decided.items() if key not in given}
    return unflatten({**flatten(config), **kept})
