"""`import dqrm_cpu`: the same as the command line to the bit, nothing left behind, and errors rather than exits."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow
import pyarrow.parquet
import pytest
import torch

import dqrm_cpu
from clicks import QUICK, QUICK_OPTIONS, SCHEMA, click_columns
from commands import dqrm_cpu as command
from days import checked
from dqrm_cpu.api.progress import CallProgress
from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.serving import Model
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.progress import Progress
from dqrm_cpu.train.run_place import checkpoints_folder

SCHEMA_TOML = 'label = "click"\ncategories = ["item", "device"]\ndecimals = ["price", "balance"]\n'


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw rows, their schema, and what the command line makes of them: `data` and `run`."""
    folder = tmp_path_factory.mktemp("shop")
    pyarrow.parquet.write_table(pyarrow.table(click_columns()), folder / "rows.parquet")
    (folder / "schema.toml").write_text(SCHEMA_TOML)
    checked("prepare", folder / "rows.parquet", "--schema", folder / "schema.toml", "--out", folder / "data")
    checked("train", *QUICK_OPTIONS, "--data", folder / "data", "--run-dir", folder / "run")
    return folder


@pytest.fixture(scope="module")
def run(shop: Path) -> dqrm_cpu.Run:
    """The same run, by a call."""
    return dqrm_cpu.train(shop / "data", run_dir=shop / "called", **QUICK)


def weights(run_dir: Path) -> dict[str, bytes]:
    """Returns the bytes of the last checkpoint's tensors and of the packed files."""
    last = find_checkpoint(checkpoints_folder(run_dir), "last")
    return {
        path.name: path.read_bytes() for folder in (last, run_dir / "packed") for path in folder.glob("*.safetensors")
    }


class Interrupting(Progress):
    """Sends this process a signal once a step is done."""

    def __init__(self, step: int, number: int) -> None:
        self._step, self._number = step, number

    def update(self, step: int, loss: float) -> None:
        if step == self._step:
            os.kill(os.getpid(), self._number)


def interrupt(patch: pytest.MonkeyPatch, step: int, number: int) -> None:
    patch.setattr(CallProgress, "open", lambda self, first, total, stream: Interrupting(step, number))


# The same as on the command line.


@pytest.mark.parametrize("source", ["file", "pandas", "polars", "arrow", "rows"])
def test_a_call_prepares_what_the_command_prepares(shop: Path, tmp_path: Path, source: str) -> None:
    table = pyarrow.table(click_columns())
    sources: dict[str, Any] = {
        "file": shop / "rows.parquet",
        "pandas": table.to_pandas().astype({"device": "category"}),
        "polars": polars.DataFrame(click_columns()),
        "arrow": table,
        "rows": table.to_pylist(),
    }
    data = dqrm_cpu.prepare(
        sources[source], tmp_path / "data", schema=SCHEMA if source != "file" else shop / "schema.toml"
    )
    theirs = read_manifest(shop / "data")
    assert (data.manifest.digest(), data.manifest.identity) == (theirs.digest(), theirs.identity)
    assert Path(data) == tmp_path / "data"
    assert data.num_rows("train") == theirs.num_rows("train")


def test_a_call_trains_what_the_command_trains(shop: Path, run: "dqrm_cpu.Run") -> None:
    assert weights(run.path) == weights(shop / "run")
    assert run.settings == dqrm_cpu.Run(shop / "run").settings


def test_a_call_predicts_what_the_command_predicts(shop: Path, run: "dqrm_cpu.Run", tmp_path: Path) -> None:
    checked("predict", shop / "run", shop / "rows.parquet", "--keys", "item", "--out", tmp_path / "out.parquet")
    theirs = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pydict()
    columns = click_columns()
    scores = run.predict(columns)
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32
    assert scores.tolist() == theirs["probability"]
    assert run.predict(shop / "rows.parquet").tolist() == theirs["probability"]  # type: ignore[union-attr]
    kept = dqrm_cpu.predict(run, polars.DataFrame(columns), keys=["item"])
    assert isinstance(kept, dict)
    assert {name: column.tolist() for name, column in kept.items()} == theirs
    summary = dqrm_cpu.predict(run, columns, tmp_path / "called.parquet", keys=["item"])
    assert isinstance(summary, dqrm_cpu.PredictionSummary)
    assert summary.rows == 1500
    assert (tmp_path / "called.parquet").read_bytes() == (tmp_path / "out.parquet").read_bytes()


def test_a_row_that_cannot_be_read_has_no_probability(run: "dqrm_cpu.Run") -> None:
    columns: dict[str, Any] = {**click_columns(10), "balance": ["1.5"] * 3 + ["much"] + ["2"] * 6}
    with pytest.raises(dqrm_cpu.DqrmError, match="the given table, line 4"):
        run.predict(columns)
    scores = run.predict(columns, bad_rows="skip")
    assert isinstance(scores, np.ndarray)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3]
    others = {name: [v for k, v in enumerate(column) if k != 3] for name, column in columns.items()}
    assert np.delete(scores, 3).tolist() == run.predict(others).tolist()  # type: ignore[union-attr]


def test_a_call_evaluates_what_the_command_evaluates(shop: Path, run: "dqrm_cpu.Run") -> None:
    evaluation = run.evaluate(part="validation", group_by="item", slice_by="device", slices=1)
    done = checked("evaluate", "--run-dir", shop / "run", "--part", "validation", "--group-by", "item", "--json")
    assert f'"auc": {evaluation.metrics.auc!r}' in done.stdout
    assert evaluation.grouped is not None
    assert f'"gauc": {evaluation.grouped.gauc!r}' in done.stdout
    assert evaluation.slices is not None
    assert [len(evaluation.slices[0]), evaluation.slices[1] is not None] == [1, True]


# A run.


def test_a_finished_run_has_its_result(run: "dqrm_cpu.Run") -> None:
    result = dqrm_cpu.Run.open(run.path).result
    assert result is not None
    assert result.test.best == run.evaluate().metrics
    assert (result.run_dir, result.steps) == (run.path, 52)


def test_an_exported_file_scores_alike(shop: Path, run: "dqrm_cpu.Run", tmp_path: Path) -> None:
    written = run.export(tmp_path / "model.safetensors")
    assert written.path.stat().st_size == written.num_bytes
    rows = pyarrow.table(click_columns(20)).to_pylist()
    scores = run.predict(rows)
    assert isinstance(scores, np.ndarray)
    assert np.allclose(Model.open(written.path).predict(rows), scores, atol=1e-6)


def test_metrics_are_columns_of_pandas_and_polars(run: "dqrm_cpu.Run") -> None:
    metrics = run.metrics
    assert metrics["step"].dtype == np.int64
    assert set(metrics["phase"]) == {"train", "validation", "test"}
    assert metrics["step"][metrics["phase"] == "train"].tolist() == list(range(5, 51, 5))
    assert np.isnan(metrics["auc"][metrics["phase"] == "train"]).all()
    wide, tall = pandas.DataFrame(metrics), polars.DataFrame(metrics)
    assert wide[wide.phase == "validation"].auc.max() == run.result.validation.best.auc  # type: ignore[union-attr]
    assert tall.filter(polars.col("phase") == "test").height == len(wide[wide.phase == "test"])
    tables = polars.DataFrame(run.table_metrics)
    assert tables.filter(polars.col("phase") == "train")["table"].to_list() == [0, 1] * 10
    assert tables.filter(polars.col("phase") == "validation")["table_live_rows"].is_not_nan().all()


# Settings.


def test_the_demos_settings_may_be_typed_with_the_sizes_that_its_rows_decide() -> None:
    demo = dqrm_cpu.settings({"train_rows": 500})
    assert demo.data.min_count == 1
    assert dqrm_cpu.settings(config=demo) == demo
    sizes: dict[str, Any] = {"model.table_rows": (40, 3)}
    assert dqrm_cpu.settings(**sizes).data.min_count == 0


def test_settings_follow_the_data_set_and_may_be_typed(shop: Path, tmp_path: Path, run: "dqrm_cpu.Run") -> None:
    config = dqrm_cpu.settings(shop / "data", **QUICK)
    assert config.model.table_rows == read_manifest(shop / "data").table_rows
    assert config.train.learning_rate == 0.02  # the optimizer's own
    again = dqrm_cpu.train(config=config, run_dir=tmp_path / "typed")
    assert weights(again.path) == weights(run.path)
    other = replace(config, train=replace(config.train, learning_rate=0.1))
    assert dqrm_cpu.settings(config=other).train.learning_rate == 0.1  # that of SGD, but given
    assert dqrm_cpu.settings(shop / "data", quant=dqrm_cpu.QuantConfig(method="lsq")).quant.method == "lsq"
    of_numpy: dict[str, Any] = {"model.top_mlp": np.array([4, 1]), "train.batch_size": np.int64(7)}
    assert dqrm_cpu.settings(**of_numpy).model.top_mlp == (4, 1)


# Nothing is left behind.


def test_nothing_is_printed_and_the_process_is_as_it_was(
    shop: Path, run: "dqrm_cpu.Run", tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    threads, environment = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(3)
    try:
        dqrm_cpu.prepare(click_columns(60), tmp_path / "data", schema=SCHEMA)
        dqrm_cpu.train(shop / "data", run_dir=tmp_path / "run", **{**QUICK, "train.max_steps": 2, "train.threads": 1})
        run.predict(click_columns(5), workers=2)
        run.evaluate()
        with pytest.raises(dqrm_cpu.DqrmError):
            dqrm_cpu.train(shop / "data", run_dir=tmp_path / "run")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.is_grad_enabled()
    assert dict(os.environ) == environment
    assert [
        signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    ] == handlers
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_where_it_is_asked_for(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dqrm_cpu.train(shop / "data", run_dir=tmp_path / "run", progress=True, **{**QUICK, "train.max_steps": 2})
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "dqrm INT4 on" in printed.err
    assert "step 2/2 (100.0%)" in printed.err


def test_an_interrupted_run_is_saved_and_goes_on(
    shop: Path, run: "dqrm_cpu.Run", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="after step 8; everything is saved"):
        interrupt(patch, 7, signal.SIGINT)
        dqrm_cpu.train(shop / "data", run_dir=tmp_path / "run", **QUICK)
    assert signal.getsignal(signal.SIGINT) is handler
    assert dqrm_cpu.Run(tmp_path / "run").result is None
    assert weights(dqrm_cpu.train(run_dir=tmp_path / "run", resume=True).path) == weights(run.path)


def test_another_signal_reaches_the_handler_that_was_there(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
            interrupt(patch, 3, signal.SIGTERM)
            dqrm_cpu.train(shop / "data", run_dir=tmp_path / "run", **QUICK)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


def test_importing_is_quick_and_the_names_are_there() -> None:
    program = (
        "import sys, dqrm_cpu\n"
        "print([name for name in ('torch', 'numba', 'numpy', 'pyarrow') if name in sys.modules])\n"
        "print(sorted(set(dqrm_cpu.__all__) - set(dir(dqrm_cpu))))\n"
        "import dqrm_cpu.predict\n"
        "print(callable(dqrm_cpu.train), callable(dqrm_cpu.predict), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["[]", "[]", "True True False"]
    assert dqrm_cpu.train.__name__ == "dqrm_cpu.train"  # the package, which a test has imported
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        dqrm_cpu.trian  # noqa: B018


def test_a_suggested_schema_prepares_the_rows(shop: Path, tmp_path: Path) -> None:
    text = dqrm_cpu.suggest_schema(click_columns(), tmp_path / "schema.toml")
    assert "from all 1,500 rows of rows in memory" in text
    assert (tmp_path / "schema.toml").read_text() == text
    data = dqrm_cpu.prepare(click_columns(), tmp_path / "data", schema=tmp_path / "schema.toml")
    assert data.manifest.schema.categorical == ("item", "device")


def test_more_and_less_of_a_run_that_a_command_began(shop: Path, tmp_path: Path) -> None:
    """A command goes on with what a call began, and a call begins with what a command trained."""
    dqrm_cpu.train(shop / "data", run_dir=tmp_path / "run", **{**QUICK, "train.max_steps": 5})
    done = command("train", "--run-dir", tmp_path / "run", "--resume", "auto", "--train.max-steps", "9")
    assert done.returncode == 0, done.stderr
    assert dqrm_cpu.Run(tmp_path / "run").result.steps == 9  # type: ignore[union-attr]
    child = dqrm_cpu.train(shop / "data", run_dir=tmp_path / "child", init_from=shop / "run", train={"max_steps": 2})
    assert child.settings.init_from == str(shop / "run")
