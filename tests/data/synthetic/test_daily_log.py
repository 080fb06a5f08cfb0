"""Days of a generated log: the same rows again, new users every day, cells and bad rows as they are described."""

from pathlib import Path

import pytest

from commands import CommandOutput, dqrm_cpu
from dqrm_cpu.data.synthetic import daily_log
from dqrm_cpu.data.synthetic.daily_log import FIELDS, DailyLog

ROWS = 3000


def rows_of(day: int, seed: int = 1, rows: int = ROWS) -> list[dict[str, str]]:
    """The good rows of a day by the names of their fields."""
    head, *lines = b"".join(DailyLog(rows, seed).text(day)).decode().splitlines()
    assert tuple(head.split(",")) == FIELDS
    cells = (line.split(",") for line in lines)
    return [dict(zip(FIELDS, row, strict=True)) for row in cells if len(row) == len(FIELDS) and row[-1] in "01"]


def test_a_day_depends_on_seed_and_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"".join(DailyLog(ROWS, 1).text(2))
    monkeypatch.setattr(daily_log, "_ROWS_AT_ONCE", 1000)
    pieces = list(DailyLog(ROWS, 1).text(2))
    assert len(pieces) == 4
    assert b"".join(DailyLog(ROWS, 1).text(2)) == b"".join(pieces)
    monkeypatch.undo()
    assert b"".join(DailyLog(ROWS, 1).text(2)) == text
    assert text not in (b"".join(DailyLog(ROWS, 2).text(2)), b"".join(DailyLog(ROWS, 1).text(3)))


def test_users_and_items_come_and_go_and_the_others_stay() -> None:
    for name, moves in (("user", True), ("item", True), ("site", False), ("device", False)):
        first, later = ({row[name] for row in rows_of(day)} for day in (1, 7))
        assert bool(later - first) == moves, name
        assert len(first & later) < len(first) if moves else first == later, name


def test_rows_are_as_logs_have_them() -> None:
    rows = rows_of(1)
    assert ROWS * 0.99 < len(rows) < ROWS  # one in five hundred is bad
    assert len({row["request"] for row in rows}) == len(rows)
    times = [row["time"] for row in rows]
    assert times == sorted(times)
    assert times[0] >= "2026-03-01T00:00:00"
    assert times[-1] < "2026-03-02"
    assert any(float(row["balance"]) < 0 for row in rows)
    assert {"0", "1"} == {row["click"] for row in rows}
    assert {0, 1, 2, 3} == {len(row["tags"].split("|")) if row["tags"] else 0 for row in rows}
    assert 0.1 < sum(not row["age"] for row in rows) / len(rows) < 0.3


def generate(folder: Path, *options: object) -> CommandOutput:
    return dqrm_cpu("data", "generate", folder, "--format", "log", "--rows", 50, *options)


def test_the_command_writes_a_file_a_day_and_finds_them_again(tmp_path: Path) -> None:
    folder = tmp_path / "days"
    first = generate(folder, "--days", 2)
    assert first.returncode == 0, first.stderr
    assert f"prepare {folder}/day-1.csv --suggest" in first.stdout
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(times) == {"day-1.csv", "day-2.csv"}
    assert generate(folder, "--days", 3).returncode == 0
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    (folder / "day-3.csv").write_text("real clicks")
    refused = generate(folder, "--days", 3)
    assert refused.returncode == 2
    assert "day-3.csv is there already, and holds other rows" in refused.stderr
    assert (folder / "day-3.csv").read_text() == "real clicks"


def test_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, options, words in (
        ("file", (), "days of a log go into a folder"),
        ("days", ("--format", "criteo", "--days", 2), "--days is for --format log"),
        ("none/days", (), "there is no folder"),
        ("days", ("--days", 0), "is no whole number from 1 to 3,650"),
    ):
        refused = generate(tmp_path / path, *options)
        assert (refused.returncode, words in refused.stderr) == (2, True), refused.stderr
