"""A prepared data set as a run reads it: its parts, and whether it fits the configuration."""

from pathlib import Path

from dqrm_cpu.config import Config
from dqrm_cpu.data.store.find import fingerprint_of
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest, read_manifest
from dqrm_cpu.data.store.order import Order
from dqrm_cpu.data.store.part import StoredRows
from dqrm_cpu.data.store.stream import Stream
from dqrm_cpu.errors import DataError


class Store:
    """The streams of a run over a prepared data set, its fingerprint and its identity."""

    def __init__(self, config: Config) -> None:
        directory, data = Path(config.data.source), config.data
        manifest = read_manifest(directory)
        _require_fit(config, manifest)
        stored = {part: StoredRows(directory, manifest, part) for part in PART_NAMES}
        limits = {"train": data.train_rows, "validation": data.validation_rows, "test": data.test_rows}
        self.train = Stream(stored["train"], data.train_rows, _training_order(config, stored["train"]))
        self.validation = Stream(stored["validation"], limits["validation"])
        self.test = Stream(stored["test"], limits["test"])
        self.fingerprint = fingerprint_of(manifest.digest())
        self.identity = manifest.identity


def _training_order(config: Config, stored: StoredRows) -> Order | None:
    data = config.data
    if not data.train_rows or not (data.reshuffle or data.sub_sample_rate):
        return None
    return Order(
        data.train_rows,
        config.seed,
        reshuffle=data.reshuffle,
        sub_sample_rate=data.sub_sample_rate,
        labels=stored.labels,
    )


def _require_fit(config: Config, manifest: Manifest) -> None:
    """Every way in which settings and data set may contradict each other."""
    model, data, where = config.model, config.data, config.data.source
    if model.num_dense != manifest.schema.num_dense:
        raise DataError(
            f"model.num_dense is {model.num_dense}, and {where} has {manifest.schema.num_dense} dense columns; "
            "leave the setting out"
        )
    if len(model.table_rows) != len(manifest.table_rows):
        raise DataError(
            f"model.table_rows names {len(model.table_rows)} tables, and {where} has {len(manifest.table_rows)} "
            "categorical columns; leave the setting out to follow the data set"
        )
    pairs = zip(manifest.schema.categorical, model.table_rows, manifest.table_rows, strict=True)
    for number, (name, mine, theirs) in enumerate(pairs):
        if mine < theirs:
            raise DataError(
                f"model.table_rows: table {number} ({name}) has {mine:,} rows, and {where} needs {theirs:,}; "
                "leave the setting out to follow the data set, or prepare it with smaller tables"
            )
    for part, rows in zip(PART_NAMES, (data.train_rows, data.validation_rows, data.test_rows), strict=True):
        if rows > manifest.num_rows(part):
            raise DataError(
                f"data.{part}_rows is {rows:,}, and {where} has {manifest.num_rows(part):,} {part} rows; "
                "leave the setting out to use them all"
            )
