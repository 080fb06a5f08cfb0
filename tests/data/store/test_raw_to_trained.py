"""Clicks written as a raw file, prepared and trained on, against the same clicks made in memory."""

import json
import statistics
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main

ROWS = 70_000
HELD_OUT = ROWS // 7
SETTINGS = {
    "model.embedding-dim": "8",
    "model.bottom-mlp": "32,8",
    "model.top-mlp": "32,1",
    "train.epochs": "1",
    "train.learning-rate": "0.1",
    "train.threads": "1",
}
ORDERS = ("1", "2", "3", "4", "5")
T_99_PERCENT = 4.604
"""Student's t, two-sided, for the four degrees of freedom that five runs leave."""


def trained_auc(run_dir: Path, *options: str) -> dict[str, float]:
    """AUC of the last model, by part."""
    settings = [text for key, value in SETTINGS.items() for text in (f"--{key}", value)]
    assert main(["train", "--run-dir", str(run_dir), *settings, *options]) == 0
    result = json.loads((run_dir / "result.json").read_text())
    return {part: result[part]["last"]["auc"] for part in ("validation", "test")}


@pytest.mark.slow
def test_a_raw_file_trains_to_the_auc_of_the_rows_it_was_written_from(tmp_path: Path) -> None:
    """Preparing renumbers the ids, so that rows of the tables begin with other numbers, and shuffles.

    How much that changes the AUC, the shuffles show: the run in memory must lie where a sixth of them would in 99 of
    100 cases. The generator's validation rows are those that `prepare` makes the test part.
    """
    raw = tmp_path / "train.txt.gz"
    assert main(["data", "generate", str(raw), "--rows", str(ROWS)]) == 0
    found = []
    for order in ORDERS:
        data = tmp_path / f"data-{order}"
        assert main(["prepare", str(raw), "--format", "kaggle", "--seed", order, "--out", str(data)]) == 0
        found.append(trained_auc(tmp_path / f"run-{order}", "--data", str(data))["test"])
    sizes = {"train": ROWS - HELD_OUT, "validation": HELD_OUT // 2, "test": HELD_OUT // 2}
    # The raw file has the ids of whole tables, as `data generate` draws them.
    options = ["--data.min-count", "0"]
    options += [text for part, rows in sizes.items() for text in (f"--data.{part}-rows", str(rows))]
    in_memory = trained_auc(tmp_path / "in-memory", *options)["validation"]
    tolerance = T_99_PERCENT * statistics.stdev(found) * (1 + 1 / len(found)) ** 0.5
    assert abs(in_memory - statistics.mean(found)) < tolerance
    assert tolerance < 0.03, "runs that differ so much would not show a mistake"
