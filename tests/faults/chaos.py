"""Trains with several ranks while ranks are killed, stopped, asked to end, and disks fail; the end is a calm run's.

    python tests/faults/chaos.py --ranks 2 --minutes 30 --seed 0
    python tests/faults/chaos.py --ranks 4 --minutes 30 --transport gloo

Rounds until the time is up: a run is started, something happens to it, `--resume auto` goes on, and so on until all
its steps are done. Then its weights, its state, its metrics and its packed files must be those of the calm run to the
bit, and memory, descriptors and threads of rank 0 must not have grown. Exit status 1 if anything else came of it.
"""

import argparse
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent), str(_HERE.parent.parent)]

from injection import CHANGES, Fault, compile_library  # noqa: E402
from launching import clean_environ, free_port  # noqa: E402
from material import run_result  # noqa: E402
from outcomes import DEFECTS, Done  # noqa: E402

_SMALL = [
    *("--data.train-rows", "4000", "--data.validation-rows", "500", "--data.test-rows", "500"),
    *("--model.table-rows", "40,3,500", "--model.embedding-dim", "6", "--model.bottom-mlp", "9,6"),
    *("--model.top-mlp", "11,1", "--train.epochs", "100000", "--train.batch-size", "32", "--train.log-every", "5"),
    *("--train.checkpoint-every", "15", "--train.evaluate-every", "50", "--train.threads", "1"),
]
_TIMEOUT_S = 15  # of --comm.timeout: a rank that is stopped for longer is given up
_COLD_S = 900  # for the first one, which compiles kernels
_PATIENCE_S = 240  # for a world to end by itself, on a machine that is shared

EVENTS = ("kill one", "kill all", "stop one", "stop one for a while", "TERM one", "TERM all", "full disk", "bad disk")


@dataclass
class Resources:
    """Of rank 0: samples of resident bytes, open descriptors and threads, in the order of time."""

    samples: list[tuple[int, int, int]] = field(default_factory=list)

    def sample(self, pid: int) -> None:
        try:
            process = Path(f"/proc/{pid}")
            pages = int((process / "statm").read_text().split()[1])
            counts = [len(list((process / name).iterdir())) for name in ("fd", "task")]
            self.samples.append((pages * os.sysconf("SC_PAGESIZE"), *counts))
        except (OSError, ValueError):
            pass  # it has ended

    def growth(self) -> tuple[int, int, int]:
        """From the second quarter to the last one, by the median of each."""
        quarter = len(self.samples) // 4
        if not quarter:
            return 0, 0, 0
        early, late = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        middles = [[sorted(column)[len(column) // 2] for column in zip(*part, strict=True)] for part in (early, late)]
        return tuple(after - before for before, after in zip(*middles, strict=True))  # type: ignore[return-value]


class World:
    """The ranks of one start of a command, each a process that this one may signal."""

    def __init__(self, folder: Path, ranks: int, arguments: Sequence[object], fault: dict[str, str]) -> None:
        port = str(free_port())
        self._errors = [folder / f"err.{rank}" for rank in range(ranks)]
        self.ranks = []
        for rank in range(ranks):
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "RANK": str(rank)}
            env = clean_environ({**place, "LOCAL_RANK": str(rank), **(fault if rank == 0 else {})})
            with self._errors[rank].open("wb") as err:
                command = [sys.executable, "-m", "dqrm_cpu", *map(str, arguments)]
                self.ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=err))

    @property
    def running(self) -> bool:
        return any(rank.poll() is None for rank in self.ranks)

    def finish(self, patience_s: float = _PATIENCE_S) -> list[Done]:
        """How each rank ended; those that do not are killed, and count as hanging."""
        deadline = time.monotonic() + patience_s
        found = []
        for rank, errors in zip(self.ranks, self._errors, strict=True):
            try:
                code, late = rank.wait(max(0.1, deadline - time.monotonic())), False
            except subprocess.TimeoutExpired:
                rank.kill()
                code, late = rank.wait(), True
            found.append(
                Done(code if code >= 0 else 128 - code, code < 0, "", errors.read_text(errors="replace"), late)
            )
        return found


def disturb(world: World, event: str, chance: random.Random) -> None:
    """Does what the event says to ranks; disks were told when the world was started."""
    target = chance.choice(world.ranks)
    if event.endswith("disk"):
        return
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "TERM": signal.SIGTERM}[event.split()[0]]
    for rank in world.ranks if event.endswith("all") else [target]:
        if rank.poll() is None:
            rank.send_signal(number)
    if number == signal.SIGSTOP:
        pause = chance.uniform(0.2, 3) if event.endswith("while") else _TIMEOUT_S * 2
        deadline = time.monotonic() + pause
        while time.monotonic() < deadline and sum(rank.poll() is None for rank in world.ranks) > 1:
            time.sleep(0.1)
        if target.poll() is None:
            target.send_signal(signal.SIGCONT if event.endswith("while") else signal.SIGKILL)


def steps_done(run: Path) -> int:
    """Of the newest checkpoint."""
    names = [path.name for path in (run / "checkpoints").glob("step-*")] if (run / "checkpoints").is_dir() else []
    return max((int(name.split("-")[1].split(".")[0]) for name in names), default=0)


class Chaos:
    """Rounds of disturbed runs; `problems` is what should not have happened, `counts` what did."""

    def __init__(self, root: Path, ranks: int, steps: int, transport: str, seed: int) -> None:
        self._root, self._ranks, self._steps = root, ranks, steps
        self._chance = random.Random(f"{seed}/{ranks}/{transport}")
        self._library = compile_library(root)
        self._options = [
            *_SMALL,
            "--train.max-steps",
            steps,
            "--comm.timeout",
            _TIMEOUT_S,
            "--comm.transport",
            transport,
        ]
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self.resources = Resources()

    def calm(self) -> object:
        """The result of the run that nothing happens to."""
        (done, *_) = self._world(self._root / "calm", {}).finish(_COLD_S)
        if done.status != 0:
            raise RuntimeError(f"the calm run ended with {done.status}:\n{done.err}")
        return run_result(self._root / "calm")

    def round(self, expected: object) -> None:
        """One run from its start to its last step, disturbed on the way."""
        run = self._root / "run"
        shutil.rmtree(run, ignore_errors=True)
        for _attempt in range(60):
            if self._disturbed(run):
                break
        if not (run / "result.json").exists():
            self.problems.append("60 starts did not finish a run")
        elif run_result(run) != expected:
            self.problems.append("the end of a disturbed run is not that of the calm one")
        self.counts["rounds"] += 1

    def _disturbed(self, run: Path) -> bool:
        """Starts or resumes, lets something happen, waits; whether the run is done."""
        event = self._chance.choice((*EVENTS, "nothing"))
        fault = {}
        if event.endswith("disk"):
            number, mode = self._chance.randrange(1, 150), "ENOSPC" if event == "full disk" else "EIO"
            fault = Fault(run, number, mode, CHANGES, sticky=self._chance.random() < 0.7).environment(self._library)
        before, world = steps_done(run), self._world(run, fault)
        moment, deadline = self._chance.randrange(1, max(2, self._steps // 3)), time.monotonic() + _PATIENCE_S
        while world.running and time.monotonic() < deadline and steps_done(run) < before + moment:
            time.sleep(self._chance.uniform(0.05, 0.2))
            self.resources.sample(world.ranks[0].pid)
        if world.running and event != "nothing":
            disturb(world, event, self._chance)
        while world.running and time.monotonic() < deadline:
            time.sleep(0.2)
            self.resources.sample(world.ranks[0].pid)
        ends = world.finish()
        self.counts[event] += 1
        for rank, done in enumerate(ends):
            if done.outcome in DEFECTS and not (done.killed and event.startswith(("kill", "stop"))):
                self.problems.append(f"{event}: rank {rank}: {done.outcome}, status {done.status}\n{done.err[-2000:]}")
        return all(done.status == 0 for done in ends)

    def _world(self, run: Path, fault: dict[str, str]) -> World:
        return World(self._root, self._ranks, ["train", "--run-dir", run, "--resume", "auto", *self._options], fault)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=30.0, help="no round begins later (default: 30)")
    parser.add_argument("--steps", type=int, default=300, help="of a run (default: 300)")
    parser.add_argument("--transport", default="gloo", choices=("gloo",))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    root = Path(tempfile.mkdtemp(prefix="dqrm-chaos-"))
    try:
        chaos = Chaos(root, args.ranks, args.steps, args.transport, args.seed)
        expected = chaos.calm()
        deadline = time.monotonic() + 60 * args.minutes
        while not chaos.counts["rounds"] or (time.monotonic() < deadline and not chaos.problems):
            chaos.round(expected)
            print(f"round {chaos.counts['rounds']}: {sum(chaos.counts.values()) - chaos.counts['rounds']} starts")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    growth = dict(zip(("bytes", "descriptors", "threads"), chaos.resources.growth(), strict=True))
    print(json.dumps({"counts": chaos.counts, "growth": growth, "problems": chaos.problems}, indent=1))
    return 1 if chaos.problems else 0


if __name__ == "__main__":
    sys.exit(main())
