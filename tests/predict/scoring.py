"""A run on rows of Criteo's form, and what it makes of them by the way that `evaluate` scores."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from commands import dqrm_cpu
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config.load import load_config
from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.data.store.run_data import follow_data
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.session import trained_session
from preparing import criteo_text

SMALL = [
    *("--model.embedding-dim", "8", "--model.bottom-mlp", "16,8", "--model.top-mlp", "16,1"),
    *("--train.epochs", "1", "--train.batch-size", "64", "--train.learning-rate", "0.3", "--seed", "3"),
]
NAMES = ["label", *(f"I{k}" for k in range(1, 14)), *(f"C{k}" for k in range(1, 27))]


@dataclass(frozen=True)
class Scored:
    """A run, its data set, the raw lines of a part of it, and the probabilities that belong to them."""

    run_dir: Path
    data: Path
    lines: list[str]
    probabilities: np.ndarray

    @property
    def packed(self) -> Path:
        return self.run_dir / "packed" / "dense.safetensors"


def scored_run(folder: Path, *options: str) -> Scored:
    """Prepares 1,400 rows, trains on most of them, and scores the validation rows."""
    raw, data, run_dir = folder / "raw.tsv", folder / "data", folder / "run"
    text = criteo_text(1400, seed=5)
    raw.write_text(text)
    succeed("prepare", raw, "--format", "tsv", "--out", data)
    succeed("train", "--data", data, "--run-dir", run_dir, *SMALL, *options)
    rows = read_manifest(data).num_rows("validation")
    return Scored(run_dir, data, text.splitlines()[-rows:], evaluated(run_dir))


def succeed(*arguments: object) -> str:
    output = dqrm_cpu(*arguments)
    assert output.returncode == 0, output.stderr
    return output.stdout


def evaluated(run_dir: Path) -> np.ndarray:
    """The probabilities of the validation rows, as `evaluate` has them."""
    return probabilities_of(evaluated_logits(run_dir)[0])


def evaluated_logits(run_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits and clicks of the validation rows."""
    config = follow_data(load_config(None, run_dir / "config.toml", {}), frozenset())
    config = replace(config, data=replace(config.data, reshuffle=False))
    session = trained_session(config, find_checkpoint(run_dir / "checkpoints", "best"), SingleTransport(), print)
    found = session.evaluate.predictions(session.loaders.validation)
    return found.logits, found.clicks


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
