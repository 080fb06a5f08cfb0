"""The tracked maximum equals a full scan after every step, whatever happens to the rows that hold it."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CPU, Case, copy_tables, implementation, make_bags, make_case, make_tables

from dqrm_cpu.kernels.interface import ForeignTrackerError, Tracker
from dqrm_cpu.kernels.numba.kernels import NumbaKernels
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import Bags, Tables, UpdateRule

ROWS = [1, 5, 64, 65, 700, 5000, 9000]
"""Below, at and above the sizes of blocks (64 rows) and groups (4096 rows)."""


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Truth:
    """The maxima of tables by a plain scan, by numpy: torch would share each of many short scans between threads."""

    def __init__(self, tables: Tables) -> None:
        self._dim = tables.dim
        self._weight = tables.weight.numpy().reshape(-1)  # the very memory of the tables
        self._first = (tables.row_offset.numpy() * tables.dim).tolist()

    def absmax(self) -> torch.Tensor:
        """f32[T]."""
        return torch.from_numpy(np.maximum.reduceat(np.abs(self._weight), self._first[:-1]))

    def largest_rows(self) -> list[int]:
        """The row of each table, counted from its first one, that holds the maximum."""
        magnitude = np.abs(self._weight)
        return [int(magnitude[a:b].argmax()) // self._dim for a, b in pairwise(self._first)]


def shrinking_step(tables: Tables, truth: Truth, batch: int, generator: torch.Generator) -> tuple[Bags, torch.Tensor]:
    """Looks up the row that holds each table's maximum and pulls it towards zero; other rows move a little."""
    num_tables, num_rows = tables.num_tables, tables.row_offset.diff()
    ids = (torch.rand(num_tables, batch, generator=generator) * num_rows[:, None]).int()
    grad = torch.randn(batch, 1 + num_tables, tables.dim, generator=generator) * 0.01
    ids[:, 0] = torch.tensor(truth.largest_rows(), dtype=torch.int32)
    largest = tables.weight[tables.row_offset[:-1] + ids[:, 0]]
    grad[0, 1:] = largest * torch.rand(num_tables, 1, generator=generator)
    return Bags(ids, None), grad


def compare_steps(
    num_steps: int, adversarial: bool, adagrad: bool, sparse: bool, seed: int, copies: int = 1
) -> tuple[int, int]:
    """(comparisons, mismatches) of the tracker with a plain scan after each step, of `copies` tables of each size.

    A step looks up more rows where there are more copies, so that fewer steps reach as many of them.
    """
    generator = torch.Generator().manual_seed(seed)
    kernels, rows, batch = NumbaKernels(), ROWS * copies, 12 * copies
    tables = make_tables(rows, 7, generator)
    sums = torch.zeros(tables.weight.shape[0])
    tracker, truth = kernels.make_tracker(tables), Truth(tables)
    mismatches = 0
    for _ in range(num_steps):
        if adversarial:
            bags, grad = shrinking_step(tables, truth, batch, generator)
        else:
            bags = make_bags(rows, batch, bool(seed % 2), False, generator)
            grad = torch.randn(batch, 1 + len(rows), 7, generator=generator) * 3
        if sparse:
            merged = kernels.coalesce(tables, bags, grad)
            if adagrad:
                kernels.update_sparse_(tables, merged, UpdateRule(0.9, 0.0, 1e-8, sums), tracker)
            else:
                kernels.update_sparse_(tables, merged, UpdateRule(0.9, 0.0), tracker)
        elif adagrad:
            kernels.update_(tables, bags, grad, UpdateRule(0.9, 0.0, 1e-8, sums), tracker)
        else:
            kernels.update_(tables, bags, grad, UpdateRule(0.9, 0.0), tracker)
        mismatches += int((tracker.absmax() != truth.absmax()).sum())
    return num_steps * len(rows), mismatches


@pytest.mark.parametrize("sparse", [False, True], ids=["fused", "sparse"])
@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("adversarial", [False, True], ids=["random", "shrinking"])
def test_tracked_maximum_is_exact(threads: int, adversarial: bool, adagrad: bool, sparse: bool) -> None:
    assert compare_steps(40, adversarial, adagrad, sparse, threads)[1] == 0


@pytest.mark.long
def test_tracked_maximum_is_exact_a_hundred_thousand_times(threads: int) -> None:
    total = wrong = 0
    for seed in range(16):
        compared, mismatches = compare_steps(75, seed % 4 < 2, seed % 8 < 4, seed >= 8, seed, copies=12)
        total, wrong = total + compared, wrong + mismatches
    assert total >= 100_000
    assert wrong == 0


def one_row_step(kernels: NumbaKernels, tables: Tables, tracker: Tracker, row: int, gradient: float) -> None:
    grad = torch.full((1, 2, tables.dim), gradient)
    kernels.update_(tables, Bags(torch.tensor([[row]], dtype=torch.int32), None), grad, UpdateRule(1.0, 0.0), tracker)


def test_nan_is_seen_and_stays() -> None:
    kernels, tables = NumbaKernels(), Tables(torch.ones(300, 5), torch.tensor([0, 300]))
    tracker = kernels.make_tracker(tables)
    one_row_step(kernels, tables, tracker, 70, float("nan"))
    assert tracker.absmax().isnan().all()
    one_row_step(kernels, tables, tracker, 70, 1.0)
    one_row_step(kernels, tables, tracker, 3, -5.0)
    assert tracker.absmax().isnan().all()
    tables.weight[70] = 0
    tracker.rebuild(tables)
    assert tracker.absmax().tolist() == [6.0]


def test_infinity_is_seen_and_left_again() -> None:
    kernels, tables = NumbaKernels(), Tables(torch.ones(300, 5), torch.tensor([0, 300]))
    tracker = kernels.make_tracker(tables)
    one_row_step(kernels, tables, tracker, 299, float("inf"))
    assert tracker.absmax().tolist() == [float("inf")]


def test_absmax_is_a_copy() -> None:
    kernels, tables = NumbaKernels(), Tables(torch.ones(300, 5), torch.tensor([0, 300]))
    tracker = kernels.make_tracker(tables)
    before = tracker.absmax()
    one_row_step(kernels, tables, tracker, 1, -5.0)
    assert before.tolist() == [1.0]
    assert tracker.absmax().tolist() == [6.0]


def test_a_tracker_of_another_implementation_is_refused() -> None:
    case = make_case([5], 4, 2, False, False, 0)
    foreign = select_kernels("torch", CPU).make_tracker(case.tables)
    with pytest.raises(ForeignTrackerError, match="make_tracker"):
        NumbaKernels().update_(case.tables, case.bags, case.grad_features, UpdateRule(0.1, 0.0), foreign)


def test_torch_tracker_follows() -> None:
    case = make_case([5, 70], 4, 9, False, False, 0)
    kernels = implementation("torch")
    tracker = kernels.make_tracker(case.tables)
    kernels.update_(case.tables, case.bags, case.grad_features, UpdateRule(0.1, 0.0), tracker)
    assert torch.equal(tracker.absmax(), kernels.scan_absmax(case.tables))


@settings(max_examples=15)
@given(
    multi_hot=st.booleans(),
    mean=st.booleans(),
    adagrad=st.booleans(),
    dim=st.sampled_from([3, 16, 33]),
    seed=st.integers(0, 2**31),
)
def test_updates_do_not_depend_on_the_number_of_threads(
    multi_hot: bool, mean: bool, adagrad: bool, dim: int, seed: int
) -> None:
    # Batches large enough that every table is cut into several shards.
    case: Case = make_case([2, 3000, 90000], dim, 2500, multi_hot, mean, seed)
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        kernels, tables = NumbaKernels(), copy_tables(case.tables)
        sums = torch.zeros(tables.weight.shape[0])
        tracker = kernels.make_tracker(tables)
        if adagrad:
            kernels.update_(tables, case.bags, case.grad_features, UpdateRule(0.1, 0.01, 1e-8, sums), tracker)
        else:
            kernels.update_(tables, case.bags, case.grad_features, UpdateRule(0.1, 0.01), tracker)
        results.append((tables.weight, tracker.absmax()))
        applied = copy_tables(case.tables)
        merged = kernels.coalesce(case.tables, case.bags, case.grad_features)
        if adagrad:
            other = torch.zeros_like(sums)
            kernels.update_sparse_(applied, merged, UpdateRule(0.1, 0.01, 1e-8, other), None)
        else:
            kernels.update_sparse_(applied, merged, UpdateRule(0.1, 0.01), None)
        assert torch.equal(applied.weight, tables.weight)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
