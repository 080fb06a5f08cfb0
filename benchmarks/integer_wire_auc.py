"""AUC of an INT8 wire beside FP32, on generated clicks: 2, 4 and 8 simulated ranks, three seeds.

    python benchmarks/integer_wire_auc.py [--steps 2000] [--ranks 2,4,8] [--seeds 1,2,3] [--json FILE]

Runs `dqrm-cpu train --preset demo` once for each cell and prints the test AUC at the checkpoint chosen on validation.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WIRES = ("sparse", "int8")


def main() -> None:
    args = parse_arguments()
    rows = []
    for ranks in numbers(args.ranks):
        found = {wire: [test_auc(args.steps, ranks, wire, seed) for seed in numbers(args.seeds)] for wire in WIRES}
        differences = [b - a for a, b in zip(found["sparse"], found["int8"], strict=True)]
        rows.append({"ranks": ranks, **found, "mean_difference": statistics.fmean(differences)})
        if len(rows) == 1:
            print("| ranks | FP32 (sparse), mean | INT8, mean | INT8 - FP32, by seed | mean |\n|---|---|---|---|---|")
        means = " | ".join(f"{statistics.fmean(found[wire]):.4f}" for wire in WIRES)
        by_seed = ", ".join(f"{difference:+.4f}" for difference in differences)
        print(f"| {ranks} | {means} | {by_seed} | {statistics.fmean(differences):+.4f} |", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"steps": args.steps, "seeds": numbers(args.seeds), "rows": rows}) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--ranks", default="2,4,8")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def test_auc(steps: int, ranks: int, wire: str, seed: int) -> float:
    """Of one run."""
    with tempfile.TemporaryDirectory(prefix="integer-wire-") as name:
        run_dir = Path(name) / "run"
        settings = {
            "--preset": "demo",
            "--seed": seed,
            "--train.max-steps": steps,
            "--train.evaluate-every": max(1, steps // 4),
            "--train.threads": 1,  # the same bits with any number
            "--comm.simulated-ranks": ranks,
            "--comm.wire": wire,
            "--run-dir": run_dir,
        }
        options = [str(word) for pair in settings.items() for word in pair]
        command = [sys.executable, "-m", "dqrm_cpu", "train", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        result = json.loads((run_dir / "result.json").read_text())
        auc: float = result["test"]["best"]["auc"]
        return auc


if __name__ == "__main__":
    main()
