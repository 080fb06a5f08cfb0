"""Small real runs for what shows them."""

from pathlib import Path

from dqrm_cpu.cli.main import main

SMALL = (
    *("--model.table-rows", "400,30,2000", "--model.embedding-dim", "8"),
    *("--model.bottom-mlp", "16,8", "--model.top-mlp", "16,1", "--train.threads", "1", "--kernels", "torch"),
    *("--data.train-rows", "2000", "--data.validation-rows", "400", "--data.test-rows", "400"),
)
QUICKLY = ("--train.max-steps", "12", "--train.log-every", "2", "--train.evaluate-every", "4")


def train_small(folder: Path, *options: str) -> Path:
    """Trains for twelve steps."""
    assert main(["train", "--run-dir", str(folder), *SMALL, *QUICKLY, *options]) == 0
    return folder
