"""A preparation that was killed goes on, and ends with the very bytes of one that was not."""

import errno
import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dqrm_cpu.data.prepare.request import Advance, Request
from dqrm_cpu.data.prepare.resume import WORK_FOLDER
from dqrm_cpu.data.prepare.run import prepare
from dqrm_cpu.errors import DataError
from killed_preparation import OPTIONS
from preparing import criteo_text, files_of, prepared, request_for

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
    command = [sys.executable, str(SCRIPT), str(raw), str(out), str(number)]
    path = f"{SCRIPT.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=200)
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


def interrupted_at(request: Request, rows: int) -> Request:
    """The request, whose progress display raises KeyboardInterrupt once so many rows were read."""

    def advance(reached: Advance) -> None:
        if reached.rows >= rows:
            raise KeyboardInterrupt

    return replace(request, advance=advance)


def test_what_was_interrupted_is_not_mixed_with_another_request(tmp_path: Path) -> None:
    raw = raw_file(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prepare(interrupted_at(request_for([raw], tmp_path / "out", **OPTIONS), rows=100))
    with pytest.raises(DataError, match="with other settings that was interrupted"):
        prepared([raw], tmp_path / "out", **{**OPTIONS, "seed": 9})
    raw.write_bytes(raw.read_bytes() + b"\n")
    with pytest.raises(DataError, match="other sources"):
        prepared([raw], tmp_path / "out", **OPTIONS)
    manifest = prepare(request_for([raw], tmp_path / "out", **OPTIONS), restart=True)
    assert manifest.num_rows("train") > 0


def test_a_finished_preparation_is_not_done_twice(tmp_path: Path) -> None:
    raw = raw_file(tmp_path)
    first = prepared([raw], tmp_path / "out", **OPTIONS)
    before = files_of(tmp_path / "out")
    assert prepared([raw], tmp_path / "out", **OPTIONS) == first
    assert files_of(tmp_path / "out") == before
    with pytest.raises(DataError, match="--restart to replace it"):
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
    refused = []

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
        patch.setattr("dqrm_cpu.data.prepare.spool._write_all", raise_full)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); make room"):
            prepared([raw], tmp_path / "out", **OPTIONS)
    prepared([raw], tmp_path / "out", **OPTIONS)
    prepared([raw], tmp_path / "whole", **OPTIONS)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def raise_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
