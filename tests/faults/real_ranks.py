"""A world of real ranks that can be signalled one by one: torchrun's processes, or those of a real mpirun."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launching import alive, clean_environ, free_port, mpirun_path
from outcomes import Done

_MPIRUNS_OWN_S = 30  # for mpirun to end behind its ranks
_KILLED_BY = re.compile(r"KILLED BY SIGNAL: (\d+)")  # how mpirun tells of a rank's end


class RealRanks:
    """The ranks of one start of `python -m dqrm_cpu ARGUMENTS`; `environs` is for single ranks."""

    def __init__(
        self,
        folder: Path,
        transport: str,
        ranks: int,
        arguments: Sequence[object],
        environs: Mapping[int, dict[str, str]],
    ) -> None:
        self._command = [sys.executable, "-m", "dqrm_cpu", *map(str, arguments)]
        self._ranks, self._under_mpirun = ranks, transport != "gloo"
        self._errors = [folder / f"err.{rank}" for rank in range(ranks)]
        self._launcher = folder / "launcher"
        for path in (*self._errors, self._launcher):
            path.write_bytes(b"")
        self._known: dict[int, int] = {}
        start = self._start_mpirun if self._under_mpirun else self._start_each
        self._processes = start(environs)

    def _start_each(self, environs: Mapping[int, dict[str, str]]) -> list[subprocess.Popen[bytes]]:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(self._ranks)}
        started = []
        for rank, errors in enumerate(self._errors):
            place = {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), **environs.get(rank, {})}
            started.append(_start(self._command, clean_environ(place), errors))
            self._known[rank] = started[rank].pid
        return started

    def _start_mpirun(self, environs: Mapping[int, dict[str, str]]) -> list[subprocess.Popen[bytes]]:
        command = [
            str(mpirun_path()),
            "-outfile-pattern=/dev/null",
            f"-errfile-pattern={self._errors[0].with_name('err.%r')}",
        ]
        for rank in range(self._ranks):
            own = [part for name, value in environs.get(rank, {}).items() for part in ("-env", name, value)]
            command += [*([":"] if rank else []), "-n", "1", *own, *self._command]
        # It tells of signals on its standard output.
        return [_start(command, clean_environ(), self._launcher, with_output=True)]

    @property
    def running(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def pids(self) -> dict[int, int]:
        """Returns the process ids of the ranks that live, by rank."""
        if self._under_mpirun and len(self._known) < self._ranks and self.running:
            self._known.update(_ranks_below(self._processes[0].pid))
        return {rank: pid for rank, pid in self._known.items() if alive(pid)}

    def finish(self, patience_s: float) -> list[Done]:
        """How each rank ended, under mpirun how all of them did; those that do not are killed, and count as hanging."""
        deadline = time.monotonic() + patience_s
        found = [self._end(process, deadline) for process in self._processes]
        left = self.pids()
        for pid in left.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        texts = [errors.read_text(errors="replace") for errors in self._errors]
        if self._under_mpirun:
            (code, late), output = found[0], self._launcher.read_text(errors="replace")
            # Its status says nothing of signals (255 for each), its words do.
            signals = {int(number) for number in _KILLED_BY.findall(output)}
            code = -max(signals - {signal.SIGKILL} or signals) if signals else code
            found, texts = [(code, late or bool(left))], ["\n".join([*texts, output])]
        return [
            Done(code if code >= 0 else 128 - code, code < 0, "", text, late)
            for (code, late), text in zip(found, texts, strict=True)
        ]

    def _end(self, process: subprocess.Popen[bytes], deadline: float) -> tuple[int, bool]:
        """Exit status, and whether it had to be killed."""
        try:
            return process.wait(max(0.1, deadline - time.monotonic())), False
        except subprocess.TimeoutExpired:
            if self._under_mpirun:  # which takes its helpers down when it is asked politely
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_MPIRUNS_OWN_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return process.wait(), True


def _start(
    command: Sequence[str], environ: Mapping[str, str], errors: Path, with_output: bool = False
) -> subprocess.Popen[bytes]:
    with errors.open("wb") as err:
        nothing = subprocess.DEVNULL
        out = err if with_output else nothing
        return subprocess.Popen(command, env=environ, stdin=nothing, stdout=out, stderr=err, start_new_session=True)


def _ranks_below(launcher: int) -> dict[int, int]:
    """The topmost processes below mpirun that it gave a rank, by rank."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, below = {}, [launcher]
    while below:
        pid = below.pop()
        with contextlib.suppress(OSError):
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            rank = next((int(entry[9:]) for entry in environ if entry.startswith(b"PMI_RANK=")), None)
            if rank is None:
                below += children.get(pid, [])
            elif b"dqrm_cpu" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found[rank] = pid
    return found
