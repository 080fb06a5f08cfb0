"""What a vocabulary remembers of the data sets before: when each category was last seen, and which wait for a row.

It lies in the folder of the vocabulary, its page last. A vocabulary without one belongs to the first data set of a
chain, or was written by an earlier version: nothing waits there, and all of its categories count as seen in it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dqrm_cpu.base.decode import MOST_BYTES, UnreadableError, decoded, parse_json
from dqrm_cpu.base.files import read_regular, replace_file
from dqrm_cpu.base.npy import npy_header, read_npy
from dqrm_cpu.data.store.transform import Text
from dqrm_cpu.errors import DataError

_PAGE = "history.json"
_MEND = "prepare the data set that it came from once more"

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_Crc32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class ColumnHistory(NamedTuple):
    """What is known of the categories of one column beside their ids. Data sets of a chain are counted from 1."""

    last_seen: NDArray[np.int32]  # the last data set that had a row with the category of id 1, 2, ...
    waiting: NDArray[Any]  # keys that have been seen, in too few training rows for an id; they rise
    waiting_rows: NDArray[np.uint32]  # training rows that each of them had, over all data sets
    waiting_seen: NDArray[np.int32]  # the last data set that had a row with it


@dataclass(frozen=True)
class History:
    """The history of a vocabulary."""

    data_set: int  # number of the one that it belongs to; 0: of nothing
    columns: tuple[ColumnHistory, ...]


class _Column(msgspec.Struct):
    keys: _Count
    waiting: _Count


class _Page(msgspec.Struct):
    """Says how long the arrays of each column are, which stand one behind the other in the files."""

    format: Literal[1]
    data_set: Annotated[int, msgspec.Meta(ge=1, lt=1 << 30)]
    vocabulary: Text  # digest of the page of the vocabulary
    columns: Annotated[tuple[_Column, ...], msgspec.Meta(min_length=1, max_length=1 << 16)]
    files: dict[str, _Crc32]
    crc32: _Crc32


_FILES = ("last-seen", "waiting", "waiting-rows", "waiting-seen")
"""In the order of the arrays of a column."""


def history_of_nothing(sizes: Sequence[int], key_type: np.dtype[Any], data_set: int) -> History:
    """Returns the history of a vocabulary of so many keys per column that has none: all were seen in this data set."""
    nothing = np.empty(0, key_type), np.empty(0, np.uint32), np.empty(0, np.int32)
    return History(data_set, tuple(ColumnHistory(np.full(n, data_set, np.int32), *nothing) for n in sizes))


def save_history(folder: Path, vocabulary: str, history: History) -> None:
    """Writes the history beside the vocabulary with this digest."""
    files = {}
    for k, name in enumerate(_FILES):
        arrays = [np.ascontiguousarray(column[k]) for column in history.columns]
        pieces = [array.data.cast("B") for array in arrays if array.size]
        crc32 = 0
        for piece in pieces:
            crc32 = isal_zlib.crc32(piece, crc32)
        header = npy_header(arrays[0].dtype, sum(array.size for array in arrays))
        replace_file(folder / f"{name}.npy", [header, *pieces], DataError)
        files[name] = crc32
    page = {
        "format": 1,
        "data_set": history.data_set,
        "vocabulary": vocabulary,
        "columns": [{"keys": c.last_seen.size, "waiting": c.waiting.size} for c in history.columns],
        "files": files,
    }
    page["crc32"] = _checksum(page)
    replace_file(folder / _PAGE, [(json.dumps(page, indent=1) + "\n").encode()], DataError)


def history_digest(folder: Path) -> str:
    """Digests the history in the folder of a vocabulary; empty where there is none."""
    path = folder / _PAGE
    try:
        return f"crc32:{isal_zlib.crc32(read_regular(path, MOST_BYTES)):08x}"
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {_MEND}") from None


def load_history(
    folder: Path, vocabulary: str, keys: Sequence[NDArray[Any]], advance: Callable[[int], object]
) -> History | None:
    """Reads the history in the folder of the vocabulary with this digest and these keys; None where there is none.

    `advance` hears of the bytes that are read.

    DataError where it is damaged, or that of another vocabulary. Numbers that were made categories have none.
    """
    path = folder / _PAGE
    try:
        document = decoded(parse_json(read_regular(path, MOST_BYTES)), dict[str, Any])
        page = decoded(document, _Page)
        if page.crc32 != _checksum({name: value for name, value in document.items() if name != "crc32"}):
            raise UnreadableError("does not match its own checksum")
    except FileNotFoundError:
        return None
    except (UnreadableError, OSError) as error:
        reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise DataError(f"{path} is damaged: it {reason}; {_MEND}") from None
    sizes, waiting = [column.keys for column in page.columns], [column.waiting for column in page.columns]
    if page.vocabulary != vocabulary or sizes != [column.size for column in keys[: len(sizes)]]:
        raise DataError(f"{path} belongs to another vocabulary than the one beside it; {_MEND}")
    kinds = (np.dtype("<i4"), keys[0].dtype, np.dtype("<u4"), np.dtype("<i4"))
    arrays = [
        _load(folder / f"{name}.npy", kind, lengths, page.files.get(name), advance)
        for name, kind, lengths in zip(_FILES, kinds, (sizes, waiting, waiting, waiting), strict=True)
    ]
    return History(page.data_set, tuple(ColumnHistory(*column) for column in zip(*arrays, strict=True)))


def _load(
    path: Path, kind: np.dtype[Any], lengths: Sequence[int], crc32: int | None, advance: Callable[[int], object]
) -> list[NDArray[Any]]:
    try:
        values, found = read_npy(path, advance)
    except (UnreadableError, OSError) as error:
        reason = f"cannot be read ({error.strerror or error})" if isinstance(error, OSError) else str(error)
        raise DataError(f"{path} {reason}; {_MEND}") from None
    if values.dtype != kind or values.shape != (sum(lengths),) or found != crc32:
        raise DataError(f"{path} is damaged; {_MEND}")
    return np.split(values, np.cumsum(lengths)[:-1])


def _checksum(page: dict[str, Any]) -> int:
    return isal_zlib.crc32(json.dumps(page, sort_keys=True).encode())
