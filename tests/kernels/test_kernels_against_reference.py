"""Every implementation against the oracle, on random shapes."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import BITS, CASES, DIMS, IMPLEMENTATIONS, Case, copy_tables, implementation, make_case

from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.reference import ReferenceKernels
from dqrm_cpu.kernels.types import RowIntervals, SparseGrad, Tables, UpdateRule

EXAMPLES = settings(max_examples=25)
ORACLE = ReferenceKernels()


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return implementation(request.param)


def assert_same_grad(actual: SparseGrad, expected: SparseGrad) -> None:
    assert torch.equal(actual.table_ptr, expected.table_ptr)
    assert torch.equal(actual.rows, expected.rows)
    assert actual.rows.dtype == torch.int32
    assert torch.equal(actual.values, expected.values)


@EXAMPLES
@given(case=CASES, bits=BITS)
def test_gather_is_bit_exact(kernels: Kernels, case: Case, bits: int) -> None:
    shape = case.grad_features.shape
    actual, expected = torch.full(shape, 7.0), torch.full(shape, 7.0)
    kernels.gather_quantize_pool(case.tables, case.bags, case.scale, bits, actual)
    ORACLE.gather_quantize_pool(case.tables, case.bags, case.scale, bits, expected)
    assert torch.equal(actual, expected)


@EXAMPLES
@given(case=CASES, key=st.integers(0, 2**64 - 1))
def test_stochastic_rounding_is_bit_exact(kernels: Kernels, case: Case, key: int) -> None:
    rows = torch.cat([torch.arange(n, dtype=torch.int32) for n in case.tables.row_offset.diff().tolist()])
    arguments = (case.tables.weight, rows, case.tables.row_offset, case.scale, key)
    assert torch.equal(kernels.round_stochastic(*arguments), ORACLE.round_stochastic(*arguments))


@EXAMPLES
@given(case=CASES)
def test_coalesce_is_bit_exact(kernels: Kernels, case: Case) -> None:
    actual = kernels.coalesce(case.tables, case.bags, case.grad_features)
    assert_same_grad(actual, ORACLE.coalesce(case.tables, case.bags, case.grad_features))


@EXAMPLES
@given(case=CASES, others=st.lists(st.integers(0, 2**31), max_size=3))
def test_merge_is_bit_exact(kernels: Kernels, case: Case, others: list[int]) -> None:
    rows = case.tables.row_offset.diff().tolist()
    more = [make_case(rows, case.tables.dim, 1 + seed % 30, seed % 2 == 0, False, seed) for seed in others]
    grads = [ORACLE.coalesce(case.tables, one.bags, one.grad_features) for one in [case, *more]]
    assert_same_grad(kernels.merge_sparse(grads), ORACLE.merge_sparse(grads))


@EXAMPLES
@given(case=CASES, weight_decay=st.sampled_from([0.0, 0.01]))
def test_sgd_is_bit_exact(kernels: Kernels, case: Case, weight_decay: float) -> None:
    fused, applied, expected = (copy_tables(case.tables) for _ in range(3))
    kernels.update_(fused, case.bags, case.grad_features, UpdateRule(0.1, weight_decay), None)
    grad = kernels.coalesce(case.tables, case.bags, case.grad_features)
    kernels.update_sparse_(applied, grad, UpdateRule(0.1, weight_decay), None)
    ORACLE.update_(expected, case.bags, case.grad_features, UpdateRule(0.1, weight_decay), None)
    assert torch.equal(fused.weight, expected.weight)
    assert torch.equal(applied.weight, expected.weight)


@EXAMPLES
@given(case=CASES, weight_decay=st.sampled_from([0.0, 0.01]))
def test_rowwise_adagrad_fused_equals_applied_and_oracle(kernels: Kernels, case: Case, weight_decay: float) -> None:
    fused, applied, expected = (copy_tables(case.tables) for _ in range(3))
    start = torch.arange(case.tables.weight.shape[0], dtype=torch.float32) % 3
    sums = [start.clone() for _ in range(3)]
    kernels.update_(fused, case.bags, case.grad_features, UpdateRule(0.1, weight_decay, 1e-8, sums[0]), None)
    grad = kernels.coalesce(case.tables, case.bags, case.grad_features)
    kernels.update_sparse_(applied, grad, UpdateRule(0.1, weight_decay, 1e-8, sums[1]), None)
    ORACLE.update_(expected, case.bags, case.grad_features, UpdateRule(0.1, weight_decay, 1e-8, sums[2]), None)
    assert torch.equal(fused.weight, applied.weight)
    assert torch.equal(sums[0], sums[1])
    # Only the mean of the squares is summed in another order.
    torch.testing.assert_close(sums[0], sums[2], rtol=1e-5, atol=0)
    torch.testing.assert_close(fused.weight, expected.weight, rtol=1e-5, atol=1e-6)


@EXAMPLES
@given(case=CASES, decay=st.sampled_from([1e-4, 0.05, 0.3]))
def test_rows_shrink_by_the_iterations_since_their_last_update(kernels: Kernels, case: Case, decay: float) -> None:
    """SGD to the bit; of Adagrad, whose sums of squares are another, fused and applied."""
    rows = case.tables.weight.shape[0]
    grad = kernels.coalesce(case.tables, case.bags, case.grad_features)
    fused, applied, expected, adagrad, adagrad_applied = (copy_tables(case.tables) for _ in range(5))
    lasts = [torch.arange(rows, dtype=torch.int32) % 8 for _ in range(5)]
    sums = [torch.ones(rows) for _ in range(2)]

    def rule(number: int) -> UpdateRule:
        return UpdateRule(0.1, 0.01, intervals=RowIntervals(decay, lasts[number], 9))

    kernels.update_(fused, case.bags, case.grad_features, rule(0), None)
    kernels.update_sparse_(applied, grad, rule(1), None)
    ORACLE.update_(expected, case.bags, case.grad_features, rule(2), None)
    summed = [rule(3 + i)._replace(eps=1e-8, accumulator=sums[i]) for i in range(2)]
    kernels.update_(adagrad, case.bags, case.grad_features, summed[0], None)
    kernels.update_sparse_(adagrad_applied, grad, summed[1], None)
    for tables, last in zip((fused, applied), lasts, strict=False):
        assert torch.equal(tables.weight, expected.weight)
        assert torch.equal(last, lasts[2])
    assert torch.equal(adagrad.weight, adagrad_applied.weight)
    assert torch.equal(lasts[3], lasts[2])


@EXAMPLES
@given(
    batch=st.sampled_from([0, 1, 2, 5, 17]),
    num_features=st.sampled_from([1, 2, 3, 4, 9, 16, 17, 27]),
    dim=DIMS,
    seed=st.integers(0, 2**31),
)
def test_interaction(kernels: Kernels, batch: int, num_features: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, num_features, dim, generator=generator)
    width = dim + num_features * (num_features - 1) // 2
    actual, expected = torch.full((batch, width), 7.0), torch.full((batch, width), 7.0)
    kernels.interaction_forward(features, actual)
    ORACLE.interaction_forward(features, expected)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
    grad_out = torch.randn(batch, width, generator=generator)
    grad, expected_grad = torch.full_like(features, 7.0), torch.full_like(features, 7.0)
    kernels.interaction_backward(features, grad_out, grad)
    ORACLE.interaction_backward(features, grad_out, expected_grad)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-4)


@EXAMPLES
@given(case=CASES)
def test_scan_finds_the_largest_magnitude(kernels: Kernels, case: Case) -> None:
    assert torch.equal(kernels.scan_absmax(case.tables), ORACLE.scan_absmax(case.tables))


def test_scan_sees_nan(kernels: Kernels) -> None:
    case = make_case([300, 5, 7], 33, 1, False, False, 0)
    case.tables.weight[302, 32] = float("nan")
    assert kernels.scan_absmax(case.tables).isnan().tolist() == [False, True, False]


@EXAMPLES
@given(
    absmax=st.lists(st.floats(width=32).map(abs), min_size=1, max_size=40),
    bits=st.integers(2, 16),
)
def test_steps_are_bit_exact(kernels: Kernels, absmax: list[float], bits: int) -> None:
    actual, expected = torch.full((len(absmax),), 7.0), torch.full((len(absmax),), 7.0)
    finite = kernels.uniform_scales(torch.tensor(absmax), bits, actual)
    assert finite == ORACLE.uniform_scales(torch.tensor(absmax), bits, expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_steps_tell_what_is_not_finite(kernels: Kernels, bad: float) -> None:
    scale = torch.empty(3)
    assert kernels.uniform_scales(torch.tensor([7.0, 0.0, 1e30]), 4, scale)
    assert scale.tolist()[:2] == [1.0, torch.tensor(1e-8).item()]
    assert not kernels.uniform_scales(torch.tensor([7.0, bad, 1e30]), 4, scale)


@EXAMPLES
@given(case=CASES, seed=st.integers(0, 2**62))
def test_initial_values(kernels: Kernels, case: Case, seed: int) -> None:
    expected = copy_tables(Tables(case.tables.weight[:40], case.tables.row_offset.clamp(max=40)))
    rows = case.tables.row_offset.diff()
    if bool((expected.row_offset.diff() == 0).any()) or int(rows.sum()) > 40:
        expected = Tables(torch.zeros(9, case.tables.dim), torch.tensor([0, 4, 9]))
    actual = copy_tables(expected)
    kernels.init_uniform_(actual, seed)
    ORACLE.init_uniform_(expected, seed)
    assert torch.equal(actual.weight, expected.weight)
    for first, end in pairwise(actual.row_offset.tolist()):
        again = torch.zeros(end - first - 1, actual.dim)
        kernels.initial_rows(seed, first + 1, end - first, again)
        assert torch.equal(again, expected.weight[first + 1 : end])


@EXAMPLES
@given(case=CASES, bits=st.integers(2, 16), scale=st.sampled_from([1e-8, 0.02, 0.3, 1.0]))
def test_codes_are_exact(kernels: Kernels, case: Case, bits: int, scale: float) -> None:
    actual = kernels.quantize_rows(case.tables.weight, scale, bits)
    expected = ORACLE.quantize_rows(case.tables.weight, scale, bits)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


def test_nan_and_infinite_weights_survive_quantization(kernels: Kernels) -> None:
    case = make_case([4], 5, 1, False, False, 0)
    case.tables.weight[3] = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, 100.0])
    out = torch.zeros(1, 2, 5)
    kernels.gather_quantize_pool(case.tables, case.bags, torch.tensor([0.5]), 4, out)
    assert out[0, 1, 0].isnan()
    assert out[0, 1, 1:].tolist() == [3.5, -4.0, 0.0, 3.5]
