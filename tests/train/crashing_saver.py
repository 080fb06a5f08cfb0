"""Saves checkpoints and is killed on the way: `crashing_saver.py FOLDER events|moments`; a line per crash, then `done`.

Started by test_checkpoint_crash.py as a process of its own, single-threaded so that it can fork.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from dqrm_cpu.train.checkpoint import CheckpointStore
from dqrm_cpu.train.checkpoint_files import load_checkpoint

_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir")
_NUM_ROWS = 64


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"table": torch.full((_NUM_ROWS, 4), float(step)), "mlp": torch.full((7,), -float(step))}


def store(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, keep=2, shard_bytes=512)


def save(folder: Path, step: int) -> None:
    store(folder).save(step, tensors(step), {"step": step}, best=step % 3 == 0)


def verify(folder: Path, at_least: int) -> int:
    """The newest checkpoint is no older than one that was safe, and every one with a good name is complete."""
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}
    resumed = store(folder).load_newest(into)
    assert resumed is not None, "no checkpoint"
    assert not resumed.warnings, resumed.warnings
    assert resumed.step >= at_least, (resumed.step, at_least)
    for path in store(folder).paths():
        step = load_checkpoint(path, into)["step"]
        assert isinstance(step, int)
        assert all(torch.equal(into[name], tensor) for name, tensor in tensors(step).items())
    assert resumed.state == {"step": resumed.step}
    return resumed.step


def die_at_event(number: int) -> None:
    """From now on the process kills itself when it touches a file or folder for the `number`-th time."""
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in _EVENTS:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def crash_at_every_event(folder: Path) -> None:
    step, number, survived = verify(folder, 2), 1, False
    while not survived:
        child = os.fork()
        if child == 0:
            die_at_event(number)
            save(folder, step + 1)
            os._exit(0)
        survived = os.waitpid(child, 0)[1] == 0
        step = verify(folder, step)
        print("survived" if survived else "killed", number, step, flush=True)
        number += 1


def crash_at_random_moments(folder: Path, times: int = 25) -> None:
    chance = random.Random(20)
    step = verify(folder, 2)
    for _ in range(times):
        child = os.fork()
        if child == 0:
            while True:
                step += 1
                save(folder, step)
        time.sleep(chance.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        step = verify(folder, step)
        print("killed", step, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    for first_step in range(3):  # so many that each further save removes one
        save(root, first_step)
    {"events": crash_at_every_event, "moments": crash_at_random_moments}[sys.argv[2]](root)
    print("done")
