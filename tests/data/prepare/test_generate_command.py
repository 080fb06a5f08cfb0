"""`dqrm-cpu data generate` from the command line."""

import gzip
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main


def generated(path: Path, *options: str) -> Path:
    assert main(["data", "generate", str(path), *options]) == 0
    return path


def test_it_writes_as_many_rows_as_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = generated(tmp_path / "train.txt", "--rows", "30")
    lines = path.read_text().splitlines()
    assert [line.count("\t") for line in lines] == [39] * 30
    assert f"dqrm-cpu prepare {path} --format kaggle" in capsys.readouterr().out


def test_a_name_with_gz_is_compressed(tmp_path: Path) -> None:
    plain, packed = (generated(tmp_path / name, "--rows", "30") for name in ("train.txt", "train.txt.gz"))
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()


def test_a_seed_decides_the_rows(tmp_path: Path) -> None:
    first, again, other = (
        generated(tmp_path / f"{k}.txt", "--rows", "9", "--seed", seed).read_bytes() for k, seed in enumerate("778")
    )
    assert first == again != other


@pytest.mark.parametrize("options", [(), ("--format", "log", "--days", "2")])
def test_what_a_killed_command_was_writing_goes(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "train"
    folder = path if options else tmp_path
    folder.mkdir(exist_ok=True)
    name = "day-2.csv" if options else "train"
    (folder / f".writing-{name}.123").write_text("half")
    generated(path, "--rows", "9", *options)
    assert not list(folder.glob(".*"))


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.txt").write_text("real clicks")
    assert main(["data", "generate", str(tmp_path / "train.txt"), "--rows", "9"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "train.txt").read_text() == "real clicks"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.txt", ("--rows", "0"), "is no whole number from 1 on"),
        ("a.txt", ("--rows", "1", "--seed", "-1"), "0 to 4,294,967,295"),
        ("none/a.txt", ("--rows", "1"), "there is no folder"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: tuple[str, ...], message: str
) -> None:
    assert main(["data", "generate", str(tmp_path / name), *options]) == 2
    assert message in capsys.readouterr().err
