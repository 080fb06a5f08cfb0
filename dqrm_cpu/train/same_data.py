"""Whether a model may see a data set: its columns and ids must mean what they meant where the model was trained."""

from pathlib import Path

from dqrm_cpu.data.source import DataSet
from dqrm_cpu.data.store.follow import SYNTHETIC
from dqrm_cpu.data.store.identity import DataIdentity
from dqrm_cpu.errors import DataError
from dqrm_cpu.train.checkpoint import read_state


def require_same_vocabulary(checkpoint: Path, data: DataSet, source: str) -> str | None:
    """Refuses data in which an id stands for another category; returns a warning where that cannot be checked.

    `source` is the setting data.source that `data` were opened from.
    """
    state = read_state(checkpoint)
    trained_on = DataIdentity.from_text(str(state.get("identity", "")))
    if trained_on is None or data.identity is None:
        if state.get("data") == data.fingerprint:  # the very same rows
            return None
        unknown = str(checkpoint) if trained_on is None else source
        return (
            f"{unknown} does not say which vocabulary its ids belong to, so nobody can check that {source} has that of "
            "the model; if it has another one, the scores mean nothing"
        )
    difference = trained_on.difference(data.identity)
    if difference:
        raise DataError(
            f"{source} has another {difference} than the model in {checkpoint} was trained with, so its ids stand for "
            f"other categories: {trained_on} there, {data.identity} here; {_remedy(source)}"
        )
    return None


def _remedy(source: str) -> str:
    if source == SYNTHETIC:
        return "leave --seed, --model.table-rows and --model.num-dense as the run has them"
    return (
        "prepare the rows with --vocabulary DATASET, where DATASET is the data set that the model was trained on, or "
        "give a data set that was prepared so"
    )
