"""Tables of few rows are summed in place: the bits of an update are those of the same rows within a larger table."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import implementation, make_bags, make_tables
from torch import Tensor

from dqrm_cpu.kernels.numba.duplicate_rows import DENSE_SUMS
from dqrm_cpu.kernels.types import Bags, Tables, UpdateRule

MOST_LOOKUPS = 150 * 4
OTHERS = MOST_LOOKUPS + 1
"""Rows that nobody looks up; with them a table has more rows than lookups."""

WIDE = 128
MOST = DENSE_SUMS // WIDE
"""Rows of that width whose sums fit."""


def updated(weight: Tensor, bags: Bags, grad: Tensor, adagrad: bool) -> tuple[Tensor, Tensor]:
    """Weights and accumulator of a single table after an update with decay."""
    tables = Tables(weight.clone(), torch.tensor([0, weight.shape[0]]))
    accumulator = torch.full((weight.shape[0],), 0.1)
    kernels = implementation("numba")
    tracker = kernels.make_tracker(tables)
    if adagrad:
        kernels.update_(tables, bags, grad, UpdateRule(0.3, 0.01, 1e-8, accumulator), tracker)
    else:
        kernels.update_(tables, bags, grad, UpdateRule(0.3, 0.01), tracker)
    assert torch.equal(tracker.absmax(), tables.weight.abs().max()[None])
    return tables.weight, accumulator


@settings(max_examples=30)
@given(
    st.integers(1, 60),
    st.sampled_from([1, 7, 16, 40, 64, 130]),
    st.integers(1, 150),
    st.sampled_from(["one-hot", "sum", "mean"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_bits_are_those_of_a_larger_table(
    rows: int, dim: int, batch: int, bags_are: str, is_bf16: bool, adagrad: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = make_tables([rows + OTHERS], dim, generator).weight
    bags = make_bags([rows], batch, bags_are != "one-hot", bags_are == "mean", generator)
    grad = torch.randn(batch, 2, dim, generator=generator).to(torch.bfloat16 if is_bf16 else torch.float32)
    few, large = updated(weight[:rows], bags, grad, adagrad), updated(weight, bags, grad, adagrad)
    for mine, theirs in zip(few, large, strict=True):
        assert torch.equal(mine, theirs[:rows])


@pytest.mark.parametrize("rows", [MOST - 1, MOST, MOST + 1])
@pytest.mark.parametrize("batch", [MOST - 1, 3 * MOST])
def test_every_row_is_updated_where_there_are_almost_too_many(rows: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, WIDE, generator=generator)
    ids = torch.arange(batch).remainder(rows).int()[None]
    grad = torch.randn(batch, 2, WIDE, generator=generator)
    expected = weight.double() * (1 - 0.3 * 0.01 * (torch.arange(rows) < batch)[:, None])
    expected.index_add_(0, ids[0].long(), grad[:, 1].double(), alpha=-0.3)
    found, _ = updated(weight, Bags(ids, None, False), grad, adagrad=False)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
