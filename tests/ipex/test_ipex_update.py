"""The updates through IPEX against the oracle, and the fault of its operator that they work round."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CASES, CPU, Case, copy_tables, make_case, make_tables

from dqrm_cpu.kernels.interface import ForeignTrackerError, Kernels, Tracker
from dqrm_cpu.kernels.ipex_kernels import fused_sgd_, load_ipex, piece_width
from dqrm_cpu.kernels.reference import ReferenceKernels, ScanTracker
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import Bags, SparseGrad, Tables, UpdateRule

EXAMPLES = settings(max_examples=25)
ORACLE = ReferenceKernels()
REGISTER = load_ipex()
DIMS = (8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 40, 47, 48, 63, 64, 65, 96, 100, 127, 128)
BAGS = [
    pytest.param(False, False, id="one-hot"),
    pytest.param(True, False, id="sum"),
    pytest.param(True, True, id="mean"),
]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return select_kernels("ipex", CPU)


def assert_updates_agree(kernels: Kernels, case: Case, weight_decay: float) -> None:
    actual, expected = copy_tables(case.tables), copy_tables(case.tables)
    kernels.update_(actual, case.bags, case.grad_features, UpdateRule(0.1, weight_decay), None)
    ORACLE.update_(expected, case.bags, case.grad_features, UpdateRule(0.1, weight_decay), None)
    # Gradients are summed in the same order; IPEX may then fuse a product and a difference of numbers below 16.
    torch.testing.assert_close(actual.weight, expected.weight, rtol=0, atol=2 * 16 * 2**-24)


def test_the_width_of_a_register_is_what_torch_sees() -> None:
    assert (16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8) == REGISTER


@pytest.mark.parametrize(("multi_hot", "mean"), BAGS)
@pytest.mark.parametrize("dim", DIMS)
def test_sgd_of_each_dimension(kernels: Kernels, dim: int, multi_hot: bool, mean: bool) -> None:
    assert_updates_agree(kernels, make_case([3, 70, 300], dim, 40, multi_hot, mean, dim), 0.01)


@EXAMPLES
@given(case=CASES, weight_decay=st.sampled_from([0.0, 0.01]))
def test_sgd_of_random_shapes(kernels: Kernels, case: Case, weight_decay: float) -> None:
    assert_updates_agree(kernels, case, weight_decay)


@EXAMPLES
@given(case=CASES, weight_decay=st.sampled_from([0.0, 0.01]))
def test_coalesced_gradient_gives_the_same_bits(kernels: Kernels, case: Case, weight_decay: float) -> None:
    fused, applied = copy_tables(case.tables), copy_tables(case.tables)
    kernels.update_(fused, case.bags, case.grad_features, UpdateRule(0.1, weight_decay), None)
    grad = kernels.coalesce(case.tables, case.bags, case.grad_features)
    kernels.update_sparse_(applied, grad, UpdateRule(0.1, weight_decay), None)
    assert torch.equal(fused.weight, applied.weight)


def run_tracked(kernels: Kernels, case: Case, tracker: Tracker, lrs: list[float], coalesced: bool) -> list[bool]:
    """After each update, whether the tracker knows max|W|."""
    exact = []
    for lr in lrs:
        if coalesced:
            grad = kernels.coalesce(case.tables, case.bags, case.grad_features)
            kernels.update_sparse_(case.tables, grad, UpdateRule(lr, 0.5), tracker)
        else:
            kernels.update_(case.tables, case.bags, case.grad_features, UpdateRule(lr, 0.5), tracker)
        exact.append(torch.equal(tracker.absmax(), ORACLE.scan_absmax(case.tables)))
    return exact


@EXAMPLES
@given(case=CASES, lrs=st.lists(st.sampled_from([0.001, 0.3, 1.0, 3.0]), max_size=5), coalesced=st.booleans())
def test_tracker_stays_exact(kernels: Kernels, case: Case, lrs: list[float], coalesced: bool) -> None:
    assert all(run_tracked(kernels, case, kernels.make_tracker(case.tables), lrs, coalesced))


@pytest.mark.parametrize("coalesced", [False, True])
def test_tracker_follows_the_largest_weights_down(kernels: Kernels, coalesced: bool) -> None:
    case = make_case([300, 5000], 32, 400, True, False, 5)
    rows = case.bags.ids[case.bags.ids < 300].long()
    case.tables.weight[rows] *= 10  # the rows that shrink at every step hold the maximum
    case = case._replace(grad_features=torch.zeros_like(case.grad_features))
    assert all(run_tracked(kernels, case, kernels.make_tracker(case.tables), [0.2] * 20, coalesced))


def test_foreign_tracker_is_refused(kernels: Kernels) -> None:
    case = make_case([5], 16, 3, False, False, 0)
    before = case.tables.weight.clone()
    with pytest.raises(ForeignTrackerError, match="make_tracker"):
        kernels.update_(case.tables, case.bags, case.grad_features, UpdateRule(0.1, 0.0), ScanTracker(case.tables))
    assert torch.equal(case.tables.weight, before)


@EXAMPLES
@given(case=CASES)
def test_rowwise_adagrad_is_row_wise(kernels: Kernels, case: Case) -> None:
    actual, expected = copy_tables(case.tables), copy_tables(case.tables)
    sums = [torch.zeros(case.tables.weight.shape[0]) for _ in range(2)]
    kernels.update_(actual, case.bags, case.grad_features, UpdateRule(0.1, 0.01, 1e-8, sums[0]), None)
    ORACLE.update_(expected, case.bags, case.grad_features, UpdateRule(0.1, 0.01, 1e-8, sums[1]), None)
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(actual.weight, expected.weight, rtol=1e-5, atol=1e-6)


def step_with(dim: int, width: int) -> torch.Tensor:
    """-1, -2, ... -dim: a row of zeros after one step with that gradient, if the operator is right."""
    tables = Tables(torch.zeros(1, dim), torch.tensor([0, 1]))
    gradient = torch.arange(1.0, dim + 1)[None]
    fused_sgd_(tables, SparseGrad(torch.tensor([0, 1]), torch.zeros(1, dtype=torch.int32), gradient), width, 1.0, 0.0)
    return tables.weight[0]


@pytest.mark.parametrize("dim", [1, REGISTER - 1, REGISTER, REGISTER + 1, 2 * REGISTER - 1])
def test_operator_is_right_below_two_registers(dim: int) -> None:
    assert torch.equal(step_with(dim, dim), -torch.arange(1.0, dim + 1))


@pytest.mark.parametrize("registers", [2, 3, 8])
def test_operator_repeats_the_first_register_of_a_wide_gradient(registers: int) -> None:
    dim = registers * REGISTER
    assert torch.equal(step_with(dim, dim), -torch.arange(1.0, REGISTER + 1).repeat(registers))
    assert torch.equal(step_with(dim, piece_width(dim, REGISTER) or dim), -torch.arange(1.0, dim + 1))


def test_empty_batch_changes_nothing(kernels: Kernels) -> None:
    tables = make_tables([4, 2], 32, torch.Generator().manual_seed(0))
    before, bags = tables.weight.clone(), Bags(torch.zeros(0, dtype=torch.int32), torch.zeros(7, dtype=torch.int64))
    kernels.update_(tables, bags, torch.ones(3, 3, 32), UpdateRule(0.1, 0.5), kernels.make_tracker(tables))
    assert torch.equal(tables.weight, before)
