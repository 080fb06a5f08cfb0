"""The count of rows that an id needs, chosen before training: shown, recorded, resumed, followed, on all ranks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands import CommandOutput, dqrm_cpu
from dqrm_cpu.config import Config, load_config
from dqrm_cpu.data.common_ids import common, id_counts, with_common_ids
from dqrm_cpu.data.prepare.protocols import PROTOCOLS
from dqrm_cpu.data.prepare.recount import counted_folder
from dqrm_cpu.data.source import open_data
from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.data.store.run_data import follow_data
from dqrm_cpu.data.synthetic.known_ids import known_clicks
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.train.session import build_session
from dqrm_cpu.train.tuning import min_count, search
from dqrm_cpu.train.tuning.halving import Trial, last_within
from dqrm_cpu.train.tuning.record import COUNT_FILE, MIN_COUNT, SearchRecord, read_record
from launching import run_world
from preparing import criteo_text, prepared
from several_commands import several_commands

SMALL = ("--model.embedding-dim", 8, "--model.bottom-mlp", "8,8", "--model.top-mlp", "16,1", "--train.threads", 1)


def train(data: Path, run_dir: Path, *others: object) -> list[object]:
    return ["train", "--preset", "production", "--data", data, "--run-dir", run_dir, *SMALL, *others]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    (folder / "train.txt").write_text(criteo_text(1500))
    shares = PROTOCOLS["x4"].random_split
    prepared([folder / "train.txt"], folder / "data", random_split=shares, protocol="x4")
    return folder / "data"


@pytest.fixture(scope="module")
def finished(data: Path) -> tuple[Path, CommandOutput]:
    """A run that nothing disturbed, and what its command wrote."""
    output = dqrm_cpu(*train(data, data.parent / "run"))
    assert output.returncode == 0, output.stderr
    return data.parent / "run", output


def record_of(run_dir: Path) -> SearchRecord:
    record = read_record(run_dir, COUNT_FILE)
    assert record is not None
    return record


def chosen_count(run_dir: Path) -> int:
    record = record_of(run_dir)
    assert record.chosen is not None
    return int(str(record.trials[record.chosen].values[MIN_COUNT]))


def config_of(run_dir: Path) -> Config:
    return load_config(None, run_dir / "config.toml", {})


def test_the_run_trains_on_the_rows_of_the_count(finished: tuple[Path, CommandOutput], data: Path) -> None:
    run_dir, _ = finished
    config, count = config_of(run_dir), chosen_count(run_dir)
    assert count > 1  # labels are drawn: no category means anything
    assert config.data.min_count == count
    assert config.data.source == str(counted_folder(data, count))
    manifest = read_manifest(Path(config.data.source))
    assert config.model.table_rows == manifest.table_rows
    record = record_of(run_dir)
    assert record.chosen is not None
    assert sum(manifest.table_rows) == record.kept[record.chosen].rows
    assert sum(read_manifest(data).table_rows) == record.kept[0].rows


def test_a_trial_of_all_rows_is_the_run(finished: tuple[Path, CommandOutput]) -> None:
    """Replacing ids as rows are read trains the model that the data set of the count trains, to the bit."""
    record = record_of(finished[0])
    assert record.chosen is not None
    (score,) = record.trials[record.chosen].scores
    assert score is not None
    result = json.loads((finished[0] / "result.json").read_text())
    assert (score.auc, score.log_loss) == (
        result["validation"]["last"]["auc"],
        result["validation"]["last"]["log_loss"],
    )


def test_the_choice_is_shown_with_its_reason(finished: tuple[Path, CommandOutput]) -> None:
    run_dir, output = finished
    record, lines = record_of(run_dir), output.stderr.splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.split()[:3] == ["trial", "min", "count"]]
    assert "cells without a row" in lines[head]
    for number, (line, trial, kept) in enumerate(zip(lines[head + 1 :], record.trials, record.kept, strict=False)):
        assert line.split()[:3] == [str(number + 1), str(trial.values[MIN_COUNT]), f"{kept.rows:,}"]
        assert line.endswith("chosen") == (number == record.chosen)
    reason = json.loads((run_dir / COUNT_FILE).read_text())["reason"]
    assert f"chosen: {reason}; all in {run_dir / COUNT_FILE}" in lines
    aucs = [trial.scores[-1].auc for trial in record.trials if trial.scores[-1] is not None]
    within = [number for number, auc in enumerate(aucs) if auc >= max(aucs) - 0.001]
    assert record.chosen == within[-1]
    page = run_dir.parent / "page.html"
    assert dqrm_cpu("report", run_dir, "--out", page).returncode == 0
    assert reason in page.read_text()


def test_figures_of_a_protocol_stand_beside_what_was_published_by_it(finished: tuple[Path, CommandOutput]) -> None:
    run_dir, output = finished
    evaluated = dqrm_cpu("evaluate", run_dir)
    assert evaluated.returncode == 0, evaluated.stderr
    page = run_dir.parent / "protocol.html"
    assert dqrm_cpu("report", run_dir, "--out", page).returncode == 0
    for text in (output.stdout, evaluated.stdout, page.read_text()):
        assert "DeepFM AUC 0.8143" in text
        assert "splits are not comparable" in text


def test_the_same_command_finds_everything_done(
    finished: tuple[Path, CommandOutput], data: Path, tmp_path: Path
) -> None:
    run_dir = shutil.copytree(finished[0], tmp_path / "run")
    again = dqrm_cpu(*train(data, run_dir, "--resume", "auto"))
    assert again.returncode == 0, again.stderr
    assert "trial 1 of" not in again.stderr
    for name in (COUNT_FILE, "config.toml", "packed/dense.safetensors"):
        assert (run_dir / name).read_bytes() == (finished[0] / name).read_bytes()


def test_an_interrupted_search_goes_on_and_chooses_the_same(
    finished: tuple[Path, CommandOutput], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is lost in its third trial; the two before are not run again."""
    run_dir, builds = tmp_path / "run", 0

    def lost_at_the_third(*arguments: object) -> object:
        nonlocal builds
        builds += 1
        if builds == 3:
            raise KeyboardInterrupt
        return build_session(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "build_session", lost_at_the_third)
    assert dqrm_cpu(*train(data, run_dir)).returncode != 0
    monkeypatch.undo()
    other = dqrm_cpu("train", "--data", data, "--run-dir", run_dir, *SMALL)
    assert other.returncode == 2
    assert "holds a search for data.min_count" in other.stderr
    output = dqrm_cpu(*train(data, run_dir, "--resume", "auto"))
    assert output.returncode == 0, output.stderr
    assert output.stderr.count(" steps  min count ") == len(record_of(run_dir).trials) - 2
    for name in (COUNT_FILE, "config.toml"):
        assert (run_dir / name).read_bytes() == (finished[0] / name).read_bytes()


def test_the_next_run_keeps_the_count(finished: tuple[Path, CommandOutput], tmp_path: Path) -> None:
    run_dir, source = finished[0], config_of(finished[0]).data.source
    output = dqrm_cpu(*train(Path(source), tmp_path / "next", "--init-from", run_dir))
    assert output.returncode == 0, output.stderr
    assert f"min count {chosen_count(run_dir)}, as in " in output.stderr
    assert not (tmp_path / "next" / COUNT_FILE).exists()
    assert config_of(tmp_path / "next").data == config_of(run_dir).data


def test_rows_with_a_count_of_their_own_keep_it(finished: tuple[Path, CommandOutput], tmp_path: Path) -> None:
    source, count = Path(config_of(finished[0]).data.source), chosen_count(finished[0])
    output = dqrm_cpu(*train(source, tmp_path / "run", "--train.max-steps", 2))
    assert output.returncode == 0, output.stderr
    assert f"was prepared with a min-count of {count}" in output.stderr
    assert config_of(tmp_path / "run").data.min_count == count
    more = dqrm_cpu(*train(source, tmp_path / "more", "--data.min-count", count + 1))
    assert more.returncode == 2
    assert "are not chosen by count" in more.stderr


@pytest.mark.mpi
def test_two_ranks_choose_together(finished: tuple[Path, CommandOutput], data: Path, tmp_path: Path) -> None:
    """Simulated ranks give the same as real ones."""
    short = ("--train.max-steps", 3)
    simulated = dqrm_cpu(*train(data, tmp_path / "one", "--comm.simulated-ranks", 2, *short))
    assert simulated.returncode == 0, simulated.stderr
    run_world("gloo", several_commands(train(data, tmp_path / "two", *short)), 2, timeout_s=240).check()
    one, two = (record_of(tmp_path / name) for name in ("one", "two"))
    assert one.trials == two.trials
    assert config_of(tmp_path / "two").data == config_of(tmp_path / "one").data


def test_generated_rows_of_a_count_are_those_with_the_rare_ids_taken_away() -> None:
    base = replace(Config(), data=replace(Config().data, min_count=1, train_rows=3000, validation_rows=200))
    one, five = (follow_data(replace(base, data=replace(base.data, min_count=count)), frozenset()) for count in (1, 5))
    data = open_data(one)
    kept = common(id_counts(data.train, one.model.table_rows, 3000), 5)
    assert tuple(int(keep.sum()) for keep in kept) == five.model.table_rows
    mine, theirs = with_common_ids(data, kept, 3000).validation.rows(0, 200), known_clicks(five).rows(3000, 3200)
    assert torch.equal(mine.ids, theirs.ids)
    assert torch.equal(mine.dense, theirs.dense)


def test_the_last_of_those_within_the_tolerance_is_chosen() -> None:
    def trials(*aucs: float | None) -> list[Trial]:
        return [Trial({}, (None if auc is None else metrics(auc),)) for auc in aucs]

    def metrics(auc: float) -> ClickMetrics:
        return ClickMetrics(auc, 0.5, 0.7, 1.0, 1.0, 100)

    assert last_within(trials(0.7, 0.7005, 0.6996, 0.6994), 0.001) == 2
    assert last_within(trials(0.7, 0.69, 0.6995), 0.001) == 2
    assert last_within(trials(None, 0.6, float("nan")), 0.001) == 1
    assert last_within(trials(None, None), 0.001) is None
    assert min_count.COUNTS[:6] == (1, 2, 3, 5, 10, 20)
