"""Training on prepared rows: the same numbers as on the same rows made in memory."""

import json
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main
from stored import write_generated

TABLES = (40, 3, 500)
SIZES = {"train": 640, "validation": 200, "test": 100}
SETTINGS = {
    "seed": "3",
    "model.embedding-dim": "6",
    "model.bottom-mlp": "9,6",
    "model.top-mlp": "11,1",
    "train.batch-size": "64",
    "train.test-batch-size": "150",
    "train.epochs": "2",
    "train.log-every": "3",
    "train.threads": "1",
}


def trained(run_dir: Path, **settings: str) -> list[dict[str, object]]:
    """The lines of metrics.jsonl, without what differs from run to run."""
    options = [text for key, value in {**SETTINGS, **settings}.items() for text in (f"--{key}", value)]
    assert main(["train", "--run-dir", str(run_dir), *options]) == 0
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{key: line.get(key) for key in ("step", "phase", "loss", "auc")} for line in lines]


@pytest.mark.parametrize("max_bag_size", [1, 3])
def test_prepared_rows_train_like_generated_ones(tmp_path: Path, max_bag_size: int) -> None:
    folder = tmp_path / "prepared"
    folder.mkdir()
    write_generated(folder, TABLES, SIZES, max_bag_size)
    sizes = {f"data.{part}-rows": str(rows) for part, rows in SIZES.items()}
    shape = {"model.table-rows": ",".join(map(str, TABLES)), "data.max-bag-size": str(max_bag_size)}
    generated = trained(tmp_path / "generated", **sizes, **shape)
    assert trained(tmp_path / "run", data=str(folder)) == generated
    assert generated[-1]["loss"] is not None


def test_a_run_over_damaged_rows_stops_and_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_generated(tmp_path, TABLES, SIZES)
    path = tmp_path / "train.shard"
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    options = [text for key, value in SETTINGS.items() for text in (f"--{key}", value)]
    assert main(["train", "--run-dir", str(tmp_path / "run"), "--data", str(tmp_path), *options]) == 1
    assert "train.shard: the ids section of block 0" in capsys.readouterr().err
