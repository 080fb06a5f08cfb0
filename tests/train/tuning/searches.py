"""What tests of the search before training have in common: the command, on a small data set, and its record."""

from pathlib import Path

from click_rates import write_click_rates
from dqrm_cpu.train.tuning.record import SearchRecord, read_record

SHORT = ("--train.epochs", 5, "--train.max-steps", 40, "--train.threads", 1)
SMALL_MODEL = ("--model.embedding-dim", 8, "--model.bottom-mlp", "8,8", "--model.top-mlp", "16,1")


def write_small_data(folder: Path) -> Path:
    """Writes the data set, and returns its folder."""
    write_click_rates(folder, {"train": 2000, "validation": 500, "test": 500})
    return folder


def options(data: Path, run_dir: Path, *others: object, tune: int = 4) -> list[object]:
    return ["train", "--data", data, "--run-dir", run_dir, "--tune", tune, *SHORT, *SMALL_MODEL, *others]


def record_of(run_dir: Path) -> SearchRecord:
    record = read_record(run_dir)
    assert record is not None
    return record
