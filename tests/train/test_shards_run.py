"""Whole runs with tables on several ranks: trained, saved, resumed and packed as with tables on every rank."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from commands import dqrm_cpu
from dqrm_cpu.config import preset_config
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.checkpoint_manifest import read_manifest
from dqrm_cpu.train.checkpoint_rows import read_pieces
from dqrm_cpu.train.run_place import checkpoints_folder
from launching import run_mpi, run_world
from several_commands import several_commands

pytestmark = pytest.mark.mpi

SMALL = [
    *("--data.train-rows", "1600", "--data.validation-rows", "400", "--data.test-rows", "400", "--train.epochs", "1"),
    # On two ranks the first two tables are on both, the third is cut, and the others are whole on one.
    *("--model.table-rows", "40,3,30000,5000,5000,5000,5000", "--model.embedding-dim", "16"),
    *("--model.bottom-mlp", "19,16", "--model.top-mlp", "21,1", "--train.batch-size", "64", "--train.log-every", "5"),
    *("--train.evaluate-every", "10", "--train.threads", "1", "--quant.scale-period", "1", "--comm.timeout", "120"),
]
RUNS = {
    "int8": ["--comm.wire", "int8", "--train.average-snapshots", "6", "--train.average-from", "0.2"],
    "adagrad": ["--train.optimizer", "rowwise-adagrad", "--train.master-rows", "int8"],
}
HALF = ["--train.max-steps", "10"]
WITH_LIMIT = Path(__file__).with_name("with_limit.py")


def train(folder: Path, run: str, *options: object) -> list[object]:
    return ["train", *SMALL, *RUNS[run], *options, "--run-dir", folder / run]


def weights(run: Path) -> dict[str, bytes]:
    """Every tensor of the last checkpoint, whole, whoever wrote it in how many files."""
    path = find_checkpoint(checkpoints_folder(run), "last")
    manifest = read_manifest(path)
    parts: dict[str, list[bytes]] = {name: [] for name in manifest.tensors}
    for piece, rows in read_pieces(path, manifest, manifest.tensors.keys()):
        parts[piece.tensor].append(rows.tobytes())
    return {name: b"".join(of_tensor) for name, of_tensor in parts.items()}


def metrics(run: Path) -> list[dict[str, object]]:
    """What both kinds of run measure, without what takes time or space."""
    kept = ("step", "phase", "loss", "auc", "live_rows", "live_values", "clip_rate", "updated_rows", "scale_absmax")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in kept if key in row} for row in rows]


def in_world(transport: str, ranks: int, *commands: Sequence[object]) -> None:
    run_world(transport, several_commands(*commands), ranks, timeout_s=240).check()


def alone(*arguments: object) -> str:
    done = dqrm_cpu(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two simulated ranks with all tables, and the first half of one."""
    folder = tmp_path_factory.mktemp("simulated")
    for run in RUNS:
        alone(*train(folder, run, "--comm.simulated-ranks", "2"))
    alone(*train(folder / "half", "adagrad", "--comm.simulated-ranks", "2", *HALF))
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of two real ranks with tables on either."""
    folder = tmp_path_factory.mktemp("sharded")
    shard = ("--comm.tables", "shard", "--comm.overlap", "on")
    whole = [train(folder, run, *shard) for run in RUNS]
    in_world("mpi", 2, *whole, train(folder / "half", "adagrad", *shard, *HALF))
    return folder


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_that_of_tables_on_every_rank_to_the_bit(simulated: Path, sharded: Path, run: str) -> None:
    assert weights(sharded / run) == weights(simulated / run)
    assert metrics(sharded / run) == metrics(simulated / run)
    results = [json.loads((folder / run / "result.json").read_text()) for folder in (sharded, simulated)]
    assert results[0]["test"] == results[1]["test"]


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_the_packed_model_is_the_same(simulated: Path, sharded: Path, layout: str) -> None:
    found, expected = (
        load_file(folder / "int8" / "packed" / f"{layout}.safetensors") for folder in (sharded, simulated)
    )
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_simulated_ranks_shard_to_the_same_bits(simulated: Path, tmp_path: Path) -> None:
    alone(*train(tmp_path, "int8", "--comm.simulated-ranks", "2", "--comm.tables", "shard"))
    assert weights(tmp_path / "int8") == weights(simulated / "int8")


def test_each_rank_writes_its_own_rows(sharded: Path) -> None:
    path = find_checkpoint(checkpoints_folder(sharded / "int8"), "last")
    stretches = [
        (piece.first_row, piece.num_rows)
        for shard in read_manifest(path).shards
        for piece in shard.pieces
        if piece.tensor == "tables"
    ]
    cut = 43 + 15_000
    assert stretches == [(0, cut), (cut, 15_000), *[(30_043 + 5000 * t, 5000) for t in range(4)]]


def test_a_run_says_where_tables_lie(tmp_path: Path) -> None:
    run = train(tmp_path, "int8", "--comm.simulated-ranks", "2", "--comm.tables", "shard", "--train.max-steps", "1")
    done = dqrm_cpu(*run)
    assert "tables: 2 on every rank, 5 whole on one, 0 cut over 1 rank; up to 3.2 MB of 3.2 MB on a rank" in done.stderr


def test_a_run_goes_on_with_four_ranks(simulated: Path, sharded: Path, tmp_path: Path) -> None:
    resume = ("--resume", "auto", "--train.max-steps", "0")
    for source in (simulated, sharded):
        shutil.copytree(source / "half" / "adagrad", tmp_path / source.name / "adagrad")
    alone(*train(tmp_path / simulated.name, "adagrad", *resume, "--comm.simulated-ranks", "4"))
    in_world("gloo", 4, train(tmp_path / sharded.name, "adagrad", *resume, "--comm.tables", "shard"))
    found, expected = (tmp_path / source.name / "adagrad" for source in (sharded, simulated))
    assert weights(found) == weights(expected)
    assert metrics(found) == metrics(expected)


def test_a_run_goes_on_with_tables_on_every_rank(simulated: Path, sharded: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded / "half" / "adagrad", tmp_path / "adagrad")
    resume = ("--resume", "auto", "--train.max-steps", "0", "--comm.tables", "replicate")
    alone(*train(tmp_path, "adagrad", *resume, "--comm.simulated-ranks", "2"))
    assert weights(tmp_path / "adagrad") == weights(simulated / "adagrad")


def test_a_damaged_shard_of_one_rank_sends_all_to_the_checkpoint_before(sharded: Path, tmp_path: Path) -> None:
    """The rows of rank 1 alone: rank 0 reads none of them."""
    run = tmp_path / "int8"
    shutil.copytree(sharded / "int8", run)
    path = find_checkpoint(checkpoints_folder(run), "last")
    pieces = {shard.file: shard.pieces for shard in read_manifest(path).shards}
    (file,) = [name for name, (piece, *_) in pieces.items() if piece.tensor == "tables" and piece.first_row == 15_043]
    content = bytearray((path / file).read_bytes())
    content[-5] ^= 1
    (path / file).write_bytes(content)
    before = len(list(checkpoints_folder(run).glob("step-*")))
    in_world("mpi", 2, train(tmp_path, "int8", "--resume", "auto", "--comm.tables", "shard"))
    assert before > 1
    assert weights(run) == weights(sharded / "int8")


def test_a_sharded_run_is_evaluated_and_exported_by_one_process_or_several(sharded: Path, tmp_path: Path) -> None:
    run = sharded / "int8"
    expected = json.loads((run / "result.json").read_text())["test"]["best"]
    found = json.loads(alone("evaluate", run, "--json"))
    assert found["auc"] == expected["auc"]
    world = run_world("gloo", several_commands(["evaluate", run, "--json"]), 2, timeout_s=120).check()
    assert json.loads(world.ranks[0].stdout)["auc"] == expected["auc"]
    alone("compress", run, "--out", tmp_path / "dense.safetensors")
    packed = [load_file(folder / "dense.safetensors") for folder in (run / "packed", tmp_path)]
    assert all(np.array_equal(packed[0][name], packed[1][name]) for name in packed[0])


@pytest.mark.long
def test_the_mlperf_model_trains_sharded_as_in_one_process(tmp_path: Path) -> None:
    """Its layers at an eighth of their width, its tables at a thousandth of their rows, its bags."""
    rows = ",".join(str(max(rows // 1000, 3)) for rows in preset_config("mlperf-dcnv2").model.table_rows)
    options = [
        *("--preset", "mlperf-dcnv2", "--model.table-rows", rows, "--model.embedding-dim", "16"),
        *("--model.bottom-mlp", "64,32,16", "--model.top-mlp", "128,128,64,32,1", "--model.cross-rank", "64"),
        *("--data.train-rows", "2048", "--data.validation-rows", "256", "--data.test-rows", "1024"),
        *("--train.batch-size", "256", "--train.threads", "1", "--comm.wire", "int8", "--comm.timeout", "120"),
    ]
    alone("train", *options, "--comm.simulated-ranks", "2", "--run-dir", tmp_path / "alone")
    in_world("mpi", 2, ["train", *options, "--comm.tables", "shard", "--run-dir", tmp_path / "sharded"])
    assert weights(tmp_path / "sharded") == weights(tmp_path / "alone")
    tested = [json.loads((tmp_path / run / "result.json").read_text())["test"] for run in ("sharded", "alone")]
    assert tested[0] == tested[1]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_tables_of_four_times_what_a_rank_may_hold(tmp_path: Path) -> None:
    """Four ranks, then two, of 2.6 GB each, of which 0.8 GB are taken before there is any table.

    Tables of 10.4 GB in FP32, whose rows are kept in INT8.
    """
    limit, rows = 2_600_000_000, 13_600_000
    tables = ("--model.table-rows", f"40,{rows},{rows},{rows}", "--model.embedding-dim", "64")
    mlps = ("--model.bottom-mlp", "19,64", "--model.top-mlp", "21,1")
    limited = [WITH_LIMIT, str(limit)]
    options = [*SMALL, *tables, *mlps, "--comm.tables", "shard", "--train.max-steps", "8"]
    run = tmp_path / "run"
    started = [*limited, "train", *options, "--train.master-rows", "int8", "--run-dir", run]
    world = run_mpi(started, 4, timeout_s=900, forked=False).check()
    assert "3 cut over 4 ranks; up to 663.0 MB of 2.65 GB on a rank" in world.stderr
    assert 3 * rows * 64 * 4 > 4 * limit
    more = ["--run-dir", run, "--resume", "auto", "--train.max-steps", "12"]
    run_mpi([*limited, "train", *more], 2, timeout_s=900, forked=False).check()
    run_mpi([*limited, "evaluate", run], 2, timeout_s=900, forked=False).check()
    assert (run / "packed" / "dense.safetensors").stat().st_size > 3 * rows * 64 // 2
    run_mpi([*limited, "compress", "--verify", run / "packed" / "sparse.safetensors"], 1, timeout_s=900).check()
    fp32 = [*limited, "train", *options, "--run-dir", tmp_path / "not"]
    assert run_mpi(fp32, 4, timeout_s=900, forked=False).returncode != 0
