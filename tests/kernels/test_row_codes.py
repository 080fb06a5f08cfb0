"""Rows on their way between ranks: found once each, and pooled to the bits of the lookup that needs no way."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from kernel_cases import BITS, CASES, Case, implementation

from dqrm_cpu.kernels.reference import ReferenceKernels
from dqrm_cpu.kernels.row_codes import decode_rows, encode_rows, row_bytes, unique_rows
from dqrm_cpu.kernels.types import UNQUANTIZED, Bags, Tables

EXAMPLES = settings(max_examples=25)
ORACLE = ReferenceKernels()


def by_table(bags: Bags, case: Case) -> list[torch.Tensor]:
    """The ids of each table."""
    if bags.offsets is None:
        return list(bags.ids)
    bounds = bags.offsets[:: case.batch].tolist() if case.batch else [0] * (case.tables.num_tables + 1)
    return [bags.ids[first:end] for first, end in pairwise(bounds)]


@EXAMPLES
@given(case=CASES)
def test_each_row_is_found_once_with_its_places(case: Case) -> None:
    found = unique_rows(case.tables.row_offset, case.bags)
    num_tables = case.tables.num_tables
    ids, places = by_table(case.bags, case), by_table(found.bags, case)
    for table in range(num_tables):
        rows, inverse = np.unique(ids[table].numpy(), return_inverse=True)
        first, end = found.table_ptr[table : table + 2].tolist()
        assert found.rows[first:end].tolist() == rows.tolist()
        assert places[table].tolist() == inverse.tolist()


@EXAMPLES
@given(case=CASES, bits=BITS)
def test_rows_that_travelled_are_pooled_to_the_same_bits(case: Case, bits: int) -> None:
    found = unique_rows(case.tables.row_offset, case.bags)
    num_rows = found.rows.numel()
    sent = np.empty(num_rows * row_bytes(case.tables.dim, bits), dtype=np.uint8)
    encode_rows(case.tables, found.table_ptr, found.rows, case.scale, bits, sent)
    values = torch.full((num_rows, case.tables.dim), torch.nan)
    backwards = np.arange(num_rows, dtype=np.int64)
    decode_rows(sent, found.table_ptr, case.scale, bits, backwards, values)
    shape = case.grad_features.shape
    actual, expected = torch.full(shape, 7.0), torch.full(shape, 7.0)
    fetched = Tables(values, found.table_ptr)
    implementation("numba").gather_quantize_pool(fetched, found.bags, case.scale, UNQUANTIZED, actual)
    ORACLE.gather_quantize_pool(case.tables, case.bags, case.scale, bits, expected)
    assert torch.equal(actual, expected)


@EXAMPLES
@given(case=CASES)
def test_gradients_of_rows_that_travelled_are_summed_to_the_same_bits(case: Case) -> None:
    kernels = implementation("numba")
    found = unique_rows(case.tables.row_offset, case.bags)
    fetched = Tables(torch.empty(found.rows.numel(), case.tables.dim), found.table_ptr)
    actual = kernels.coalesce(fetched, found.bags, case.grad_features)
    expected = kernels.coalesce(case.tables, case.bags, case.grad_features)
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(actual.table_ptr, expected.table_ptr)
    assert actual.values.numpy().tobytes() == expected.values.numpy().tobytes()


def test_four_bits_are_an_eighth_of_a_row() -> None:
    assert [row_bytes(64, bits) for bits in (2, 4, 5, 8, 9, 16, UNQUANTIZED)] == [32, 32, 64, 64, 128, 128, 256]
    assert row_bytes(7, 4) == 4
