"""How fast fresh tables are initialized, beside merely filling as much fresh memory: the floor that page faults set.

    python benchmarks/table_initialization.py --gigabytes 6

Both write to mappings that nobody has touched, on huge pages where the kernel gives them; they take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.model.tables import allocate_tables

_CPU = torch.device("cpu")
_DIM = 64


def seconds(work: Callable[[Tables], object], rows: int) -> float:
    """On tables of its own, which are gone afterwards."""
    tables = allocate_tables((rows,), _DIM, _CPU)
    start = time.perf_counter()
    work(tables)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6, help="size of the tables (default: 6)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    args = parser.parse_args()
    rows = int(args.gigabytes * 1e9) // (4 * _DIM)
    kernels = select_kernels("auto", _CPU)
    kernels.init_uniform_(allocate_tables((1,), _DIM, _CPU), 1)  # compiled before anything is timed
    ways: dict[str, Callable[[Tables], object]] = {
        "initialize": lambda tables: kernels.init_uniform_(tables, 1),
        "fill with one value": lambda tables: tables.weight.fill_(1.0),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, work in ways.items():
            found[name].append(seconds(work, rows))
    for name, times in found.items():
        median = statistics.median(times)
        print(f"{name:20s} {median:6.2f} s  {args.gigabytes / median:5.1f} GB/s")


if __name__ == "__main__":
    main()
