"""A run and data sets: its own, one of another vocabulary, one of another day, and both where they were moved to."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.data.store.manifest import read_manifest, write_manifest

SETTINGS = {
    "model.embedding-dim": "4",
    "model.bottom-mlp": "4",
    "model.top-mlp": "4,1",
    "train.batch-size": "64",
    "train.epochs": "1",
    "train.threads": "1",
}
OPTIONS = [text for key, value in SETTINGS.items() for text in (f"--{key}", value)]
ROWS = 700


def prepare(raw: Path, out: Path, *options: str) -> None:
    assert main(["prepare", str(raw), "--format", "kaggle", "--out", str(out), *options]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project: runs/a was trained on data/first; data/reversed and data/later hold its rows in reverse order."""
    project = tmp_path_factory.mktemp("made") / "project"
    data = project / "data"
    data.mkdir(parents=True)
    raw, backwards = data / "rows.txt", data / "backwards.txt"
    assert main(["data", "generate", str(raw), "--rows", str(ROWS)]) == 0
    backwards.write_text("".join(reversed(raw.read_text().splitlines(keepends=True))))
    prepare(raw, data / "first")
    prepare(backwards, data / "reversed")
    prepare(backwards, data / "later", "--vocabulary", str(data / "first"), "--split", "none")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        assert main(["train", "--data", "data/first", "--run-dir", "runs/a", *OPTIONS]) == 0
    return project


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy of the project at another place, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "project"))


def evaluate(run_dir: Path, *options: object) -> int:
    return main(["evaluate", "--run-dir", str(run_dir), "--json", *map(str, options)])


def forget_identity(folder: Path) -> None:
    """Leaves the manifest as earlier versions wrote it."""
    write_manifest(folder, replace(read_manifest(folder), identity=None))


def test_rows_of_another_vocabulary_are_not_scored(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert evaluate(made / "runs" / "a", "--data", made / "data" / "reversed") == 1
    printed = capsys.readouterr()
    assert "has another vocabulary than the model" in printed.err
    assert "prepare the rows with --vocabulary DATASET" in printed.err
    assert printed.out == ""


def test_a_model_is_not_compressed_by_rows_of_another_vocabulary(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", str(made / "runs" / "a"), "--data", str(made / "data" / "reversed")]) == 1
    assert "has another vocabulary than the model" in capsys.readouterr().err
    assert not (made / "runs" / "a" / "compressed").exists()


def test_a_run_is_not_resumed_on_another_vocabulary(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--resume", "auto", "--data", str(project / "data" / "reversed"), "--train.epochs", "2"]
    assert main(["train", "--run-dir", str(project / "runs" / "a"), *options]) == 1
    assert "another vocabulary" in capsys.readouterr().err


def test_another_schema_is_not_scored(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(made / "runs" / "a", "--data", "synthetic") == 1
    assert "has another schema and vocabulary than the model" in capsys.readouterr().err


@pytest.mark.parametrize(("part", "rows"), [("train", ROWS), ("all", ROWS)])
def test_another_day_is_scored_whole(made: Path, part: str, rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    """It has more training rows than the run's own data, and no others."""
    capsys.readouterr()
    assert evaluate(made / "runs" / "a", "--data", made / "data" / "later", "--part", part) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["examples"] == rows
    assert printed.err == ""


def test_a_part_without_rows_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(made / "runs" / "a", "--data", made / "data" / "later", "--part", "test") == 1
    assert "has no test rows; those that it has are scored with --part train" in capsys.readouterr().err


def test_all_parts_are_scored_together(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their clicks are counted in each part alone, and then in all of them."""
    found = {}
    for part in ("train", "validation", "test", "all"):
        capsys.readouterr()
        assert evaluate(made / "runs" / "a", "--part", part) == 0
        found[part] = json.loads(capsys.readouterr().out)
    assert found["all"]["examples"] == ROWS
    whole = found.pop("all")
    mean = sum(part["log_loss"] * part["examples"] for part in found.values()) / ROWS
    assert whole["log_loss"] == pytest.approx(mean)


def test_rows_that_are_left_out_are_told(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = made / "data" / "first"
    assert evaluate(made / "runs" / "a", "--data", data, "--data.test-rows", "10") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["examples"] == 10
    assert f"note: scoring 10 of the {read_manifest(data).num_rows('test')} test rows" in printed.err


def test_what_cannot_be_checked_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = project / "data" / "later"
    forget_identity(later)
    assert evaluate(project / "runs" / "a", "--data", later, "--part", "all") == 0
    stderr = capsys.readouterr().err
    assert f"warning: {later} does not say which vocabulary its ids belong to" in stderr


def test_the_rows_of_the_run_itself_need_no_vocabulary(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = project / "data" / "first"
    forget_identity(first)
    assert evaluate(project / "runs" / "a", "--data", first) == 0
    assert "warning" not in capsys.readouterr().err


def test_the_run_finds_its_data_from_any_folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate(made / "runs" / "a") == 0


@pytest.mark.parametrize("recorded", ["absolute", "relative"])
def test_run_and_data_that_moved_together_are_found(
    recorded: str, made: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of earlier versions recorded the path as it was given."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    settings = project / "runs" / "a" / "config.toml"
    gone = tmp_path / "gone" / "data" / "first" if recorded == "absolute" else Path("data/first")
    text = settings.read_text()
    assert str(made / "data" / "first") in text
    settings.write_text(text.replace(str(made / "data" / "first"), str(gone)))
    assert evaluate(project / "runs" / "a") == 0
    resumed = ["train", "--run-dir", str(project / "runs" / "a"), "--resume", "auto", "--train.epochs", "2"]
    assert main(resumed) == 0


def moved_away(project: Path) -> Path:
    """The run's data set, where the run no longer finds it; config.toml names a place that is gone."""
    moved = project / "elsewhere" / "kept"
    moved.parent.mkdir()
    (project / "data" / "first").rename(moved)
    settings = project / "runs" / "a" / "config.toml"
    lines = [line if not line.startswith("source") else 'source = "data/first"' for line in settings.open()]
    settings.write_text("\n".join(line.rstrip("\n") for line in lines) + "\n")
    return moved


def test_data_that_moved_alone_are_asked_for(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    moved = moved_away(project)
    assert evaluate(project / "runs" / "a") == 1
    stderr = capsys.readouterr().err
    digest = read_manifest(moved).digest()
    assert f"give the one with fingerprint {digest}" in stderr
    assert "--data DIR" in stderr
    assert evaluate(project / "runs" / "a", "--data", moved) == 0


def test_other_rows_at_the_path_beside_the_run_are_not_taken(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    moved_away(project)
    (project / "data" / "reversed").rename(project / "data" / "first")
    assert evaluate(project / "runs" / "a") == 1
    assert "there is no data set there, nor at that path beside the run" in capsys.readouterr().err
