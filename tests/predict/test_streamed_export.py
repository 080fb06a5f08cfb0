"""An export reads tables from the checkpoint block by block: the same file as from memory, without the memory."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export import write
from dqrm_cpu.predict import exporting
from dqrm_cpu.predict.exporting import ExportRequest, export
from dqrm_cpu.train.checkpoint import find_checkpoint
from dqrm_cpu.train.checkpoint_files import read_pieces, write_folder
from dqrm_cpu.train.checkpoint_manifest import read_manifest
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
            tensors.setdefault(piece.tensor, []).append(rows)
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
    monkeypatch.setattr(exporting, "can_stream", lambda config: False)
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


PEAKS = """
import sys
from pathlib import Path
from dqrm_cpu.base.memory import peak_bytes, resident_bytes
from dqrm_cpu.export import write
from dqrm_cpu.predict import exporting
write._BLOCK_BYTES = 1 << 20

def peak(run):
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak until now
    before = resident_bytes()
    exporting.export(exporting.ExportRequest(run, run / "file", overwrite=True))
    return peak_bytes() - before

small, large = map(Path, sys.argv[1:])
peak(small)  # imports and compiles what is needed
streamed = peak(large)
exporting.can_stream = lambda config: False
print(streamed, peak(large))
"""


def test_the_memory_of_an_export_does_not_grow_with_the_tables(tmp_path: Path) -> None:
    """Of two tables of 75,000 rows of 128 values, 77 MB, no more than a few blocks of 1 MB are in memory at a time."""
    runs = []
    for name, rows in (("small", "50"), ("large", "75000")):
        hashed = ("--vocabulary", "hash", "--hash-rows", rows)
        shape = ("--model.embedding-dim", "128", "--model.bottom-mlp", "128", "--train.max-steps", "1")
        runs.append(trained(tmp_path / name, SCHEMA.format(more=', "site"', bags=""), *shape, prepare=hashed))
    command = [sys.executable, "-c", PEAKS, *map(str, runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    streamed, whole = map(int, done.stdout.split())
    assert whole > 75e6
    assert streamed < 50e6
