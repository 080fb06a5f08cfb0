"""Rows scored by an exported file: through the reader that servers use, which knows nothing of the trainer.

Raw rows are scored without torch, which takes longer to import than most files to score.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.config import Config
from dqrm_cpu.data.prepare.raw_rows import NumberedRows
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import vocabulary_of
from dqrm_cpu.data.store.manifest import Manifest
from dqrm_cpu.serving.description import BANDS, BUCKETS, Description
from dqrm_cpu.serving.ids import NO_ID, IdFinder, slot_ids
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.model import Model, UnusableRowError, read_description

if TYPE_CHECKING:
    from torch import Tensor

    from dqrm_cpu.data.batch import BadBatchError, Batch

_ADVICE = "prepare the rows with the vocabulary of the model"


class PackedScorer:
    """Scores rows as a server does: the file's calibration is part of its logits."""

    def __init__(self, path: Path, threads: int | None, products: str, new_rows: "NewRows | None" = None) -> None:
        """`threads`: the most that score a batch; None: one for each core. `new_rows`: of a file in bands."""
        self._new_rows = new_rows
        self._model = Model.open(path, verify=True, threads=threads, products=products)

    def logits(self, batch: "Batch") -> NDArray[np.float32]:
        """Returns f32[B]; BadBatchError for rows that are not sound."""
        return self._logits(*self._arrays(batch))

    def logits_of_raw(self, rows: NumberedRows) -> NDArray[np.float32]:
        """Returns f32[n]; BadBatchError for rows that are not sound."""
        ids: NDArray[np.integer] = rows.ids.T
        if rows.offsets is not None:
            ids = _slots_of_bags(rows.ids, rows.offsets, rows.dense.shape[0], self._model.description)
        return self._logits(rows.dense, ids if self._new_rows is None else renumbered(ids, self._new_rows))

    def _logits(self, dense: NDArray[np.float32], ids: NDArray[np.integer]) -> NDArray[np.float32]:
        try:
            return self._model.logits_of_ids(dense, ids)
        except UnusableRowError as error:
            raise self._bad_batch(dense, ids, error) from error

    def twin(self, config: Config) -> "PackedScorer":
        """Returns what another thread may use: itself."""
        return self

    def sound_rows(self, batch: "Batch") -> "Tensor":
        """Returns bool[B]: which rows can be scored."""
        import torch

        return torch.from_numpy(self._model.sound_rows(*self._arrays(batch)))

    def _arrays(self, batch: "Batch") -> tuple[NDArray[np.float32], NDArray[np.integer]]:
        if self._new_rows is not None:
            return batch.dense.numpy(), renumbered(slots_of(batch, self._model.description), self._new_rows)
        one_each = batch.offsets is None
        return batch.dense.numpy(), batch.ids.numpy().T if one_each else slots_of(batch, self._model.description)

    def _bad_batch(
        self, dense: NDArray[np.float32], ids: NDArray[np.integer], error: UnusableRowError
    ) -> "BadBatchError":
        """Names the value and the column of a row that cannot be scored."""
        from dqrm_cpu.data.batch import BadBatchError  # with torch

        row = error.row
        if row is None:
            return BadBatchError(str(error))
        for k, value in enumerate(dense[row].tolist()):
            if not np.isfinite(value):
                return BadBatchError(f"is {value}, not a finite number", row, f"I{k + 1}")
        for t, value in zip(self._model.description.slots, ids[row].tolist(), strict=True):
            rows = self._model.description.categories[t].rows
            if not 0 <= value < rows and (value != NO_ID or not self._model.description.has_bags):
                return BadBatchError(f"id {value} is outside of 0 to {rows - 1}; {_ADVICE}", row, f"C{t + 1}")
        return BadBatchError(str(error))


def open_scorer(path: Path, threads: int | None, products: str, ids: tuple[Path, Manifest] | None) -> PackedScorer:
    """Opens an exported file for rows with the ids of a data set, `ids`, which a file with rows of its own needs."""
    return PackedScorer(path, threads, products, None if ids is None else rows_in_file(path, *ids))


NewRows = Sequence[NDArray[np.int64]]
"""The row in a file of each id of a data set, by slot of a row: int64[ids]."""


def rows_in_file(path: Path, folder: Path, manifest: Manifest) -> NewRows | None:
    """Returns where the ids of a data set lie in an exported file, by the keys that both have; None: as they are.

    A file in bands keeps fewer rows than the data set has ids, in another order. What it left out is row 0.
    """
    file = MappedFile(path)
    description = read_description(file)
    if description.layout != BANDS or description.ids.hash_rows:
        return None
    finder, keys = IdFinder(file, description), vocabulary_of(folder, manifest).keys
    by_table = [
        np.arange(column.rows)
        if column.kind == BUCKETS
        else np.concatenate([np.zeros(1, np.int64), finder.rows([t], keys[t].astype(np.uint64)[None])[0]])
        for t, column in enumerate(description.categories)
    ]
    return [by_table[t] for t in description.slots]


def renumbered(ids: NDArray[np.integer], new_rows: NewRows) -> NDArray[np.int64]:
    """Returns the rows in a file of the ids [n, S] of a data set; what is no id stays none."""
    found = ids.astype(np.int64)
    for slot, rows in enumerate(new_rows):
        its = found[:, slot]
        known = (its >= 0) & (its < rows.size)
        its[its >= rows.size] = np.iinfo(np.int64).max
        its[known] = rows[its[known]]
    return found


def slots_of(batch: "Batch", description: Description) -> NDArray[np.int64]:
    """Returns the ids [n, S] of a batch as an exported file reads them."""
    if batch.offsets is None:
        return batch.ids.numpy().T.astype(np.int64)
    return _slots_of_bags(batch.ids.numpy(), batch.offsets.numpy(), batch.size, description)


def _slots_of_bags(
    ids: NDArray[np.integer], offsets: NDArray[np.int64], num_rows: int, description: Description
) -> NDArray[np.int64]:
    """Returns the ids [n, S] of rows whose ids [N] stand table by table, from `offsets` [T * n + 1] on."""
    bounds = [offsets[t * num_rows : (t + 1) * num_rows + 1] for t in range(len(description.categories))]
    bags = ((np.diff(of_table), ids[of_table[0] : of_table[-1]]) for of_table in bounds)
    return slot_ids(bags, num_rows, description)
