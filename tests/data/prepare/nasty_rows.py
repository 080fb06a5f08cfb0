"""Nasty raw files from seeds, with what `prepare` must make of them, and entry points for a fuzzer.

    case = nasty_case(seed)              # bytes, policy, packing, size of blocks; the same for the same seed
    outcome = require_case(case, folder) # "rows" or the clear error that was due; AssertionError on a defect

Which lines are rows is decided here by regular expressions over bytes, line by line, and by nothing of the package's.
"""

import gzip
import random
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard

from dqrm_cpu.data.prepare.buffers import PADDING, MemoryBlock, RowBuffers
from dqrm_cpu.data.prepare.parse.parser import TextParser
from dqrm_cpu.data.prepare.row_layout import CRITEO_LAYOUT, LONGEST_LINE, Field, FieldRole, Layout
from dqrm_cpu.data.prepare.schema_file import read_schema
from dqrm_cpu.data.prepare.sources.raw_file import SourcePosition
from dqrm_cpu.data.prepare.sources.text_blocks import TextBlock
from dqrm_cpu.data.store.manifest import Manifest
from dqrm_cpu.errors import DataError, DqrmError
from prepare_oracle import Expected, expect
from preparing import prepared, rows_of

BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # what a file of UTF-16 begins with: refused, whatever the policy
POLICIES = ("stop", "skip", "quarantine")
PACKINGS = ("plain", "gzip", "members", "zstd", "frames")

_WHOLE = re.compile(rb"(-?[0-9]+)(?:\.0*)?")
_DECIMAL = re.compile(rb"-?(?=\.?[0-9])([0-9]*)(?:\.([0-9]*))?(?:[eE](-?[0-9]+|\+[0-9]+))?")
_MISSING = re.compile(rb"|nan|null", re.IGNORECASE)
_TRUTH = re.compile(rb"true|false", re.IGNORECASE)
_ANSWER = re.compile(rb"true|false|yes|no|t|f|y|n", re.IGNORECASE)
_HEX = re.compile(rb"[0-9a-fA-F]{1,8}")

_NASTY_INTEGERS = [
    b"-0", b"007", b"0" * 300 + b"12", b"2147483647", b"2147483648", b"-2147483648", b"-2147483649", b"4294967296",
    b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"9" * 5000, b"-" + b"9" * 400, b"-",
    b"--1", b"+1", b" 1", b"1 ", b"1.0",
    b"1.", b"1.00", b"1.01", b"1.0e3", b"-7.0", b"True", b"nil", b"NaN", b"\\N", b"\\n",
    b"1e3", b"0x10", b"1_000", b"1,000", b"nan", b"inf", "١٢".encode(), b"\xb2",
    b"\xe2\x88\x921", b"1\x00", b"\x00", b"1\r", b"\r", b"9999999", b"10000000", b'"1"', b"'1'", b"\xff", b"NULL",
]  # fmt: skip
_NASTY_HASHES = [
    b"0", b"00000000", b"F", b"ffffffff", b"FFFFFFFF", b"fFfFfFfF", b"100000000", b"0ffffffff", b"0000000000000001",
    b"0x1", b"-1", b"+1", b" f", b"f ", b"g", b"0000000g", b"0000:bcd", b"@bcdefab", b"`bcdefab", b"\x00" * 8, b"f\x00",
    b"\xef\xbc\x91", b"\xc0\xaf", b'"f"', b"f\r", b"1.5", b"deadbeef" * 40, b"G0000000", b"/0000000", b"\x80bcdefab",
]  # fmt: skip
_NASTY_LABELS = [
    b"",
    b"2",
    b"10",
    b"01",
    b"-1",
    b"+1",
    b"1.0",
    b"0.000",
    b"1.5",
    b"YES",
    b"n",
    b"tru",
    b"4",
    b"1e0",
    b"nan",
    b" 1",
    b"true",
    b'"1"',
    b"\x00",
    b"1\r",
    b"\xef\xbc\x91",
]
_NASTY_LINES = [
    b"", b"\r", b"\r\r", b" ", b"\t", b"\t" * 38, b"\t" * 39, b"\t" * 40, b"\x00" * 50, b"\xff\xfe1\x00\t\x00", b'"',
    b"label\tI1\tI2", b"1", b"0\t", b"\xef\xbb\xbf", b",".join([b"1"] * 40), b"\x1a", b"1" + b"\t" * 39 + b"\r\r",
]  # fmt: skip


def is_row(line: bytes, layout: Layout = CRITEO_LAYOUT) -> bool:
    """Whether a line, without its end, is exactly as the layout has it."""
    cells = line.split(layout.delimiter.encode())
    if len(line) > LONGEST_LINE or len(cells) != len(layout.fields):
        return False
    return all(_is_cell(cell, field.role) for cell, field in zip(cells, layout.fields, strict=True))


def _is_cell(cell: bytes, role: FieldRole) -> bool:
    if role == FieldRole.LABEL:
        return _ANSWER.fullmatch(cell) is not None or decimal_of(cell) in (0.0, 1.0)
    if role in (FieldRole.TEXT, FieldRole.IGNORED) or is_missing(cell):
        return True
    if role == FieldRole.HEX:
        return _HEX.fullmatch(cell) is not None
    if role == FieldRole.DECIMAL:
        return decimal_of(cell) is not None
    if _TRUTH.fullmatch(cell):
        return True
    match = _WHOLE.fullmatch(cell)
    return match is not None and -(2**31) <= _integer_of(match[1]) < 2**31


def is_missing(cell: bytes) -> bool:
    """Says whether the text of a cell stands for a missing value."""
    return _MISSING.fullmatch(cell) is not None or cell == b"\\N"


def _integer_of(cell: bytes) -> int:
    """Python reads at most 4,300 digits; leading zeros count among them."""
    digits = cell.lstrip(b"-").lstrip(b"0") or b"0"
    return (-1 if cell.startswith(b"-") else 1) * (int(digits) if len(digits) < 30 else 10**29)


def decimal_of(cell: bytes) -> float | None:
    """The value of a decimal; None where it is none, or beyond 1e300."""
    match = _DECIMAL.fullmatch(cell)
    if match is None:
        return None
    exponent = _integer_of((match[3] or b"0").removeprefix(b"+"))
    if not -(2**31) <= exponent < 2**31:
        return None
    with np.errstate(all="ignore"):
        value = np.float64(0.0)
        for digit in (match[1] or b"") + (match[2] or b""):
            value = value * 10.0 + (digit - 48)
        shift = np.float64(exponent - len(match[2] or b""))
        value = value * np.float64(10.0) ** shift if shift >= 0 else value / np.float64(10.0) ** -shift
    if not value < 1e300:
        return None
    return float(-value if cell.startswith(b"-") else value)


def lines_of(content: bytes) -> list[bytes]:
    """The lines of a file without their ends; a byte order mark at its beginning is not part of the first."""
    lines = content.removeprefix(BOM).split(b"\n")
    if not lines[-1] and content != BOM:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


@dataclass(frozen=True)
class NastyCase:
    """One raw file, how it is to be prepared, and which of its lines (from 1) are no rows."""

    seed: int
    content: bytes
    policy: str
    packing: str
    block_bytes: int
    bad_lines: tuple[int, ...]
    good: tuple[bytes, ...]

    @property
    def packed(self) -> bytes:
        """The file as it lies on the disk."""
        half = len(self.content) // 2
        if self.packing == "gzip":
            return gzip.compress(self.content, 1)
        if self.packing == "members":
            return gzip.compress(self.content[:half], 1) + gzip.compress(self.content[half:], 1)
        if self.packing == "zstd":
            return zstandard.ZstdCompressor(1, write_checksum=True).compress(self.content)
        if self.packing == "frames":
            packer = zstandard.ZstdCompressor(1, write_checksum=True)
            return packer.compress(self.content[:half]) + packer.compress(self.content[half:])
        return self.content


def nasty_case(seed: int) -> NastyCase:
    """A file of up to 60 lines, of which about one in five is nasty; now and then one is longer than allowed."""
    chance = random.Random(seed)
    share = chance.choice((0.0, 0.05, 0.2, 0.6))
    content = b"".join(_line(chance, share) + chance.choice((b"\n", b"\n", b"\n", b"\r\n")) for _ in
                       range(chance.randrange(60)))  # fmt: skip
    if chance.random() < 0.3:
        content = content[:-1]
    if chance.random() < 0.05:
        content = BOM + content
    lines = lines_of(content)
    bad = tuple(k + 1 for k, line in enumerate(lines) if not is_row(line))
    good = tuple(line for line in lines if is_row(line))
    policy, packing = chance.choice(POLICIES), chance.choice(PACKINGS)
    return NastyCase(seed, content, policy, packing, chance.choice((64, 700, 5000, 1 << 20)), bad, good)


def _line(chance: random.Random, share: float) -> bytes:
    cells = [chance.choice((b"0", b"1"))]
    cells += [str(int(chance.gauss(0, 4) ** 5)).encode() if chance.random() < 0.9 else b"" for _ in range(13)]
    cells += [f"{chance.randrange(40) * 2654435761 % 2**32:08x}".encode() for _ in range(26)]
    if chance.random() >= share:
        return b"\t".join(cells)
    kind = chance.randrange(10)
    if kind == 0:
        return chance.choice(_NASTY_LINES)
    if kind == 1:
        cells[0] = chance.choice(_NASTY_LABELS)
    elif kind == 2:
        del cells[chance.randrange(40)]
    elif kind == 3:
        cells.insert(chance.randrange(41), b"")
    elif kind == 4 and chance.random() < 0.05:
        cells[1] = b"0" * (LONGEST_LINE + chance.randrange(3 << 20))
    elif kind == 5:
        line = bytearray(b"\t".join(cells))
        line[chance.randrange(len(line))] = chance.choice([value for value in range(256) if value != 10])
        return bytes(line)
    else:
        for _ in range(chance.randrange(1, 4)):
            if chance.random() < 0.5:
                cells[chance.randrange(1, 14)] = chance.choice(_NASTY_INTEGERS)
            else:
                cells[chance.randrange(14, 40)] = chance.choice(_NASTY_HASHES)
    return b"\t".join(cells)


def require_case(case: NastyCase, folder: Path) -> str:
    """Prepares a case in an empty folder, and says "rows" or which error came, as was due."""
    raw, out = folder / "raw", folder / "out"
    raw.write_bytes(case.packed)
    try:
        manifest = prepared([raw], out, bad_rows=case.policy, block_bytes=case.block_bytes, shard_rows=20)
    except DataError as error:
        if case.packed.startswith(_UTF16):
            assert "is UTF-16 text" in str(error), (case.seed, str(error))
        elif case.policy == "stop" and case.bad_lines:
            assert f"line {case.bad_lines[0]:,}, field " in str(error), (case.seed, str(error))
        else:
            assert not case.good, (case.seed, str(error))
            assert "not a single row" in str(error), (case.seed, str(error))
        return "error"
    assert case.good, case.seed
    assert not case.packed.startswith(_UTF16), case.seed
    assert case.policy != "stop" or not case.bad_lines, case.seed
    assert manifest.settings["bad_lines"] == len(case.bad_lines), case.seed
    text = b"\n".join(case.good).decode("ascii")
    require_equal(out, manifest, expect(text, 1, 20))
    return "rows"


def require_equal(out: Path, manifest: Manifest, expected: Expected) -> None:
    """Every part, count and number of rows is the oracle's, to the bit."""
    assert list(manifest.table_rows) == expected.table_rows
    for part, rows in expected.parts.items():
        label, dense, ids = rows_of(out, part)
        assert label.tolist() == [row.label for row in rows]
        assert ids.tolist() == [row.keys for row in rows]
        wanted = np.array([row.dense for row in rows], np.float32).reshape(dense.shape)
        assert np.array_equal(dense.view(np.uint32), wanted.view(np.uint32)), part
    for column in manifest.columns:
        assert column.missing == expected.missing[column.name], column.name
        assert column.clamped in (None, expected.clamped[column.name])


SMALL_LAYOUT = Layout(
    (
        Field(FieldRole.LABEL),
        Field(FieldRole.INTEGER, "hour"),
        Field(FieldRole.DECIMAL, "price"),
        Field(FieldRole.HEX, "device"),
        Field(FieldRole.IGNORED),
        Field(FieldRole.TEXT, "site"),
    ),
    delimiter=",",
)
"""One field of every kind: what mutated bytes can still hit."""


def block_of(data: bytes) -> TextBlock:
    """Bytes as the only block of a file."""
    text = np.zeros(len(data) + 1 + PADDING, np.uint8)
    text[: len(data)] = np.frombuffer(data, np.uint8)
    size = len(data)
    if size and not data.endswith(b"\n"):
        text[size] = 10
        size += 1
    return TextBlock(text, size, SourcePosition(), SourcePosition(0, len(data), 0), True)


def prepare_bytes(data: bytes) -> None:
    """Lets the parser read bytes as the only block of a file, and compares with the regular expressions.

    For a fuzzer: raises AssertionError, or whatever else, only where something is wrong with the package.
    """
    lines = lines_of(data)
    block = block_of(data)
    parsed = TextParser(SMALL_LAYOUT, most_bad=1 << 62, keeps_text=True).parse(
        block, RowBuffers(SMALL_LAYOUT, MemoryBlock.of_bytes(0))
    )
    good = [line for line in lines if is_row(line, SMALL_LAYOUT)]
    bad = [line for line in lines if not is_row(line, SMALL_LAYOUT)]
    assert (parsed.rows, parsed.lines, parsed.num_bad) == (len(good), len(lines), len(bad)), data
    assert [line.line for line in parsed.bad] == [k for k, line in enumerate(lines) if not is_row(line, SMALL_LAYOUT)][
        : len(parsed.bad)
    ], data
    for row, line in enumerate(good):
        _require_row(parsed.buffers, row, line.split(b","))
    missing = Counter(k for line in good for k, cell in enumerate(line.split(b",")) if is_missing(cell))
    assert parsed.missing.tolist() == [missing[k] for k in (1, 2, 3, 5)], data
    _require_texts(parsed.buffers.keys[1, : parsed.rows].tolist(), [canonical(line.split(b",")[5]) for line in good])


def number_of(cell: bytes) -> float:
    """The number of a cell that is one, 0 where it is missing."""
    if _TRUTH.fullmatch(cell):
        return float(cell.lower() == b"true")
    return 0.0 if is_missing(cell) else decimal_of(cell) or 0.0


def canonical(text: bytes) -> bytes:
    """The spelling of a category that stands for all its others, empty where it is missing."""
    match = _WHOLE.fullmatch(text)
    if is_missing(text):
        return b""
    return match[1] if match and text.endswith(b"0") else text.lower() if _TRUTH.fullmatch(text) else text


def _require_row(buffers: RowBuffers, row: int, cells: Sequence[bytes]) -> None:
    wanted = cells[0][:1] in b"tTyY" if _ANSWER.fullmatch(cells[0]) else decimal_of(cells[0])
    assert buffers.label[row] == wanted, cells
    integer, decimal = max(number_of(cells[1]), 0), max(number_of(cells[2]), 0.0)
    assert buffers.dense[row, 0] == np.float32(np.log(np.float64(integer) + 1.0)), cells
    assert np.isclose(buffers.dense[row, 1], np.log1p(decimal), rtol=1e-5, atol=1e-6), cells
    assert buffers.keys[0, row] == (0 if is_missing(cells[3]) else int(cells[3], 16)), cells


def _require_texts(keys: list[int], texts: list[bytes]) -> None:
    """Equal texts and no others have equal keys; 0 is that of a missing one."""
    known: dict[bytes, int] = {b"": 0}
    for key, text in zip(keys, texts, strict=True):
        assert known.setdefault(text, key) == key, text
    assert len(set(known.values())) == len(known), known


def schema_bytes(data: bytes) -> None:
    """Reads bytes as a schema file, for a header and for named columns; for a fuzzer."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder) / "schema.toml"
        path.write_bytes(data)
        for first_line, names in (("id,click,hour,site", None), ("", ["click", "hour"]), ("", None)):
            try:
                layout = read_schema(path, first_line, names)
            except DqrmError as error:
                assert "\n" not in str(error), data
            else:
                assert layout.schema is not None
