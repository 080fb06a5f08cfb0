"""Rows of fewer bits than FP32: what kernels make of them against the oracle, and what an update may not do to them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import BITS, CASES, Case, copy_tables, make_case
from torch import Tensor

from dqrm_cpu.kernels.master_rows import BF16, INT8, ROW_TYPES, nearest_rows, row_bytes, row_values
from dqrm_cpu.kernels.numba.kernels import NumbaKernels
from dqrm_cpu.kernels.reference import ReferenceKernels, rounded_row, table_rows
from dqrm_cpu.kernels.row_codes import encode_rows
from dqrm_cpu.kernels.row_codes import row_bytes as sent_bytes
from dqrm_cpu.kernels.types import Bags, RowChances, Tables, UpdateRule

KERNELS, ORACLE = NumbaKernels(), ReferenceKernels()
EXAMPLES = settings(max_examples=25)
TYPES = st.sampled_from([BF16, INT8])
KEYS = st.integers(0, 2**64 - 1)
EACH_TYPE = pytest.mark.parametrize("dtype", [BF16, INT8], ids=["bf16", "int8"])


def in_form(tables: Tables, dtype: torch.dtype) -> Tables:
    return Tables(nearest_rows(tables.weight, dtype), tables.row_offset)


def in_fp32(tables: Tables) -> Tables:
    return Tables(row_values(tables.weight).clone(), tables.row_offset)


def one_row(values: Tensor, dtype: torch.dtype, rows: int = 1) -> Tables:
    return in_form(Tables(values.expand(rows, -1).contiguous(), torch.tensor([0, rows])), dtype)


def update_rows(tables: Tables, gradient: Tensor, key: int, lr: float = 1.0, decay: float = 0.0) -> None:
    """Updates all rows of the only table, each with the gradient f32[D]."""
    rows = tables.weight.shape[0]
    ids = Bags(torch.arange(rows, dtype=torch.int32).view(1, -1), None)
    grad = torch.zeros(rows, 2, tables.dim)
    grad[:, 1] = gradient
    KERNELS.update_(tables, ids, grad, UpdateRule(lr, decay, chances=RowChances(key)), None)


def test_forms_have_the_bytes_that_they_promise() -> None:
    assert [row_bytes(ROW_TYPES[name], 16) for name in ("fp32", "bf16", "int8")] == [64, 32, 17]


@EXAMPLES
@given(case=CASES, dtype=TYPES)
def test_values_are_those_of_the_oracle(case: Case, dtype: torch.dtype) -> None:
    tables = in_form(case.tables, dtype)
    expected = np.concatenate([table_rows(tables, t) for t in range(tables.num_tables)])
    assert np.array_equal(row_values(tables.weight).numpy(), expected)
    step = case.tables.weight.abs().amax(1, keepdim=True) / (63.5 if dtype == INT8 else 128)
    assert bool(((row_values(tables.weight) - case.tables.weight).abs() <= step / 2).all())


@EXAMPLES
@given(case=CASES, dtype=TYPES, bits=BITS)
def test_lookups_are_those_of_the_values(case: Case, dtype: torch.dtype, bits: int) -> None:
    tables = in_form(case.tables, dtype)
    actual, expected = (torch.full(case.grad_features.shape, 7.0) for _ in range(2))
    KERNELS.gather_quantize_pool(tables, case.bags, case.scale, bits, actual)
    KERNELS.gather_quantize_pool(in_fp32(tables), case.bags, case.scale, bits, expected)
    assert torch.equal(actual, expected)


@EXAMPLES
@given(case=CASES, dtype=TYPES, bits=BITS)
def test_rows_travel_as_their_values_do(case: Case, dtype: torch.dtype, bits: int) -> None:
    tables = in_form(case.tables, dtype)
    counts = tables.row_offset.diff()
    rows = torch.cat([torch.arange(int(count), dtype=torch.int32) for count in counts])
    sent = [np.zeros(4 * len(rows) * tables.dim, np.uint8) for _ in range(2)]
    width = len(rows) * sent_bytes(tables.dim, bits)
    for held, out in zip((tables, in_fp32(tables)), sent, strict=True):
        encode_rows(held, tables.row_offset, rows, case.scale, bits, out[:width])
    assert np.array_equal(sent[0], sent[1])


@EXAMPLES
@given(case=CASES, dtype=TYPES, key=KEYS, first=st.integers(0, 2**40), decay=st.sampled_from([0.0, 0.01]))
def test_sgd_is_that_of_the_oracle(case: Case, dtype: torch.dtype, key: int, first: int, decay: float) -> None:
    fused, applied, expected = (in_form(case.tables, dtype) for _ in range(3))
    before = torch.arange(case.tables.num_tables) * 1000 + first
    rule = UpdateRule(0.1, decay, chances=RowChances(key, before))
    KERNELS.update_(fused, case.bags, case.grad_features, rule, None)
    KERNELS.update_sparse_(applied, KERNELS.coalesce(fused, case.bags, case.grad_features), rule, None)
    ORACLE.update_(expected, case.bags, case.grad_features, rule, None)
    assert torch.equal(fused.weight.view(torch.uint8), expected.weight.view(torch.uint8))
    assert torch.equal(applied.weight.view(torch.uint8), expected.weight.view(torch.uint8))


@EXAMPLES
@given(case=CASES, dtype=TYPES, key=KEYS)
def test_adagrad_is_that_of_fp32_rows_rounded(case: Case, dtype: torch.dtype, key: int) -> None:
    tables = in_form(case.tables, dtype)
    plain, chances = in_fp32(tables), RowChances(key)
    sums = [torch.ones(case.tables.weight.shape[0]) for _ in range(2)]
    before = copy_tables(tables)
    KERNELS.update_(tables, case.bags, case.grad_features, UpdateRule(0.1, 0.01, 1e-8, sums[0], chances), None)
    KERNELS.update_(plain, case.bags, case.grad_features, UpdateRule(0.1, 0.01, 1e-8, sums[1]), None)
    assert torch.equal(*sums)
    at_most = torch.maximum(*(row_values(one.weight).abs().amax(1, keepdim=True) for one in (before, plain)))
    assert bool(((row_values(tables.weight) - plain.weight).abs() <= at_most / (48 if dtype == INT8 else 128)).all())


@EXAMPLES
@given(case=CASES, dtype=TYPES, key=KEYS)
def test_rows_not_looked_up_keep_their_bits(case: Case, dtype: torch.dtype, key: int) -> None:
    tables = in_form(case.tables, dtype)
    before = copy_tables(tables)
    grad = KERNELS.coalesce(tables, case.bags, case.grad_features)
    KERNELS.update_(tables, case.bags, case.grad_features, UpdateRule(5.0, 0.1, chances=RowChances(key)), None)
    counts = grad.table_ptr.diff()
    kept = torch.ones(tables.weight.shape[0], dtype=torch.bool)
    kept[(tables.row_offset[:-1].repeat_interleave(counts) + grad.rows)] = False
    assert torch.equal(tables.weight[kept].view(torch.uint8), before.weight[kept].view(torch.uint8))


@EXAMPLES
@given(case=CASES, dtype=TYPES, keys=st.lists(KEYS, min_size=3, max_size=3))
def test_rows_without_a_gradient_keep_their_bits(case: Case, dtype: torch.dtype, keys: list[int]) -> None:
    tables = in_form(case.tables, dtype)
    for number, key in enumerate(keys):
        # Rows that were rounded by chance, too, and not only those that were drawn.
        gradient = case.grad_features if number == 0 else torch.zeros_like(case.grad_features)
        before = copy_tables(tables)
        KERNELS.update_(tables, case.bags, gradient, UpdateRule(0.5, 0.0, chances=RowChances(key)), None)
    assert torch.equal(tables.weight.view(torch.uint8), before.weight.view(torch.uint8))


@EACH_TYPE
def test_an_update_is_right_on_average(dtype: torch.dtype) -> None:
    """Each by a hundredth of what the form can tell apart: to the nearest nothing would ever change."""
    rows, values = 40_000, torch.tensor([1.0, -0.75, 0.3, -0.001])
    tables = one_row(values, dtype, rows)
    start = row_values(tables.weight[:1])
    gradient = torch.tensor([1e-4, -1e-4, 2e-5, -1e-5])
    update_rows(tables, gradient, key=3)
    moved = (row_values(tables.weight) - start).double()
    error = moved.mean(0) + gradient
    # Five standard errors of the mean of what is 0 or a whole step.
    assert bool((error.abs() <= 5 * moved.std(0) / rows**0.5 + 1e-9).all())
    assert int((moved[:, 0] != 0).sum()) > 0


@EACH_TYPE
def test_small_updates_add_up(dtype: torch.dtype) -> None:
    tables = one_row(torch.tensor([1.0, -1.0]), dtype, 2000)
    start = row_values(tables.weight[:1])
    for key in range(20):
        update_rows(tables, torch.tensor([1e-4, 1e-4]), key)
    moved = (row_values(tables.weight) - start).mean(0)
    assert torch.allclose(moved, torch.full((2,), -2e-3), rtol=0.2)


@EACH_TYPE
def test_chances_follow_from_the_key_and_the_number_of_the_row(dtype: torch.dtype) -> None:
    def updated(rows: int, key: int, first: int) -> Tensor:
        tables = one_row(torch.randn(16, generator=torch.Generator().manual_seed(1)), dtype, rows)
        grad = torch.full((rows, 2, 16), 1e-3)
        chances = RowChances(key, torch.tensor([first]))
        ids = Bags(torch.arange(rows, dtype=torch.int32).view(1, -1), None)
        KERNELS.update_(tables, ids, grad, UpdateRule(1.0, 0.0, chances=chances), None)
        return tables.weight.view(torch.uint8)

    whole = updated(600, 9, 0)
    assert torch.equal(whole[200:], updated(400, 9, 200))
    assert not torch.equal(whole, updated(600, 10, 0))
    assert not torch.equal(whole[0], whole[1])


@EACH_TYPE
@pytest.mark.parametrize("multi_hot", [False, True])
def test_threads_make_no_difference(dtype: torch.dtype, multi_hot: bool) -> None:
    case = make_case([5, 4000, 300], 33, 3000, multi_hot, True, 4)
    results, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            tables = in_form(case.tables, dtype)
            tracker = KERNELS.make_tracker(tables)
            KERNELS.update_(tables, case.bags, case.grad_features, UpdateRule(0.1, 0.0, chances=RowChances(5)), tracker)
            results.append(torch.cat((tables.weight.view(torch.uint8).view(-1), tracker.absmax().view(torch.uint8))))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@EXAMPLES
@given(case=CASES, dtype=TYPES, lr=st.sampled_from([0.01, 0.9]), keys=st.lists(KEYS, min_size=1, max_size=6))
def test_tracked_maxima_are_those_of_what_is_stored(case: Case, dtype: torch.dtype, lr: float, keys: list[int]) -> None:
    tables = in_form(case.tables, dtype)
    tracker = KERNELS.make_tracker(tables)
    for key in keys:
        rule = UpdateRule(lr, 0.3, chances=RowChances(key))
        KERNELS.update_(tables, case.bags, case.grad_features, rule, tracker)
        assert torch.equal(tracker.absmax(), KERNELS.scan_absmax(in_fp32(tables)))
        assert torch.equal(KERNELS.scan_absmax(tables), tracker.absmax())


@EACH_TYPE
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(dtype: torch.dtype, value: float) -> None:
    tables = one_row(torch.ones(20), dtype, 3)
    tracker = KERNELS.make_tracker(tables)
    grad = torch.zeros(1, 2, 20)
    grad[0, 1, 17] = value
    ids = Bags(torch.tensor([[1]], dtype=torch.int32), None)
    KERNELS.update_(tables, ids, grad, UpdateRule(1.0, 0.0, chances=RowChances(1)), tracker)
    assert not bool(torch.isfinite(tracker.absmax()).any())
    assert not bool(torch.isfinite(KERNELS.scan_absmax(tables)).any())
    assert bool(torch.isfinite(row_values(tables.weight)[[0, 2]]).all())


@EACH_TYPE
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-39, 1.2e-38, 3e-30, 1.0, 1.9843751, 1e38, 3e38])
def test_numbers_of_any_size_keep_their_order_of_magnitude(dtype: torch.dtype, value: float) -> None:
    values = torch.tensor([value, -value / 2])
    tables = one_row(values, dtype)
    stored = row_values(tables.weight)[0]
    if value > 2e-36 or dtype == BF16:
        assert torch.allclose(stored, values, rtol=0.02, atol=2e-38)
    update_rows(tables, torch.zeros(2), 1)
    assert torch.equal(row_values(tables.weight)[0], stored)
    expected = rounded_row(values.numpy(), tables.weight[0], np.zeros(2, np.float32))
    assert torch.allclose(row_values(expected.view(1, -1))[0], values, rtol=0.03, atol=2e-38)


@EACH_TYPE
def test_rows_are_drawn_as_fp32_rows_are(dtype: torch.dtype) -> None:
    offset = torch.tensor([0, 40, 20_040])
    plain = Tables(torch.empty(20_040, 5), offset)
    drawn = Tables(torch.empty(20_040, 6 if dtype == INT8 else 5, dtype=dtype), offset)
    for tables in (plain, drawn):
        KERNELS.init_uniform_(tables, 11)
    assert torch.equal(drawn.weight.view(torch.uint8), nearest_rows(plain.weight, dtype).view(torch.uint8))
    part = torch.empty_like(drawn.weight[:7])
    KERNELS.initial_rows(11, 40 + 30, 20_000, part)
    assert torch.equal(part.view(torch.uint8), drawn.weight[70:77].view(torch.uint8))
