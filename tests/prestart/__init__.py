"""Starts Python processes that need not import torch first: a process that has it forks one for each.

    command = [*python(env), "-m", "dqrm_cpu", "train"]        # in place of [sys.executable, ...]

To import torch and numba and to take them down again takes two seconds of a core, and tests start hundreds of ranks and
commands. Each is a process of its own all the same, with the standard streams, descriptors, environment and folder of
whoever started it. A signal sent to the command that stands for it reaches it, but for SIGSTOP; the command stops and
ends as it does. `kill` kills both, and what the process started: after a SIGKILL to the command alone, whoever looks
next may find the process still there, and locked what it had locked.

All processes of one run of the tests share the servers: each lies in a folder named after that run, and ends once the
last of them has.
"""

import atexit
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# What the interpreter, torch or numba reads as it is imported, and never again.
_READ_AT_IMPORT = re.compile("ATEN_|GOMP_|HOME|KMP_|LD_|MALLOC_|MKL_|NUMBA_|OMP_|PYTHON|TORCH_|XDG_")
_RUN = "DQRM_CPU_TESTS_RUN"
_servers: dict[tuple[tuple[str, str], ...], Path] = {}
_MOST_SERVERS = 3
_START_S = 120.0
_LAST_S = 60.0
"""How long a process that has started a server waits at its end for the others that use it."""


def python(env: Mapping[str, str]) -> list[str]:
    """Returns what runs Python in this environment: forked where a server has imported the same, otherwise anew."""
    read = tuple(sorted((name, value) for name, value in env.items() if _READ_AT_IMPORT.match(name)))
    if read not in _servers:
        if len(_servers) == _MOST_SERVERS:
            return [sys.executable]
        name = hashlib.sha256(repr(read).encode()).hexdigest()[:16]
        _servers[read] = _join_server(_folder() / name, env)
    return [sys.executable, "-I", "-S", str(_HERE / "client.py"), str(_servers[read])]


def kill(process: "subprocess.Popen[Any]") -> None:
    """Kills a process that was started with what `python` returned, and waits until it holds nothing any more."""
    command: Any = process.args
    forked = str(_HERE / "client.py") in command
    process.send_signal(signal.SIGRTMIN if forked else signal.SIGKILL)
    process.wait(_LAST_S)


def _folder() -> Path:
    """Makes the folder of this run of the tests, which its first process names in the environment of the others."""
    run = os.environ.setdefault(_RUN, str(os.getpid()))
    folder = Path(tempfile.gettempdir()) / f"prestart-{os.geteuid()}-{run}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _join_server(path: Path, env: Mapping[str, str]) -> Path:
    """Has a server listen at `path` for as long as this process lives: that of another process, or a new one."""
    alive = path.with_suffix(".alive")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # one at a time starts a server, or ends as one
        if _hold(alive) is None:
            _start_server(path, alive, env)
    finally:
        os.close(folder)
    return path


def _hold(alive: Path) -> int | None:
    """Opens the server's pipe, which keeps it from ending; returns None if no server reads it."""
    try:
        return os.open(alive, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return None
        raise


def _start_server(path: Path, alive: Path, env: Mapping[str, str]) -> None:
    for left in (path, alive):
        left.unlink(missing_ok=True)
    os.mkfifo(alive, 0o600)
    reading = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    held = _hold(alive)
    assert held is not None
    command = [sys.executable, str(_HERE / "server.py"), str(path)]
    server = subprocess.Popen(command, env=dict(env), stdin=reading, stdout=subprocess.DEVNULL, start_new_session=True)
    os.close(reading)
    deadline = time.monotonic() + _START_S
    while not path.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the process that tests fork from did not start")
        time.sleep(0.01)

    def end() -> None:
        os.close(held)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_LAST_S)

    atexit.register(end)


def executable(folder: Path, env: Mapping[str, str]) -> Path:
    """Writes a program that runs Python as `python` does, with MPI's launcher beside it, for `sys.executable`."""
    launcher = Path(sys.executable).with_name("mpiexec.hydra")
    for name, command in (("python", python(env)), (launcher.name, [str(launcher)])):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        program.chmod(0o700)
    return folder / "python"
