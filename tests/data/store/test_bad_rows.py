"""Prepared rows that are not sound: called as the data set calls them, skipped by real ranks as by simulated ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.data.batch import BadBatchError, rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import open_data
from dqrm_cpu.data.store import writer
from dqrm_cpu.data.store.manifest import FORMAT, ColumnStatistics, Manifest, ShardFile, write_manifest
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.data.store.writer import write_shard
from dqrm_cpu.train.bad_batches import described
from folders import files_of
from launching import run_world
from stored import config_of
from tiny import CPU

SCHEMA = Schema(("number", "price"), ("city", "site"))
TABLES = (40, 300)
SIZES = {"train": 330, "validation": 100, "test": 50}
BATCH = 32
BAD = {"train": (37, 200), "validation": (60,), "test": ()}
RANKS = 2
SETTINGS = {
    "model.embedding-dim": "6",
    "model.bottom-mlp": "9,6",
    "model.top-mlp": "11,1",
    "train.batch-size": str(BATCH),
    "train.epochs": "2",
    "train.log-every": "1",
    "train.checkpoint-every": "1000",
    "train.threads": "1",
    "train.on-bad-batch": "skip",
    "data.reshuffle": "true",
    # Whatever one step remembers for the next one must not see a batch that is left out.
    "comm.wire": "int8",
    "comm.mlp-gradients": "int8",
    "comm.error-feedback": "all",
    "comm.rounding": "stochastic",
}


def arguments(data: Path, run_dir: Path, **settings: str) -> list[str]:
    options = {**SETTINGS, **{key.replace("_", "-"): value for key, value in settings.items()}}
    texts = [text for key, value in options.items() for text in (f"--{key}", value)]
    return ["train", "--data", str(data), "--run-dir", str(run_dir), *texts]


def write_clicks(folder: Path) -> None:
    """Parts whose bad rows have no price; the first feature is the number of the row."""
    random = np.random.default_rng(1)
    parts: dict[str, tuple[ShardFile, ...]] = {}
    for part, count in SIZES.items():
        dense = np.stack([np.arange(count, dtype=np.float32), random.random(count, np.float32)], 1)
        dense[list(BAD[part]), 1] = np.nan
        ids = np.stack([random.integers(0, rows, count, np.int32) for rows in TABLES])
        label = (random.random(count) < 0.3).astype(np.uint8)
        parts[part] = (write_shard(folder, f"{part}.shard", SCHEMA, label, dense, ids),)
    columns = tuple(ColumnStatistics(name) for name in (*SCHEMA.dense, *SCHEMA.categorical))
    write_manifest(folder, Manifest(FORMAT, SCHEMA, TABLES, parts, columns, (), {}, "0"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_check_values", lambda *_: None)  # as a program that looks at nothing writes them
        write_clicks(folder)
    return folder


@pytest.fixture(scope="module")
def simulated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two simulated ranks."""
    run_dir = tmp_path_factory.mktemp("simulated") / "run"
    assert main(arguments(data, run_dir, **{"comm.simulated_ranks": str(RANKS)})) == 0
    return run_dir


def kept(run_dir: Path) -> dict[str, dict[str, np.ndarray]]:
    """The batches that were kept for inspection, by the names of their files."""
    found = {}
    for path in sorted((run_dir / "bad-batches").iterdir()):
        with np.load(path, allow_pickle=False) as arrays:
            found[path.name] = {name: arrays[name] for name in arrays.files}
    return found


def test_reshuffled_rows_are_kept_with_their_real_numbers(simulated: Path) -> None:
    batches = kept(simulated)
    bad = [(int(arrays["bad_row"]), arrays) for arrays in batches.values()]
    assert sorted(int(arrays["rows"][row]) for row, arrays in bad) == sorted(2 * BAD["train"])
    for row, arrays in bad:
        assert np.isnan(arrays["dense"][row, 1])
        assert arrays["dense"][:, 0].tolist() == arrays["rows"].tolist()
    steps = [int(name.split("-")[1].removesuffix(".npz")) for name in batches]
    assert steps != [1 + row // BATCH for row in BAD["train"]] * 2, "the order is that of the file"
    assert {name.rpartition("-")[2] for name in batches} == {"0.npz", "1.npz"}, "one rank alone has bad rows"


def test_a_message_has_the_number_of_the_row_and_the_name_of_its_column(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert main(arguments(data, run_dir, **{"train.on_bad_batch": "stop", "train.epochs": "1"})) == 1
    output = capsys.readouterr().err
    ((_, arrays),) = kept(run_dir).items()
    row = int(arrays["bad_row"])
    number = int(arrays["dense"][row, 0])
    assert number in BAD["train"]
    assert f"row {row} of the batch, row {number} of the training rows: price is nan" in output


def test_an_evaluation_names_them_too(data: Path, simulated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--part", "validation", "--train.on-bad-batch", "stop", "--comm.simulated-ranks", "1"]
    assert main(["evaluate", "--run-dir", str(simulated), *options]) == 1
    assert f"row {BAD['validation'][0]} of the validation rows: price is nan" in capsys.readouterr().err


@pytest.mark.parametrize(("default", "name"), [("I2", "price"), ("C1", "city"), ("C2", "site"), ("label", "label")])
def test_every_column_has_the_data_sets_own_name(default: str, name: str, data: Path) -> None:
    part = open_data(config_of(data, BATCH, reshuffle=True)).train
    loader = Loader(part, BATCH, rank_shares(0, 1, RANKS), CPU)
    number = loader.num_batches + 3  # of the second epoch
    row = int(loader.batches(number)[1].dense[4, 0])
    output = described(BadBatchError("is odd", 4, default, share=1), loader, number)
    assert output == f"row 4 of the batch, row {row} of the training rows: {name} is odd"


@pytest.mark.mpi
@pytest.mark.parametrize(("transport", "overlap"), [("gloo", "off"), ("mpi", "on")])
def test_real_ranks_skip_what_simulated_ones_skip(
    transport: str, overlap: str, data: Path, simulated: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = arguments(data, run_dir, **{"comm.transport": transport, "comm.overlap": overlap})
    world = run_world(transport, ["-m", "dqrm_cpu", *command], RANKS, timeout_s=240).check()
    assert weights(run_dir) == weights(simulated)
    assert outcome(run_dir) == outcome(simulated)
    assert kept(run_dir).keys() == kept(simulated).keys()
    assert all(
        np.array_equal(array, kept(simulated)[name][key], equal_nan=True)
        for name, arrays in kept(run_dir).items()
        for key, array in arrays.items()
    )
    assert "price is nan" in world.stderr
    assert "it has a bad row on rank 1; see" in world.stderr


def weights(run_dir: Path) -> dict[str, bytes]:
    """Every tensor of the last checkpoint, what ranks remember between steps included."""
    last = max(run_dir.glob("checkpoints/step-*"))
    files = {name: content for name, content in files_of(last).items() if name.endswith(".safetensors")}
    assert files
    return files


def outcome(run_dir: Path) -> dict[str, object]:
    """Returns everything that a finished run leaves, without its weights."""
    result = json.loads((run_dir / "result.json").read_text())
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [[row.get(key) for key in ("step", "phase", "loss", "auc", "log_loss")] for row in rows]
    return {"losses": losses, **{key: result[key] for key in ("steps", "skipped_batches", "validation", "test")}}
