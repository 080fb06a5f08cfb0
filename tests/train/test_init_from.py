"""`train --init-from`: yesterday's rows under today's numbers, everything else as it was, and no need of yesterday."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from commands import dqrm_cpu
from days import COLUMNS, SMALL, checked, prepare_day, write_day
from dqrm_cpu.api.settings import GivenSettings, config_to_score, recorded_config
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import load_vocabulary
from dqrm_cpu.data.store.manifest import PART_NAMES, read_manifest, write_manifest
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.checkpoint_rows import RowReader
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.session import trained_session
from launching import run_world
from preparing import rows_of

FIRST = "step-000000000"
ROWS = 1500


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days: `one`, `two` that grew from it, and `one-again`, the rows of day one under the numbers of two."""
    folder = tmp_path_factory.mktemp("days")
    raw = [write_day(folder, day, ROWS) for day in (1, 2)]
    prepare_day(raw[0], folder / "one")
    prepare_day(raw[1], folder / "two", "--grow-from", folder / "one")
    prepare_day(raw[0], folder / "one-again", "--vocabulary", folder / "two")
    return folder


@pytest.fixture(scope="module")
def parent(days: Path) -> Path:
    checked("train", *SMALL, "--data", days / "one", "--run-dir", days / "parent")
    return days / "parent"


def logits_of(run_dir: Path, data: Path, which: str) -> NDArray[np.float32]:
    """Returns the logits of all rows of a data set under a checkpoint of a run, in their order."""
    parts = ("train", "validation", "test")
    config = config_to_score(GivenSettings({"data.source": str(data)}), run_dir, parts, print)
    path = find_checkpoint(checkpoints_folder(run_dir), which)
    session = trained_session(config, path, SingleTransport(), lambda text: None)
    loaders = session.loaders
    return session.evaluate.predictions(loaders.train, loaders.validation, loaders.test).logits


def first_checkpoint(run_dir: Path) -> str:
    return str(checkpoints_folder(run_dir) / FIRST)


@pytest.mark.parametrize(
    "options",
    [
        ("--train.optimizer", "sgd"),
        ("--train.optimizer", "rowwise-adagrad"),
        ("--quant.method", "none", "--train.optimizer", "rowwise-adagrad"),
        ("--quant.method", "lsq", "--train.optimizer", "rowwise-adagrad"),
        ("--quant.method", "dorefa"),
        ("--quant.activation-bits", "8", "--quant.mlp-bits", "8"),
        ("--quant.step-width", "1.7", "--quant.scale-finder", "scan", "--comm.simulated-ranks", "2"),
        ("--comm.simulated-ranks", "2", "--comm.wire", "int8", "--comm.error-feedback", "all"),
        ("--model.table-dims", "C1=3,C2=20", "--train.optimizer", "rowwise-adagrad"),
        ("--train.master-rows", "int8", "--train.optimizer", "rowwise-adagrad"),
        ("--train.master-rows", "bf16", "--model.table-dims", "C1=3,C2=20"),
    ],
    ids=lambda options: " ".join(options),
)
def test_before_its_first_step_the_new_run_predicts_what_the_old_one_does(
    days: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    checked("train", *SMALL, *options, "--data", days / "one", "--run-dir", old)
    checked("train", "--init-from", old, "--data", days / "two", "--run-dir", new, "--seed", 7)
    expected = logits_of(old, days / "one", "best")
    assert np.array_equal(logits_of(new, days / "one-again", first_checkpoint(new)), expected)
    assert not np.array_equal(logits_of(new, days / "one-again", "last"), expected)


def test_rows_follow_their_categories(days: Path, parent: Path, tmp_path: Path) -> None:
    """Every category of day one has in the new run the row that it had in the old one; new ones are at the end."""
    checked("train", "--init-from", parent, "--data", days / "two", "--run-dir", tmp_path / "new")
    old, new = (load_vocabulary(days / name) for name in ("one", "two"))
    paths = [find_checkpoint(checkpoints_folder(parent), "best"), checkpoints_folder(tmp_path / "new") / FIRST]
    starts = [np.cumsum([0, *read_manifest(days / name).table_rows]) for name in ("one", "two")]
    for t in range(len(COLUMNS)):
        count = old.keys[t].size
        assert np.array_equal(new.keys[t][:count], old.keys[t])
        assert new.keys[t].size > count
        before, after = (
            RowReader(path).read("tables", int(start[t]), 1 + count) for path, start in zip(paths, starts, strict=True)
        )
        assert np.array_equal(before, after)


@pytest.mark.parametrize("method", ["none", "lsq", "dqrm"])
def test_rows_without_an_evicted_category_are_predicted_as_before(days: Path, tmp_path: Path, method: str) -> None:
    """Exactly so, but where the largest weight of a table leaves and a finer scale is found; which is said."""
    checked("train", *SMALL, "--quant.method", method, "--data", days / "one", "--run-dir", tmp_path / "old")
    thinned = prepare_day(days / "day-2.csv", tmp_path / "thinned", "--grow-from", days / "one", "--evict-unseen", 1)
    prepare_day(days / "day-1.csv", tmp_path / "again", "--vocabulary", thinned)
    evicted = sum(column.evicted or 0 for column in read_manifest(thinned).columns)
    new = tmp_path / "new"
    done = checked("train", "--init-from", tmp_path / "old", "--data", thinned, "--run-dir", new)
    assert f"{evicted:,} left behind" in done.stderr
    assert evicted > 50
    all_known = np.concatenate([(rows_of(tmp_path / "again", part)[2] > 0).all(1) for part in PART_NAMES])
    assert 0 < all_known.sum() < ROWS
    before = logits_of(tmp_path / "old", days / "one", "best")
    after = logits_of(new, tmp_path / "again", first_checkpoint(new))
    assert np.array_equal(before[all_known], after[all_known]) == ("a finer scale is found" not in done.stderr)
    assert ("a finer scale is found" in done.stderr) == (method == "dqrm")


def test_the_settings_are_those_of_the_parent_but_for_the_sizes(days: Path, parent: Path, tmp_path: Path) -> None:
    done = checked(
        *("train", "--init-from", parent, "--data", days / "two", "--run-dir", tmp_path / "new"),
        *("--train.learning-rate", "0.05"),
    )
    assert "rows of tables as they were" in done.stderr
    old, new = (recorded_config(folder) for folder in (parent, tmp_path / "new"))
    assert new.model.table_rows == read_manifest(days / "two").table_rows != old.model.table_rows
    assert new.model.top_mlp == old.model.top_mlp
    assert (new.train.batch_size, new.train.learning_rate) == (50, 0.05)
    assert new.init_from == str(parent)
    assert new.data.train_rows == read_manifest(days / "two").num_rows("train")


def test_a_checkpoint_by_its_folder(days: Path, parent: Path, tmp_path: Path) -> None:
    path = find_checkpoint(checkpoints_folder(parent), "last")
    for name, place in (("run", parent), ("checkpoint", path)):
        checked("train", "--init-from", place, "--data", days / "two", "--run-dir", tmp_path / name)
    ends = [find_checkpoint(checkpoints_folder(tmp_path / name), "last") for name in ("run", "checkpoint")]
    assert shards_of(ends[0]) == shards_of(ends[1])


def test_nothing_of_yesterday_is_needed_any_more(days: Path, tmp_path: Path) -> None:
    """Stopped after some steps, without the parent and its data, the run ends as one that nothing disturbed."""
    checked("train", *SMALL, "--data", days / "one", "--run-dir", tmp_path / "old")
    begin = ("train", "--init-from", tmp_path / "old", "--data", days / "two", "--run-dir")
    checked(*begin, tmp_path / "whole")
    checked(*begin, tmp_path / "cut", "--train.max-steps", 5)
    shutil.rmtree(tmp_path / "old")
    checked("train", "--run-dir", tmp_path / "cut", "--resume", "auto", "--train.max-steps", 0)
    ends = [find_checkpoint(checkpoints_folder(tmp_path / name), "last") for name in ("whole", "cut")]
    assert shards_of(ends[0]) == shards_of(ends[1])
    (first := Path(first_checkpoint(tmp_path / "cut"))).rename(tmp_path / "kept")
    refused = dqrm_cpu("train", "--run-dir", tmp_path / "cut", "--resume", "auto", "--init-from", tmp_path / "kept")
    assert refused.returncode == 1
    assert "is for a new one" in refused.stderr
    assert not first.exists()


@pytest.mark.parametrize("again", [(), ("--resume", "auto")])
def test_killed_before_its_first_checkpoint_the_same_command_begins_again(
    days: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: tuple[str, ...]
) -> None:
    begin = ("train", "--init-from", parent, "--data", days / "two", "--run-dir")
    checked(*begin, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("dqrm_cpu.train.beginning.initialize_from", killed)
        with pytest.raises(KilledHere):
            dqrm_cpu(*begin, tmp_path / "cut")
    assert (tmp_path / "cut" / "config.toml").exists()
    other = dqrm_cpu("train", *SMALL, "--data", days / "two", "--run-dir", tmp_path / "cut")
    assert "holds a run already" in other.stderr
    if again:
        checked("train", "--run-dir", tmp_path / "cut", *again)
    else:
        checked(*begin, tmp_path / "cut")
        assert "holds a run already" in dqrm_cpu(*begin, tmp_path / "cut").stderr
    ends = [find_checkpoint(checkpoints_folder(tmp_path / name), "last") for name in ("whole", "cut")]
    assert shards_of(ends[0]) == shards_of(ends[1])


class KilledHere(BaseException):
    """Stands for a process that ends on the spot."""


def killed(*_: object) -> None:
    raise KilledHere


def shards_of(checkpoint: Path) -> dict[str, bytes]:
    """Returns the bytes of all tensors of a checkpoint."""
    return {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model.embedding-dim", "4", "--model.bottom-mlp", "9,4"), "model.embedding_dim 6 there, 4 here"),
        (("--model.top-mlp", "12,1"), "model.top_mlp 11,1 there, 12,1 here"),
        (("--model.interaction", "cat"), "model.interaction dot there, cat here"),
        (("--data", "{narrow}"), "3 tables (model.table_rows) there, 2 here"),
        (("--data", "{renamed}"), "(without user, with client)"),
        (
            (
                "--data",
                "synthetic",
                "--data.min-count",
                "0",
                "--model.num-dense",
                "2",
                "--model.table-rows",
                "40,40,40",
            ),
            "stand for other",
        ),
        (("--init-from", "{nowhere}"), "there is no such folder"),
        (("--init-from", "{one}"), "there is no checkpoint in it"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else value[0],
)
def test_what_does_not_fit_is_refused_by_name(
    days: Path, parent: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    places = {name: tmp_path / name for name in ("narrow", "renamed", "nowhere")} | {"one": days / "one"}
    lines = (days / "day-2.csv").read_text().splitlines()
    for name, columns, cut in (("narrow", COLUMNS[:2], 1), ("renamed", (*COLUMNS[:2], "client"), 0)):
        if f"{{{name}}}" in options:
            raw = write_day(tmp_path / f"raw-{name}", 2, 10)
            raw.write_text("\n".join(line.rsplit(",", cut)[0] for line in lines))
            schema = (days / "clicks.toml").read_text().replace(str(list(COLUMNS)), str(list(columns)))
            fields = ["click", "hour", "age", *columns]
            (raw.parent / "clicks.toml").write_text(schema.partition("fields")[0] + f"fields = {fields}\n")
            prepare_day(raw, places[name])
    filled = [option.format(**places) for option in options]
    begin = ("train", "--init-from", parent, "--data", days / "two", "--run-dir", tmp_path / "new")
    done = dqrm_cpu(*begin, *filled)
    assert done.returncode in (1, 2), done.stderr
    assert words in done.stderr
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_generated_clicks_go_on_under_the_same_ids(tmp_path: Path) -> None:
    clicks = ("--data.train-rows", "1000", "--data.validation-rows", "200", "--data.test-rows", "200")
    tables = ("--model.table-rows", "40,3,500")
    checked("train", *SMALL, *clicks, *tables, "--run-dir", tmp_path / "old")
    checked("train", "--init-from", tmp_path / "old", "--data.train-rows", "1500", "--run-dir", tmp_path / "new")
    first = Path(first_checkpoint(tmp_path / "new"))
    old = RowReader(find_checkpoint(checkpoints_folder(tmp_path / "old"), "best")).read("tables", 0, 543)
    assert np.array_equal(RowReader(first).read("tables", 0, 543), old)
    other = ("--init-from", tmp_path / "old", "--model.table-rows", "41,3,500", "--run-dir", tmp_path / "other")
    refused = dqrm_cpu("train", *other)
    assert "stand for other categories" in refused.stderr


@pytest.mark.mpi
def test_two_ranks_begin_as_one_that_plays_both(days: Path, parent: Path, tmp_path: Path) -> None:
    begin = ("train", "--init-from", parent, "--data", days / "two", "--run-dir")
    checked(*begin, tmp_path / "simulated", "--comm.simulated-ranks", 2)
    arguments = ["-m", "dqrm_cpu", *begin, tmp_path / "real", "--comm.transport", "mpi"]
    run_world("mpi", arguments, 2, timeout_s=280).check()
    ends = [find_checkpoint(checkpoints_folder(tmp_path / name), "last") for name in ("simulated", "real")]
    assert shards_of(ends[0]) == shards_of(ends[1])


@pytest.mark.mpi
def test_ranks_that_cannot_begin_say_so_once(days: Path, parent: Path, tmp_path: Path) -> None:
    begin = ["train", "--init-from", parent, "--data", days / "two", "--run-dir", tmp_path / "new"]
    world = run_world("mpi", ["-m", "dqrm_cpu", *begin, "--model.top-mlp", "12,1"], 2)
    assert world.returncode != 0
    assert sum(rank.stderr.count("has another architecture") for rank in world.ranks) == 1


def test_of_a_data_set_that_grew_the_one_before_may_be_gone(days: Path, parent: Path, tmp_path: Path) -> None:
    """Its manifest names what it grew from; by value, from both vocabularies, the rows are the same."""
    twin = shutil.copytree(days / "two", tmp_path / "twin")
    manifest = read_manifest(twin)
    assert manifest.parent == read_manifest(days / "one").identity
    write_manifest(twin, replace(manifest, parent=None))
    checked("train", "--init-from", parent, "--data", twin, "--run-dir", tmp_path / "by-value")
    (days / "one").rename(tmp_path / "away")
    try:
        refused = dqrm_cpu("train", "--init-from", parent, "--data", twin, "--run-dir", tmp_path / "refused")
        checked("train", "--init-from", parent, "--data", days / "two", "--run-dir", tmp_path / "by-lineage")
    finally:
        (tmp_path / "away").rename(days / "one")
    assert "is gone: nobody can say which row a category had" in refused.stderr
    ends = [find_checkpoint(checkpoints_folder(tmp_path / name), "last") for name in ("by-value", "by-lineage")]
    assert shards_of(ends[0]) == shards_of(ends[1])
