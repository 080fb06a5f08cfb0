"""The fault campaign: thousands of injected faults, each with an outcome, and the page that tells of them.

    python tests/faults/campaign.py --jobs 2 --out results.json              everything, about an hour on two cores
    python tests/faults/campaign.py --cases 500 --seed 7 --row kills         a part of it
    python tests/faults/campaign.py --row flips --case 123                   one case, told in full
    python tests/faults/campaign.py --page results.json > docs/reliability.md

Exit status 1 if any case shows a defect.
"""

import argparse
import json
import math
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent), str(_HERE.parent.parent)]

from injection import compile_library  # noqa: E402
from outcomes import DEFECTS, OUTCOMES  # noqa: E402
from rows import ROWS  # noqa: E402
from worker import environment  # noqa: E402

Answer = dict[str, Any]


class Worker:
    """A process that tries one case after another; it is started anew where a case brought it down."""

    def __init__(self, root: Path, number: int, seed: int) -> None:
        self._root, self._number, self._seed = root, number, seed
        self.sizes: dict[str, int] = {}
        self._start()

    def _start(self) -> None:
        command = [sys.executable, str(_HERE / "worker.py"), str(self._root), str(self._number), str(self._seed)]
        env = environment(compile_library(self._root))
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if not first:
            raise RuntimeError((self._root / f"worker-{self._number}.log").read_text()[-4000:])
        self.sizes = json.loads(first)

    def case(self, row: str, number: int) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{row} {number}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if answer:
            found: Answer = json.loads(answer)
            return found
        self._start()
        detail = "the worker ended"
        return {"row": row, "case": number, "outcome": "crash", "what": detail, "detail": detail, "seconds": 0.0}

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def plan(
    sizes: dict[str, int], cases: int | None, rows: Sequence[str], sample: bool, first: int = 0
) -> list[tuple[str, int]]:
    """Cases of each row by its share, mixed so that time passes evenly; every row has one at least. Or the sample.

    Each row begins with case `first`.
    """
    chosen = [row for row in ROWS if not rows or row.name in rows]
    total = sum(row.share for row in chosen)
    planned = []
    for row in chosen:
        count = row.share if cases is None else max(1, round(cases * row.share / total))
        count = min(row.sample if sample else count, sizes[row.name] - first)
        planned += [((number + 0.5) / count, row.name, first + number) for number in range(count)]
    return [(name, number) for _, name, number in sorted(planned)]


def run(
    cases: Sequence[tuple[str, int]], workers: Sequence[Worker], verbose: bool, minutes: float | None = None
) -> list[Answer]:
    """The answers of all cases, tried by all workers at once; none is begun after so many minutes."""
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    waiting: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    answers: list[Answer] = []

    def work(worker: Worker) -> None:
        while time.monotonic() < deadline:
            try:
                name, number = waiting.get_nowait()
            except queue.Empty:
                return
            answers.append(worker.case(name, number))
            _print_answer(answers[-1], len(answers), len(cases), verbose)

    threads = [threading.Thread(target=work, args=[worker]) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _print_answer(answer: Answer, done: int, total: int, verbose: bool) -> None:
    if verbose or answer["outcome"] in DEFECTS:
        print(f"{answer['row']} --case {answer['case']}: {answer['outcome']}: {answer['what']}", file=sys.stderr)
        if answer["detail"]:
            print("    " + answer["detail"].strip().replace("\n", "\n    "), file=sys.stderr)
    elif done % 100 == 0:
        print(f"{done:,} of {total:,} cases", file=sys.stderr, flush=True)


def summary(answers: Sequence[Answer], seed: int, seconds: float) -> Answer:
    """The document of results: counts by row, every defect, where and when."""
    from dqrm_cpu.base.code_version import code_version
    from dqrm_cpu.base.hardware import fingerprint

    rows = {}
    for row in ROWS:
        of_row = [answer for answer in answers if answer["row"] == row.name]
        counts = Counter(answer["outcome"] for answer in of_row)
        outcomes = {name: counts[name] for name in OUTCOMES}
        took = round(sum(answer["seconds"] for answer in of_row), 1)
        rows[row.name] = {"cases": len(of_row), "outcomes": outcomes, "seconds": took, "groups": _groups(of_row)}
    machine = fingerprint()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{machine.cpu_model}, {os.cpu_count()} cores",
        "code": dict(code_version()),
        "seed": seed,
        "seconds": round(seconds),
        "rows": rows,
        "defects": [answer for answer in answers if answer["outcome"] in DEFECTS],
    }


def _groups(answers: Sequence[Answer]) -> dict[str, dict[str, int]]:
    """Outcomes of the cases that are counted together, such as those of one kind of file."""
    names = sorted({answer["group"] for answer in answers if answer.get("group")})
    return {name: dict(Counter(a["outcome"] for a in answers if a.get("group") == name)) for name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, help="how many, shared among the rows (default: all)")
    parser.add_argument("--first", type=int, default=0, help="the case that each row begins with, to go on with a row")
    parser.add_argument("--minutes", type=float, help="begin no case later than that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="workers, each of one thread (default: 2)")
    parser.add_argument("--row", action="append", default=[], choices=[row.name for row in ROWS])
    parser.add_argument("--case", type=int, help="only this one of --row")
    parser.add_argument("--sample", action="store_true", help="the few cases of each row that the tests try")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--work", type=Path, help="a folder to work in, kept; default: a temporary one")
    parser.add_argument(
        "--page", type=Path, nargs="+", metavar="RESULTS", help="print docs/reliability.md from results, and end"
    )
    args = parser.parse_args(arguments)
    if args.page:
        from page import added, page_of

        print(page_of(added([json.loads(path.read_text()) for path in args.page])), end="")
        return 0
    root = args.work or Path(tempfile.mkdtemp(prefix="dqrm-faults-"))
    root.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        workers = [Worker(root, 0, args.seed)]  # which makes what all work on
        workers += [Worker(root, number, args.seed) for number in range(1, args.jobs)]
        one = [(args.row[0], args.case)] if args.case is not None else None
        answers = run(
            one or plan(workers[0].sizes, args.cases, args.row, args.sample, args.first),
            workers,
            one is not None,
            args.minutes,
        )
        for worker in workers:
            worker.close()
    finally:
        if not args.work:
            shutil.rmtree(root, ignore_errors=True)
    results = summary(answers, args.seed, time.monotonic() - began)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    for name, row in results["rows"].items():
        counts = ", ".join(f"{count} {outcome}" for outcome, count in row["outcomes"].items() if count)
        print(f"{name:<14}{row['cases']:>6}  {row['seconds']:>8.1f} s  {counts}")
    return 1 if results["defects"] else 0


if __name__ == "__main__":
    sys.exit(main())
