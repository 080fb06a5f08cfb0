"""What spans cost, in CPU time of one thread: a busy machine does not change it, unlike `dqrm-cpu bench spans`.

python benchmarks/span_overhead.py kaggle_2048
"""

import json
import statistics
import sys
import time

import torch

from dqrm_cpu.lab.bench.harness.batch_pool import Pool, make_pool
from dqrm_cpu.lab.bench.harness.cases import CASES
from dqrm_cpu.lab.bench.harness.contestant import Contestant
from dqrm_cpu.lab.bench.harness.runner import rotated
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.step.span_benchmark import span_groups

_ROUNDS, _TURN_S, _BATCHES = 15, 0.3, 16


def cpu_seconds(contestant: Contestant, pool: Pool, steps: int) -> float:
    """Returns the CPU seconds of one step."""
    contestant.step(pool.next())
    start = time.process_time()
    for _ in range(steps):
        contestant.step(pool.next())
    return (time.process_time() - start) / steps


def main(name: str) -> None:
    torch.set_num_threads(1)
    case = CASES[name]()
    contestants = span_groups(case, SharedTables(case))[0].contestants
    pool = make_pool(case.config.model, case.batch_size, _BATCHES, case.config.seed)
    steps: dict[str, int] = {}
    samples: dict[str, list[float]] = {}
    for contestant in contestants:
        contestant.setup()
        cpu_seconds(contestant, pool, 2)
        steps[contestant.name] = max(1, min(2000, round(_TURN_S / cpu_seconds(contestant, pool, 2))))
        samples[contestant.name] = []
    for order in rotated(contestants, _ROUNDS):
        for contestant in order:
            samples[contestant.name].append(cpu_seconds(contestant, pool, steps[contestant.name]))
    medians = {name: statistics.median(values) for name, values in samples.items()}
    print(json.dumps({"case": name, "cpu_us": {name: round(value * 1e6, 1) for name, value in medians.items()}}))
    print(f"with over without: {medians['with_spans'] / medians['without_spans']:.4f}")
    print(f"spans alone over a step: {medians['spans_alone'] / medians['without_spans']:.3%}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "kaggle_128")
