"""A rank of a real world: the command line, with a fault for one rank as one of its steps begins.

losing_rank.py FAULT RANK STEP train ...
"""

import os
import resource
import signal
import sys

import numpy as np

from dqrm_cpu.cli.main import main
from dqrm_cpu.comm.transports.launch import detect_launch
from dqrm_cpu.train.step import TrainingStep


class InjectedError(Exception):
    """A mistake of the program that nobody has foreseen."""


def meet(fault: str) -> None:
    """The end of this rank, or of what it can do."""
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "raising":
        raise InjectedError("a mistake of the program")
    elif fault == "leaving":
        os._exit(0)
    else:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
        np.zeros(1 << 30)


def install(fault: str, rank: int, step: int) -> None:
    """Lets `fault` happen on `rank` as step `step`, counted from 1, begins."""
    original = TrainingStep.__call__

    def call(self: TrainingStep, iteration: int, *arguments: object, **named: object) -> object:
        if iteration == step - 1 and detect_launch(os.environ).rank == rank:
            meet(fault)
        return original(self, iteration, *arguments, **named)  # type: ignore[arg-type]

    TrainingStep.__call__ = call  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    install(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
