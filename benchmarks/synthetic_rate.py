"""How fast rows are generated in the shape of the Kaggle set: python benchmarks/synthetic_rate.py [--json FILE]."""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dqrm_cpu.data.synthetic.fields import CATEGORICAL_FIELDS, INTEGER_FIELDS
from dqrm_cpu.data.synthetic.stream import SyntheticClicks

ROWS_PER_MEASUREMENT = 131_072


def measure(source: SyntheticClicks, batch_size: int, repeats: int) -> dict[str, float]:
    """Median rows per second of `rows` (new tensors) and `fill` (into tensors that are there), taken in turns."""
    num_tables = len(source.table_rows)
    dense = torch.empty(batch_size, source.num_dense)
    ids = torch.empty(num_tables, batch_size, dtype=torch.int32)
    label = torch.empty(batch_size)
    ways: dict[str, Callable[[int], object]] = {
        "rows": lambda start: source.rows(start, start + batch_size),
        "fill": lambda start: source.fill(start, dense, ids, label),
    }
    count = max(1, ROWS_PER_MEASUREMENT // batch_size)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, make in ways.items():
            began = time.perf_counter()
            for number in range(count):
                make(number * batch_size)
            rates[name].append(count * batch_size / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    table_rows = tuple(field.num_values for field in CATEGORICAL_FIELDS)
    source = SyntheticClicks(table_rows, len(INTEGER_FIELDS), seed=1)
    source.rows(0, 1024)
    began = time.perf_counter()
    SyntheticClicks(table_rows, len(INTEGER_FIELDS), seed=2)
    found = {"construct_s": time.perf_counter() - began, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    print(f"construction {found['construct_s']:.3f} s, {found['threads']} threads on {found['cores']} cores")
    by_batch = {}
    for batch_size in (128, 2048, 65_536):
        by_batch[batch_size] = measure(source, batch_size, arguments.repeats)
        rates = ", ".join(f"{name} {rate:,.0f} rows/s" for name, rate in by_batch[batch_size].items())
        print(f"batch {batch_size:>6}: {rates}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**found, "rows_per_s": by_batch}, indent=2) + "\n")


if __name__ == "__main__":
    main()
