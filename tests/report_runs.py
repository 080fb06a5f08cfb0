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


def profile_prepared(folder: Path, steps: int, rounds: int) -> list[str]:
    """Prepares generated clicks in `folder`; the command that profiles them into folder/profile."""
    raw, data = folder / "train.txt", folder / "data"
    assert main(["data", "generate", str(raw), "--rows", "40000"]) == 0
    assert main(["prepare", str(raw), "--format", "kaggle", "--out", str(data)]) == 0
    # Large batches are read a few at a time: the thread that reads ahead has something to do every few steps.
    model = ["--model.embedding-dim", "4", "--model.bottom-mlp", "8,4", "--model.top-mlp", "8,1", "--kernels", "torch"]
    plan = ["--warmup", "1", "--steps", str(steps), "--rounds", str(rounds), "--train.batch-size", "8192"]
    return ["profile", "--data", str(data), "--out", str(folder / "profile"), *plan, *model]
