"""Starts Python processes that need not import torch first: a process that has it forks one for each.

    command = [*python(env), "-m", "dqrm_cpu", "train"]        # in place of [sys.executable, ...]

To import torch and numba and to take them down again takes two seconds of a core, and tests start hundreds of ranks and
commands. Each is a process of its own all the same, with the standard streams, descriptors, environment and folder of
whoever started it. A signal sent to the command that stands for it reaches it, but for SIGSTOP; the command stops and
ends as it does.
"""

import atexit
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_HERE = Path(__file__).parent
# What the interpreter, torch or numba reads as it is imported, and never again.
_READ_AT_IMPORT = re.compile("ATEN_|GOMP_|HOME|KMP_|LD_|MALLOC_|MKL_|NUMBA_|OMP_|PYTHON|TORCH_|XDG_")
_servers: dict[tuple[tuple[str, str], ...], Path] = {}
_MOST_SERVERS = 3


def python(env: Mapping[str, str]) -> list[str]:
    """Returns what runs Python in this environment: forked where a server has imported the same, otherwise anew."""
    read = tuple(sorted((name, value) for name, value in env.items() if _READ_AT_IMPORT.match(name)))
    if read not in _servers:
        if len(_servers) == _MOST_SERVERS:
            return [sys.executable]
        _servers[read] = _start_server(env)
    return [sys.executable, "-I", "-S", str(_HERE / "client.py"), str(_servers[read])]


def _start_server(env: Mapping[str, str]) -> Path:
    folder = tempfile.TemporaryDirectory(prefix="prestart-")
    path = Path(folder.name) / "socket"
    # It ends as soon as nobody holds the other end of its standard input.
    server = subprocess.Popen(
        [sys.executable, str(_HERE / "server.py"), str(path)],
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    if server.stdout.readline() != b"ready\n":
        raise RuntimeError("the process that tests fork from did not start")

    def end() -> None:
        server.communicate()
        folder.cleanup()

    atexit.register(end)
    return path
