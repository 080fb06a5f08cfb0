"""Trains with several ranks while ranks are killed, stopped, asked to end, and disks fail; the end is a calm run's.

    python tests/faults/chaos.py --minutes 30
    python tests/faults/chaos.py --minutes 10 --ranks 2 --transport mpi --seed 3

Each number of ranks is tried over each transport in turn, for its part of the time: a run is started, something happens
to it, `--resume auto` goes on, and so on until all its steps are done. Then its weights, its state, its metrics and its
packed files must be, to the bit, those of a calm run of one process that simulates as many ranks; and no rank may have
come to hold more memory, descriptors or threads while it lived. Exit status 1, and a line that says which, if anything
else came of it. More `--steps` find smaller leaks.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent), str(_HERE.parent.parent)]

from case_files import run_result  # noqa: E402
from dqrm_cpu.base.hardware import fingerprint  # noqa: E402
from growth import Sample, growth, sample, too_much  # noqa: E402
from injection import CHANGES, Fault, compile_library  # noqa: E402
from launching import clean_environ, has_mpi  # noqa: E402
from outcomes import DEFECTS, REFUSED, Done  # noqa: E402
from real_ranks import RealRanks  # noqa: E402

_CHECKPOINT_STEPS = 15
_MODEL = [
    *("--data.train-rows", "4000", "--data.validation-rows", "500", "--data.test-rows", "500"),
    *("--model.table-rows", "40,3,500", "--model.embedding-dim", "6", "--model.bottom-mlp", "9,6"),
    *("--model.top-mlp", "11,1", "--train.epochs", "100000", "--train.batch-size", "32", "--train.log-every", "5"),
    *("--train.checkpoint-every", _CHECKPOINT_STEPS, "--train.evaluate-every", "50", "--train.threads", "1"),
]
_TIMEOUT_S = 15  # of --comm.timeout: a rank that is stopped for longer is given up
_COLD_S = 900  # for the calm runs, the first of which compiles kernels
_PATIENCE_S = 240  # without a new checkpoint, on a machine that is shared
_MOST_STARTS = 60  # of one run

TRANSPORTS = ("gloo", "mpi", "oneccl")
DISKS = {"full disk": "ENOSPC", "bad disk": "EIO"}
NOTHING, PAUSE = "nothing", "stop one for a while"
EVENTS = ("kill one", "kill all", "stop one", PAUSE, "TERM one", "TERM all", *DISKS)


def calm_arguments(run: Path, ranks: int, steps: int) -> list[str]:
    """Returns the arguments of the run that nothing happens to, trained by one process."""
    simulated = ["--comm.transport", "sim", "--comm.simulated-ranks", ranks]
    return [*map(str, ["train", "--run-dir", run, *_MODEL, "--train.max-steps", steps, *simulated])]


def _calm_result(run: Path, ranks: int, steps: int) -> object:
    command = [sys.executable, "-m", "dqrm_cpu", *calm_arguments(run, ranks, steps)]
    done = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, timeout=_COLD_S)
    if done.returncode != 0:
        raise RuntimeError(f"the calm run ended with {done.returncode}:\n{done.stderr}")
    return lasting_result(run)


def lasting_result(run: Path) -> object:
    """What real and simulated ranks must have in common: everything but the bytes sent and the transport's settings."""
    shards, state, rows, result, packed = run_result(run)
    rows = [{key: value for key, value in row.items() if not key.endswith("_bytes")} for row in rows]
    return shards, state, rows, result, {name: _packed_result(run / "packed" / name) for name in packed}


def _packed_result(path: Path) -> object:
    """Of a packed file, without the settings that its header quotes."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:end])
    del header["__metadata__"]
    return header, hashlib.sha256(content[end:]).hexdigest()


def steps_done(run: Path) -> int:
    """Returns the steps of the newest checkpoint."""
    names = [path.name for path in (run / "checkpoints").glob("step-*")] if (run / "checkpoints").is_dir() else []
    return max((int(name.split("-")[1].split(".")[0]) for name in names), default=0)


class Chaos:
    """Rounds of disturbed runs; `problems` is what should not have happened, `counts` and `gained` what did."""

    def __init__(
        self, root: Path, ranks: int, transport: str, steps: int, chance: random.Random, timeout_s: float = _TIMEOUT_S
    ) -> None:
        self._root, self._ranks, self._transport, self._steps = root, ranks, transport, steps
        self._chance, self._timeout_s = chance, timeout_s
        self._library = compile_library(root)
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self.gained: list[Sample] = []  # by every process that lived long enough

    def round(self, expected: object, events: Iterable[str]) -> None:
        """One run from its start to its last step; `events` are what happens to each of its starts, then nothing."""
        run, coming = self._root / "run", iter(events)
        shutil.rmtree(run, ignore_errors=True)
        for _attempt in range(_MOST_STARTS):
            if self._start(run, next(coming, NOTHING)):
                break
        if not (run / "result.json").exists():
            self._wrong(f"{_MOST_STARTS} starts did not finish a run")
        elif lasting_result(run) != expected:
            self._wrong("the end of a disturbed run is not that of the calm one")
        self.counts["rounds"] += 1

    def draw_events(self, deadline: float) -> Iterator[str]:
        """What happens until the time is up. A rank that lives through the first start shows whether it grows."""
        if not self.counts["rounds"]:
            yield PAUSE
        while time.monotonic() < deadline:
            yield self._chance.choice(EVENTS)

    def require_watched(self) -> None:
        """A growth that nobody looked for is no flat one."""
        if not self.gained:
            self._wrong("no rank lived for long enough to show whether it grows: ask for more --steps")

    def _start(self, run: Path, event: str) -> bool:
        """Starts or resumes, lets something happen, waits; whether the run is done."""
        before, environs, report = steps_done(run), {}, self._root / "calls"
        number = self._chance.randrange(1, 150)
        report.unlink(missing_ok=True)
        if event in DISKS:
            fault = Fault(run, number, DISKS[event], CHANGES, sticky=self._chance.random() < 0.7)
            environ = fault.environment(self._library) | {"FAULT_REPORT": str(report)}
            environs = {self._chance.randrange(self._ranks): environ}
        options = [
            "--train.max-steps",
            self._steps,
            "--comm.timeout",
            self._timeout_s,
            "--comm.transport",
            self._transport,
        ]
        command = ["train", "--run-dir", run, "--resume", "auto", *_MODEL, *options]
        world = RealRanks(self._root, self._transport, self._ranks, command, environs)
        samples: dict[int, list[Sample]] = {}
        moment = before + self._chance.randrange(1, max(2, self._steps // 3))
        self._watch(world, run, before, moment, samples)
        if met := world.running and event not in DISKS and event != NOTHING:
            self._disturb(world, event)
        self._watch(world, run, before, self._steps + 1, samples)
        ends = world.finish(1 if world.running else 0)
        met = met or (report.exists() and int(report.read_text() or 0) >= number)
        self.counts.update({"starts": 1, "resumes": int(before > 0), event if met else NOTHING: 1})
        self._judge(event, ends)
        for rank, seen in samples.items():
            gained = growth(seen, self._steps - before - _CHECKPOINT_STEPS)
            if gained:
                self.gained.append(gained)
                for line in too_much(gained):
                    self._wrong(f"{event}: rank {rank}: {line}")
        return all(done.status == 0 for done in ends)

    def _watch(self, world: RealRanks, run: Path, before: int, until: int, samples: dict[int, list[Sample]]) -> None:
        """Waits for the world's end, for step `until`, or until there was nothing new for too long."""
        steps, news = steps_done(run), time.monotonic()
        while world.running and steps < until and time.monotonic() < news + _PATIENCE_S:
            time.sleep(self._chance.uniform(0.1, 0.3))
            if steps_done(run) > steps:
                steps, news = steps_done(run), time.monotonic()
            for rank, pid in world.pids().items():
                if found := sample(pid, steps - before):
                    samples.setdefault(rank, []).append(found)

    def _disturb(self, world: RealRanks, event: str) -> None:
        """Does what the event says to ranks; disks were told when the world was started."""
        ranks = world.pids()
        if not ranks:
            return  # all have just ended
        target = self._chance.choice(sorted(ranks.values()))
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "TERM": signal.SIGTERM}[event.split()[0]]
        for pid in ranks.values() if event.endswith("all") else [target]:
            _signal(pid, number)
        if number == signal.SIGSTOP:
            pause = self._chance.uniform(0.2, self._timeout_s / 5) if event == PAUSE else self._timeout_s * 2
            deadline = time.monotonic() + pause
            while time.monotonic() < deadline and len(world.pids()) > 1:
                time.sleep(0.1)
            _signal(target, signal.SIGCONT if event == PAUSE else signal.SIGKILL)

    def _judge(self, event: str, ends: Sequence[Done]) -> None:
        """An error that all ranks agree on is told by one of them, the others end without a word."""
        refused = any(done.outcome == REFUSED for done in ends)
        for rank, done in enumerate(ends):
            silent = refused and done.status in (1, 2) and "Traceback" not in done.err
            bad = done.killed or (done.outcome in DEFECTS and not silent)
            if event in (NOTHING, PAUSE):
                bad = done.status != 0
            # A rank that is about to end no longer catches SIGTERM. mpirun itself dies of SIGPIPE where it writes to
            # its ranks just as all of them are killed.
            expected = {signal.SIGTERM if event.startswith("TERM") else signal.SIGKILL}
            expected |= {signal.SIGPIPE} if event == "kill all" and self._transport != "gloo" else set()
            may_die = event not in (NOTHING, PAUSE, *DISKS) and done.killed and done.status - 128 in expected
            if done.timed_out or (bad and not may_die):
                outcome = "hang" if done.timed_out else done.outcome or "killed"
                self._wrong(f"{event}: rank {rank}: {outcome}, status {done.status}\n{done.err[-2000:]}")

    def _wrong(self, what: str) -> None:
        self.problems.append(f"{self._ranks} ranks over {self._transport}: {what}")


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may just have ended
        os.kill(pid, number)


def summary(seed: int, seconds: float, chaos: Mapping[str, Chaos]) -> dict[str, object]:
    """What is printed last, and goes into docs/reliability.md."""
    counts: Counter[str] = sum((one.counts for one in chaos.values()), Counter())
    gained = [sample for one in chaos.values() for sample in one.gained]
    most = {name: max((getattr(one, name) for one in gained), default=0) for name in Sample._fields}
    return {
        "machine": f"{fingerprint().cpu_model}, {os.cpu_count()} cores",
        "seed": seed,
        "minutes": round(seconds / 60, 1),
        "counts": dict(sorted(counts.items())),
        "of which": {name: dict(one.counts) for name, one in chaos.items()},
        "processes watched for growth": len(gained),
        "most that one gained": most,
        "problems": [problem for one in chaos.values() for problem in one.problems],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of ranks (default: 2 4)")
    parser.add_argument("--transport", nargs="+", default=list(TRANSPORTS), choices=TRANSPORTS, help="(default: all)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of all together (default: 30)")
    parser.add_argument(
        "--steps", type=int, default=1005, help=f"of a run, a multiple of {_CHECKPOINT_STEPS} (default: 1005)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.steps % _CHECKPOINT_STEPS:  # a run that was stopped in its last steps has another newest checkpoint
        parser.error(f"--steps {args.steps} is no multiple of {_CHECKPOINT_STEPS}, the steps between checkpoints")
    if set(args.transport) != {"gloo"} and not has_mpi():
        parser.error("there is no mpirun beside this Python: ask for --transport gloo alone, or install impi-rt")
    root, start = Path(tempfile.mkdtemp(prefix="dqrm-chaos-")), time.monotonic()
    turns = [(ranks, transport) for ranks in args.ranks for transport in args.transport]
    found: dict[str, Chaos] = {}
    try:
        expected = {ranks: _calm_result(root / f"calm-{ranks}", ranks, args.steps) for ranks in args.ranks}
        begin = time.monotonic()
        for number, (ranks, transport) in enumerate(turns, start=1):
            name, deadline = f"{ranks} ranks over {transport}", begin + 60 * args.minutes * number / len(turns)
            chance = random.Random(f"{args.seed}/{name}")
            chaos = found[name] = Chaos(root, ranks, transport, args.steps, chance)
            while not chaos.counts["rounds"] or (time.monotonic() < deadline and not chaos.problems):
                chaos.round(expected[ranks], chaos.draw_events(deadline))
                print(f"{time.monotonic() - start:6.0f} s  {name}: {dict(chaos.counts)}", flush=True)
            chaos.require_watched()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(summary(args.seed, time.monotonic() - start, found), indent=1))
    problems = [problem for chaos in found.values() for problem in chaos.problems]
    for problem in problems:
        print(f"chaos: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
