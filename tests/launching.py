"""Starts worlds of real processes for tests, and leaves none behind.

    world = run_mpi([script, "argument"], ranks=2, timeout_s=30)
    world.check()
    world.ranks[1].stdout

A world whose time is up is killed, every process of it, and `timed_out` says so.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prestart import python

_LAUNCHER_PREFIXES = ("PMI", "MPI_", "I_MPI_", "HYDRA_", "OMPI_", "SLURM_", "TORCHELASTIC_", "MASTER_", "GLOO_")
_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class RankOutput:
    stdout: str
    stderr: str
    returncode: int | None  # None under mpirun, which tells one for the world


@dataclass(frozen=True)
class World:
    """What a world of processes left behind; `returncode` is 0 only if all ranks ended well."""

    returncode: int
    ranks: tuple[RankOutput, ...]
    launcher_output: str
    timed_out: bool
    seconds: float

    @property
    def stderr(self) -> str:
        return "".join(rank.stderr for rank in self.ranks)

    def check(self) -> "World":
        """Itself if all ranks ended well; an AssertionError with everything they wrote otherwise."""
        if self.returncode == 0 and not self.timed_out:
            return self
        parts = [f"the world ended with {self.returncode}{' (out of time)' if self.timed_out else ''}"]
        for number, rank in enumerate(self.ranks):
            parts.append(f"-- rank {number} ({rank.returncode}), stdout\n{rank.stdout}\n-- stderr\n{rank.stderr}")
        raise AssertionError("\n".join([*parts, f"-- launcher\n{self.launcher_output}"]))


Script = str | Path | Sequence[object]


def clean_environ(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without what any launcher set, one thread a process, plus `env`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LAUNCHER_PREFIXES) and name not in _LAUNCHER_NAMES
    }
    # Ranks that wait asleep: tests run more of them than there are cores. FAULT_CONTINUE is what our mpirun sets.
    asleep = {"OMP_NUM_THREADS": "1", "I_MPI_WAIT_MODE": "1", "CCL_YIELD": "sleep"}
    return kept | asleep | {"I_MPI_FAULT_CONTINUE": "1"} | dict(env or {})


def mpirun_path() -> Path:
    """The Hydra launcher that belongs to this environment's MPI; it needs no PATH, unlike mpirun."""
    return Path(sys.executable).parent / "mpiexec.hydra"


def has_mpi() -> bool:
    return mpirun_path().exists()


def run_mpi(
    script_or_args: Script,
    ranks: int,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    cwd: Path | None = None,
    forked: bool = True,
) -> World:
    """Runs `python script args...` on `ranks` ranks under mpirun; args that start with -m or -c work too.

    Not `forked`: each rank imports everything by itself, as a child of the launcher.
    """
    with tempfile.TemporaryDirectory(prefix="world-") as name:
        folder = Path(name)
        environ = clean_environ(env)
        command = [str(mpirun_path()), "-n", str(ranks)]
        command += [f"-outfile-pattern={folder}/out.%r", f"-errfile-pattern={folder}/err.%r"]
        command += _python(script_or_args, environ, forked)
        start = time.monotonic()
        launcher = folder / "launcher"
        with launcher.open("wb") as output:
            process = _start(command, environ, output, output, cwd)
        timed_out = _wait_for([process], start + timeout_s)
        outputs = tuple(RankOutput(_text(folder / f"out.{r}"), _text(folder / f"err.{r}"), None) for r in range(ranks))
        return World(process.returncode, outputs, _text(launcher), timed_out, time.monotonic() - start)


def run_gloo(
    script_or_args: Script,
    ranks: int,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    cwd: Path | None = None,
    forked: bool = True,
) -> World:
    """Runs `python script args...` in `ranks` processes that find each other as torchrun's do, on an ephemeral port."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    with tempfile.TemporaryDirectory(prefix="world-") as name:
        folder = Path(name)
        start = time.monotonic()
        processes = []
        for r in range(ranks):
            environ = clean_environ({**meeting, "RANK": str(r), "LOCAL_RANK": str(r), **(env or {})})
            with (folder / f"out.{r}").open("wb") as out, (folder / f"err.{r}").open("wb") as err:
                processes.append(_start(_python(script_or_args, environ, forked), environ, out, err, cwd))
        timed_out = _wait_for(processes, start + timeout_s)
        outputs = tuple(
            RankOutput(_text(folder / f"out.{r}"), _text(folder / f"err.{r}"), process.returncode)
            for r, process in enumerate(processes)
        )
        returncode = next((process.returncode for process in processes if process.returncode), 0)
        return World(returncode, outputs, "", timed_out, time.monotonic() - start)


def run_world(transport: str, script_or_args: Script, ranks: int, **options: object) -> World:
    """Under mpirun or as torchrun's processes, whichever suits the transport of that name."""
    return {"mpi": run_mpi, "oneccl": run_mpi, "gloo": run_gloo}[transport](script_or_args, ranks, **options)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    """Whether a process still runs; one that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _python(script_or_args: Script, environ: Mapping[str, str], forked: bool = True) -> list[str]:
    args = [script_or_args] if isinstance(script_or_args, str | Path) else script_or_args
    return [*(python(environ) if forked else [sys.executable]), *(str(arg) for arg in args)]


def _start(
    command: list[str], env: dict[str, str], out: IO[bytes], err: IO[bytes], cwd: Path | None
) -> subprocess.Popen[bytes]:
    # A session of its own: one signal then reaches the launcher and all that it started.
    return subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, start_new_session=True
    )


def _wait_for(processes: list[subprocess.Popen[bytes]], deadline: float) -> bool:
    """Whether the deadline passed first; no process is left either way."""
    timed_out = False
    try:
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        for process in processes:
            end_group(process)
    return timed_out


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Leaves nothing of a launcher, started in a session of its own, and of what it started."""
    try:
        if process.poll() is None:
            # Hydra puts its ranks into groups of their own and takes them down when it is asked politely.
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(5)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
