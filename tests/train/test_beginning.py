"""Test, then train: what the model of the day before has on a day's rows, before it learns from them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import dqrm_cpu
from days import SMALL, checked, prepare_day, write_day
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import load_vocabulary
from dqrm_cpu.data.store.manifest import PART_NAMES, read_manifest
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.predict.scorer import zero_rows
from dqrm_cpu.predict.trained_model import find_model
from dqrm_cpu.train.beginning import read_beginning
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.run_place import checkpoints_folder
from preparing import rows_of

ROWS = 1500


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Day one, day two that grew from it, and the rows of day two under the vocabulary of day one."""
    folder = tmp_path_factory.mktemp("days")
    raw = [write_day(folder, day, ROWS) for day in (1, 2)]
    prepare_day(raw[0], folder / "one", "--min-count", 2)
    prepare_day(raw[1], folder / "two", "--grow-from", folder / "one", "--min-count", 2, "--evict-unseen", 1)
    prepare_day(raw[1], folder / "under-one", "--split", "none", "--vocabulary", folder / "one")
    return folder


def scored(run_dir: Path, data: Path, *options: object) -> Any:
    command = ("evaluate", "--run-dir", run_dir, "--data", data, "--part", "all", "--json", *options)
    return json.loads(checked(*command).stdout)


def ends_of(*runs: Path) -> list[dict[str, bytes]]:
    """The bytes of all tensors of the last checkpoints."""
    folders = [find_checkpoint(checkpoints_folder(run), "last") for run in runs]
    return [{path.name: path.read_bytes() for path in folder.glob("*.safetensors")} for folder in folders]


@pytest.mark.parametrize(
    "options",
    [
        ("--quant.method", "none", "--data.sub-sample-rate", "0.4"),
        ("--quant.method", "lsq", "--quant.activation-bits", "8"),
        ("--train.optimizer", "rowwise-adagrad", "--train.learning-rate", "0.1", "--comm.simulated-ranks", "2"),
    ],
    ids=lambda options: " ".join(options),
)
def test_the_first_test_is_what_evaluate_says_of_yesterdays_model(
    days: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """New categories are unknown to it, and those that left are in no row: the same figures, by one command less."""
    old, new, untested = (tmp_path / name for name in ("old", "new", "untested"))
    checked("train", *SMALL, *options, "--data", days / "one", "--run-dir", old)
    begin = ("train", "--init-from", old, "--data", days / "two", "--run-dir")
    done = checked(*begin, new)
    beginning = read_beginning(new)
    assert beginning is not None
    assert beginning.tested is not None
    expected = scored(old, days / "under-one")
    found = asdict(beginning.tested)
    assert found["examples"] == ROWS
    for name in ("auc", "log_loss", "normalized_entropy", "calibration"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    assert f"it has on 1,500 rows of this data AUC {expected['auc']:.4f}" in done.stderr
    # The largest weight of a table left: the test is at the old scale, the training at a finer one.
    assert ("finer scale" in done.stderr) == ("rowwise-adagrad" in options)
    columns = read_manifest(days / "two").columns
    assert beginning.fresh_rows == sum(column.added or 0 for column in columns)
    assert beginning.rows_left_behind == sum(column.evicted or 0 for column in columns)
    checked(*begin, untested, "--train.test-first", "false")
    ends = ends_of(new, untested)
    assert ends[0] == ends[1]
    assert read_beginning(untested) is not None


class KilledHere(BaseException):
    """Stands for a process that ends on the spot."""


def test_killed_on_the_way_the_same_command_finds_the_same(
    days: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KilledHere

    checked("train", *SMALL, "--data", days / "one", "--run-dir", tmp_path / "old")
    begin = ("train", "--init-from", tmp_path / "old", "--data", days / "two", "--run-dir")
    checked(*begin, tmp_path / "whole")
    for place in ("beginning._tested", "beginning.write_document", "saver.Saver.save"):
        with monkeypatch.context() as patch:
            patch.setattr(f"dqrm_cpu.train.{place}", killed)
            with pytest.raises(KilledHere):
                dqrm_cpu(*begin, tmp_path / "cut")
    checked(*begin, tmp_path / "cut")
    assert read_beginning(tmp_path / "cut") == read_beginning(tmp_path / "whole") is not None
    ends = ends_of(tmp_path / "whole", tmp_path / "cut")
    assert ends[0] == ends[1]


def test_probabilities_stay_where_training_rows_keep_another_share_of_non_clicks(days: Path, tmp_path: Path) -> None:
    checked("train", *SMALL, "--data", days / "one", "--run-dir", tmp_path / "old", "--data.negative-keep-rate", "0.5")
    begin = ("train", "--init-from", tmp_path / "old", "--data", days / "one", "--run-dir")
    done = checked(*begin, tmp_path / "new", "--data.negative-keep-rate", "0.2", "--data.sub-sample-rate", "0.5")
    assert "logits moved by +1.609" in done.stderr  # log(0.5 / (0.2 * 0.5))
    first = checkpoints_folder(tmp_path / "new") / "step-000000000"
    before, after = (
        scored(run, days / "one", "--part", "test", *options)
        for run, options in ((tmp_path / "old", ()), (tmp_path / "new", ("--checkpoint", first)))
    )
    assert after["log_loss"] == pytest.approx(before["log_loss"], rel=1e-5)
    assert after["calibration"] == pytest.approx(before["calibration"], rel=1e-5)


def test_a_beginning_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "beginning.json").write_text('{"parent": 3}')
    with pytest.raises(CheckpointError, match=r"beginning\.json lacks or mistakes a field .*remove it"):
        read_beginning(tmp_path)


def test_categories_that_the_model_says_nothing_by_leave_at_no_loss(days: Path, tmp_path: Path) -> None:
    """Those of zero rows that no row of the day has; the day's probabilities are the same to the bit."""
    old = tmp_path / "old"
    checked("train", *SMALL, "--quant.step-width", 10, "--data", days / "one", "--run-dir", old)
    raw, one = days / "day-2.csv", days / "one"
    grown = prepare_day(raw, tmp_path / "grown", "--grow-from", one)
    thinned = prepare_day(raw, tmp_path / "thinned", "--grow-from", one, "--evict-zero", old)
    before, with_all, without = (load_vocabulary(folder) for folder in (one, grown, thinned))
    zero = zero_rows(find_model(old))
    for packed in (old / "packed").glob("*.safetensors"):
        assert all(map(np.array_equal, zero_rows(find_model(packed)), zero))
    for t, column in enumerate(read_manifest(thinned).columns[2:]):
        said_nothing = set(before.keys[t][zero[t][1:]].tolist())
        ids = np.unique(np.concatenate([rows_of(grown, part)[2][:, t] for part in PART_NAMES]))
        today = set(with_all.keys[t][ids[ids > 0] - 1].tolist())
        expected = [key for key in with_all.keys[t].tolist() if key not in said_nothing or key in today]
        assert without.keys[t].tolist() == expected
        assert column.evicted == with_all.keys[t].size - len(expected)
    assert sum(column.evicted or 0 for column in read_manifest(thinned).columns) > 10
    for data, name in ((grown, "all"), (thinned, "few")):
        checked("train", "--init-from", old, "--data", data, "--run-dir", tmp_path / name)
    found = [read_beginning(tmp_path / name) for name in ("all", "few")]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].tested == found[1].tested is not None
    assert found[0].rows_left_behind == 0 < found[1].rows_left_behind


def test_a_model_of_other_ids_is_refused_for_eviction(days: Path, tmp_path: Path) -> None:
    checked("train", *SMALL, "--data", days / "two", "--run-dir", tmp_path / "two")
    prepare = ("prepare", days / "day-2.csv", "--schema", days / "clicks.toml", "--out", tmp_path / "new")
    refused = dqrm_cpu(*prepare, "--grow-from", days / "one", "--evict-zero", tmp_path / "two")
    assert refused.returncode == 1
    assert "has another vocabulary than the model" in refused.stderr
    refused = dqrm_cpu(*prepare, "--evict-zero", tmp_path / "two")
    assert refused.returncode == 2
    assert "give that one with --grow-from DIR" in refused.stderr
