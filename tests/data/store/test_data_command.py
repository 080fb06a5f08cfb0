"""`dqrm-cpu data`: what it prints and how it ends."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dqrm_cpu.base.decode import Json
from dqrm_cpu.cli.main import main
from dqrm_cpu.data.store.manifest import FILE_NAME, read_manifest, write_manifest
from stored import write_data_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data_set(tmp_path, [9000, 40])
    return tmp_path


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_show_describes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "9,140 rows of 3 dense and 4 categorical columns" in shown
    assert read_manifest(folder).digest() in shown
    assert any(line.split()[:3] == ["wide", "3,000,000", "-"] for line in shown.splitlines())


def test_show_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["fingerprint"] == read_manifest(folder).digest()
    assert [shard["rows"] for shard in shown["parts"]["train"]] == [9000, 40]


def test_verify_says_that_all_is_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", str(folder)]) == 0
    assert "is whole: 4 shards, 9,140 rows" in capsys.readouterr().out


def test_verify_names_every_damage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(folder / "train-0.shard", -100)
    (folder / "test.shard").unlink()
    assert main(["data", "verify", str(folder)]) == 1
    output = capsys.readouterr().out
    assert "train-0.shard: the ids section of block 1 (rows 8,192 to 8,999) is damaged" in output
    assert "test.shard is missing" in output
    assert "2 of the pieces" in output


def test_head_prints_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "head", str(folder), "--rows", "3", "--start", "8999"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["d0", "8999.0000", "9000.0000", "9001.0000"] in lines
    assert sum(line[:1] == ["narrow"] for line in lines) == 1


@pytest.mark.parametrize("options", [["--rows", "0"], ["--rows", "21"], ["--start", "9040"], ["--start", "-1"]])
def test_head_refuses_rows_that_are_not_there(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "head", str(folder), *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("show", "verify", "head"):
        assert main(["data", action, str(tmp_path / "nowhere")]) == 1
        assert "nowhere: there is no such folder" in capsys.readouterr().err


def test_an_action_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 2
    assert "show, verify, head, convert, generate" in capsys.readouterr().err


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.zeros((50, 40), "<i4")
    for part in ("train", "test"):
        rows.tofile(tmp_path / f"{part}_data.bin")
    assert main(["data", "convert", str(tmp_path), str(tmp_path / "out")]) == 0
    assert "50 train, 25 validation, 25 test rows" in capsys.readouterr().out
    assert (tmp_path / "out" / FILE_NAME).is_file()


def test_show_flattens_settings_and_cuts_long_ones(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Json] = {
        "vocabulary": {"kind": "exact", "directory": ""},
        "fields": list(range(1000)),
        "delimiter": "\t",
    }
    write_manifest(folder, replace(read_manifest(folder), settings=settings))
    assert main(["data", "show", str(folder)]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["vocabulary.kind", "exact"] in lines
    assert ["delimiter", r"\t"] in lines
    assert "directory" not in shown
    assert max(map(len, shown.splitlines())) < 200
