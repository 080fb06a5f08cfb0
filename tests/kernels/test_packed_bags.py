"""Bags of packed rows are pooled to the bits of an oracle in NumPy, whatever the width of codes, rows, bags and ids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dqrm_cpu.kernels.packed_arrays import RefusedRowsError
from dqrm_cpu.kernels.packed_bags import PackedBags

NUM_ROWS = 37
MANY_ROWS = 140_000  # of 16 codes of 4 bits, which are more than a core's own cache holds


def packed(codes: NDArray[np.int64], bits: int) -> torch.Tensor:
    """Packs codes [R, D] of two's complement, the lowest bits first, rows in whole bytes."""
    lowest_first = (codes[:, :, None] >> np.arange(bits) & 1).astype(np.uint8)
    return torch.from_numpy(np.packbits(lowest_first.reshape(len(codes), -1), axis=1, bitorder="little"))


def pooled(codes: NDArray[np.int64], scale: float, bags: list[list[int]], is_mean: bool) -> NDArray[np.float32]:
    """Sums whole numbers, then multiplies once."""
    sums = np.array([codes[bag].sum(axis=0) for bag in bags], np.float32).reshape(len(bags), codes.shape[1])
    values = sums * np.float32(scale)
    lengths = np.array([max(1, len(bag)) for bag in bags], np.float32)[:, None]
    return values * (np.float32(1) / lengths) if is_mean else values


def as_arrays(bags: list[list[int]], kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids one bag after another, and where each begins."""
    ids = torch.tensor([number for bag in bags for number in bag], dtype=kind)
    return ids, torch.tensor([0, *np.cumsum([len(bag) for bag in bags], dtype=np.int64)])


ROWS = st.integers(0, NUM_ROWS - 1)
BAGS = st.one_of(st.lists(st.lists(ROWS, max_size=40), max_size=5), st.lists(st.tuples(ROWS).map(list), max_size=80))
DIMS = st.one_of(st.integers(1, 140), st.sampled_from([16, 32, 64]))  # two rows of the latter fill a register
KINDS = st.sampled_from([torch.int64, torch.int32])


@settings(max_examples=40)
@given(DIMS, st.one_of(st.just(4), st.integers(2, 8)), BAGS, KINDS, st.booleans(), st.integers(0, 2**32 - 1))
def test_bags_are_those_of_the_oracle(
    dim: int, bits: int, bags: list[list[int]], kind: torch.dtype, is_mean: bool, seed: int
) -> None:
    half = 1 << (bits - 1)
    codes = np.random.default_rng(seed).integers(-half, half, (NUM_ROWS, dim))
    rows = packed(codes, bits)
    # Behind whatever byte: rows begin at every place of a cache line.
    memory = torch.zeros(rows.numel() + 1, dtype=torch.uint8)
    shifted = memory[1:].view_as(rows).copy_(rows)
    expected = pooled(codes, 0.37, bags, is_mean)
    for its in (rows, shifted):
        found = PackedBags(its, dim, bits, 0.37, is_mean=is_mean).pool(*as_arrays(bags, kind))
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("code", [-8, 7])
@pytest.mark.parametrize("length", [15, 16, 17, 32, 33, 34, 5000, 5001])
@pytest.mark.parametrize("dim", [16, 21, 32, 64])
def test_sums_of_long_bags_do_not_overflow(code: int, length: int, dim: int) -> None:
    codes = np.full((NUM_ROWS, dim), code)
    found = PackedBags(packed(codes, 4), dim, 4, 1.0).pool(*as_arrays([[3] * length], torch.int64))
    assert found.tolist() == [[float(code * length)] * dim]


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_rows_that_no_cache_holds_are_summed_alike(kind: torch.dtype) -> None:
    generator = np.random.default_rng(3)
    codes = generator.integers(-8, 8, (MANY_ROWS, 16))
    bags = [generator.integers(0, MANY_ROWS, size).tolist() for size in (0, 1, 2, 20, 33, 500, 5)]
    table = PackedBags(packed(codes, 4), 16, 4, 0.37)
    np.testing.assert_array_equal(table.pool(*as_arrays(bags, kind)).numpy(), pooled(codes, 0.37, bags, False))
    for at, number in ((0, MANY_ROWS), (560, MANY_ROWS), (100, -1)):
        ids, offsets = as_arrays(bags, kind)
        ids[at] = number
        with pytest.raises(RefusedRowsError):
            table.pool(ids, offsets)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    generator = np.random.default_rng(1)
    bags = PackedBags(packed(generator.integers(-8, 8, (NUM_ROWS, 16)), 4), 16, 4, 0.1)
    lengths = torch.from_numpy(generator.integers(0, 30, 4000))  # enough that threads are asked
    ids, offsets = torch.randint(NUM_ROWS, (int(lengths.sum()),)), torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
    usual = torch.get_num_threads()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(bags.pool(ids, offsets))
    torch.set_num_threads(usual)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@settings(max_examples=30)
@given(st.integers(0, 199), st.integers(-(2**63), 2**63 - 1).filter(lambda number: not 0 <= number < NUM_ROWS), KINDS)
def test_ids_that_are_no_rows_are_refused(at: int, number: int, kind: torch.dtype) -> None:
    bags = PackedBags(torch.zeros(NUM_ROWS, 8, dtype=torch.uint8), 16, 4, 0.1)
    for length in (1, 2):
        ids, offsets = torch.zeros(200, dtype=kind), torch.arange(0, 201, length)
        ids[at] = number if kind == torch.int64 else min(max(number, -1), NUM_ROWS)
        with pytest.raises(RefusedRowsError):
            bags.pool(ids, offsets)
        ids[at] = NUM_ROWS - 1
        assert bags.pool(ids, offsets).shape == (200 // length, 16)


OUTSIDE = [[0, 3, 2, 4], [-1, 2], [0, 5], [4, 0], [-1, 0], [3, 4, 5], [0, -(2**63), 4], [2**63 - 1, -(2**63)]]


@pytest.mark.parametrize("offsets", OUTSIDE)
def test_offsets_that_lead_out_of_the_ids_are_refused(offsets: list[int]) -> None:
    bags = PackedBags(torch.zeros(NUM_ROWS, 8, dtype=torch.uint8), 16, 4, 0.1)
    with pytest.raises(RefusedRowsError):
        bags.pool(torch.zeros(4, dtype=torch.int64), torch.tensor(offsets))


def test_other_arrays_are_no_codes_ids_or_results() -> None:
    bags = PackedBags(torch.zeros(NUM_ROWS, 8, dtype=torch.uint8), 16, 4, 0.1)
    ids, offsets = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 4])
    with pytest.raises(ValueError, match="not rows of 16 codes of 8 bits"):
        PackedBags(torch.zeros(NUM_ROWS, 8, dtype=torch.uint8), 16, 8, 0.1)
    with pytest.raises(ValueError, match="out"):
        bags.pool(ids, offsets, torch.empty(2, 16))
    with pytest.raises(ValueError, match="ids are"):
        bags.pool(ids.short(), offsets)
