"""The arenas that hold the embedding tables: each one mapping of the address space, on huge pages where it can."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dqrm_cpu.base.memory import format_size
from dqrm_cpu.errors import DeviceError
from dqrm_cpu.kernels.master_rows import FP32, columns
from dqrm_cpu.kernels.table_groups import TableGroup, TableGroups
from dqrm_cpu.kernels.types import Tables

_FLOAT_BYTES = 4


class HeldRows(NamedTuple):
    """Consecutive rows of a table that this process holds."""

    first_row: int
    num_rows: int


def allocate_groups(
    table_rows: Sequence[int],
    dims: Sequence[int],
    device: torch.device,
    folder: Path | None = None,
    dtype: torch.dtype = FP32,
) -> TableGroups:
    """Allocates an arena for the tables of each dimension, as `allocate_tables` does."""
    groups = []
    for dim in sorted(set(dims)):
        numbers = tuple(number for number, its in enumerate(dims) if its == dim)
        tables = allocate_tables([table_rows[number] for number in numbers], dim, device, folder, dtype)
        groups.append(TableGroup(tables, numbers))
    return TableGroups(groups)


def allocate_tables(
    table_rows: Sequence[int],
    dim: int,
    device: torch.device,
    folder: Path | None = None,
    dtype: torch.dtype = FP32,
) -> Tables:
    """Allocates tables of one dimension, not touched yet: who initializes them in parallel decides where pages lie.

    In a nameless file in `folder`, if one is given: tables that are read once need not fit in memory.
    """
    offset = torch.zeros(len(table_rows) + 1, dtype=torch.int64)
    torch.cumsum(torch.tensor(table_rows, dtype=torch.int64), 0, out=offset[1:])
    num_rows, width = int(offset[-1]), columns(dtype, dim)
    if device.type == "cpu":
        num_bytes = num_rows * width * dtype.itemsize
        memory = _memory_for_tables(num_bytes) if folder is None else _map_file(num_bytes, folder)
        weight = torch.from_numpy(memory).view(dtype).view(num_rows, width)
    else:
        weight = torch.empty(num_rows, width, device=device, dtype=dtype)
    return Tables(weight, offset)


def _memory_for_tables(num_bytes: int) -> np.ndarray:
    try:
        return _map_bytes(num_bytes)
    except OSError as error:
        raise DeviceError(
            f"{format_size(num_bytes)} of memory for tables cannot be had: {error.strerror}; use --train.master-rows "
            "int8, more ranks with --comm.tables shard, or smaller --model.table-rows"
        ) from error


def _map_file(count: int, folder: Path) -> np.ndarray:
    """Returns uint8[count] in a file that is gone with its last view; OSError where the disk has no room for it."""
    num_bytes = max(count, mmap.PAGESIZE)
    with tempfile.TemporaryFile(dir=folder) as file:
        # All of it at once: a page that finds no room later ends the process.
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        memory = mmap.mmap(file.fileno(), num_bytes)
    return np.frombuffer(memory, dtype=np.uint8, count=count)


def map_floats(count: int) -> np.ndarray:
    """Returns f32[count] in an anonymous mapping of its own with huge pages asked for; freed with its last view."""
    return _map_bytes(count * _FLOAT_BYTES).view(np.float32)


def _map_bytes(count: int) -> np.ndarray:
    memory = mmap.mmap(-1, max(count, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8, count=count)
