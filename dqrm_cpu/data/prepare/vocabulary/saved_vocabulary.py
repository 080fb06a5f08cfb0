"""Vocabularies on disk: one NumPy array of keys per column, and a page in JSON that describes them.

The key at place k has id k + 1; id 0 stands for a missing, unseen or rare category.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dqrm_cpu.base.decode import MOST_BYTES, UnreadableError, decoded, parse_json
from dqrm_cpu.base.files import read_regular, remove_leftovers, replace_file
from dqrm_cpu.base.npy import npy_header, read_npy
from dqrm_cpu.data.prepare.request import Settings, VocabularySettings
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.vocabulary.history import History, history_digest, load_history, save_history
from dqrm_cpu.data.store.manifest import FileName, Manifest
from dqrm_cpu.data.store.schema import ColumnKeys, DataIdentity, Schema, identity_of_hashing, identity_of_keys
from dqrm_cpu.data.store.transform import Transform
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
    crc32: tuple[int, ...] = ()  # of the keys of each column; empty where nobody has computed it


class _Column(msgspec.Struct):
    name: str
    file: FileName
    keys: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    crc32: int


class _About(msgspec.Struct):
    """The page of a vocabulary."""

    format: Literal[1]
    max_ind_range: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    key_bits: Literal[32, 64]
    columns: Annotated[tuple[_Column, ...], msgspec.Meta(min_length=1, max_length=1 << 16)]


def save_vocabulary(
    out: Path,
    names: tuple[str, ...],
    max_ind_range: int,
    keys: list[NDArray[Any]],
    history: History | None = None,
) -> None:
    """Writes the folder `vocabulary` of a data set, its page behind the keys, then the history if there is one.

    Without keys, as with hashing, there is none.
    """
    if not keys:
        return
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    columns = []
    for number, (name, column) in enumerate(zip(names, keys, strict=True)):
        content = np.ascontiguousarray(column).data.cast("B") if column.size else memoryview(b"")
        file = f"{number:03d}.npy"
        replace_file(folder / file, [npy_header(column.dtype, column.size), content], DataError)
        columns.append({"name": name, "file": file, "keys": int(column.size), "crc32": isal_zlib.crc32(content)})
    about = {"format": _FORMAT, "max_ind_range": max_ind_range, "key_bits": keys[0].itemsize * 8, "columns": columns}
    about["crc32"] = _crc32_of_page(about)
    text = (json.dumps(about, indent=1) + "\n").encode()
    replace_file(folder / _ABOUT_FILE, [text], DataError)
    if history is not None:
        save_history(folder, _digest_of_page(text), history)


def _digest_of_page(text: bytes) -> str:
    return f"crc32:{isal_zlib.crc32(text):08x}"


def _crc32_of_page(about: Mapping[str, Any]) -> int:
    """Digests what a page says, without its own digest; spaces do not count."""
    rest = {name: value for name, value in about.items() if name != "crc32"}
    return isal_zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def identity_of(settings: Settings, keys: list[NDArray[Any]], transforms: Sequence[Transform]) -> DataIdentity:
    """Identifies what the columns of a data set mean, from its settings and the keys of each; none when hashing."""
    schema, vocabulary = settings.layout.schema, settings.vocabulary
    key_bits = 64 if settings.layout.has_text else 32
    if vocabulary.kind == "hash":
        return identity_of_hashing(schema, key_bits, vocabulary.max_ind_range, vocabulary.hash_rows, transforms)
    columns = [
        ColumnKeys(name, int(column.size), _crc32_of(column))
        for name, column in zip(schema.categorical, keys, strict=True)
    ]
    return identity_of_keys(schema, key_bits, vocabulary.max_ind_range, columns, transforms)


def identity_of_vocabulary(
    schema: Schema, saved: SavedVocabulary, transforms: Sequence[Transform] = ()
) -> DataIdentity:
    """Identifies data of a schema whose ids are those of a saved vocabulary."""
    digests = saved.crc32 or map(_crc32_of, saved.keys)
    described = zip(saved.names, saved.keys, digests, strict=True)
    columns = [ColumnKeys(name, int(keys.size), crc32) for name, keys, crc32 in described]
    return identity_of_keys(schema, saved.keys[0].itemsize * 8, saved.max_ind_range, columns, transforms)


def _crc32_of(keys: NDArray[Any]) -> int:
    return isal_zlib.crc32(np.ascontiguousarray(keys).data.cast("B")) if keys.size else 0


def find_vocabulary(directory: Path) -> Path:
    """Finds the folder of a vocabulary: `directory` itself, or the one in a prepared data set."""
    for folder in (directory, directory / FOLDER):
        if (folder / _ABOUT_FILE).exists():
            return folder
    raise DataError(f"{directory} holds no vocabulary: give a prepared data set, or its folder {FOLDER!r}")


def untold(num_bytes: int) -> None:
    """Tells nobody how many bytes more are read."""


def load_vocabulary(directory: Path, advance: Callable[[int], object] = untold) -> SavedVocabulary:
    """Reads and checks the folder of a vocabulary; `advance` hears of the bytes that are read."""
    folder = find_vocabulary(directory)
    path = folder / _ABOUT_FILE
    try:
        text = read_regular(path, MOST_BYTES)
        document = decoded(parse_json(text), dict[str, Any])
        # Before anything else of it: another format may have other fields.
        version = document.get("format")
        if isinstance(version, int) and version != _FORMAT:
            raise DataError(
                f"{path} has format {str(version)[:20]}, this version reads {_FORMAT}; use the dqrm-cpu that wrote "
                f"it, or {_MEND}"
            )
        about = decoded(document, _About)
        # Pages of earlier versions have no checksum.
        if document.get("crc32", checksum := _crc32_of_page(document)) != checksum:
            raise UnreadableError("does not match its own checksum")
    except (UnreadableError, OSError) as error:
        raise DataError(f"{path} is damaged: it {_clause(error)}; {_MEND}") from None
    kind = np.dtype(f"<u{about.key_bits // 8}")
    keys = tuple(_load_column(folder, column, kind, advance) for column in about.columns)
    names = tuple(column.name for column in about.columns)
    digests = tuple(column.crc32 for column in about.columns)
    return SavedVocabulary(names, about.max_ind_range, keys, _digest_of_page(text), digests)


def vocabulary_bytes(directory: Path) -> int:
    """Counts the bytes that `verify_vocabulary` reads of a data set; 0 where it has no vocabulary."""
    return sum(path.stat().st_size for path in (directory / FOLDER).glob("*.npy"))


def verify_vocabulary(directory: Path, manifest: Manifest, advance: Callable[[int], object] = untold) -> list[str]:
    """Lists what of a data set's vocabulary, or its history, is damaged or another's; empty when it is whole.

    `advance` hears of the bytes that are read.
    """
    settings = manifest.settings.get("vocabulary")
    if not isinstance(settings, dict) or settings.get("kind") not in ("exact", "given", "grown"):
        return []
    try:
        history_of(directory, vocabulary_of(directory, manifest, advance), advance)
    except DataError as error:
        return [str(error)]
    return []


def vocabulary_of(directory: Path, manifest: Manifest, advance: Callable[[int], object] = untold) -> SavedVocabulary:
    """Reads the vocabulary of a data set; DataError where it is missing, damaged or belongs to another one."""
    folder = directory / FOLDER
    if not (folder / _ABOUT_FILE).exists():
        raise DataError(f"{folder} is missing, other rows cannot be given the same ids; copy it from where it is whole")
    saved = load_vocabulary(folder, advance)
    identity = identity_of_vocabulary(manifest.schema, saved, manifest.transforms)
    table_rows = tuple(1 + int(keys.size) for keys in saved.keys)
    if saved.names != manifest.schema.categorical or table_rows != manifest.table_rows:
        raise DataError(
            f"{folder} is whole, but not the vocabulary of the rows beside it: it has other columns or sizes"
        )
    if manifest.identity not in (None, identity):
        raise DataError(
            f"{folder} is whole, but not the vocabulary of the rows beside it: {identity}, {manifest.identity}"
        )
    return saved


def history_of(
    directory: Path, vocabulary: SavedVocabulary, advance: Callable[[int], object] = untold
) -> History | None:
    """Reads the history beside a vocabulary, which was loaded from this directory; None where there is none."""
    return load_history(find_vocabulary(directory), vocabulary.digest, vocabulary.keys, advance)


def require_hashing(
    directory: Path, manifest: Manifest, settings: Mapping[str, Any], layout: Layout
) -> tuple[int, int]:
    """Returns the rows of every table, and what hashes are taken modulo first (0: nothing), of a data set of hashes.

    `settings` are those of the vocabulary in its manifest; DataError where the ids of its rows are others.
    """
    rows, modulus = settings.get("hash_rows"), settings.get("max_ind_range", 0)
    is_hashed = all(of_table == rows for of_table in manifest.table_rows[: layout.raw.num_tables])
    if not isinstance(rows, int) or rows < 2 or not isinstance(modulus, int) or not is_hashed:
        raise DataError(f"the manifest of {directory} does not say how its ids were hashed; {_MEND}")
    key_bits = 64 if layout.has_text else 32
    identity = identity_of_hashing(manifest.schema, key_bits, modulus, rows, manifest.transforms)
    if manifest.identity not in (None, identity):
        raise DataError(f"the manifest of {directory} contradicts itself: {identity}, {manifest.identity}; {_MEND}")
    return rows, modulus


def require_vocabulary(
    directory: Path, layout: Layout, max_ind_range: int, kind: str = "given", min_count: int = 1
) -> VocabularySettings:
    """Makes the settings that give other data the ids of a saved vocabulary; DataError where it cannot fit.

    Of the kind `given` it stays as it is; `grown`, it gets the new categories that min_count training rows had by now.
    """
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
    folder = find_vocabulary(directory).resolve()
    history = history_digest(folder) if kind == "grown" else ""
    return VocabularySettings(kind, str(folder), saved.digest, min_count, saved.max_ind_range, history=history)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")


def _load_column(folder: Path, column: _Column, kind: np.dtype[Any], advance: Callable[[int], object]) -> NDArray[Any]:
    path = folder / column.file
    try:
        keys, crc32 = read_npy(path, advance)
    except (UnreadableError, OSError) as error:
        raise DataError(f"{path} {_clause(error)}; {_MEND}") from None
    if keys.dtype != kind or keys.shape != (column.keys,) or crc32 != column.crc32:
        raise DataError(f"{path} is damaged; {_MEND}")
    return keys


def _clause(error: UnreadableError | OSError) -> str:
    return f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)
