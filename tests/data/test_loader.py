"""Global batches: the same order for any number of ranks, partial last batches, caching."""

from itertools import pairwise

import pytest
import torch

from dqrm_cpu.data.batch import Batch, rank_shares, share_bounds
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import Part
from tiny import CPU


class CountingSource:
    """Row i has dense value i, ids i mod 7, and a label; notes each read."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []

    def rows(self, start: int, stop: int) -> Batch:
        self.reads.append((start, stop))
        numbers = torch.arange(start, stop)
        ids = (numbers % 7).to(torch.int32).repeat(2, 1)
        return Batch(numbers.float()[:, None], ids, None, (numbers % 2).float())


def loader(num_rows: int, batch_size: int, rank: int = 0, size: int = 1, simulated: int = 1, cache: int = 0) -> Loader:
    return Loader(Part(CountingSource(), 100, num_rows), batch_size, rank_shares(rank, size, simulated), CPU, cache)


def row_numbers(batch: Batch) -> list[int]:
    return [int(value) - 100 for value in batch.dense[:, 0]]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_together_see_every_row_once_in_order(size: int) -> None:
    ranks = [loader(50, 8, rank, size) for rank in range(size)]
    for number in range(ranks[0].num_batches):
        seen = [row for one in ranks for batch in one.batches(number) for row in row_numbers(batch)]
        assert seen == list(range(number * 8, min(number * 8 + 8, 50)))
        assert ranks[0].global_size(number) == len(seen)


def test_simulated_ranks_have_the_shares_of_real_ones() -> None:
    simulated = loader(50, 8, simulated=3)
    for number in range(simulated.num_batches):
        real = [loader(50, 8, rank, 3).batches(number)[0] for rank in range(3)]
        assert [row_numbers(batch) for batch in simulated.batches(number)] == [row_numbers(batch) for batch in real]


def test_a_part_that_fits_is_read_once() -> None:
    source = CountingSource()
    kept = Loader(Part(source, 0, 50), 8, rank_shares(0, 1, 1), CPU, cache_bytes=50 * 4 * 4)
    source.reads.clear()
    for _ in range(2):
        for number in range(kept.num_batches):
            kept.batches(number)
    assert source.reads == [(8 * i, min(8 * i + 8, 50)) for i in range(7)]


def test_a_part_that_does_not_fit_is_read_again() -> None:
    source = CountingSource()
    streamed = Loader(Part(source, 0, 50), 8, rank_shares(0, 1, 1), CPU, cache_bytes=50 * 4 * 4 - 1)
    source.reads.clear()
    streamed.batches(0)
    streamed.batches(0)
    assert source.reads == [(0, 8), (0, 8)]


@pytest.mark.parametrize("total", [0, 1, 7, 100, 2**40])
@pytest.mark.parametrize("num_shares", [1, 2, 3, 7, 64])
def test_shares_are_balanced_and_cover(total: int, num_shares: int) -> None:
    bounds = [share_bounds(total, share, num_shares) for share in range(num_shares)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == total
    assert all(left[1] == right[0] for left, right in pairwise(bounds))
    sizes = [high - low for low, high in bounds]
    assert max(sizes) - min(sizes) <= 1
