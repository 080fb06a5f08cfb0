"""Chains of equal rows, against a dictionary of lists."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.kernels.jit.arena import Arena, arena_of
from dqrm_cpu.kernels.jit.compile import kernel
from dqrm_cpu.kernels.jit.memory import set_long
from dqrm_cpu.kernels.jit.simd import LANES
from dqrm_cpu.kernels.numba.duplicate_rows import CHAIN_LISTS, SLOTS_PER_LOOKUP, chain_shard, chains_at
from dqrm_cpu.kernels.numba.lookups import Lookups, Pooled
from dqrm_cpu.kernels.types import Tables

_TABLE = 1


@kernel
def _chain(
    arena: Arena, lookups: Lookups, pooled: Pooled, shard: int, shard_bits: int, base: int, length: int, counts: int
) -> None:
    num_single, num_first = chain_shard(arena, lookups, _TABLE, pooled, shard, shard_bits, chains_at(base, length))
    set_long(counts, 0, num_single)
    set_long(counts, 1, num_first)


def _chained(ids: np.ndarray[Any, Any], num_rows: int, shard: int, shard_bits: int) -> Iterator[tuple[int, list[int]]]:
    """Rows of a shard of the second of two tables, and the lookups of each."""
    size, length = ids.size, ids.size + LANES
    tables = Tables(torch.zeros(num_rows + 5, 3), torch.tensor([0, 5, num_rows + 5]))
    all_ids = torch.cat([torch.zeros(size, dtype=torch.int32), torch.from_numpy(ids)])
    table_start, grad = torch.tensor([0, size, 2 * size]), torch.zeros(size, 3, 3)
    slots = 1 << (SLOTS_PER_LOOKUP * length - 1).bit_length()
    memory, counts = torch.full((CHAIN_LISTS * length + slots,), -7, dtype=torch.int32), torch.zeros(2).long()
    lookups = Lookups(all_ids.data_ptr(), table_start.data_ptr(), 0, 0, size, 0)
    places = memory.data_ptr(), length, counts.data_ptr()
    _chain(arena_of(tables), lookups, Pooled(grad.data_ptr(), 0), shard, shard_bits, *places)
    position, row, following, _, alone, first = memory[: CHAIN_LISTS * length].view(CHAIN_LISTS, length).tolist()
    num_single, num_first = counts.tolist()
    for head, is_single in [(i, True) for i in alone[:num_single]] + [(i, False) for i in first[:num_first]]:
        members, i = [], head
        while i >= 0:
            assert row[i] == row[head]
            members.append(position[i] - size)
            i = following[i]
        assert is_single == (len(members) == 1)
        yield row[head], members


def _expected(ids: np.ndarray[Any, Any]) -> dict[int, list[int]]:
    lookups: dict[int, list[int]] = {}
    for i, row in enumerate(ids.tolist()):
        lookups.setdefault(row, []).append(i)
    return lookups


def _assert_chained(ids: np.ndarray[Any, Any], num_rows: int, shard_bits: int) -> None:
    found: dict[int, list[int]] = {}
    for shard in range(1 << shard_bits):
        for row, members in _chained(ids.astype(np.int32), num_rows, shard, shard_bits):
            assert row not in found
            found[row] = members
    assert found == _expected(ids)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(0, 300),
    num_rows=st.sampled_from([1, 2, 40, 5000, 200_000]),
    skew=st.sampled_from([1.0, 4.0, 16.0]),
    shard_bits=st.integers(0, 3),
    seed=st.integers(0, 1 << 16),
)
def test_chains_hold_every_lookup_of_a_row_in_order(
    size: int, num_rows: int, skew: float, shard_bits: int, seed: int
) -> None:
    uniform = np.random.default_rng(seed).random(size)
    _assert_chained((uniform**skew * num_rows).astype(np.int64), num_rows, shard_bits)


@pytest.mark.parametrize("size", [1, 2, LANES, 1000])
def test_all_equal_and_all_distinct(size: int) -> None:
    _assert_chained(np.full(size, 77_777), 100_000, 1)
    _assert_chained(np.random.default_rng(0).permutation(100_000)[:size], 100_000, 1)


def test_rows_that_share_a_slot() -> None:
    """Multiples of 2^19 of a table beyond direct slots: a hash of the high bits alone would not part them at once."""
    rows = np.arange(64) << 14
    _assert_chained(np.concatenate([rows, rows[::-1], rows]), 1 << 20, 0)
    assert SLOTS_PER_LOOKUP * 192 < 1 << 20
