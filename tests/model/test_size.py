"""The memory estimate against what a real run takes."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dqrm_cpu.comm.sharding.placement import most_held_rows
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import load_config
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.model.size import estimate_memory
from dqrm_cpu.model.tables import allocate_tables
from dqrm_cpu.train.run import RunRequest, train
from launching import clean_environ
from tiny import CPU

MEASURE = """
import json, sys
from pathlib import Path
from dqrm_cpu.cli.main import main
status = main(sys.argv[1:])
# Not getrusage: its maximum is inherited from the process that started this one, which may be larger.
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(json.dumps({"status": status, "peak": peak * 1024}))
"""


def measured_peak(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "train", *arguments], env=clean_environ(), capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    assert found.get("status") == 0, done.stderr
    return int(found["peak"])


@pytest.fixture(scope="module")
def compiled_kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first run on a machine compiles, which takes some 150 MB more; the estimate is for all the others."""
    few = {"data.train_rows": "200", "data.validation_rows": "100", "data.test_rows": "100", "train.max_steps": "1"}
    cross = {"model.interaction": "cross", "model.cross_layers": "1"}
    for settings in ({}, {"train.optimizer": "rowwise-adagrad"}, cross, {**cross, "model.cross_rank": "2"}):
        folder = tmp_path_factory.mktemp("warm") / "run"
        config = load_config("demo", None, {**settings, **few})
        train(config, RunRequest(folder, False, {}, io.StringIO()), SingleTransport())


@pytest.mark.usefixtures("compiled_kernels")
@pytest.mark.parametrize(
    ("preset", "optimizer"),
    [
        ("demo", "sgd"),
        ("demo", "rowwise-adagrad"),
        pytest.param("kaggle", "sgd", marks=pytest.mark.long),
        pytest.param("kaggle", "rowwise-adagrad", marks=pytest.mark.long),
    ],
)
def test_the_estimate_is_within_a_tenth_of_the_peak(preset: str, optimizer: str, tmp_path: Path) -> None:
    """The kaggle preset starts on generated data, with all of its 2.16 GB of tables."""
    settings = {
        "data.validation_rows": "20000",
        "data.test_rows": "20000",
        "train.max_steps": "2",
        "train.optimizer": optimizer,
    }
    options = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", value)]
    peak = measured_peak("--preset", preset, "--data", "synthetic", "--run-dir", str(tmp_path / "run"), *options)
    estimate = estimate_memory(load_config(preset, None, settings)).total_bytes
    assert 0.9 * peak < estimate < 1.1 * peak


@pytest.mark.usefixtures("compiled_kernels")
@pytest.mark.parametrize("rank", ["0", "100"])
def test_cross_layers_are_in_the_estimate(rank: str, tmp_path: Path) -> None:
    """Where they take most of it: many, and batches for which each keeps some values of every feature."""
    settings = {
        "model.interaction": "cross",
        "model.cross_layers": "8",
        "model.cross_rank": rank,
        "data.train_rows": "17000",
        "data.validation_rows": "100",
        "data.test_rows": "100",
        "train.batch_size": "8192",
        "train.test_batch_size": "100",
        "train.max_steps": "1",
    }
    options = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", value)]
    peak = measured_peak("--run-dir", str(tmp_path / "run"), *options)
    estimate = estimate_memory(load_config("demo", None, settings)).total_bytes
    # A machine that takes back pages of libraries which nobody reads for a while has a lower peak.
    assert 0.9 * peak < estimate < 1.2 * peak


def test_terabyte_is_mostly_its_tables() -> None:
    config = load_config("terabyte", None, {})
    parts = estimate_memory(config).parts
    assert parts["tables"] == sum(config.model.table_rows) * 64 * 4
    assert sum(parts.values()) < 1.1 * parts["tables"] + 600e6


def test_ranks_share_batches_but_not_tables() -> None:
    config = load_config("kaggle", None, {})
    one, four = estimate_memory(config, 1).parts, estimate_memory(config, 4).parts
    assert four["tables"] == one["tables"]
    assert four["batches"] < one["batches"] / 3


def test_a_rank_of_sharded_tables_needs_memory_for_its_own() -> None:
    config = load_config("terabyte", None, {"comm.tables": "shard", "train.optimizer": "rowwise-adagrad"})
    all_rows, held = sum(config.model.table_rows), most_held_rows(config, 8)
    assert held is not None
    assert sum(held) < all_rows / 6
    parts = estimate_memory(config, 8, held).parts
    assert parts["tables"] == sum(held) * 64 * 4
    assert parts["optimizer"] == sum(held) * 4
    assert parts["gradient exchange"] == 3 * (config.train.batch_size // 8) * 26 * 64 * 4


def with_settings(**settings: str) -> int:
    given = {key.replace("__", "."): value for key, value in settings.items()}
    return estimate_memory(load_config("demo", None, given), world_size=2).parts["gradient exchange"]


def test_error_feedback_and_the_dense_wire_are_counted() -> None:
    config = load_config("demo", None, {})
    tables = sum(config.model.table_rows) * config.model.embedding_dim * 4
    mlps = with_settings(comm__mlp_gradients="int8", comm__error_feedback="mlp")
    assert with_settings() == 0
    assert mlps > 0
    assert with_settings(comm__wire="int8", comm__mlp_gradients="int8", comm__error_feedback="all") == mlps + 2 * tables
    assert with_settings(comm__wire="dense") == 2 * tables


def test_tables_beyond_the_address_space_say_what_would_help() -> None:
    with pytest.raises(DeviceError, match=r"of memory for tables cannot be had: .*; use --train.master-rows int8"):
        allocate_tables([2**31 - 1] * 60, 4096, CPU)
