"""A training run with `--kernels ipex` is the run with `--kernels numba`, up to rounding."""

import json
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main

SETTINGS = (
    *("--model.table-rows", "1000,3,500,40", "--model.embedding-dim", "32", "--model.bottom-mlp", "16,32"),
    *("--model.top-mlp", "16,1", "--train.epochs", "1", "--train.max-steps", "40", "--train.evaluate-every", "10"),
    *("--data.train-rows", "6000", "--data.validation-rows", "2000", "--data.test-rows", "2000"),
)


def log_losses(kernels: str, method: str, bag_size: int, folder: Path) -> list[float]:
    """Returns the log loss of every evaluation, in order."""
    run_dir = folder / kernels
    wanted = ("--kernels", kernels, "--quant.method", method, "--data.max-bag-size", str(bag_size))
    assert main(["train", "--run-dir", str(run_dir), *wanted, *SETTINGS]) == 0
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [record["log_loss"] for record in map(json.loads, lines) if "log_loss" in record]


# A weight beside a boundary of the INT4 grid may round to its other side: that moves the loss of a few examples.
@pytest.mark.parametrize(("method", "tolerance"), [("none", 1e-6), ("dqrm", 1e-4)])
@pytest.mark.parametrize("bag_size", [1, 3])
def test_same_losses_as_numba(method: str, tolerance: float, bag_size: int, tmp_path: Path) -> None:
    expected = log_losses("numba", method, bag_size, tmp_path)
    assert len(expected) >= 5
    assert max(expected) - min(expected) > 100 * tolerance, "the run learned too little to compare"
    assert log_losses("ipex", method, bag_size, tmp_path) == pytest.approx(expected, rel=0, abs=tolerance)
