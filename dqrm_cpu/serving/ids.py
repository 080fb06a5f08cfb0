"""Rows of tables that keys of categories stand for: by the vocabulary in the file, or by hashing."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.kernels.hashing import INCREMENT
from dqrm_cpu.serving.description import BUCKETS, Description, IdRule
from dqrm_cpu.serving.mapped_file import MappedFile

Keys = NDArray[np.uint64]
FindIds = Callable[[Keys], NDArray[np.int64]]

_FACTOR = np.uint64(INCREMENT)
_29, _32 = np.uint64(29), np.uint64(32)


def keys_tensors(model: Description) -> dict[str, tuple[str, str]]:
    """Returns the tensors that hold each table's vocabulary, keys in rising order and the row of each, by table."""
    if model.ids.hash_rows:
        return {}
    kept = [f"C{t + 1}" for t, column in enumerate(model.categories) if column.kind != BUCKETS]
    return {name: (f"{name}.keys", f"{name}.rows") for name in kept}


def find_ids(file: MappedFile, model: Description) -> list[FindIds | None]:
    """Returns what gives each table's keys their rows; None for buckets, which are rows already."""
    rule, tensors = model.ids, keys_tensors(model)
    found: list[FindIds | None] = []
    for t, column in enumerate(model.categories):
        if column.kind == BUCKETS:
            found.append(None)
        elif rule.hash_rows:
            found.append(lambda keys: _hashed(_folded(keys, rule), rule.hash_rows))
        else:
            keys_name, rows_name = tensors[f"C{t + 1}"]
            known = file.tensor(keys_name, f"U{rule.key_bits}", (None,))
            found.append(_search(known, file.tensor(rows_name, "I32", (known.size,)), rule))
    return found


def _search(known: Keys, rows: NDArray[np.int32], rule: IdRule) -> FindIds:
    def find(keys: Keys) -> NDArray[np.int64]:
        keys = _folded(keys, rule)
        if not known.size:
            return np.zeros(keys.size, np.int64)
        # Of one type: NumPy would convert the whole vocabulary otherwise.
        place = known.searchsorted(keys.astype(known.dtype)).clip(max=known.size - 1)
        return np.where((known[place] == keys) & (keys > 0), rows[place], 0).astype(np.int64)

    return find


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
