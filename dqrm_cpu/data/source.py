"""Where rows come from: one interface for generated and prepared data, and the three parts of a data set.

`open_data` also says where a prepared data set does not fit the configuration.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest, read_manifest
from dqrm_cpu.data.store.order import Order
from dqrm_cpu.data.store.run_data import SYNTHETIC, fingerprint_of
from dqrm_cpu.data.store.schema import DataIdentity, identity_of_generated
from dqrm_cpu.data.store.stored_rows import StoredRows, Stream
from dqrm_cpu.data.synthetic.click_model import VERSION_OF_KNOWN_IDS
from dqrm_cpu.data.synthetic.known_ids import KnownClicks, known_clicks
from dqrm_cpu.data.synthetic.stream import SyntheticClicks
from dqrm_cpu.errors import DataError


class RowSource(Protocol):
    """Rows that can be read anywhere, any number of times, with the same result."""

    def rows(self, start: int, stop: int) -> Batch:
        """Returns rows start to stop - 1 of the source."""


@dataclass(frozen=True)
class Part:
    """A range of a source: the training, validation or test rows."""

    source: RowSource
    first: int
    num_rows: int
    keep_rate: float = 1.0  # share of the rows without a click that the traffic had and this part still has

    def rows(self, start: int, stop: int) -> Batch:
        """Returns rows start to stop - 1 of this part."""
        return self.source.rows(self.first + start, self.first + stop)


@dataclass(frozen=True)
class DataSet:
    """Disjoint parts, a line that names the rows, and what their columns and ids mean, where that is known."""

    train: Part
    validation: Part
    test: Part
    fingerprint: str
    identity: DataIdentity | None

    def part(self, name: str) -> Part:
        """Returns the part of that name: train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def open_data(config: Config) -> DataSet:
    """Opens the data set that the configuration names."""
    return _generated(config) if config.data.source == SYNTHETIC else _prepared(config)


def _generated(config: Config) -> DataSet:
    data, model = config.data, config.model
    of_prepared = {
        "data.reshuffle": data.reshuffle,
        "data.sub_sample_rate": data.sub_sample_rate > 0,
        "data.negative_keep_rate": data.negative_keep_rate < 1,
        "data.evaluation_keep_rate": data.evaluation_keep_rate < 1,
    }
    for key, given in of_prepared.items():
        if given:
            raise DataError(f"{key} works on prepared rows, not on generated ones; leave it out or give --data DIR")
    source: RowSource
    if data.min_count:
        known = known_clicks(config)
        _require_room(config, known)
        source, of_ids = known, f" of min-count {data.known_from} in {data.train_rows}"
        clicks = f", clicks {VERSION_OF_KNOWN_IDS}"
    else:
        source = SyntheticClicks(model.table_rows, model.num_dense, config.seed, data.max_bag_size)
        of_ids = clicks = ""
    test_at = data.train_rows + data.validation_rows
    return DataSet(
        Part(source, 0, data.train_rows),
        Part(source, data.train_rows, data.validation_rows),
        Part(source, test_at, data.test_rows),
        fingerprint=f"synthetic seed {config.seed} rows {test_at + data.test_rows}{of_ids}{clicks}",
        identity=identity_of_generated(model.num_dense, model.table_rows, config.seed, of_ids),
    )


def _require_room(config: Config, known: KnownClicks) -> None:
    """Raises DataError where the settings' tables are not those of the ids that the generated rows hold."""
    mine, theirs = config.model.table_rows, known.table_rows
    if len(mine) != len(theirs) or any(rows < needed for rows, needed in zip(mine, theirs, strict=True)):
        raise DataError(
            f"model.table_rows does not fit the ids of {config.data.train_rows:,} generated rows, which take "
            f"{','.join(map(str, theirs))}; leave the setting out to follow them, or give --data.min-count 0"
        )


def _prepared(config: Config) -> DataSet:
    directory, data = Path(config.data.source), config.data
    manifest = read_manifest(directory)
    _require_fit(config, manifest)
    train, validation, test = (StoredRows(directory, manifest, part) for part in PART_NAMES)
    training = Stream(train, data.train_rows, _training_order(config, train))
    return DataSet(
        Part(training, 0, training.num_rows, data.trained_keep_rate),
        Part(Stream(validation, data.validation_rows), 0, data.validation_rows, data.evaluation_keep_rate),
        Part(Stream(test, data.test_rows), 0, data.test_rows, data.evaluation_keep_rate),
        fingerprint=fingerprint_of(manifest.digest()),
        identity=manifest.identity,
    )


def _training_order(config: Config, stored: StoredRows) -> Order | None:
    data = config.data
    if not data.train_rows or not (data.reshuffle or data.sub_sample_rate):
        return None
    return Order(
        data.train_rows,
        config.training_seed,
        reshuffle=data.reshuffle,
        sub_sample_rate=data.sub_sample_rate,
        labels=stored.labels,
    )


def _require_fit(config: Config, manifest: Manifest) -> None:
    """Raises DataError for every way in which settings and data set may contradict each other."""
    model, data, where = config.model, config.data, config.data.source
    num_features = len(manifest.schema.features)
    if model.num_dense != num_features:
        raise DataError(
            f"model.num_dense is {model.num_dense}, and {where} has {num_features} dense columns; leave the setting out"
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
