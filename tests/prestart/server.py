"""Imports what commands need, and forks a process for each client.

It computes nothing itself: a child of a process with threads of OpenMP would hang. It listens for as long as anybody
has the other end of its standard input, a pipe with a name.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import pickle
import runpy
import select
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from numba.core.registry import CPUDispatcher

from dqrm_cpu.kernels.sealed import read_sealed

_LARGEST_REQUEST = 1 << 20
_MOST_DESCRIPTORS = 64
_COMMANDS = ("train", "evaluate", "prepare", "profile")
_BENEATH = (
    "api.evaluation",
    "api.preparing",
    "api.training",
    "comm.transports.torch_distributed",
    "data.prepare.preparation",
    "data.synthetic.stream",
    "kernels.numba.kernels",
    "train.run",
)
_IMPORTED = (
    "torch.distributed",
    *(f"dqrm_cpu.cli.{name}" for name in _COMMANDS),
    *(f"dqrm_cpu.{name}" for name in _BENEATH),
)


@dataclass(frozen=True)
class Child:
    """A process that was forked for a client."""

    pid: int
    client: socket.socket
    client_pid: int


class Kernels:
    """Loads kernels that any process has compiled, and calls none: each takes 15 ms, and a command calls twenty."""

    def __init__(self) -> None:
        self._functions: dict[tuple[Path, str], Any] = {}  # by the folder of their files, and how these begin
        self._loaded: set[str] = set()
        modules = [module for name, module in sys.modules.items() if name.startswith("dqrm_cpu.")]
        for function in (one for module in modules for one in vars(module).values()):
            files = getattr(getattr(function, "_cache", None), "_cache_file", None)
            if isinstance(function, CPUDispatcher) and files is not None:
                self._functions[files._folder, files._function] = function

    def load(self) -> None:
        """Loads those that have come since."""
        for folder in {folder for folder, _ in self._functions}:
            for path in folder.glob("*.nbc"):
                function = self._functions.get((folder, path.name.rpartition(".nbc")[0].rpartition(".")[0]))
                if path.name not in self._loaded and function is not None:
                    self._loaded.add(path.name)
                    content = read_sealed(path)
                    if content is not None:
                        _, (types, *_), _ = pickle.loads(content)
                        function.compile(types)


class Server:
    """Forks a process for each client, whose state the client then follows, and ends it when the client is gone."""

    def __init__(self, listener: socket.socket, path: Path) -> None:
        self._listener, self._path = listener, path
        self._kernels = Kernels()
        self._children: dict[int, Child] = {}  # by descriptor of the client
        self._changes, self._changed = os.pipe()  # written to when a child has ended, stopped or gone on
        os.set_blocking(self._changed, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._changed)
        self._poll = select.poll()
        for descriptor in (sys.stdin.fileno(), self._changes, listener.fileno()):
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> dict[str, Any] | None:
        """Serves until standard input ends; in a child it returns what the child is to run."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == sys.stdin.fileno() and self._left_alone():
                    return None
                if descriptor == self._changes:
                    os.read(self._changes, 512)
                    for child in list(self._children.values()):
                        self._follow(child)
                elif descriptor in self._children:
                    self._pass_on(self._children[descriptor])
                elif descriptor == self._listener.fileno() and (request := self._fork()) is not None:
                    return request

    def _left_alone(self) -> bool:
        """Says whether everybody is gone, and nobody came at the last moment; then nothing is left but the process."""
        folder = os.open(self._path.parent, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        pipe = select.poll()
        pipe.register(sys.stdin.fileno(), 0)
        alone = any(event & select.POLLHUP for _, event in pipe.poll(0))
        if alone:
            for child in self._children.values():
                _kill(child)
            for name in (self._path, self._path.with_suffix(".alive")):
                name.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another server is there
                self._path.parent.rmdir()
        os.close(folder)
        return alone

    def _fork(self) -> dict[str, Any] | None:
        client, _ = self._listener.accept()
        text, descriptors, _, _ = socket.recv_fds(client, _LARGEST_REQUEST, _MOST_DESCRIPTORS)
        if not text:
            client.close()
            return None
        request = json.loads(text)
        self._kernels.load()
        gc.freeze()  # the pages of these objects stay shared with the children
        pid = os.fork()
        if pid == 0:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for of_server in (self._changes, self._changed):
                os.close(of_server)
            for connection in (self._listener, client, *(child.client for child in self._children.values())):
                connection.close()
            return {**request, "received": descriptors}
        for descriptor in descriptors:
            os.close(descriptor)
        self._children[client.fileno()] = Child(pid, client, request["pid"])
        self._poll.register(client, select.POLLIN)
        return None

    def _follow(self, child: Child) -> None:
        """Has the client end, stop or go on as its process did."""
        pid, status = os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if not pid:
            return
        if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.client_pid, signal.SIGSTOP if os.WIFSTOPPED(status) else signal.SIGCONT)
            return
        del self._children[child.client.fileno()]
        with contextlib.suppress(KeyError):  # a client that left
            self._poll.unregister(child.client)
        with child.client, contextlib.suppress(OSError):
            child.client.send(str(status).encode())
            os.kill(child.client_pid, signal.SIGCONT)  # it may have been stopped, as its process was

    def _pass_on(self, child: Child) -> None:
        try:
            asked = child.client.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not asked:
            self._poll.unregister(child.client)
        if not asked or asked[0] == signal.SIGKILL:
            _kill(child)
        else:
            os.kill(child.pid, asked[0])


def _kill(child: Child) -> None:
    """Kills a process and what it started, for which it is the head of a group as soon as it runs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    os.kill(child.pid, signal.SIGKILL)


def _become(request: dict[str, Any]) -> None:
    """Takes over what the client has: descriptors under its numbers, environment, folder, cores."""
    received, wanted = request["received"], request["descriptors"]
    above = max(*received, *wanted) + 1
    copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in received]
    for descriptor in received:
        os.close(descriptor)
    for copy, number in zip(copies, wanted, strict=True):
        os.dup2(copy, number)
        os.close(copy)
    main_thread: Any = threading.main_thread()
    main_thread._set_native_id()  # which Python 3.11 forgets at a fork
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["folder"])
    os.sched_setaffinity(0, request["cores"])


def _run(arguments: list[str]) -> None:
    """Runs what `python ARGUMENTS` would, as __main__."""
    first, *others = arguments[arguments[0] == "-u" :]
    if first == "-m":
        sys.argv, sys.path[0] = others, str(Path.cwd())
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *others[1:]], ""
        exec(compile(others[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def _status_of(arguments: list[str]) -> int:
    """Runs the arguments; returns the exit status that Python makes of what they raise."""
    try:
        _run(arguments)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _end(status: int) -> NoReturn:
    """Ends as the interpreter does, but for taking down its modules, which takes longer than most tests."""
    end_threads: Any = threading
    end_threads._shutdown()  # also tells executors that nobody closed to end: joining alone would wait for them
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    _prepare_numba()
    gc.collect()
    path = Path(sys.argv[1])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        # Under its name it listens already.
        coming = path.with_suffix(".coming")
        listener.bind(str(coming))
        listener.listen(64)
        coming.rename(path)
        request = Server(listener, path).serve()
    if request is not None:
        _become(request)
        _end(_status_of(request["arguments"]))


def _prepare_numba() -> None:
    """Loads what numba knows of Python and NumPy, as the first kernel would: 0.4 seconds of a core."""
    target = importlib.import_module("numba.core.registry").cpu_target
    target.typing_context.refresh()
    target.target_context.refresh()


if __name__ == "__main__":
    main()
