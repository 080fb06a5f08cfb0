"""An export reads tables from the checkpoint block by block: the same file as from memory, without the memory."""

import json
import math
import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dqrm_cpu.config.load import load_run_config
from dqrm_cpu.config.recorded import config_to_record
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export import write
from dqrm_cpu.model.shapes import mlp_shapes
from dqrm_cpu.predict import exporting
from dqrm_cpu.predict.exporting import ExportRequest, export
from dqrm_cpu.train.checkpoint_files import write_folder, write_state
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.checkpoint_manifest import CheckpointManifest, CheckpointShard, Piece, TensorInfo, read_manifest
from dqrm_cpu.train.checkpoint_rows import read_pieces
from dqrm_cpu.train.run_place import CONFIG_FILE
from scoring import succeed

SCHEMA = """delimiter = ","
header = true
label = "click"
decimals = ["price"]
categories = ["item"{more}]
{bags}
"""
BAGS = '[multi]\ntags = { separator = "|", limit = 3 }'
SMALL = ("--model.bottom-mlp", "6,4", "--model.top-mlp", "5,1", "--train.batch-size", "50", "--train.threads", "1")


def log_of(rows: int) -> str:
    lines = (
        f"{int(k % 3 == 0)},{k % 11}.5,item {k * k % 97},{k % 5}|{k % 7}|{k % 3},site {k % 13}" for k in range(rows)
    )
    return "\n".join(["click,price,item,tags,site", *lines]) + "\n"


def trained(folder: Path, schema: str, *options: str, prepare: tuple[str, ...] = ()) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_text(log_of(400))
    (folder / "schema.toml").write_text(schema)
    succeed("prepare", folder / "log.csv", "--schema", folder / "schema.toml", "--out", folder / "data", *prepare)
    succeed("train", "--data", folder / "data", "--run-dir", folder / "run", *SMALL, *options)
    return folder / "run"


def in_many_shards(run_dir: Path) -> None:
    """Writes the checkpoints anew, so that each table lies in several files, and some files hold several tables."""
    for checkpoint in (run_dir / "checkpoints").glob("step-*"):
        manifest = read_manifest(checkpoint)
        tensors: dict[str, list[Tensor]] = {}
        for piece, rows in read_pieces(checkpoint, manifest, manifest.tensors.keys()):
            tensors.setdefault(piece.tensor, []).append(torch.from_numpy(rows))
        whole = {
            name: torch.cat(tensors[name]).reshape(info.shape) if name in tensors else torch.zeros(info.shape)
            for name, info in manifest.tensors.items()
        }
        again = checkpoint.with_name("again")
        again.mkdir()
        write_folder(again, manifest.step, whole, manifest.state, manifest.best, 1000, manifest.config)
        shutil.rmtree(checkpoint)
        again.rename(checkpoint)


@pytest.mark.parametrize(
    ("schema", "options", "layout"),
    [
        (SCHEMA.format(more=', "site"', bags=""), ("--model.embedding-dim", "4"), "dense"),
        (
            SCHEMA.format(more=', "tags"', bags=BAGS),
            ("--model.embedding-dim", "4", "--quant.step-width", "3"),
            "sparse",
        ),
        (
            SCHEMA.format(more=', "tags"', bags=BAGS),
            ("--model.embedding-dim", "4", "--model.table-dims", "C1=3"),
            "dense",
        ),
        (SCHEMA.format(more="", bags=""), ("--model.embedding-dim", "4", "--quant.method", "dorefa"), "dense"),
        (SCHEMA.format(more="", bags=""), ("--model.embedding-dim", "4", "--train.master-rows", "int8"), "sparse"),
        (SCHEMA.format(more="", bags=""), ("--model.embedding-dim", "4", "--quant.method", "none"), "sparse"),
    ],
    ids=["plain", "sparse bags", "dims", "dorefa", "int8 rows", "fp32"],
)
def test_a_streamed_file_is_the_one_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: str, options: tuple[str, ...], layout: str
) -> None:
    run = trained(tmp_path, schema, *options)
    in_many_shards(run)
    monkeypatch.setattr(write, "_BLOCK_BYTES", 100)  # some six rows
    streamed = export(ExportRequest(run, tmp_path / "streamed", layout=layout))
    monkeypatch.setattr(exporting, "can_stream", lambda trained: False)
    whole = export(ExportRequest(run, tmp_path / "whole", layout=layout))
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert streamed.checked_rows == whole.checked_rows > 0
    assert streamed.largest_difference == whole.largest_difference


def test_a_damaged_checkpoint_is_not_streamed(tmp_path: Path) -> None:
    run = trained(tmp_path, SCHEMA.format(more="", bags=""), "--model.embedding-dim", "4")
    (shard,) = find_checkpoint(run / "checkpoints", "best").glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match="its checksum changed"):
        export(ExportRequest(run, tmp_path / "file"))
    assert not (tmp_path / "file").exists()


def large_run(folder: Path, rows: int) -> Path:
    """A run whose checkpoint has two tables of so many rows of 128 values, all 0: files with holes, written at once."""
    run = trained(
        folder, SCHEMA.format(more=', "site"', bags=""), "--model.embedding-dim", "4", "--train.max-steps", "1"
    )
    checkpoint = find_checkpoint(run / "checkpoints", "best")
    manifest = read_manifest(checkpoint)
    assert manifest.config is not None
    config = replace(
        recorded := load_run_config(run / CONFIG_FILE, {}, None)[0].config,
        model=replace(recorded.model, table_rows=(rows, rows), embedding_dim=128, bottom_mlp=(128,)),
    )
    (run / CONFIG_FILE).write_text(config.to_toml())
    tensors = {
        name: TensorInfo("float32", shape)
        for name, shape in (("tables", (2 * rows, 128)), ("mlps", (mlp_shapes(config).num_parameters,)))
    }
    shards, at_once = [], rows // 2
    for number, piece in enumerate(
        [
            *(Piece("tables", first, at_once) for first in range(0, 2 * rows, at_once)),
            Piece("mlps", 0, tensors["mlps"].shape[0]),
        ]
    ):
        path = checkpoint / f"shard-{number:05d}.safetensors"
        shape = (piece.num_rows, *tensors[piece.tensor].shape[1:])
        num_bytes = 4 * math.prod(shape)
        header = json.dumps({piece.tensor: {"dtype": "F32", "shape": shape, "data_offsets": (0, num_bytes)}}).encode()
        start = len(header).to_bytes(8, "little") + header
        path.write_bytes(start)
        os.truncate(path, len(start) + num_bytes)
        crc32 = zlib.crc32(start)
        for _ in range(num_bytes >> 20):
            crc32 = zlib.crc32(bytes(1 << 20), crc32)
        crc32 = zlib.crc32(bytes(num_bytes % (1 << 20)), crc32)
        shards.append(CheckpointShard(path.name, len(start) + num_bytes, crc32, (piece,)))
    body = (manifest.step, True, tensors, tuple(shards), manifest.state, config_to_record(config))
    write_state(checkpoint, CheckpointManifest(*body))
    return run


EXPORT = """
import sys
from dqrm_cpu.base.memory import peak_bytes
from dqrm_cpu.cli.main import main
assert main(["export", sys.argv[1]]) == 0
print(peak_bytes(), *({"torch", "numba"} & sys.modules.keys()))
"""


def test_an_export_takes_little_memory_whatever_the_size_of_its_tables(tmp_path: Path) -> None:
    """Of 410 MB of tables a few blocks are in memory at a time, and nothing of torch or numba is."""
    run = large_run(tmp_path, 400_000)
    command = [sys.executable, "-c", EXPORT, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    peak, *imported = done.stdout.splitlines()[-1].split()
    assert (run / "model.safetensors").stat().st_size > 400_000 * 128
    assert imported == []
    assert int(peak) < 100e6


@pytest.mark.long
def test_an_export_in_bands_takes_little_memory_whatever_the_size_of_its_tables(tmp_path: Path) -> None:
    """It scores with torch and numba; 205 MB of tables add what 400,000 counts, places and a few blocks take."""
    peaks = []
    for rows in (2_000, 200_000):
        run = large_run(tmp_path / str(rows), rows)
        script = EXPORT.replace("sys.argv[1]]", "*sys.argv[1:]]")
        command = [sys.executable, "-c", script, str(run), "--budget", "100kB"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1].split()[0]))
    assert peaks[1] - peaks[0] < 60e6
