"""A rank of real processes is killed, stopped, raises, leaves or runs out of memory; the run is gone on with."""

import json
import os
import random
import time
from pathlib import Path

from case_files import CaseFiles, run_result
from forked_commands import Lab
from launching import World, alive, run_gloo, run_mpi
from outcomes import HANG, REFUSED, TRACEBACK, WRONG, Verdict
from row import Row, nominal

_WORKER = Path(__file__).parent.parent / "losing_rank.py"
_FAULTS = ("killed", "stopped", "raising", "leaving", "out of memory")
_TRANSPORTS = ("mpi", "gloo", "oneccl", "gloo under mpirun")
_WIRES = ("sparse", "int8", "int8-fp32", "int16")
_TIMES = 5
_COMM_TIMEOUT_S, _WORLD_S, _STEPS = 5, 300.0, 12
_FOUR_EVERY = 5  # a case in five has four ranks


def _lose(lab: Lab, random_: random.Random, number: int) -> Verdict:
    """One rank of 2 or 4 is lost at a drawn step; the simulated world goes on to the very weights of a calm run."""
    fault = _FAULTS[number % len(_FAULTS)]
    transport = _TRANSPORTS[number // len(_FAULTS) % len(_TRANSPORTS)]
    wire = _WIRES[number // len(_FAULTS) // len(_TRANSPORTS) % len(_WIRES)]
    ranks = 4 if random_.randrange(_FOUR_EVERY) == 0 else 2
    lost, step = random_.randrange(ranks), random_.randrange(2, _STEPS + 1)
    case = f"{transport}, {wire}: rank {lost} of {ranks} {fault} at step {step}"
    run, wires = lab.fresh() / "run", ["--comm.wire", wire, "--train.checkpoint-every", "3"]
    arguments = [*CaseFiles(lab.case_files).train_arguments(run), *wires]
    arguments += ["--comm.transport", transport.split()[0], "--comm.timeout", _COMM_TIMEOUT_S]
    script = [str(part) for part in (_WORKER, fault, lost, step, *arguments)]
    started = run_gloo if transport == "gloo" else run_mpi
    environ = {"PYTHONPATH": os.environ["PYTHONPATH"], "LD_PRELOAD": ""}
    world = started(script, ranks, env=environ, timeout_s=_WORLD_S)
    wrong = _wrong_end(world, lost, case) or _left_behind(run, case)
    if wrong:
        return wrong
    again = [*CaseFiles(lab.case_files).train_arguments(run), *wires, "--resume", "auto"]
    done = lab.command(*again, "--comm.transport", "sim", "--comm.simulated-ranks", ranks)
    if done.status != 0:
        return Verdict(WRONG, case, f"gone on with: status {done.status}\n{done.err[-3000:]}")
    if _lasting(run) != _calm(lab, wire, ranks):
        return Verdict(WRONG, case, "other weights or metrics than those of a calm run")
    return Verdict(REFUSED, case)


def _wrong_end(world: World, lost: int, case: str) -> Verdict | None:
    """Nobody may wait for ever, claim success, or end with a traceback, but for the rank that the fault was for."""
    outputs = "\n".join(f"rank {rank}:\n{one.stderr[-1500:]}" for rank, one in enumerate(world.ranks))
    if world.timed_out:
        return Verdict(HANG, case, f"{outputs}\n{world.launcher_output[-1000:]}")
    if world.returncode == 0:
        return Verdict(WRONG, case, f"the world ended with status 0\n{outputs}")
    others = [one.stderr for rank, one in enumerate(world.ranks) if rank != lost]
    # A rank that raises tells the others what it raised, with where.
    if any("Traceback (most recent call last)" in stderr and "InjectedError" not in stderr for stderr in others):
        return Verdict(TRACEBACK, case, outputs)
    return None


def _left_behind(run: Path, case: str) -> Verdict | None:
    """No process of the world may outlive it."""
    ranks = json.loads((run / "environment.json").read_text())["ranks"]
    deadline = time.monotonic() + 10
    while left := [rank["pid"] for rank in ranks if alive(rank["pid"])]:
        if time.monotonic() > deadline:
            return Verdict(HANG, case, f"processes {left} are still there")
        time.sleep(0.05)
    return None


def _calm(lab: Lab, wire: str, ranks: int) -> object:
    """What a run without faults leaves, trained once by each worker."""
    run = lab.root / f"{lab.fresh_folder.name}-calm" / f"{wire}-{ranks}"
    if not (run / "result.json").exists():
        arguments = [
            *CaseFiles(lab.case_files).train_arguments(run),
            "--comm.wire",
            wire,
            "--train.checkpoint-every",
            "3",
        ]
        done = lab.command(*arguments, "--comm.transport", "sim", "--comm.simulated-ranks", ranks)
        if done.status != 0:
            raise RuntimeError(done.err)
    return _lasting(run)


def _lasting(run: Path) -> object:
    """Weights and result; bytes sent differ between real and simulated ranks."""
    shards, _, _, result, packed = json.loads(json.dumps(run_result(run)))
    return shards, result, packed


_CASES = _TIMES * len(_FAULTS) * len(_TRANSPORTS) * len(_WIRES)

ROWS = (
    Row(
        "ranks",
        "A rank is lost",
        f"one of 2 or 4 real processes killed, stopped, raising, leaving or out of memory at a drawn step; "
        f"{', '.join(_TRANSPORTS)}; wires {', '.join(_WIRES)}; {_TIMES} times each; then gone on with by as many "
        "simulated ranks, to the weights of a calm run",
        _CASES,
        _lose,
        nominal(_CASES),
        sample=1,
    ),
)
