"""What tests do with jobs: submit a script of the repository, watch its run, wait for its end."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from launching import clean_environ
from slurm.local_cluster import LocalCluster

ROOT = Path(__file__).parents[2]
STEPS = 240
LENGTH = ("--train.max-steps", str(STEPS), "--train.epochs", "10")
MANNER = (
    *("--train.batch-size", "128", "--train.log-every", "10", "--train.evaluate-every", "1000"),
    *("--train.checkpoint-every", "20", "--train.threads", "1"),
)
SETTINGS = (*LENGTH, *MANNER)
"""Long enough to be disturbed several times, short enough for a test."""


class Jobs:
    """The jobs of one test; each run lies in a folder named after its job."""

    def __init__(self, cluster: LocalCluster, folder: Path, data: Path | None = None) -> None:
        self._cluster, self._data, self._folder = cluster, data, folder
        self._numbers: list[str] = []

    def submit(
        self, script: str | Path, *options: str, sbatch: tuple[str, ...] = (), env: Mapping[str, str] | None = None
    ) -> str:
        """The number of a job that runs `script` with `options`; `sbatch`'s own options come before it."""
        data = {"DQRM_DATA": str(self._data)} if self._data else {}
        given = {**clean_environ(), **data, "DQRM_ROOT": str(ROOT), **(env or {})}
        path = ROOT / "scripts" / "slurm" / script
        answer = self._cluster.run("sbatch", "--parsable", *sbatch, str(path), *options, env=given, cwd=self._folder)
        number = answer.strip()
        self._numbers.append(number)
        return number

    def train(self, *options: str, sbatch: tuple[str, ...] = (), env: Mapping[str, str] | None = None) -> str:
        """A job of tb_2node.sh with the settings of the undisturbed run; `options` come last."""
        return self.submit(
            "tb_2node.sh", *SETTINGS, *options, sbatch=sbatch, env={"DQRM_RUN_DIR": str(self.run_dir), **(env or {})}
        )

    @property
    def run_dir(self) -> Path:
        """Returns the run folder of `train`."""
        return self._folder / "run"

    def state(self, job: str, field: str = "JobState") -> str:
        """One field of what Slurm knows of a job."""
        known = self._cluster.run("scontrol", "show", "job", job)
        found = re.search(rf"\b{field}=(\S+)", known)
        assert found, known
        return found.group(1)

    def wait_for_success(self, job: str) -> None:
        self.wait_for_state(job, "COMPLETED", "FAILED", "TIMEOUT")
        assert self.state(job) == "COMPLETED", self.output()

    def restarts(self, job: str) -> int:
        return int(self.state(job, "Restarts"))

    def output(self) -> str:
        """What all jobs of this test wrote."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("*.out")))

    def wait_for_state(self, job: str, *states: str, timeout_s: float = 240) -> None:
        self.wait_until(lambda: self.state(job) in states, f"{job} to be {' or '.join(states)}", timeout_s)

    def wait_for_step(self, step: int) -> None:
        """Until the run has logged `step`."""
        self.wait_until(lambda: any(row["step"] >= step for row in metrics(self.run_dir)), f"step {step}", 240)

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                queue = self._cluster.run("squeue", "--long", "--all")
                raise AssertionError(f"waited {timeout_s:g} s for {what}\n{queue}\n{self.output()}")
            time.sleep(0.1)

    def signal(self, job: str) -> None:
        """What Slurm does to the script when the time limit is near."""
        self._cluster.run("scancel", "--batch", "--signal=USR1", job)

    def cancel_all(self) -> None:
        for job in self._numbers:
            if self.state(job) in ("PENDING", "RUNNING", "COMPLETING"):
                self._cluster.run("scancel", job)
                self.wait_for_state(job, "CANCELLED", "COMPLETED", "FAILED")


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Whole rows of metrics.jsonl, also of a run that is under way."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(run_dir: Path) -> dict[int, float]:
    """Step to training loss."""
    return {int(row["step"]): float(row["loss"]) for row in metrics(run_dir) if row["phase"] == "train"}


def final_weights(run_dir: Path) -> dict[str, np.ndarray]:
    """All tensors of the checkpoint of the last step, by name."""
    folder = max((run_dir / "checkpoints").glob("step-*"))
    tensors: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    assert tensors, f"nothing in {folder}"
    return tensors


def assert_same_end(run_dir: Path, undisturbed: Path) -> None:
    """The same weights to the bit, and the same losses on the way."""
    mine, theirs = final_weights(run_dir), final_weights(undisturbed)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not np.array_equal(mine[name], theirs[name], equal_nan=True)]
    assert different == []
    assert losses(run_dir) == losses(undisturbed)


def train_undisturbed(data: Path, run_dir: Path, *options: str, ranks: int = 2) -> None:
    """What jobs must repeat to the bit: the training of `Jobs.train`, ranks simulated in one process, never stopped."""
    simulated = ("--comm.simulated-ranks", str(ranks))
    dqrm_cpu(
        *("train", "--preset", "terabyte", "--data", str(data), "--run-dir", str(run_dir)),
        *(*SETTINGS, *simulated, *options),
    )


def dqrm_cpu(*arguments: str) -> str:
    """Runs the command on this machine, outside the cluster; its standard output."""
    command = [str(Path(sys.executable).parent / "dqrm-cpu"), *arguments]
    done = subprocess.run(command, env=clean_environ(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
