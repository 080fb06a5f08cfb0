"""The same rows from plain files, .gz, .zst, several files and standard input."""

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard

from dqrm_cpu.errors import ConfigError, DataError
from preparing import criteo_text, prepared, rows_of

TEXT = criteo_text(500).encode()


def test_compressed_sources_give_the_rows_of_the_plain_one(tmp_path: Path) -> None:
    half = len(TEXT) // 2
    kinds = {
        "plain": TEXT,
        "gzip": gzip.compress(TEXT),
        "members.gz": gzip.compress(TEXT[:half]) + gzip.compress(TEXT[half:]),
        "zstd": zstandard.compress(TEXT),
        "frames.zst": zstandard.compress(TEXT[:half]) + zstandard.compress(TEXT[half:]),
    }
    found = {}
    for name, content in kinds.items():
        (tmp_path / name).write_bytes(content)
        found[name] = prepared([tmp_path / name], tmp_path / f"{name}.out")
    assert len({manifest.digest() for manifest in found.values()}) == 1
    assert {manifest.sources[0].digest for manifest in found.values()} == {f"crc32:{zlib.crc32(TEXT):08x}"}
    assert found["gzip"].sources[0].bytes == len(kinds["gzip"])


def test_standard_input_gives_the_rows_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(TEXT)
    piped = prepared(["-"], tmp_path / "piped", stdin=TEXT)
    assert piped.digest() == prepared([tmp_path / "plain"], tmp_path / "out").digest()
    assert (piped.sources[0].bytes, piped.sources[0].rows) == (len(TEXT), 500)


def test_the_last_of_several_files_is_held_out(tmp_path: Path) -> None:
    days = [criteo_text(50, seed).encode() for seed in (1, 2, 3)]
    for k, day in enumerate(days):
        (tmp_path / f"day_{k}").write_bytes(day.removesuffix(b"\n"))
    manifest = prepared([tmp_path / f"day_{k}" for k in range(3)], tmp_path / "out", split="last-file")
    (tmp_path / "last").write_bytes(days[2])
    prepared([tmp_path / "last"], tmp_path / "alone", split="none", shard_rows=1000)
    assert [manifest.num_rows(part) for part in ("train", "validation", "test")] == [100, 25, 25]
    held_out = np.concatenate([rows_of(tmp_path / "out", part)[1] for part in ("test", "validation")])
    alone = rows_of(tmp_path / "alone", "train")[1]
    assert sorted(map(tuple, held_out.tolist())) == sorted(map(tuple, alone.tolist()))
    assert [source.rows for source in manifest.sources] == [50, 50, 50]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_truncated_archive_is_refused(tmp_path: Path, kind: str) -> None:
    noise = "".join(criteo_text(200, seed) for seed in range(5)).encode()
    content = gzip.compress(noise) if kind == "gzip" else zstandard.compress(noise)
    (tmp_path / "cut").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=r"cut .*(cannot be read beyond byte|line)"):
        prepared([tmp_path / "cut"], tmp_path / "out")


@pytest.mark.parametrize(("start", "message"), [(b"BZh91AY", "bzip2"), (b"PK\3\4....", "zip"), (b"\xfd7zXZ\0", "xz")])
def test_other_archives_are_named(tmp_path: Path, start: bytes, message: str) -> None:
    (tmp_path / "archive").write_bytes(start)
    with pytest.raises(DataError, match=f"is {message}: unpack it"):
        prepared([tmp_path / "archive"], tmp_path / "out")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("missing", "No such file"), (".", "is a folder"), ("pipe", "standard input")):
        with pytest.raises(DataError, match=message):
            prepared([tmp_path / name], tmp_path / "out")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(TEXT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty \(it holds thesis.tex\)"):
        prepared([tmp_path / "plain"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
