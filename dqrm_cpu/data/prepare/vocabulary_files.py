"""Vocabularies on disk: one NumPy array of keys per column, and a page that says what they are.

The key at place k has id k + 1; id 0 stands for a missing, unseen or rare category.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dqrm_cpu.base.files import remove_leftovers, replace_file
from dqrm_cpu.data.prepare.layout import Layout
from dqrm_cpu.data.prepare.request import Settings, VocabularySettings
from dqrm_cpu.data.store.identity import ColumnKeys, DataIdentity, identity_of_hashing, identity_of_keys
from dqrm_cpu.errors import DataError

FOLDER = "vocabulary"
_ABOUT_FILE = "vocabulary.json"
_FORMAT = 1
_MEND = "prepare the data set that it came from once more"


@dataclass(frozen=True)
class SavedVocabulary:
    """The columns of a vocabulary folder."""

    names: tuple[str, ...]
    max_ind_range: int
    keys: tuple[NDArray[Any], ...]
    digest: str


def save_vocabulary(out: Path, names: tuple[str, ...], max_ind_range: int, keys: list[NDArray[Any]]) -> None:
    """Writes the folder `vocabulary` of a data set; the page comes last."""
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    columns = []
    for number, (name, column) in enumerate(zip(names, keys, strict=True)):
        content = np.ascontiguousarray(column).data.cast("B") if column.size else memoryview(b"")
        file = f"{number:03d}.npy"
        replace_file(folder / file, [_npy_header(column), content], DataError)
        columns.append({"name": name, "file": file, "keys": int(column.size), "crc32": isal_zlib.crc32(content)})
    about = {"format": _FORMAT, "max_ind_range": max_ind_range, "key_bits": keys[0].itemsize * 8, "columns": columns}
    replace_file(folder / _ABOUT_FILE, [(json.dumps(about, indent=1) + "\n").encode()], DataError)


def identity_of(settings: Settings, keys: list[NDArray[Any]]) -> DataIdentity:
    """What the ids of a data set mean that was prepared so, with these keys of each column; none when hashing."""
    schema, vocabulary = settings.layout.schema, settings.vocabulary
    key_bits = 64 if settings.layout.has_text else 32
    if vocabulary.kind == "hash":
        return identity_of_hashing(schema, key_bits, vocabulary.max_ind_range, vocabulary.hash_rows)
    columns = [
        ColumnKeys(name, int(column.size), _crc32_of(column))
        for name, column in zip(schema.categorical, keys, strict=True)
    ]
    return identity_of_keys(schema, key_bits, vocabulary.max_ind_range, columns)


def _crc32_of(keys: NDArray[Any]) -> int:
    return isal_zlib.crc32(np.ascontiguousarray(keys).data.cast("B")) if keys.size else 0


def _npy_header(column: NDArray[Any]) -> bytes:
    said = f"{{'descr': '{column.dtype.str}', 'fortran_order': False, 'shape': ({column.size},), }}"
    padding = -(len(said) + 11) % 64
    text = said.encode() + b" " * padding + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def find_vocabulary(directory: Path) -> Path:
    """The folder itself, or the one in a prepared data set."""
    for folder in (directory, directory / FOLDER):
        if (folder / _ABOUT_FILE).exists():
            return folder
    raise DataError(f"{directory} holds no vocabulary: give a prepared data set, or its folder {FOLDER!r}")


def load_vocabulary(directory: Path) -> SavedVocabulary:
    """Reads and checks a folder."""
    folder = find_vocabulary(directory)
    text = (folder / _ABOUT_FILE).read_bytes()
    try:
        about = json.loads(text)
        if about["format"] != _FORMAT:
            raise DataError(f"{folder} has format {about['format']}, this version reads {_FORMAT}; {_MEND}")
        kind = np.dtype(f"<u{about['key_bits'] // 8}")
        keys = tuple(_load_column(folder, column, kind) for column in about["columns"])
        names = tuple(str(column["name"]) for column in about["columns"])
        return SavedVocabulary(names, int(about["max_ind_range"]), keys, f"crc32:{isal_zlib.crc32(text):08x}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / _ABOUT_FILE} is damaged ({error}); {_MEND}") from None


def require_vocabulary(directory: Path, layout: Layout, max_ind_range: int) -> VocabularySettings:
    """The settings with which other data gets the ids of a saved vocabulary; DataError where it cannot fit."""
    saved = load_vocabulary(directory)
    names = layout.schema.categorical
    if saved.names != names:
        raise DataError(
            f"{directory} has columns {_listed(saved.names)}, the raw data {_listed(names)}; they must agree"
        )
    if (saved.keys[0].itemsize == 8) != layout.has_text:
        raise DataError(f"{directory} comes from another kind of columns (hashes or text); use the same layout")
    if max_ind_range not in (0, saved.max_ind_range):
        raise DataError(
            f"{directory} was made with --max-ind-range {saved.max_ind_range}, which goes with it; "
            f"leave out --max-ind-range {max_ind_range}"
        )
    folder = str(find_vocabulary(directory).resolve())
    return VocabularySettings("given", folder, saved.digest, 1, saved.max_ind_range, 0)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")


def _load_column(folder: Path, column: dict[str, Any], kind: np.dtype[Any]) -> NDArray[Any]:
    path = folder / column["file"]
    try:
        keys = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_MEND}") from None
    if keys.dtype != kind or keys.shape != (column["keys"],) or isal_zlib.crc32(keys.tobytes()) != column["crc32"]:
        raise DataError(f"{path} is damaged; {_MEND}")
    return np.asarray(keys)
