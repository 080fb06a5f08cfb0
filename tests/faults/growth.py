"""Whether a process that lives long holds more and more: memory, descriptors, threads."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

WARM_UP_STEPS = 110
"""Two evaluations and seven checkpoints of a disturbed run: by then everything that a step needs exists."""

WINDOW = 5
"""Samples that count as one. Files, threads and buffers of a checkpoint come and go, and its moment may be that of a
sample: the least of five samples is what stays. What leaks stays, and raises the least, too."""

MEMORY_TOLERANCE = 4 << 20
"""Bytes. The allocator keeps what a checkpoint or an evaluation gives back, in pieces that fit the next one more or
less well: ranks of this small model were seen to gain 1.1 MiB in the 150 steps behind their warm-up. Four times that
is a leak: of 5 KiB a step, or 72 KiB a checkpoint, in a run of 1,000 steps, and of less where there are more steps.
Descriptors and threads have no such reason, and none may be gained."""


class Sample(NamedTuple):
    """What a process holds when it has done `steps` since its start; `memory` is in bytes, without mapped files."""

    steps: int
    memory: int
    descriptors: int
    threads: int


def sample(pid: int, steps: int) -> Sample | None:
    """None if the process has ended."""
    process = Path(f"/proc/{pid}")
    try:
        lines = (line.partition(":") for line in (process / "status").read_text().splitlines())
        status = {name: value.split() for name, _, value in lines}
        # Mapped files are the page cache's; pages that ranks share (MPI) are held like their own.
        memory = 1024 * (int(status["RssAnon"][0]) + int(status["RssShmem"][0]))
        return Sample(steps, memory, len(list((process / "fd").iterdir())), int(status["Threads"][0]))
    except (OSError, KeyError):
        return None


def growth(samples: Sequence[Sample], last_step: int) -> Sample | None:
    """What one process gained after its warm-up; `steps` is from the first to the last sample that is compared.

    None if it did not live long enough. Samples behind `last_step` do not count: packing the model is no training.
    """
    steady = [one for one in samples if WARM_UP_STEPS <= one.steps <= last_step]
    early, late = steady[:WINDOW], steady[-WINDOW:]
    if len(steady) < 2 * WINDOW or late[0].steps <= early[-1].steps:
        return None
    least = [Sample(*(min(column) for column in zip(*part, strict=True))) for part in (early, late)]
    return Sample(*(after - before for before, after in zip(*least, strict=True)))


def too_much(gained: Sample) -> list[str]:
    """A line for each of memory, descriptors and threads that was gained beyond its tolerance."""
    allowed = Sample(0, MEMORY_TOLERANCE, 0, 0)
    return [
        f"{name} grew by {amount:,} in {gained.steps} steps"
        for name, amount, most in zip(Sample._fields[1:], gained[1:], allowed[1:], strict=True)
        if amount > most
    ]
