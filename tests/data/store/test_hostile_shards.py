"""Shards whose checksums fit and whose numbers lie: each is refused before anything follows an address or an id."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from isal import isal_zlib

from dqrm_cpu.cli.main import main
from dqrm_cpu.data.store import layout
from dqrm_cpu.data.store.layout import DamagedShardError, Header, Section
from dqrm_cpu.data.store.manifest import ShardFile, read_manifest, write_manifest
from dqrm_cpu.data.store.shard import MappedShard
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.data.store.writer import sealed, write_bags, write_shard
from dqrm_cpu.errors import DataError
from stored import SCHEMA, finish, random_bags, random_rows

NAME = "train-0.shard"
ROWS = 8192 + 100

Change = Callable[[Header, bytearray], None]


def data_set(folder: Path, bags: bool = False) -> None:
    rows = random_rows(ROWS)
    if bags:
        file = write_bags(folder, NAME, SCHEMA, rows.label, rows.dense, *random_bags(ROWS, 3))
    else:
        file = write_shard(folder, NAME, SCHEMA, *rows)
    finish(folder, {"train": (file,), "validation": (), "test": ()})


def forge(folder: Path, change: Change) -> None:
    """Changes header and content, and makes every checksum fit again, the manifest's too."""
    path, manifest = folder / NAME, read_manifest(folder)
    header = MappedShard(path, manifest.parts["train"][0]).header
    content = bytearray(path.read_bytes())
    sections = header.sections.copy()
    change(header, content)
    for place in np.ndindex(sections.shape):
        start, size = (int(header.sections[place][name]) for name in ("offset", "bytes"))
        header.sections[place]["crc32"] = isal_zlib.crc32(content[start : start + size])  # cut at the end of the file
    head = sealed(header)
    content[: len(head)] = head
    path.write_bytes(content)
    fixed = header.fixed
    file = ShardFile(NAME, int(fixed["rows"][0]), len(content), int(fixed["header_crc32"][0]), 0)
    write_manifest(folder, replace(manifest, parts={**manifest.parts, "train": (file,)}))


def fixed(field: str, value: int) -> Change:
    return lambda header, content: header.fixed.__setitem__(field, value)


def section(block: int, kind: Section, field: str, value: int) -> Change:
    return lambda header, content: header.sections[block, kind].__setitem__(field, value)


def column(number: int, field: str, value: int) -> Change:
    return lambda header, content: header.columns[number].__setitem__(field, value)


def written(kind: Section, place: int, form: str, value: int) -> Change:
    """A value at the place-th number of that form in a section of block 0."""

    def change(header: Header, content: bytearray) -> None:
        struct.pack_into(form, content, int(header.sections[0, kind]["offset"]) + place * struct.calcsize(form), value)

    return change


def overlap(header: Header, content: bytearray) -> None:
    header.sections[1, Section.LABEL]["offset"] = header.sections[0, Section.IDS]["offset"]


def read_all(folder: Path) -> None:
    StoredRows(folder, read_manifest(folder), "train").rows(0, ROWS)


HEADERS: dict[str, tuple[Change, str]] = {
    "section beyond the file": (section(0, Section.DENSE, "offset", 1 << 40), "dense section of block 0 begins"),
    "section that wraps around": (section(0, Section.IDS, "offset", 2**64 - 64), "ids section of block 0 begins"),
    "section in the header": (section(0, Section.LABEL, "offset", 64), "label section of block 0 begins at byte 64"),
    "section off its alignment": (section(1, Section.LABEL, "offset", 1_000_001), "label section of block 1 begins"),
    "sections that overlap": (overlap, "label section of block 1 begins before"),
    "dense section without bytes": (section(0, Section.DENSE, "bytes", 0), "dense section of block 0 has 0 bytes"),
    "labels of endless size": (section(1, Section.LABEL, "bytes", 2**64 - 1), "label section of block 1 has"),
    "ids of 2^30 bytes": (column(1, "id_bytes", 1 << 30), "ids of column 1 take 1,073,741,824 bytes"),
    "ids of no bytes": (column(0, "id_bytes", 0), "ids of column 0 take 0 bytes"),
    "ids of three bytes": (column(0, "id_bytes", 3), "ids of column 0 take 3 bytes"),
    "a largest id below 0": (column(2, "largest_id", -1), "largest id of column 2 is -1"),
    "a largest id beyond its bytes": (column(0, "largest_id", 300), "largest id of column 0 is 300"),
    "a largest id beyond its table": (column(2, "largest_id", 2**31 - 1), "column wide has id 2147483647"),
    "blocks of other sizes": (fixed("block_rows", 4096), "blocks of 4,096 rows"),
    "rows that do not fill the blocks": (fixed("rows", 5), "5 rows in 2 blocks"),
    "more clicks than rows": (fixed("clicks", 1 << 63), "clicks in"),
    "another number of dense columns": (fixed("num_dense", 2), "dense section of block 0 has"),
}
CONTENTS: dict[str, tuple[Change, str]] = {
    "label 7": (written(Section.LABEL, 3, "<B", 7), "label section of block 0 .* is damaged: label 7"),
    "an id beyond its column": (
        written(Section.IDS, (layout.aligned(8192) + 2 * 8192) // 4 + 5, "<i", 2_999_999 + 1),
        "column 2 has id 3000000",
    ),
    "a negative id": (
        written(Section.IDS, (layout.aligned(8192) + 2 * 8192) // 4, "<i", -1),
        "column 2 has id 4294967295",
    ),
}
BAGS: dict[str, tuple[Change, str]] = {
    "bags that go back": (written(Section.OFFSETS, 5, "<i", 1 << 29), "bags do not follow one another"),
    "bags below 0": (written(Section.OFFSETS, 1, "<i", -4), "bags do not follow one another"),
    "bags that begin late": (written(Section.OFFSETS, 0, "<i", 1), "bags do not follow one another"),
    "bags that end late": (written(Section.OFFSETS, 4 * 8192, "<i", 1 << 30), "bags do not follow one another"),
    "an id beyond its table": (written(Section.IDS, 7, "<i", 256), "column 0 has id 256"),
    "ids of half a number": (section(0, Section.IDS, "bytes", 999), "ids section of block 0 has 999 bytes"),
    "narrow ids": (column(0, "id_bytes", 1), "ids of column 0 take 1 bytes"),
    "too few offsets": (section(1, Section.OFFSETS, "bytes", 4), "offsets section of block 1 has 4 bytes"),
}
CASES = {**HEADERS, **CONTENTS}


@pytest.mark.parametrize("case", CASES)
def test_a_shard_that_lies_is_refused(case: str, tmp_path: Path) -> None:
    change, message = CASES[case]
    data_set(tmp_path)
    forge(tmp_path, change)
    with pytest.raises(DamagedShardError, match=message):
        read_all(tmp_path)


@pytest.mark.parametrize("case", BAGS)
def test_bags_that_lie_are_refused(case: str, tmp_path: Path) -> None:
    change, message = BAGS[case]
    data_set(tmp_path, bags=True)
    forge(tmp_path, change)
    with pytest.raises(DamagedShardError, match=message):
        read_all(tmp_path)


@pytest.mark.parametrize("case", ["section beyond the file", "label 7", "an id beyond its column"])
def test_verify_finds_what_checksums_do_not(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_set(tmp_path)
    forge(tmp_path, CASES[case][0])
    assert main(["data", "verify", str(tmp_path)]) == 1
    assert "damaged: " in capsys.readouterr().out


def test_verify_finds_bags_that_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_set(tmp_path, bags=True)
    forge(tmp_path, BAGS["bags that go back"][0])
    assert main(["data", "verify", str(tmp_path)]) == 1
    assert "bags do not follow one another" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_verify_finds_dense_values_that_are_no_numbers(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training has a policy of its own for them."""
    data_set(tmp_path)

    def change(header: Header, content: bytearray) -> None:
        struct.pack_into("<f", content, int(header.sections[1, Section.DENSE]["offset"]), float(value))

    forge(tmp_path, change)
    assert main(["data", "verify", str(tmp_path)]) == 1
    assert f"{value} in d0 of row 8,192" in capsys.readouterr().out


def test_labels_that_lie_are_refused_where_only_they_are_read(tmp_path: Path) -> None:
    data_set(tmp_path)
    forge(tmp_path, CONTENTS["label 7"][0])
    with pytest.raises(DataError, match="label 7"):
        StoredRows(tmp_path, read_manifest(tmp_path), "train").labels(0, 10)


@pytest.mark.parametrize(("rows", "size"), [(10**15, 10**18), (10**6, 10**8)])
def test_rows_beyond_the_files_take_no_memory(rows: int, size: int, tmp_path: Path) -> None:
    data_set(tmp_path)
    manifest = read_manifest(tmp_path)
    file = replace(manifest.parts["train"][0], rows=rows, bytes=size)
    with pytest.raises(DamagedShardError, match=f"bytes, its manifest says {size:,}"):
        StoredRows(tmp_path, replace(manifest, parts={**manifest.parts, "train": (file,)}), "train")
