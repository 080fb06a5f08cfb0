"""Rows of tables that keys of categories stand for: by the vocabulary in the file, or by hashing."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.kernels.hashing import INCREMENT
from dqrm_cpu.serving.description import BUCKETS, Description, IdRule
from dqrm_cpu.serving.mapped_file import MappedFile

Keys = NDArray[np.uint64]

NO_ID = -1
"""Stands where a cell has fewer values than a bag's limit."""

_FACTOR = np.uint64(INCREMENT)
_29, _32 = np.uint64(29), np.uint64(32)


def keys_tensors(model: Description) -> dict[str, tuple[str, str]]:
    """Returns the tensors that hold each table's vocabulary, keys in rising order and the row of each, by table."""
    if model.ids.hash_rows:
        return {}
    kept = [f"C{t + 1}" for t, column in enumerate(model.categories) if column.kind != BUCKETS]
    return {name: (f"{name}.keys", f"{name}.rows") for name in kept}


class IdFinder:
    """Gives keys the rows that they stand for."""

    def __init__(self, file: MappedFile, model: Description) -> None:
        self._rule = model.ids
        self._vocabularies = {
            int(table.removeprefix("C")) - 1: _vocabulary(file, names, model.ids)
            for table, names in keys_tensors(model).items()
        }

    def rows(self, tables: Sequence[int], keys: Keys) -> NDArray[np.int64]:
        """Returns int64[k, n] of the keys uint64[k, n] of k tables; 0 for what is unknown."""
        keys = _folded(keys, self._rule)
        if self._rule.hash_rows:
            return _hashed(keys, self._rule.hash_rows)
        found = np.zeros(keys.shape, np.int64)
        for k, table in enumerate(tables):
            known, rows = self._vocabularies[table]
            if not known.size:
                continue
            # Of one type: NumPy would convert the whole vocabulary otherwise.
            wanted = keys[k].astype(known.dtype)
            place = known.searchsorted(wanted)
            if len(place) == 1:
                at = int(place[0])
                if at < known.size and known[at] == wanted[0]:
                    found[k, 0] = rows[at]
                continue
            place[place == known.size] = 0
            np.copyto(found[k], rows[place], where=known[place] == wanted)
        found[keys == 0] = 0
        return found


def _vocabulary(file: MappedFile, names: tuple[str, str], rule: IdRule) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Returns the keys of a table, which rise, and the row of each."""
    keys = file.tensor(names[0], f"U{rule.key_bits}", (None,))
    return keys, file.tensor(names[1], "I32", (keys.size,))


def _folded(keys: Keys, rule: IdRule) -> Keys:
    return keys % np.uint64(rule.max_ind_range) if rule.max_ind_range else keys


def _hashed(keys: Keys, rows: int) -> NDArray[np.int64]:
    """Returns rows 1 to `rows` - 1 by hashing, 0 for key 0."""
    hashed = _spread(keys)
    hashed = _spread(hashed ^ (hashed >> _32))
    return np.where(keys == 0, 0, 1 + (hashed >> _32) % np.uint64(rows - 1)).astype(np.int64)


def _spread(keys: Keys) -> Keys:
    result: Keys = (keys ^ (keys >> _29)) * _FACTOR
    return result


def slot_ids(
    bags: Iterable[tuple[NDArray[np.int64], NDArray[np.integer[Any]]]], num_rows: int, model: Description
) -> NDArray[np.int64]:
    """Returns the ids [n, S] of rows as a file's network reads them, -1 where a bag has fewer than its limit.

    `bags`: of each table how many ids each row has, and all of them, row by row.
    """
    slots = np.array(model.slots)
    found = np.full((num_rows, slots.size), NO_ID, np.int64)
    for t, (sizes, ids) in enumerate(bags):
        places = np.arange(ids.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        found[np.repeat(np.arange(num_rows), sizes), np.searchsorted(slots, t) + places] = ids
    return found
