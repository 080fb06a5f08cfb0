"""The case `predict_1m` of `bench data`: raw rows to a file of probabilities, by who has the same model."""

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dqrm_cpu.errors import DataError
from dqrm_cpu.lab.bench.data.data_process import ProcessFigures
from dqrm_cpu.lab.bench.data.predict_works import DATA, EXPORTED, RUN

PREDICT_CASE = "predict_1m"
PREDICT, STEADY = "predict", "predict_steady"
"""The groups: with all that is loaded at first, and without."""

_STEPS = 20
"""Training steps of the model that is timed: how long scoring takes does not depend on its weights."""

_SAME_PROBABILITIES = 1e-5


def make_models(folder: Path, raw: Path) -> None:
    """Prepares the rows, trains the demo's model on them for a few steps, and exports it."""
    data, run = folder / DATA, folder / RUN
    _command("prepare", str(raw), "--format", "kaggle", "--out", str(data))
    few = ("--train.max-steps", str(_STEPS), "--train.test-first", "false")
    _command("train", "--preset", "demo", "--data", str(data), "--run-dir", str(run), *few)
    _command("export", str(run), "--out", str(folder / EXPORTED))


def _command(*arguments: str) -> None:
    command = [sys.executable, "-m", "dqrm_cpu", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise DataError(f"dqrm-cpu {arguments[0]} ended with status {done.returncode}: {last[0]}")


def require_same_predictions(rows: int, figures: Mapping[str, ProcessFigures]) -> None:
    """Raises DataError unless all have scored all rows, and alike."""
    mean = None
    for name, one in figures.items():
        found = one.contents.dense_sum / max(one.contents.rows, 1)
        if one.contents.rows != rows:
            raise DataError(f"{name} scored {one.contents.rows:,} of {rows:,} rows")
        if mean is not None and not math.isclose(found, mean, rel_tol=_SAME_PROBABILITIES):
            raise DataError(f"{name} gives other probabilities than those before it: a mean of {found}, not {mean}")
        mean = found


def steady_figures(figures: Mapping[str, Sequence[ProcessFigures]]) -> dict[str, list[ProcessFigures]]:
    """Returns the figures with the steady seconds for all seconds, by the names of the contestants of that group."""
    return {
        f"{name}_steady": [replace(process, seconds=process.contents.steady_s) for process in every]
        for name, every in figures.items()
    }
