"""Generated clicks as a raw Criteo file: what `prepare` can be tried and timed on without Criteo's data."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from dqrm_cpu.base.files import remove_abandoned, replace_file
from dqrm_cpu.data.synthetic.kernel import MISSING
from dqrm_cpu.data.synthetic.stream import RawRows, SyntheticClicks
from dqrm_cpu.errors import DataError
from dqrm_cpu.kernels.jit.compile import thorough_kernel
from dqrm_cpu.kernels.jit.hashing import mix64

_ROWS_AT_ONCE = 20_000
_LONGEST_FIELD = 12
_GZIP_BITS = 31  # a window of 32 KiB, with gzip's header
_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)


def write_tsv(
    clicks: SyntheticClicks, first: int, num_rows: int, path: Path, advance: Callable[[int], None] | None = None
) -> int:
    """Rows first to first + num_rows - 1 as lines of text, as gzip where the name ends with .gz.

    `advance` hears of rows that are written. Returns the bytes of the text.
    """
    size = 0

    def lines() -> Iterator[memoryview]:
        nonlocal size
        for start in range(first, first + num_rows, _ROWS_AT_ONCE):
            rows = clicks.raw_rows(start, min(start + _ROWS_AT_ONCE, first + num_rows))
            text = _text(rows)
            size += len(text)
            yield text
            if advance is not None:
                advance(rows.label.size)

    remove_abandoned(path)
    replace_file(path, _packed(lines()) if path.suffix == ".gz" else lines(), DataError)
    return size


def _packed(pieces: Iterable[memoryview]) -> Iterator[bytes]:
    packer = isal_zlib.compressobj(wbits=_GZIP_BITS)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def _text(rows: RawRows) -> memoryview:
    num_fields = 1 + rows.integers.shape[1] + rows.ranks.shape[0]
    text = np.empty(rows.label.size * num_fields * _LONGEST_FIELD, np.uint8)
    return text[: format_rows(rows.label, rows.integers, rows.ranks, MISSING, _DIGITS, text)].data


@thorough_kernel
def format_rows(
    label: NDArray[np.float32],
    integers: NDArray[np.int32],
    ranks: NDArray[np.int32],
    missing: int,
    digits: NDArray[np.uint8],
    text: NDArray[np.uint8],
) -> int:
    """Lines of text; the hash of a category mixes its rank and its column. Returns the bytes."""
    at = 0
    for i in range(label.shape[0]):
        text[at] = digits[int(label[i])]
        at += 1
        for d in range(integers.shape[1]):
            text[at] = 9
            at += 1
            if integers[i, d] != missing:
                at = format_integer(np.int64(integers[i, d]), digits, text, at)
        for t in range(ranks.shape[0]):
            text[at] = 9
            at += 1
            if ranks[t, i] >= 0:
                at = format_hash(np.uint64(ranks[t, i]) << np.uint64(16) | np.uint64(t + 1), digits, text, at)
        text[at] = 10
        at += 1
    return at


@thorough_kernel
def format_integer(value: int, digits: NDArray[np.uint8], text: NDArray[np.uint8], at: int) -> int:
    """Writes decimal digits with a sign where it is negative; returns where they end."""
    if value < 0:
        text[at] = 45
        at += 1
        value = -value
    length = 1
    while value >= 10**length:
        length += 1
    for k in range(length):
        text[at + length - 1 - k] = digits[value % 10]
        value //= 10
    return at + length


@thorough_kernel
def format_hash(key: int, digits: NDArray[np.uint8], text: NDArray[np.uint8], at: int) -> int:
    """Writes eight hexadecimal digits; returns where they end."""
    hashed = mix64(np.uint64(key))
    for k in range(8):
        text[at + k] = digits[(hashed >> np.uint64(60 - 4 * k)) & np.uint64(15)]
    return at + 8
