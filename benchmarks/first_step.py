"""How long a fresh process takes until its first training step: with nothing compiled yet, and with a warm cache.

    python benchmarks/first_step.py [--precision bf16] [--rounds N]

Each process makes a small INT4 model, trains a step, and trains another; the caches lie in a folder of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from time import perf_counter

_INSIDE = "--inside"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the MLPs' products")
    parser.add_argument("--rounds", type=int, default=3, help="caches that are filled (default: 3)")
    args = parser.parse_args()
    found: dict[str, list[list[float]]] = {"nothing compiled": [], "warm": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for times in found.values():
                times.append(_in_fresh_process(args.precision, cache))
    for name, times in found.items():
        imports, first, second = (statistics.median(part) for part in zip(*times, strict=True))
        print(f"{name:>16}: imports {imports:.2f} s, first step {first:.2f} s later, the next {second * 1e3:.1f} ms")


def _in_fresh_process(precision: str, cache: str) -> list[float]:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    command = [sys.executable, __file__, _INSIDE, precision]
    output = subprocess.run(command, env={**environment, "XDG_CACHE_HOME": cache}, check=True, capture_output=True)
    times: list[float] = json.loads(output.stdout)
    return times


def _times(precision: str) -> list[float]:
    """Seconds of importing, of everything from there to the end of the first step, of the second step."""
    start = perf_counter()
    from dataclasses import replace

    from dqrm_cpu.lab.bench.harness.batch_pool import make_pool
    from dqrm_cpu.lab.bench.harness.cases import CASES, quick
    from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
    from dqrm_cpu.lab.bench.step.our_step import OurStep

    imported = perf_counter()
    case = quick(CASES["kaggle_128"]())
    config = replace(case.config, train=replace(case.config.train, precision=precision))
    pool = make_pool(config.model, case.batch_size, 2, seed=1)
    ours = OurStep("ours", "", config, SharedTables(case))
    ours.setup()
    ours.step(pool.next())
    first = perf_counter()
    ours.step(pool.next())
    return [imported - start, first - imported, perf_counter() - first]


if __name__ == "__main__":
    if sys.argv[1:2] == [_INSIDE]:
        print(json.dumps(_times(sys.argv[2])))
    else:
        main()
