"""Contestants of `bench kernels` that are compared with each other compute the same arrays."""

import pytest
import torch
from bench_cases import BATCH, make_contestant, tiny_case, usable

from dqrm_cpu.kernels.jit.arena import arena_of
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.lab.bench.harness.batch_pool import make_pool
from dqrm_cpu.lab.bench.harness.shared_tables import CPU, SharedTables
from dqrm_cpu.lab.bench.kernels.kernel_benchmark import kernel_groups
from dqrm_cpu.lab.bench.kernels.memory_floors import read_and_write, rewrite_rows
from dqrm_cpu.lab.bench.step.step_benchmark import step_groups

STEPS = 4


def outcome(name: str) -> torch.Tensor:
    """What the contestant's last of a few steps returns, from tables of its own."""
    contestant = make_contestant(name)
    contestant.setup()
    pool = make_pool(tiny_case().config.model, BATCH, STEPS, seed=3)
    result = torch.empty(0)
    for _ in range(STEPS):
        result = contestant.step(pool.next())
    contestant.teardown()
    return result.detach().clone()


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("ours_lookup", "torch_lookup"),
        ("ours_lookup", "torch_lookup_at_once"),
        ("ours_sgd", "torch_sgd"),
        ("ours_sgd", "torch_sgd_alone"),
        ("ours_sgd_tracked", "torch_sgd"),
        ("ours_adagrad", "torch_adagrad"),
        ("ours_adagrad_tracked", "torch_adagrad"),
        ("ours_interaction", "torch_interaction"),
        ("ours_interaction", "torch_interaction_flat"),
        ("ours_scan", "torch_aminmax"),
        ("ours_embedding_fp32", "torch_embedding"),
        *(("ours_embedding_fp32", peer) for peer in usable("fbgemm_embedding")),
        ("ours_embedding_int4", "torch_embedding"),  # straight-through: the gradient given is the same
    ],
)
def test_peers_compute_the_same(name: str, peer: str) -> None:
    torch.testing.assert_close(outcome(name), outcome(peer), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ours_sgd", "ours_adagrad", "ours_embedding_fp32"])
def test_updates_change_the_tables(name: str) -> None:
    """Else equal tables would prove nothing."""
    assert not torch.equal(outcome(name), SharedTables(tiny_case()).untracked().weight)


def test_the_shared_tracker_stays_exact_while_several_use_it() -> None:
    case = tiny_case()
    shared = SharedTables(case)
    tables, tracker = shared.tracked()
    pool = make_pool(case.config.model, BATCH, STEPS, seed=3)
    groups = [*step_groups(case, shared), *kernel_groups(case, shared)]
    names = {
        "ours_int4_exact",
        "ours_sgd_tracked",
        "ours_adagrad_tracked",
        "ours_embedding_int4",
        "ours_fp32",
        "torch_fp32",
    }
    chosen = [contestant for group in groups for contestant in group.contestants if contestant.name in names]
    for contestant in chosen:
        contestant.setup()
    for _ in range(STEPS):
        for contestant in chosen:
            contestant.step(pool.next())
    assert torch.equal(tracker.absmax(), select_kernels("torch", CPU).scan_absmax(tables))


def test_floors_read_what_they_say() -> None:
    case = tiny_case()
    tables = SharedTables(case).untracked()
    pool = make_pool(case.config.model, BATCH, STEPS, seed=3)
    for _ in range(STEPS):
        work = pool.next()
    rows = (work.long_ids + tables.row_offset[:-1, None]).view(-1)
    assert outcome("read_floor") == tables.weight.view(torch.int64).sum()
    torch.testing.assert_close(outcome("lookup_floor"), tables.weight[rows].sum(), check_dtype=False)


def test_the_floor_of_an_update_reads_gradient_and_rows_and_leaves_them() -> None:
    case = tiny_case()
    shared = SharedTables(case)
    tables, before = shared.untracked(), shared.untracked().weight.clone()
    ids = make_pool(case.config.model, BATCH, STEPS, seed=3).next().batch.ids
    grad = torch.randn(BATCH, 1 + tables.num_tables, tables.dim)
    total = rewrite_rows(arena_of(tables), ids.data_ptr(), BATCH, grad.data_ptr(), True)
    rows = ids.long() + tables.row_offset[:-1, None]
    assert total == pytest.approx(float(before[rows].sum() + grad[:, 1:].sum()), rel=1e-4, abs=1e-4)
    assert torch.equal(tables.weight, before)


@pytest.mark.parametrize(("size", "written"), [(5, 3), (100_000, 7_001), (4_099, 70_000)])
def test_the_floor_of_an_interaction_writes_every_number_and_none_beyond(size: int, written: int) -> None:
    """It fills with the sum of what the same stretch read: of ones, never 0."""
    source, target = torch.ones(size), torch.zeros(written + 1)
    read_and_write(source.data_ptr(), size, target.data_ptr(), written)
    assert bool((target[:-1] > 0).all())
    assert target[-1] == 0
