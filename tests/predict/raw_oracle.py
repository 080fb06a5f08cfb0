"""Raw rows read with plain Python and NumPy by what a data set's folder says: numbers, and ids of categories."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

_MASK = 2**64 - 1


def rows_of(
    data: Path, rows: Sequence[Mapping[str, str]], several: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Dense f32[B, D], and ids, a list in each place of an array [B, T], of cells by the names of their columns.

    Cells of the columns in `several` hold any number of values, with a bar between them.
    """
    manifest = json.loads((data / "manifest.json").read_text())
    fitted = {one["name"]: one["numbers"] for one in manifest["transforms"]}
    names = manifest["schema"]
    dense = [[_number(row[name], fitted.get(name)) for name in names["dense"]] for row in rows]
    keys = [np.load(data / "vocabulary" / f"{t:03}.npy").tolist() for t in range(len(names["categorical"]))]
    places = [{key: place + 1 for place, key in enumerate(column)} for column in keys]
    ids = np.empty((len(rows), len(keys)), object)
    for place, row in enumerate(rows):
        for t, name in enumerate(names["categorical"]):
            values = dict.fromkeys(row[name].split("|")) if name in several else [row[name]]  # each counts once
            ids[place, t] = [places[t].get(_key(value), 0) for value in values if value or name not in several]
    return np.array(dense, np.float32), ids


def model_of(run: Path) -> SimpleNamespace:
    """The shape of a run's model, as its config.toml has it."""
    model = tomllib.loads((run / "config.toml").read_text())["model"]
    return SimpleNamespace(model=SimpleNamespace(**model, dims=[model["embedding_dim"]] * len(model["table_rows"])))


def _number(cell: str, fitted: Sequence[float] | None) -> float:
    if not cell:
        return 0.0
    if fitted is None:
        return float(np.log1p(max(float(cell), 0.0)))
    mean, deviation = fitted
    return (float(cell) - mean) / deviation


def _key(cell: str) -> int:
    """The 64 bits that a text is known by: splitmix64's finalizer over its length and its words of eight bytes."""
    text = cell.encode()
    hashed = 0x9E3779B97F4A7C15 ^ len(text)
    for at in range(0, len(text), 8):
        hashed = _mixed(hashed ^ int.from_bytes(text[at : at + 8], "little"))
    return _mixed(hashed) if text else 0


def _mixed(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)
