"""Tables of several dimensions: which lookups and values belong to which."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dqrm_cpu.kernels.table_groups import TableGroups, one_group
from dqrm_cpu.kernels.types import Bags, Tables
from dqrm_cpu.model.shapes import table_places
from dqrm_cpu.model.tables import allocate_groups
from tiny import CPU, tiny_config

DIMS = st.lists(st.sampled_from([1, 4, 5]), min_size=1, max_size=6)


def groups_of(dims: list[int]) -> TableGroups:
    return allocate_groups([2 + t for t in range(len(dims))], dims, CPU)


def bag(bags: Bags, table: int, sample: int, batch: int) -> Tensor:
    if bags.offsets is None:
        return bags.ids[table, sample : sample + 1]
    at = table * batch + sample
    return bags.ids[bags.offsets[at] : bags.offsets[at + 1]]


@given(dims=DIMS, batch=st.integers(0, 5), multi_hot=st.booleans(), seed=st.integers(0, 2**31))
def test_every_group_has_the_bags_of_its_tables(dims: list[int], batch: int, multi_hot: bool, seed: int) -> None:
    generator, groups = torch.Generator().manual_seed(seed), groups_of(dims)
    whole = Bags(torch.randint(0, 99, (len(dims), batch), generator=generator, dtype=torch.int32), None)
    if multi_hot:
        sizes = torch.randint(0, 4, (len(dims) * batch,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        whole = Bags(torch.randint(0, 99, (int(offsets[-1]),), dtype=torch.int32), offsets, mean=True)
    for group, own in zip(groups, groups.bags(whole), strict=True):
        assert own.mean is whole.mean
        assert own.ids.dtype is torch.int32
        assert own.ids.is_contiguous()
        for place, number in enumerate(group.numbers):
            for sample in range(batch):
                assert torch.equal(bag(own, place, sample, batch), bag(whole, number, sample, batch))


@given(dims=DIMS)
def test_values_of_tables_are_split_and_joined(dims: list[int]) -> None:
    groups, values = groups_of(dims), torch.arange(len(dims)) + 0.5
    parts = groups.split(values)
    assert [part.tolist() for part in parts] == [[number + 0.5 for number in group.numbers] for group in groups]
    assert torch.equal(groups.join(parts), values)


@given(dims=DIMS)
def test_every_table_has_its_rows_in_the_arena_of_its_dimension(dims: list[int]) -> None:
    groups, rows = groups_of(dims), [2 + t for t in range(len(dims))]
    assert [tuple(weight.shape) for weight in groups.weights] == list(zip(rows, dims, strict=True))
    assert groups.row_offset.diff().tolist() == rows
    named = ",".join(f"C{t + 1}={dim}" for t, dim in enumerate(dims))
    model = tiny_config(model={"table_rows": tuple(rows), "table_dims": named}).model
    arenas = dict(zip(groups.names("tables"), groups, strict=True))
    for weight, (name, first) in zip(groups.weights, table_places(model), strict=True):
        weight.fill_(1.0)
        part = arenas[name].tables.weight[first : first + weight.shape[0]]
        assert part.shape == weight.shape
        assert bool((part == 1).all())
        weight.fill_(0.0)


def test_one_dimension_is_left_as_it_is() -> None:
    tables = Tables(torch.ones(5, 3), torch.tensor([0, 2, 5]))
    groups, bags, values = one_group(tables), Bags(torch.zeros(2, 4, dtype=torch.int32), None), torch.ones(2)
    assert groups.only is tables
    assert groups.bags(bags)[0] is bags
    assert groups.split(values)[0] is values
    assert groups.join([values]) is values
    assert groups.names("tables") == ["tables"]
