"""Files that are damaged, endless, packed to bursting or changed meanwhile: a clear error or counted bad rows."""

import bz2
import gzip
import io
import lzma
import os
import random
import resource
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dqrm_cpu.data.prepare.buffers import MemoryBlock, RowBuffers
from dqrm_cpu.data.prepare.estimate import estimate_text_bytes
from dqrm_cpu.data.prepare.parse.parser import TextParser
from dqrm_cpu.data.prepare.preparation import prepare
from dqrm_cpu.data.prepare.row_layout import CRITEO_LAYOUT, LONGEST_LINE, Layout
from dqrm_cpu.data.prepare.schema_file import read_schema
from dqrm_cpu.data.prepare.sources.raw_file import examine
from dqrm_cpu.data.prepare.sources.text_stream import ZstdReader, open_raw
from dqrm_cpu.errors import ConfigError, DataError, DqrmError
from nasty_rows import block_of, schema_bytes
from preparing import criteo_text, prepared, request_for

GOOD = criteo_text(40).splitlines()
TEXT = "\n".join(GOOD).encode() + b"\n"
LONG = b"0\t" + b"1" * (5 << 20)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("block_bytes", [1 << 12, 8 << 20])
def test_a_line_of_megabytes_is_a_bad_row_like_any_other(tmp_path: Path, block_bytes: int) -> None:
    lines = [line.encode() for line in GOOD]
    raw = write(tmp_path / "raw", b"\n".join([*lines[:20], LONG, *lines[20:], LONG]))
    options = {"bad_rows": "quarantine", "block_bytes": block_bytes}
    manifest = prepared([raw], tmp_path / "out", **options)
    assert manifest.settings["bad_lines"] == 2
    assert manifest.digest() == prepared([write(tmp_path / "good", TEXT)], tmp_path / "whole").digest()
    assert "line 21, field 1: a line of more than 1,048,576 bytes" in str(manifest.settings["first_bad_lines"])
    assert manifest.sources[0].digest == f"crc32:{zlib.crc32(raw.read_bytes()):08x}"
    assert (tmp_path / "out" / "bad-rows.txt").read_bytes() == (LONG[: LONGEST_LINE + 1] + b"\n") * 2
    with pytest.raises(DataError, match="line 21, field 1: a line of more than 1,048,576 bytes"):
        prepared([raw], tmp_path / "stopped", block_bytes=block_bytes)


@pytest.mark.parametrize("extra", [0, 1])
def test_the_longest_line_is_the_same_for_blocks_of_any_size(tmp_path: Path, extra: int) -> None:
    cells = GOOD[0].split("\t")
    cells[1] = "0" * (LONGEST_LINE + extra - len(GOOD[0]) + len(cells[1]))
    raw = write(tmp_path / "raw", ("\t".join(cells) + "\n").encode() + TEXT)
    for block_bytes in (1 << 12, 8 << 20):
        manifest = prepared([raw], tmp_path / f"{block_bytes}", bad_rows="skip", block_bytes=block_bytes)
        assert manifest.settings["bad_lines"] == extra


def test_stop_does_not_wait_for_the_end_of_a_line_without_end(tmp_path: Path) -> None:
    class Endless(io.RawIOBase):
        def readinto(self, buffer: Any) -> int:
            buffer[:] = b"0" * len(buffer)
            return len(buffer)

        def readable(self) -> bool:
            return True

    request = replace(request_for(["-"], tmp_path / "out"), stdin=io.BufferedReader(Endless()))
    with pytest.raises(DataError, match="line 1, field 1: a line of more than"):
        prepare(request)


def test_bad_lines_take_no_memory_of_rows(tmp_path: Path) -> None:
    """Empty lines are the most that a block can hold: the rows of as many would take gigabytes."""
    block, buffers = block_of(b"\n" * 200_000), RowBuffers(CRITEO_LAYOUT, MemoryBlock.of_bytes(0))
    parsed = TextParser(CRITEO_LAYOUT, most_bad=1 << 40, keeps_text=False).parse(block, buffers)
    assert (parsed.num_bad, len(parsed.bad)) == (200_000, 10)
    assert buffers.keys.shape[1] < 200_000 // 30
    stopped = TextParser(CRITEO_LAYOUT, most_bad=1, keeps_text=False).parse(block, buffers)
    assert stopped.num_bad < 5000


def test_unpacking_a_bomb_is_estimated_and_read_in_pieces(tmp_path: Path) -> None:
    """1 GB of zeros: each reader hands out what it was asked for, and holds little more."""
    packer, bomb = zstandard.ZstdCompressor(write_content_size=False).compressobj(), b""
    zeros = bytes(8 << 20)
    for _ in range(32):
        bomb += packer.compress(zeros)
    (tmp_path / "bomb.zst").write_bytes(bomb + packer.flush())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert estimate_text_bytes(examine(str(tmp_path / "bomb.zst"))) > 64 << 20
    reader = ZstdReader(str(tmp_path / "bomb.zst"), lambda: None)
    buffer = bytearray(8 << 20)
    assert sum(iter(lambda: reader.readinto(buffer), 0)) == 32 * len(zeros)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda packed: packed[:200] + bytes(400) + packed[600:], id="zeroed"),
        pytest.param(lambda packed: packed[:-4], id="cut trailer"),
        pytest.param(lambda packed: packed[: len(packed) // 2], id="cut"),
        pytest.param(lambda packed: packed[:12], id="cut header"),
        pytest.param(lambda packed: packed[:-8] + b"\1\2\3\4" + packed[-4:], id="wrong checksum"),
        pytest.param(lambda packed: packed + b"garbage", id="garbage behind"),
        pytest.param(lambda packed: packed + packed[:30], id="second cut"),
    ],
)
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_damage_in_a_packed_file_is_an_error_under_any_policy(
    tmp_path: Path, kind: str, spoil: Callable[[bytes], bytes]
) -> None:
    text = criteo_text(60).encode()
    packed = gzip.compress(text) if kind == "gzip" else zstandard.ZstdCompressor(write_checksum=True).compress(text)
    raw = write(tmp_path / "raw", spoil(packed))
    with pytest.raises(DataError, match=r"raw cannot be read beyond byte .* damaged, or still being written"):
        prepared([raw], tmp_path / "out", bad_rows="skip")


def test_no_flip_in_a_checked_archive_goes_unnoticed(tmp_path: Path) -> None:
    chance = random.Random(1)
    text = criteo_text(20).encode()
    kinds = {"gzip": gzip.compress(text), "zstd": zstandard.ZstdCompressor(write_checksum=True).compress(text)}
    for kind, packed in kinds.items():
        for _ in range(60):
            damaged = bytearray(packed)
            place = chance.randrange(4, len(packed))
            damaged[place] ^= 1 << chance.randrange(8)
            raw = write(tmp_path / kind, bytes(damaged))
            try:
                found = stream_of(raw).read()
            except (OSError, EOFError, ValueError, zstandard.ZstdError, zlib.error) as error:
                assert str(error)
            except Exception as error:
                assert type(error).__name__ == "IsalError"
            else:
                assert found == text, (kind, place)


def stream_of(raw: Path) -> BinaryIO:
    return open_raw(examine(str(raw)), io.BytesIO(), lambda _: None)


def test_archives_without_checksum_are_told_once(tmp_path: Path) -> None:
    raws = [write(tmp_path / f"{k}.zst", zstandard.ZstdCompressor(write_checksum=False).compress(TEXT)) for k in (1, 2)]
    checked = write(tmp_path / "checked", zstandard.ZstdCompressor(write_checksum=True).compress(TEXT))
    notes: list[str] = []
    prepare(replace(request_for([*raws, checked], tmp_path / "out"), note=notes.append))
    assert [note for note in notes if "no zstd checksums: damage in it cannot be noticed" in note] == notes[-1:]
    notes.clear()
    prepare(replace(request_for([checked], tmp_path / "other"), note=notes.append))
    assert not any("zstd" in note for note in notes)


def test_frames_without_text_are_stepped_over(tmp_path: Path) -> None:
    skipped = b"\x51\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    raw = write(tmp_path / "raw", skipped + packed + skipped + packed)
    manifest = prepared([raw], tmp_path / "out")
    assert manifest.digest() == prepared([write(tmp_path / "plain", TEXT + TEXT)], tmp_path / "plain.out").digest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bz2.compress(TEXT), "is bzip2: unpack it"),
        (lzma.compress(TEXT), "is xz: unpack it"),
        (TEXT.decode().encode("utf-16"), "is UTF-16 text"),
        (b"", "not a single row"),
        (b"\n", "line 1, field 1: an empty line"),
        (b"\0" * 5000, "line 1, field 1: the label"),
        (gzip.compress(b"", mtime=0), "not a single row"),  # the same name in every process
        (b"\x1f\x8b", "cannot be read beyond byte 0"),
        (b"\x28\xb5\x2f\xfd", "cannot be read beyond byte 0"),
        (TEXT.replace(b"\n", b"\r"), "line 1, field 40: "),
    ],
)
def test_what_is_no_log_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepared([write(tmp_path / "raw", content)], tmp_path / "out")


def test_a_byte_order_mark_belongs_to_no_field(tmp_path: Path) -> None:
    marked = prepared([write(tmp_path / "marked", b"\xef\xbb\xbf" + TEXT)], tmp_path / "a", block_bytes=64)
    assert marked.digest() == prepared([write(tmp_path / "plain", TEXT)], tmp_path / "b").digest()


@pytest.mark.parametrize("kind", ["plain", "gzip"])
@pytest.mark.parametrize("change", ["grows", "shrinks", "goes"])
def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path, kind: str, change: str) -> None:
    text = criteo_text(900).encode()
    raw = write(tmp_path / "raw", text if kind == "plain" else gzip.compress(text))
    request = request_for([raw], tmp_path / "out")
    if change == "grows":
        raw.write_bytes(raw.read_bytes() + (b"" if kind == "gzip" else text))
        os.utime(raw, ns=(1, 1))
    elif change == "shrinks":
        raw.write_bytes(gzip.compress(TEXT) if kind == "gzip" else text[: text.index(b"\n") + 1])
    else:
        raw.unlink()
    with pytest.raises(DataError, match=r"changed while it was read|cannot be read: No such file"):
        prepare(request)


LOG_SCHEMA = 'delimiter = ","\nheader = true\nlabel = "click"\nintegers = ["hour"]\ncategories = ["site"]\n'


def run_cli(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    from dqrm_cpu.cli.main import main

    status = main(["prepare", *arguments])
    return status, capsys.readouterr().err


def test_headers_that_differ_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "s.toml", LOG_SCHEMA.encode())
    write(tmp_path / "a", b"click,hour,site\n1,2,x\n0,3,y\n")
    write(tmp_path / "b", b"click,site,hour\n1,2,3\n")
    write(tmp_path / "c", b"1,2,z\n")
    for other, message in (("b", "names other fields"), ("c", "is not the header of the first file")):
        options = ["--schema", str(tmp_path / "s.toml"), "--split", "none", "--out", str(tmp_path / "out")]
        status, error = run_cli([str(tmp_path / "a"), str(tmp_path / other), *options], capsys)
        assert (status, message in error) == (2, True), error


def test_a_file_given_twice_by_another_name_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write(tmp_path / "raw", TEXT)
    (tmp_path / "link").symlink_to(raw)
    status, error = run_cli([str(raw), str(tmp_path / "link"), "--format", "tsv", "--out", str(tmp_path / "o")], capsys)
    assert (status, "a raw file is named twice" in error) == (2, True)


def test_devices_pipes_and_odd_names_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("/dev/zero", "not a plain file"),
        (str(tmp_path / "pipe"), "not a plain file"),
        ("a\0b", "null"),
    ):
        with pytest.raises(DataError, match=message):
            examine(name)


@pytest.mark.parametrize(
    "content",
    [
        b".".join([b"a"] * 100_000) + b" = 1",
        b"[" + b".".join([b'"a"'] * 60_000) + b"]",
        b"a = " + b"[" * 100_000,
        b"label = " + b"9" * 6000,
        b"a" * 200_000 + b" = 1",
        b'delimiter = ""\nheader = true\nlabel = "a"',
        b"#" * 300_000,
        b"label = 1979-05-27",
        b"\xff\xfe",
    ],
)
def test_a_hostile_schema_is_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        read_schema(write(tmp_path / "s.toml", content), "id,click,hour,site")
    assert len(str(caught.value)) < 500
    schema_bytes(content)


def test_a_pipe_as_schema_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.toml")
    with pytest.raises(ConfigError, match="no regular file"):
        read_schema(tmp_path / "s.toml", "")


def parquet_layout(folder: Path) -> Layout:
    return read_schema(write(folder / "s.toml", LOG_SCHEMA.encode()), "", ["click", "hour", "site"])


def test_damage_anywhere_in_a_parquet_file_is_rows_or_an_error(tmp_path: Path) -> None:
    columns = {"click": [0, 1] * 50, "hour": list(range(100)), "site": [f"s{k % 7}" for k in range(100)]}
    pq.write_table(pa.table(columns), tmp_path / "whole", write_page_checksum=True)
    content, chance = (tmp_path / "whole").read_bytes(), random.Random(1)
    layout = parquet_layout(tmp_path)
    for k in range(25):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[chance.randrange(4, len(content))] = chance.randrange(256)
        raw = write(tmp_path / f"raw{k}", bytes(damaged if k % 2 else damaged[: chance.randrange(4, len(content))]))
        try:
            prepared([raw], tmp_path / f"out{k}", layout=layout, bad_rows="skip")
        except DqrmError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("hour", [[[1, 2]], [{"a": 1}], [b"\xff"]])
def test_columns_of_other_kinds_are_told(tmp_path: Path, hour: list[object]) -> None:
    pq.write_table(pa.table({"click": [1], "hour": hour, "site": ["x"]}), tmp_path / "raw")
    with pytest.raises(DataError, match="column hour holds"):
        prepared([tmp_path / "raw"], tmp_path / "out", layout=parquet_layout(tmp_path))


def test_text_where_numbers_are_wanted_is_a_bad_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"click": [1], "hour": ["x"], "site": ["x"]}), tmp_path / "raw")
    with pytest.raises(DataError, match="line 1, field 2: not a whole number"):
        prepared([tmp_path / "raw"], tmp_path / "out", layout=parquet_layout(tmp_path))
