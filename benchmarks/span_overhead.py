"""What spans cost, in CPU time of one thread: a busy machine does not change it, unlike `dqrm-cpu bench spans`.

python benchmarks/span_overhead.py kaggle_2048
"""

import json
import statistics
import sys
import time

import torch

from dqrm_cpu.bench.arena import Arenas
from dqrm_cpu.bench.cases import CASES
from dqrm_cpu.bench.contestant import Contestant
from dqrm_cpu.bench.pool import Pool, make_pool
from dqrm_cpu.bench.spans import span_groups

_ROUNDS, _TURN_S, _BATCHES = 15, 0.3, 16


def cpu_seconds(contestant: Contestant, pool: Pool, steps: int) -> float:
    """Of one step."""
    contestant.step(pool.next())
    start = time.process_time()
    for _ in range(steps):
        contestant.step(pool.next())
    return (time.process_time() - start) / steps


def main(name: str) -> None:
    torch.set_num_threads(1)
    case = CASES[name]()
    contestants = span_groups(case, Arenas(case))[0].contestants
    pool = make_pool(case.config.model, case.batch_size, _BATCHES, case.config.seed)
    steps, samples = {}, {}
    for contestant in contestants:
        contestant.setup()
        cpu_seconds(contestant, pool, 2)
        steps[contestant.name] = max(1, min(2000, round(_TURN_S / cpu_seconds(contestant, pool, 2))))
        samples[contestant.name] = []
    for number in range(_ROUNDS):
        for contestant in (*contestants[number % 3 :], *contestants[: number % 3]):
            samples[contestant.name].append(cpu_seconds(contestant, pool, steps[contestant.name]))
    medians = {name: statistics.median(values) for name, values in samples.items()}
    print(json.dumps({"case": name, "cpu_us": {name: round(value * 1e6, 1) for name, value in medians.items()}}))
    print(f"with over without: {medians['with_spans'] / medians['without_spans']:.4f}")
    print(f"spans alone over a step: {medians['spans_alone'] / medians['without_spans']:.3%}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "kaggle_128")
