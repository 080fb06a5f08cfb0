"""The rows of metrics.jsonl in MLflow as well, in the store that MLFLOW_TRACKING_URI names."""

import importlib
import os
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from dqrm_cpu.base.decode import UnreadableError, decoded, read_json
from dqrm_cpu.base.files import replace_file
from dqrm_cpu.errors import DeviceError, TrainingError
from dqrm_cpu.train.metrics_row import MetricsRow

_FILE = "mlflow.json"
_EXPERIMENT = "dqrm-cpu"
_MOST_PARAMS, _MOST_PARAM_CHARACTERS = 100, 500  # that MLflow takes at once


class _Recorded(msgspec.Struct):
    """Names the run in MLflow that a run folder belongs to."""

    run_id: str


class MlflowLog:
    """A run in MLflow, one metric per figure and phase; a resumed run goes on with the same one."""

    def __init__(self, run_dir: Path, config_toml: str) -> None:
        """Raises DeviceError where MLflow is not installed or its store cannot be reached: before training."""
        try:
            mlflow = importlib.import_module("mlflow")
            self._entities: Any = importlib.import_module("mlflow.entities")
        except ImportError as error:
            raise DeviceError(
                "MLflow is not installed; run pip install 'dqrm-cpu[mlflow]' or leave out --train.mlflow"
            ) from error
        self._run_dir, self._broken = run_dir, False
        try:
            self._client: Any = mlflow.MlflowClient()
            self._run_id = self._resumed() or self._begun(_parameters(config_toml))
        except Exception as error:  # MLflow and what carries it raise classes of their own
            reason = _first_line(error)
            raise DeviceError(f"MLflow's store cannot be used ({reason}); check MLFLOW_TRACKING_URI") from error

    def log(self, row: MetricsRow) -> str | None:
        """Adds a row; returns a warning when the store refuses it: from then on nothing is added any more."""
        if self._broken:
            return None
        now_ms = time.time_ns() // 10**6
        metrics = [
            self._entities.Metric(f"{row.phase}/{name}", float(value), now_ms, row.step)
            for name, value in row.to_json().items()
            if name not in ("step", "phase", "examples", "logged_at") and isinstance(value, int | float)
        ]
        try:
            self._client.log_batch(self._run_id, metrics=metrics)
        except Exception as error:  # whatever a server does, training goes on
            self._broken = True
            return (
                f"MLflow refuses a row ({_first_line(error)}); it shows nothing of this run from step {row.step:,} on, "
                "metrics.jsonl still does"
            )
        return None

    def close(self, finished: bool) -> None:
        """Ends the run in MLflow; its rows are in metrics.jsonl: a store that fails now loses nothing else."""
        try:
            self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED")
        except Exception:
            self._broken = True

    def _resumed(self) -> str | None:
        try:
            run_id = decoded(read_json(self._run_dir / _FILE), _Recorded).run_id
        except (OSError, UnreadableError):
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _begun(self, parameters: Mapping[str, str]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        run_id = str(self._client.create_run(place, run_name=self._run_dir.resolve().name).info.run_id)
        params = [self._entities.Param(key, text) for key, text in parameters.items()]
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(run_id, params=params[first : first + _MOST_PARAMS])
        replace_file(self._run_dir / _FILE, [msgspec.json.encode(_Recorded(run_id))], TrainingError)
        return run_id


def _parameters(config_toml: str) -> dict[str, str]:
    """Returns the settings by their dotted keys, as long as MLflow takes them."""
    found: dict[str, object] = {}
    for key, value in tomllib.loads(config_toml).items():
        found |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return {key: str(value)[:_MOST_PARAM_CHARACTERS] for key, value in found.items()}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:600] or type(error).__name__
