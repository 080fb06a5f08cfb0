"""Whether the ids of other rows stand for the categories that they stood for in training."""

from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.data.store.run_data import SYNTHETIC
from dqrm_cpu.data.store.schema import DataIdentity
from dqrm_cpu.errors import DataError


@dataclass(frozen=True)
class TrainedIds:
    """The identity of the rows that a model was trained on, as its file records it."""

    path: Path  # of the checkpoint or the packed file
    identity: DataIdentity | None  # None: it does not say
    fingerprint: str  # of the rows; empty where it does not say


def require_same_ids(trained: TrainedIds, source: str, identity: DataIdentity | None, fingerprint: str) -> str | None:
    """Refuses data in which an id stands for another category; returns a warning where that cannot be checked.

    `source` is what the data were opened from, as the setting data.source has it.
    """
    if trained.identity is None or identity is None:
        if trained.fingerprint == fingerprint:  # the very same rows
            return None
        unknown = str(trained.path) if trained.identity is None else source
        return (
            f"{unknown} does not say which vocabulary its ids belong to, so nobody can check that {source} has that of "
            "the model; if it has another one, the scores mean nothing"
        )
    difference = trained.identity.difference(identity)
    if difference:
        remedy = (
            "leave --seed, --model.table-rows and --model.num-dense as the run has them"
            if source == SYNTHETIC
            else "prepare the rows with --vocabulary DATASET, where DATASET is the data set that the model was trained "
            "on, or give a data set that was prepared so"
        )
        raise DataError(
            f"{source} has another {difference} than the model in {trained.path} was trained with, so its ids stand "
            f"for other categories: {trained.identity} there, {identity} here; {remedy}"
        )
    return None
