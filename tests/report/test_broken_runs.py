"""Reports of run folders that something happened to: a page, or one line that names the file; never a traceback."""

import json
import os
import shutil
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main
from report_runs import train_small

FILES = ("environment.json", "result.json", "spans/rank0.json")
NESTED = b'{"format": 1, "ranks": 3, "machine": null, "test": null, "step": 1, "phases": 2, "phase": "train"}\n'
DAMAGES = {"garbage": b"\x00\xff garbage\n", "list": b"[]\n", "null": b"null\n", "nested": NESTED}
HOSTILE = {
    "deep": b"[" * 100_000,
    "digits": b'{"format": ' + b"9" * 6_000 + b"}",
    "huge": b'{"format": 1, "rank": 1e999, "first_step": ' + b"9" * 400 + b"}",
    "newer": b'{"format": 7, "later": true}',
    "half a character": b'{"test": "\\ud800"}',
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small(tmp_path_factory.mktemp("intact") / "run")


@pytest.fixture
def run(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "run"))


def report_errors(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["report", str(run)])
    return status, capsys.readouterr().err


@pytest.mark.parametrize("damage", [*DAMAGES, *HOSTILE])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_something_else_is_named(
    run: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).write_bytes({**DAMAGES, **HOSTILE}[damage])
    status, stderr = report_errors(run, capsys)
    assert status in (1, 2)
    assert stderr.count("\n") == 1
    assert str(run / name) in stderr


def test_a_device_in_place_of_the_log_is_not_read_without_end(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("/dev/full")
    status, stderr = report_errors(run, capsys)
    assert status in (1, 2)
    assert "metrics.jsonl" in stderr


def test_rows_of_another_number_of_tables_are_left_out_with_a_word(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    row = next(json.loads(line) for line in lines if json.loads(line).get("lookup_clip_rate"))
    row["lookup_clip_rate"].append(0.5)
    (run / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(row)]) + "\n")
    assert main(["report", str(run)]) == 0
    assert "rows of another number of tables than the run has: 1" in (run / "report.html").read_text()


def test_a_flipped_digit_of_a_result_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be another AUC on the page."""
    path = run / "result.json"
    text = path.read_text()
    at = text.index("0.", text.index('"auc"')) + 3
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    status, stderr = report_errors(run, capsys)
    assert status in (1, 2)
    assert f"{path} cannot be read (it does not match its own checksum)" in stderr


def test_a_result_of_an_earlier_version_is_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((run / "result.json").read_text())
    del result["crc32"]
    (run / "result.json").write_text(json.dumps(result))
    assert report_errors(run, capsys)[0] == 0


@pytest.mark.parametrize("name", FILES)
def test_a_fifo_is_named_at_once(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    status, stderr = report_errors(run, capsys)
    assert status in (1, 2)
    assert str(run / name) in stderr


@pytest.mark.parametrize("damage", DAMAGES)
def test_settings_that_are_lost_come_from_the_checkpoint(
    run: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.toml").write_bytes(DAMAGES[damage])
    status, stderr = report_errors(run, capsys)
    assert status == 0
    assert stderr.startswith(f"warning: {run / 'config.toml'}")
    assert "recorded" in stderr


@pytest.mark.parametrize("damage", [*DAMAGES.values(), b""])
def test_a_log_of_which_rows_are_lost_is_shown_with_a_warning(
    run: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([*rows[:3], damage, *rows[4:-1]]))
    status, stderr = report_errors(run, capsys)
    assert status == 0
    assert stderr.startswith(f"warning: {run / 'metrics.jsonl'} is damaged, the other rows are shown: ")
    assert "is damaged, the other rows are shown" in (run / "report.html").read_text(encoding="utf-8")


def test_a_log_that_is_gone_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").unlink()
    status, stderr = report_errors(run, capsys)
    assert status == 0
    assert "at the last checkpoint and has 0" in stderr


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_that_is_missing_is_done_without(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).unlink()
    assert report_errors(run, capsys) == (0, "")


def test_settings_that_are_missing_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoints, which recorded them, are gone too."""
    (run / "config.toml").unlink()
    shutil.rmtree(run / "checkpoints")
    status, stderr = report_errors(run, capsys)
    assert status == 2
    assert f"restore {run / 'config.toml'}" in stderr


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "state.json"])
def test_a_checkpoint_that_cannot_be_read_is_told_on_the_page(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (run / "checkpoints").glob(f"step-*/{name}"):
        path.write_bytes(b"torn")
    assert report_errors(run, capsys)[0] == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    weights = page[page.index('<section id="weights">') : page.index('<section id="scales">')]
    assert 'class="warning"' in weights
    assert "<figure" not in weights


def test_a_profile_is_no_run_and_has_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile.json").write_text("{}")
    status, stderr = report_errors(tmp_path, capsys)
    assert status == 2
    assert str(tmp_path / "report.html") in stderr
