"""Starts ranks on this machine for what can only be measured between several, and reads their figures."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dqrm_cpu.comm.transports.launch import NO_LAUNCHER, detect_launch
from dqrm_cpu.errors import CommError

_LINES_SHOWN = 20


def run_ranks(module: str, task: Mapping[str, Any], ranks: int, threads: int) -> dict[str, Any]:
    """Runs `python -m MODULE TASK FILE` on each rank, and returns the JSON that rank 0 left in FILE.

    Raises CommError with what the ranks printed where they did not come to an end.
    """
    if detect_launch(os.environ).launcher != NO_LAUNCHER:
        raise CommError("this command starts its ranks itself: call it once, without mpirun, srun or torchrun")
    with tempfile.TemporaryDirectory(prefix="dqrm-cpu-ranks-") as folder:
        figures = Path(folder) / "figures.json"
        command = [*_launcher(ranks), "-m", module, json.dumps(task), str(figures)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode or not figures.exists():
            output = "\n  ".join(done.stderr.strip().splitlines()[-_LINES_SHOWN:]) or "they printed nothing"
            raise CommError(f"the ranks ended with status {done.returncode}:\n  {output}")
        plain: dict[str, Any] = json.loads(figures.read_text())
        return plain


def _launcher(ranks: int) -> Sequence[str]:
    """Returns how a command that runs Python on several ranks begins: with this environment's MPI, or else torchrun."""
    hydra = Path(sys.executable).parent / "mpiexec.hydra"
    if hydra.exists() and importlib.util.find_spec("mpi4py") is not None:
        return [str(hydra), "-n", str(ranks), sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
