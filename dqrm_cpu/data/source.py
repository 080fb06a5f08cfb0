"""Where rows come from: one interface for generated and prepared data, and the three parts of a data set."""

from dataclasses import dataclass
from typing import Protocol

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.store.follow import SYNTHETIC
from dqrm_cpu.data.store.identity import DataIdentity, identity_of_generated
from dqrm_cpu.data.store.open import Store
from dqrm_cpu.data.synthetic import SyntheticClicks
from dqrm_cpu.errors import DataError


class RowSource(Protocol):
    """Rows that can be read anywhere, any number of times, with the same result."""

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start to stop - 1."""


@dataclass(frozen=True)
class Part:
    """A range of a source: the training, validation or test rows."""

    source: RowSource
    first: int
    num_rows: int

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start to stop - 1 of this part."""
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
        """The part of that name: train, validation or test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def open_data(config: Config) -> DataSet:
    """The data set that the configuration names."""
    return _generated(config) if config.data.source == SYNTHETIC else _prepared(config)


def _generated(config: Config) -> DataSet:
    data, model = config.data, config.model
    for key, given in {"data.reshuffle": data.reshuffle, "data.sub_sample_rate": data.sub_sample_rate}.items():
        if given:
            raise DataError(f"{key} works on prepared rows, not on generated ones; leave it out or give --data DIR")
    source = SyntheticClicks(model.table_rows, model.num_dense, config.seed, data.max_bag_size)
    test_at = data.train_rows + data.validation_rows
    return DataSet(
        Part(source, 0, data.train_rows),
        Part(source, data.train_rows, data.validation_rows),
        Part(source, test_at, data.test_rows),
        fingerprint=f"synthetic seed {config.seed} rows {test_at + data.test_rows}",
        identity=identity_of_generated(model.num_dense, model.table_rows, config.seed),
    )


def _prepared(config: Config) -> DataSet:
    store = Store(config)
    train, validation, test = (Part(part, 0, part.num_rows) for part in (store.train, store.validation, store.test))
    return DataSet(train, validation, test, store.fingerprint, store.identity)
