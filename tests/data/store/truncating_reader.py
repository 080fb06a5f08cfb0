"""Reads shards that are cut short under their mappings, each in a child of this process.

`truncating_reader.py FOLDER` reads in FOLDER/thread with a thread of its own, in FOLDER/openmp with those of OpenMP,
and sends itself the signal of a fault. What each child wrote to standard error lies in FOLDER/NAME.txt then; standard
output holds a line with the name and exit status of each.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.data.store.mapping_faults import name_unreadable_files
from dqrm_cpu.data.store.shard import MappedShard
from dqrm_cpu.data.store.stored_rows import StoredRows


def in_thread(folder: Path) -> None:
    manifest = read_manifest(folder)
    stored = StoredRows(folder, manifest, "train")
    stored.rows(0, stored.num_rows)
    stored._begin_reading = lambda: None  # type: ignore[method-assign]  # which would see it first
    os.truncate(folder / "train-0.shard", 4096)
    reader = threading.Thread(target=stored.rows, args=(0, stored.num_rows))
    reader.start()
    reader.join()


def in_openmp(folder: Path) -> None:
    torch.set_num_threads(2)
    name_unreadable_files()
    shard = MappedShard(folder / "train-0.shard", read_manifest(folder).parts["train"][0])
    os.truncate(folder / "train-0.shard", 4096)
    (torch.from_numpy(shard._bytes) + torch.ones(1, dtype=torch.uint8)).sum()


def sent(folder: Path) -> None:
    name_unreadable_files()
    os.kill(os.getpid(), signal.SIGBUS)


def main(folder: Path) -> None:
    cases: dict[str, Callable[[Path], None]] = {"thread": in_thread, "openmp": in_openmp, "sent": sent}
    for name, case in cases.items():
        child = os.fork()
        if child == 0:
            os.dup2(os.open(folder / f"{name}.txt", os.O_WRONLY | os.O_CREAT), 2)
            case(folder / name)
            os._exit(0)
        print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


main(Path(sys.argv[1]))
