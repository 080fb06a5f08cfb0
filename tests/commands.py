"""Runs commands of the command line in this process, which has imported everything already: a start costs seconds."""

import contextlib
import io
from dataclasses import dataclass

import torch

from dqrm_cpu.cli.main import main


@dataclass(frozen=True)
class CommandOutput:
    returncode: int
    stdout: str
    stderr: str


def dqrm_cpu(*arguments: object) -> CommandOutput:
    """Runs `dqrm-cpu ARGUMENTS`; what no command may raise is raised here too."""
    threads = torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            status = main([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
    return CommandOutput(status, out.getvalue(), err.getvalue())
