"""The arena that holds all embedding tables: one mapping of the address space, on huge pages where it can."""

import mmap
from collections.abc import Sequence

import numpy as np
import torch

from dqrm_cpu.kernels.types import Tables

_FLOAT_BYTES = 4


def table_names(num_tables: int) -> tuple[str, ...]:
    """The names used in messages and files: C1, C2, ... as Criteo's columns."""
    return tuple(f"C{t + 1}" for t in range(num_tables))


def allocate_tables(table_rows: Sequence[int], dim: int, device: torch.device) -> Tables:
    """Room for all tables, not yet touched: whoever initializes it in parallel decides where its pages lie."""
    offset = torch.zeros(len(table_rows) + 1, dtype=torch.int64)
    torch.cumsum(torch.tensor(table_rows, dtype=torch.int64), 0, out=offset[1:])
    num_rows = int(offset[-1])
    if device.type == "cpu":
        weight = torch.from_numpy(map_floats(num_rows * dim)).view(num_rows, dim)
    else:
        weight = torch.empty(num_rows, dim, device=device)
    return Tables(weight, offset)


def map_floats(count: int) -> np.ndarray:
    """f32[count] in an anonymous mapping of its own with huge pages asked for; freed with its last view."""
    memory = mmap.mmap(-1, max(count * _FLOAT_BYTES, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.float32, count=count)
