"""A preparation that was killed goes on, and ends with the very bytes of one that was not."""

import contextlib
import errno
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dqrm_cpu.base.files import replacing
from dqrm_cpu.data.prepare.preparation import prepare
from dqrm_cpu.data.prepare.request import Advance, PrepareRequest
from dqrm_cpu.data.prepare.resume import WORK_FOLDER
from dqrm_cpu.errors import ConfigError, DataError
from folders import files_of
from killed_preparation import OPTIONS
from preparing import criteo_text, prepared, request_for
from prestart import python

SCRIPT = Path(__file__).parent / "killed_preparation.py"


def raw_file(folder: Path, packed: bool = False) -> Path:
    lines = criteo_text(700).splitlines()
    for k in range(50, 700, 90):
        lines[k] = f"bad line {k}"
    text = "\n".join(lines).encode()
    path = folder / "train.txt"
    path.write_bytes(gzip.compress(text) if packed else text)
    return path


def prepare_and_die(raw: Path, out: Path, number: int) -> bool:
    """Whether it was killed before it was done."""
    command = [*python(os.environ), str(SCRIPT), str(raw), str(out), str(number)]
    done = subprocess.run(command, capture_output=True, timeout=200)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=("plain", "gzip"))
def test_kills_anywhere_leave_the_same_bytes(tmp_path: Path, packed: bool) -> None:
    raw = raw_file(tmp_path, packed)
    prepared([raw], tmp_path / "whole", **OPTIONS)
    whole = files_of(tmp_path / "whole")
    generator = random.Random(packed)
    kills = 0
    for first in generator.sample(range(1, 200), 3):
        out = tmp_path / "killed"
        shutil.rmtree(out, ignore_errors=True)
        number = first
        while prepare_and_die(raw, out, number):
            kills += 1
            number += generator.randrange(20, 150)  # more each time: finding what is whole touches files too
        assert files_of(out) == whole
    assert kills >= 3


def test_it_goes_on_behind_what_is_whole(tmp_path: Path) -> None:
    """As if the power had failed: a damaged step in the middle, and everything behind it, is read once more."""
    raw = raw_file(tmp_path)
    prepared([raw], tmp_path / "whole", **OPTIONS)
    request = request_for([raw], tmp_path / "out", **OPTIONS)
    steps = tmp_path / "out" / WORK_FOLDER / "spool"
    for damage in (b"", b"\0" * 64, None):
        if (tmp_path / "out").exists():
            shutil.rmtree(tmp_path / "out")
        with pytest.raises(KeyboardInterrupt):
            prepare(interrupted_at(request, rows=500))
        path = steps / "000003.rows"
        content = path.read_bytes()
        path.write_bytes(damage if damage is not None else content[:-1] + bytes([content[-1] ^ 1]))
        prepare(request)
        assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def interrupted_at(request: PrepareRequest, rows: int) -> PrepareRequest:
    """The request, whose progress display raises KeyboardInterrupt once so many rows were read."""

    def advance(reached: Advance) -> None:
        if reached.rows >= rows:
            raise KeyboardInterrupt

    return replace(request, advance=advance)


def test_what_was_interrupted_is_not_mixed_with_another_request(tmp_path: Path) -> None:
    raw = raw_file(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prepare(interrupted_at(request_for([raw], tmp_path / "out", **OPTIONS), rows=100))
    with pytest.raises(ConfigError, match="with other settings that was interrupted"):
        prepared([raw], tmp_path / "out", **{**OPTIONS, "seed": 9})
    raw.write_bytes(raw.read_bytes() + b"\n")
    with pytest.raises(ConfigError, match="other sources"):
        prepared([raw], tmp_path / "out", **OPTIONS)
    manifest = prepare(request_for([raw], tmp_path / "out", **OPTIONS), restart=True)
    assert manifest.num_rows("train") > 0


def test_a_finished_preparation_is_not_done_twice(tmp_path: Path) -> None:
    raw = raw_file(tmp_path)
    first = prepared([raw], tmp_path / "out", **OPTIONS)
    before = files_of(tmp_path / "out")
    assert prepared([raw], tmp_path / "out", **OPTIONS) == first
    assert files_of(tmp_path / "out") == before
    with pytest.raises(ConfigError, match="--restart to replace it"):
        prepared([raw], tmp_path / "out", **{**OPTIONS, "seed": 9})


def test_a_pipe_that_begins_otherwise_is_refused(tmp_path: Path) -> None:
    text = criteo_text(300).encode()
    request = request_for(["-"], tmp_path / "out", stdin=text)
    with pytest.raises(KeyboardInterrupt):
        prepare(interrupted_at(request, rows=100))
    with pytest.raises(DataError, match="begins otherwise"):
        prepared(["-"], tmp_path / "out", stdin=text.replace(b"1", b"2", 1))
    manifest = prepared(["-"], tmp_path / "out", stdin=text)
    assert manifest.digest() == prepared(["-"], tmp_path / "whole", stdin=text).digest()


def test_two_processes_do_not_prepare_into_one_folder(tmp_path: Path) -> None:
    raw = raw_file(tmp_path)
    request = request_for([raw], tmp_path / "out", **OPTIONS)
    refused: list[int] = []

    def advance(reached: Advance) -> None:
        if not refused:
            with pytest.raises(DataError, match="another process prepares into"):
                prepare(request_for([raw], tmp_path / "out", **OPTIONS))
            refused.append(reached.rows)

    prepare(replace(request, advance=advance))
    assert refused


def test_a_full_disk_is_an_error_that_one_can_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_file(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("dqrm_cpu.data.prepare.spool.replacing", replacing_on_full_disk)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); make room"):
            prepared([raw], tmp_path / "out", **OPTIONS)
    prepared([raw], tmp_path / "out", **OPTIONS)
    prepared([raw], tmp_path / "whole", **OPTIONS)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


class FullFile:
    """A file on a full disk."""

    def write(self, piece: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def replacing_on_full_disk(path: Path, raises: type[DataError], **more: Any) -> Iterator[FullFile]:
    with replacing(path, raises, **more):
        yield FullFile()


def interrupted(folder: Path) -> tuple[PrepareRequest, list[str]]:
    """A preparation that was interrupted after some steps, and what it will note when it goes on."""
    notes: list[str] = []
    request = replace(request_for([raw_file(folder)], folder / "out", **OPTIONS), note=notes.append)
    with pytest.raises(KeyboardInterrupt):
        prepare(interrupted_at(request, rows=500))
    return request, notes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    prepared([raw_file(folder)], folder / "out", **OPTIONS)
    return comparable(folder / "out")


def comparable(out: Path) -> dict[str, bytes]:
    """All files; the manifest, which names the folder of the source, without what comes from that."""
    files = files_of(out)
    del files["manifest.json"]
    return files


def with_header(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A step whose header was changed, under a length and checksum that fit it."""
    length = int.from_bytes(content[:4], "little")
    document = json.loads(content[8 : 8 + length])
    change(document)
    head = json.dumps(document).encode()
    return len(head).to_bytes(4, "little") + zlib.crc32(head).to_bytes(4, "little") + head + content[8 + length :]


def spoiled_steps(content: bytes) -> dict[str, bytes]:
    """Contents that a step may have after a bad disk, a loss of power or somebody's hand."""
    flipped = bytearray(content)
    flipped[flipped.index(b'"first_line"') - 3] ^= 1  # a digit of the number of rows
    line = bytearray(content)
    at = line.index(b'"missing": [') + len(b'"missing": [')
    line[at] = line[at] % 10 + 48 if line[at] % 10 + 48 != line[at] else 49
    deep, number = b"[" * 100_000, b'{"rows": ' + b"9" * 6000 + b"}"
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "a wrong type": lambda header: header.update(rows="1"),
        "a missing key": lambda header: header.pop("after"),
        "a number below 0": lambda header: header.update(new_keys=[-1, *header["new_keys"][1:]]),
        "other columns": lambda header: header["counts"].update(missing=[]),
        "another place": lambda header: header.update(first_row=header["first_row"] + 1),
        "another line": lambda header: header.update(first_line=header["first_line"] + 1),
        "another source": lambda header: header["after"].update(source=7),
        "bad rows that are not there": lambda header: header.update(quarantined=10**6),
    }
    return {
        "a flipped count of rows": bytes(flipped),
        "a flipped count of cells": bytes(line),
        "deep": len(deep).to_bytes(8, "little") + deep + bytes(1 << 13),
        "an endless number": len(number).to_bytes(8, "little") + number + bytes(1 << 13),
        "cut": content[:100],
        **{name: with_header(content, change) for name, change in changes.items()},
    }


def test_a_spoiled_step_is_told_and_read_once_more(tmp_path: Path, whole: dict[str, bytes]) -> None:
    request, notes = interrupted(tmp_path)
    kept = tmp_path / "kept"
    shutil.copytree(request.out, kept)
    good = (kept / WORK_FOLDER / "spool" / "000002.rows").read_bytes()
    for name, content in spoiled_steps(good).items():
        shutil.rmtree(request.out)
        shutil.copytree(kept, request.out)
        (request.out / WORK_FOLDER / "spool" / "000002.rows").write_bytes(content)
        notes.clear()
        prepare(request)
        assert any("000002.rows" in note and "going back to before it" in note for note in notes), (name, notes)
        assert comparable(request.out) == whole, name


def test_what_does_not_belong_into_the_spool_is_removed(tmp_path: Path, whole: dict[str, bytes]) -> None:
    request, notes = interrupted(tmp_path)
    spool = request.out / WORK_FOLDER / "spool"
    (spool / "notes.rows").write_text("x")
    (spool / "000777.rows").mkdir()
    (spool / "000002.rows").unlink()
    os.mkfifo(spool / "000002.rows")
    prepare(request)
    assert any("000002.rows" in note for note in notes)
    assert comparable(request.out) == whole


def test_bad_rows_that_were_lost_are_read_once_more(tmp_path: Path, whole: dict[str, bytes]) -> None:
    request, notes = interrupted(tmp_path)
    (request.out / "bad-rows.txt").unlink()
    prepare(request)
    assert any("bad rows that bad-rows.txt lacks" in note for note in notes)
    assert comparable(request.out) == whole


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"[]", b"{}", b'{"digest": ' + b"9" * 6000 + b"}"])
def test_a_spoiled_request_is_told(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out"
    (out / WORK_FOLDER).mkdir(parents=True)
    (out / WORK_FOLDER / "request.json").write_bytes(content)
    request = request_for([raw_file(tmp_path)], out, **OPTIONS)
    with pytest.raises(DataError, match=r"request\.json .*begin anew with --restart"):
        prepare(request)
    assert prepare(request, restart=True).num_rows("train") > 0


def test_notes_on_shards_that_are_spoiled_are_not_believed(tmp_path: Path, whole: dict[str, bytes]) -> None:
    request, _ = interrupted(tmp_path)
    notes = request.out / WORK_FOLDER / "done"
    notes.mkdir()
    for k, content in enumerate((b"[" * 100_000, b'{"name": 1}', b"9" * 6000)):
        (notes / f"train-{k:05d}.shard.json").write_bytes(content)
    os.mkfifo(notes / "test-00000.shard.json.old")
    prepare(request)
    assert comparable(request.out) == whole


@pytest.mark.parametrize("target", ["bad-rows.txt", ".shard.json", "vocabulary.json", "manifest.json", ".shard"])
def test_a_disk_that_is_full_anywhere_is_one_line_and_one_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, whole: dict[str, bytes]
) -> None:
    request = request_for([raw_file(tmp_path)], tmp_path / "out", **OPTIONS)
    opened, write_text = os.open, Path.write_text

    def refuse(path: object) -> None:
        if str(path).rpartition("/")[2].rpartition(f".{os.getpid()}")[0].endswith(target) or str(path).endswith(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            refuse(path)
        return opened(path, flags, *rest, **more)

    def full_text(path: Path, *rest: Any, **more: Any) -> int:
        refuse(path)
        return write_text(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        patch.setattr(Path, "write_text", full_text)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); free some space"):
            prepare(request)
    prepare(request)
    assert comparable(request.out) == whole
