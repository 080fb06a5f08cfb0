"""`dqrm-cpu prepare` from the command line."""

import io
from pathlib import Path

import pytest

from dqrm_cpu.api.progress import PrepareProgress
from dqrm_cpu.cli.main import main
from dqrm_cpu.data.prepare.request import Advance
from dqrm_cpu.data.store.manifest import read_manifest
from preparing import criteo_text


@pytest.fixture
def raw(tmp_path: Path) -> str:
    (tmp_path / "train.txt").write_text(criteo_text(700))
    return str(tmp_path / "train.txt")


def test_it_prepares_and_says_what_came_out(raw: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["prepare", raw, "--format", "kaggle", "--out", str(out), "--min-count", "2"]) == 0
    manifest = read_manifest(out)
    assert [manifest.num_rows(part) for part in ("train", "validation", "test")] == [600, 50, 50]
    message = capsys.readouterr().out
    assert "700 rows in " in message
    assert "negative numbers were taken as 0" in message
    assert "too rare for a row of its own" in message


def test_once_more_it_only_says_so(raw: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", raw, "--format", "kaggle", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert "is prepared already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --format"),
        (["--format", "kaggle", "--schema", "x.toml"], "give either --format"),
        (["--format", "terabyte"], "there is only one"),
        (["--format", "tsv", "--vocabulary", "hash"], "belong together"),
        (["--format", "tsv", "--hash-rows", "100"], "belong together"),
        (["--format", "tsv", "--vocabulary", "nowhere"], "holds no vocabulary"),
        (["--format", "tsv", "--vocabulary", "hash", "--hash-rows", "9", "--min-count", "2"], "--min-count chooses"),
        (["--format", "tsv", "--memory-budget", "much"], "no number of bytes"),
        (["--format", "tsv", "--min-count", "0"], "no whole number from 1 to"),
        (["--format", "tsv", "--schema", "missing.toml"], "give either"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    raw: str, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", raw, "--out", str(tmp_path / "out"), *options]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_days_out_of_order_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a shell sorts day_*: the ninth day would be held out."""
    days = [tmp_path / f"day_{k}" for k in (0, 1, 10, 2, 9)]
    for number, day in enumerate(days):
        day.write_text(criteo_text(20, seed=number))
    command = ["prepare", "--format", "terabyte", "--out", str(tmp_path / "out")]
    assert main([*command, *map(str, days)]) != 0
    assert "day_9, but" in capsys.readouterr().err
    assert main([*command, "--split", "last-file", *map(str, days)]) == 0
    assert main([*command, "--restart", *map(str, [*days[:2], days[3], days[4], days[2]])]) == 0


def test_a_bad_row_is_one_line_of_error(raw: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path(raw).open("a") as file:
        file.write("oops\n")
    command = ["prepare", raw, "--format", "kaggle", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    wrong = "the label is neither 0 nor 1, true nor false, yes nor no ('oops')"
    assert f"{raw}, line 701, field 1: {wrong}" in capsys.readouterr().err
    assert main([*command, "--bad-rows", "skip", "--restart"]) == 0
    assert "1 left out\n" in capsys.readouterr().out
    assert main([*command, "--bad-rows", "quarantine", "--restart"]) == 0
    assert f"1 left out, kept in {tmp_path / 'out' / 'bad-rows.txt'}\n" in capsys.readouterr().out


def test_progress_in_a_log_is_a_line_with_speed_and_time_left() -> None:
    assert progress_lines(4 * 10**9) == [
        "reading 1,000 rows, 0.5 MB (0.0%)",  # no speed is known yet
        "reading 2,001,000 rows, 1.00 GB (25.0%)  100,000 rows/s  ETA 0:01:00",
    ]
    assert progress_lines(0)[1] == "reading 2,001,000 rows, 1.00 GB  100,000 rows/s"  # of standard input


def progress_lines(total_bytes: int) -> list[str]:
    """The lines of two reports, the first after some seconds in which kernels were compiled."""
    clock = iter([0.0, 12.0, 12.0, 12.0, 12.0, 32.0, 32.0, 32.0, 32.0])
    stream = io.StringIO()
    progress = PrepareProgress(stream, lambda: next(clock))
    progress.advance(Advance("reading", 1000, 500_000, total_bytes))
    progress.advance(Advance("reading", 2_001_000, 10**9 + 500_000, total_bytes and total_bytes + 500_000))
    return stream.getvalue().splitlines()
