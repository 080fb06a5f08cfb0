"""Shows where IPEX's fused embedding update is wrong, and with --time what a right one costs beside ours.

    .venv-ipex/bin/python benchmarks/ipex_wide_rows.py [--time] [--threads N] [--rounds N]

Under AVX2 the limit lies at half the width: ATEN_CPU_CAPABILITY=avx2 shows it. docs/ipex.md explains what is seen.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.ipex_kernels import IpexKernels, fused_sgd_, load_ipex, piece_width
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import Bags, SparseGrad, Tables, UpdateRule
from dqrm_cpu.model.tables import allocate_tables

ROWS, LOOKUPS, LR = 50, 200, 0.1
NUM_TABLES, BATCH, NUM_BATCHES = 26, 2048, 16
DIMS = (8, 15, 16, 17, 31, 32, 33, 48, 64, 128)


def largest_error(dim: int, width: int, values: Tensor, rows: Tensor) -> float:
    """max|IPEX - torch| over a table after one step with the operator on pieces of `width`."""
    weight = torch.randn(ROWS, dim, generator=torch.Generator().manual_seed(dim))
    expected = weight.double().index_add(0, rows.long(), values.double(), alpha=-LR)
    tables = Tables(weight, torch.tensor([0, ROWS]))
    fused_sgd_(tables, SparseGrad(torch.tensor([0, LOOKUPS]), rows, values), width, LR, 0.0)
    return float((weight - expected).abs().max())


def show_errors(register: int) -> None:
    """One line per dimension: the operator as it is, then on pieces of rows."""
    print(f"a register holds {register} floats; largest error after one SGD step, lr {LR}, {LOOKUPS} lookups")
    print(f"{'D':>4}{'random gradients':>20}{'all-ones gradients':>20}{'random, in pieces':>20}")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, ROWS, (LOOKUPS,), generator=generator).int()
    for dim in DIMS:
        values, ones = torch.randn(LOOKUPS, dim, generator=generator), torch.ones(LOOKUPS, dim)
        width = piece_width(dim, register)
        in_pieces = "numba instead" if width is None else f"{largest_error(dim, width, values, rows):.1e}"
        whole = largest_error(dim, dim, values, rows), largest_error(dim, dim, ones, rows)
        print(f"{dim:>4}{whole[0]:>20.1e}{whole[1]:>20.1e}{in_pieces:>20}")


def zipf_ids(num_rows: int, exponent: float = 1.05) -> Tensor:
    """int32[T, B]: inverse of the continuous Zipf distribution, popular ids scattered over the table."""
    u = torch.rand(NUM_TABLES, BATCH, dtype=torch.float64)
    rank = ((u * (num_rows ** (1 - exponent) - 1) + 1) ** (1 / (1 - exponent))).long().clamp(1, num_rows) - 1
    return ((rank * 2654435761) % num_rows).int()


def update_of(kernels: Kernels, num_rows: int, dim: int, grad: Tensor, tracked: bool) -> Callable[[Bags], None]:
    """An update of tables of its own, so that each tracker sees every change."""
    tables = allocate_tables([num_rows] * NUM_TABLES, dim, torch.device("cpu"))
    kernels.init_uniform_(tables, 1)
    tracker = kernels.make_tracker(tables) if tracked else None
    return lambda bags: kernels.update_(tables, bags, grad, UpdateRule(LR, 0.0), tracker)


def show_times(rounds: int) -> None:
    """Medians of one interleaved run; both sides walk through the same batches."""
    print(f"ms per update of {NUM_TABLES} tables, batch {BATCH}, Zipf 1.05 ids, {torch.get_num_threads()} threads")
    numba, ipex = select_kernels("numba", torch.device("cpu")), IpexKernels()
    for dim, num_rows in ((16, 400_000), (64, 100_000)):
        grad = torch.randn(BATCH, 1 + NUM_TABLES, dim) * 1e-3
        batches = [Bags(zipf_ids(num_rows), None) for _ in range(NUM_BATCHES)]
        for tracked in (False, True):
            updates = [update_of(kernels, num_rows, dim, grad, tracked) for kernels in (numba, ipex)]
            times: list[list[float]] = [[], []]
            for bags in (batches[i % NUM_BATCHES] for i in range(rounds + 2)):
                for update, taken in zip(updates, times, strict=True):
                    start = time.perf_counter()
                    update(bags)
                    taken.append((time.perf_counter() - start) * 1e3)
            ours, theirs = (statistics.median(taken[2:]) for taken in times)
            kind = "tracked" if tracked else "untracked"
            print(f"D {dim:>3} {kind:<10} numba {ours:6.2f}   ipex {theirs:6.2f}   ipex / numba {theirs / ours:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="also time the update against the numba kernels'")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    show_errors(load_ipex())
    if options.time:
        show_times(options.rounds)


if __name__ == "__main__":
    main()
