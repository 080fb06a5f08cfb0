"""Clip rates: counted value by value."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.kernels.table_groups import one_group
from dqrm_cpu.kernels.types import Bags, Tables
from dqrm_cpu.quant.liveness import clip_rates
from dqrm_cpu.quant.methods import Uniform

ROWS = (3, 5)
DIM = 2


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_rates_are_the_share_of_values_beyond_the_codes(seed: int, lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.tensor([0, ROWS[0], sum(ROWS)])
    tables = Tables(torch.randn(sum(ROWS), DIM, generator=generator), offset)
    scale = torch.rand(2, generator=generator) + 0.1
    ids = [torch.randint(ROWS[b // 2], (lengths[b],), generator=generator, dtype=torch.int32) for b in range(4)]
    bags = Bags(torch.cat(ids), torch.tensor([0, *lengths]).cumsum(0))
    found = clip_rates(Uniform(3), one_group(tables), [bags], scale)
    for t in range(2):
        values = tables.weight[torch.cat(ids[2 * t : 2 * t + 2]).long() + offset[t]].flatten().tolist()
        beyond = [not -4 <= round(value / float(scale[t])) <= 3 for value in values]
        expected = sum(beyond) / len(beyond) if beyond else 0.0
        assert abs(float(found[t]) - expected) < 1e-6


def test_one_hot_batches_count_alike() -> None:
    tables = Tables(torch.tensor([[1.0], [4.0], [-9.0]]), torch.tensor([0, 1, 3]))
    ids = torch.tensor([[0, 0], [1, 0]], dtype=torch.int32)
    assert clip_rates(Uniform(4), one_group(tables), [Bags(ids, None)], torch.ones(2)).tolist() == [0.0, 0.5]
