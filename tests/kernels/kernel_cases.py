"""Random tables, bags and gradients for the tests of the kernels, with the cases that are easily forgotten."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import Bags, Tables

CPU = torch.device("cpu")
IMPLEMENTATIONS = ("torch", "numba")


def implementation(name: str) -> Kernels:
    return select_kernels(name, CPU)


class Case(NamedTuple):
    tables: Tables
    bags: Bags
    scale: Tensor
    grad_features: Tensor

    @property
    def batch(self) -> int:
        return self.grad_features.shape[0]


def make_tables(rows: list[int], dim: int, generator: torch.Generator) -> Tables:
    offset = torch.zeros(len(rows) + 1, dtype=torch.int64)
    offset[1:] = torch.tensor(rows).cumsum(0)
    return Tables(torch.randn(int(offset[-1]), dim, generator=generator), offset)


def make_bags(rows: list[int], batch: int, multi_hot: bool, mean: bool, generator: torch.Generator) -> Bags:
    """Ids with duplicates, the last row of each table among them; multi-hot bags of 0 to 4 ids."""
    lengths = torch.ones(len(rows), batch, dtype=torch.int64)
    if multi_hot:
        lengths = torch.randint(0, 5, lengths.shape, generator=generator)
    ids = [torch.randint(0, n, (int(k.sum()),), generator=generator) for n, k in zip(rows, lengths, strict=True)]
    for n, of_table in zip(rows, ids, strict=True):
        of_table[:1] = n - 1
    if not multi_hot:
        return Bags(torch.stack(ids).int(), None, mean)
    offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64)
    offsets[1:] = lengths.flatten().cumsum(0)
    return Bags(torch.cat(ids).int(), offsets, mean)


def make_case(rows: list[int], dim: int, batch: int, multi_hot: bool, mean: bool, seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    tables = make_tables(rows, dim, generator)
    bags = make_bags(rows, batch, multi_hot, mean, generator)
    scale = torch.rand(len(rows), generator=generator) + 0.01
    return Case(tables, bags, scale, torch.randn(batch, 1 + len(rows), dim, generator=generator))


def copy_tables(tables: Tables) -> Tables:
    return Tables(tables.weight.clone(), tables.row_offset)


DIMS = st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 100, 128, 130])
"""Few enough that the compilation for each stays affordable, and every remainder of a vector's width that matters."""

CASES = st.builds(
    make_case,
    rows=st.lists(st.one_of(st.integers(1, 9), st.integers(60, 300)), min_size=1, max_size=4),
    dim=DIMS,
    batch=st.one_of(st.sampled_from([0, 1]), st.integers(2, 40)),
    multi_hot=st.booleans(),
    mean=st.booleans(),
    seed=st.integers(0, 2**31),
)
BITS = st.sampled_from([*range(2, 17), 32])
