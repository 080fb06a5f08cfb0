"""Rows in MLflow: the same ones, in one run for all sittings, and no training that ends because of a server."""

import sys
import types
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from commands import dqrm_cpu
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.train.metrics_log import read_lines, read_log
from dqrm_cpu.train.metrics_row import MetricsRow
from dqrm_cpu.train.mlflow_log import MlflowLog

SMALL = [
    *("--data.train-rows", "2000", "--data.validation-rows", "200", "--data.test-rows", "200"),
    *("--model.table-rows", "40,3,500", "--model.embedding-dim", "4", "--model.bottom-mlp", "8,4"),
    *("--model.top-mlp", "8,1", "--train.batch-size", "32", "--train.log-every", "5", "--train.evaluate-every", "5"),
]
Metric = namedtuple("Metric", "key value timestamp step")
Param = namedtuple("Param", "key value")


class Server:
    """The part of MLflow's client that is called; it keeps what it is given, and can fail."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.is_down = False

    def get_experiment_by_name(self, name: str) -> Any:
        self._answer()
        return types.SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment: str, run_name: str) -> Any:
        run_id = f"run-{len(self.runs)}"
        self.runs[run_id] = {
            "experiment": experiment,
            "name": run_name,
            "metrics": [],
            "params": {},
            "status": "RUNNING",
        }
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status

    set_terminated = update_run

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self._answer()
        assert len(params) <= 100
        self.runs[run_id]["metrics"] += metrics
        self.runs[run_id]["params"] |= {param.key: param.value for param in params}

    def _answer(self) -> None:
        if self.is_down:
            raise RuntimeError("503 from the tracking server\nand a traceback")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    mlflow: Any = types.ModuleType("mlflow")
    mlflow.MlflowClient = lambda: made
    entities: Any = types.ModuleType("mlflow.entities")
    entities.Metric, entities.Param = Metric, Param
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return made


def train(run_dir: Path, *options: str) -> str:
    output = dqrm_cpu("train", "--run-dir", run_dir, *SMALL, "--train.mlflow", "true", *options)
    assert output.returncode == 0, output.stderr
    return output.stderr


def test_the_rows_are_those_of_the_log_in_one_run(server: Server, tmp_path: Path) -> None:
    run_dir = tmp_path / "first"
    train(run_dir, "--train.max-steps", "10")
    train(run_dir, "--train.max-steps", "20", "--resume", "auto")
    [run] = server.runs.values()
    assert (run["name"], run["status"], run["params"]["train.batch_size"]) == ("first", "FINISHED", "32")
    logged = {(metric.key, metric.step): metric.value for metric in run["metrics"]}
    rows = [line.row for line in read_lines(read_log(run_dir / "metrics.jsonl")) if line.row is not None]
    wanted = {
        (f"{row.phase}/{name}", row.step): value
        for row in rows
        for name, value in row.to_json().items()
        if name not in ("step", "phase", "examples", "logged_at") and isinstance(value, int | float)
    }
    assert wanted
    assert wanted.items() <= logged.items()  # the end of the first sitting was scored, and is no step of the second


def test_a_server_that_goes_away_ends_nothing(server: Server, tmp_path: Path) -> None:
    log = MlflowLog(tmp_path, "seed = 1\n")
    server.is_down = True
    row = MetricsRow(5, 1, "train", 0.5, 100.0, 0.1)
    assert "503 from the tracking server); it shows nothing of this run from step 5 on" in str(log.log(row))
    assert log.log(row) is None
    log.close(finished=False)


def test_what_is_missing_is_named_before_training(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.is_down = True
    with pytest.raises(DeviceError, match=r"store cannot be used \(503 from the tracking server\); check MLFLOW"):
        MlflowLog(tmp_path, "")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(DeviceError, match=r"pip install 'dqrm-cpu\[mlflow\]' or leave out --train.mlflow"):
        MlflowLog(tmp_path, "")
