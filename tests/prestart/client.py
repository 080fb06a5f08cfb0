"""Stands for a process that the server forks: hands it all that it has, passes signals on, ends as it ends.

Started without site packages, within some 20 milliseconds.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys

_PASSED_ON = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGCONT")
_KILLS = signal.SIGRTMIN  # SIGKILL would end this process before the other


def main() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(sys.argv[1])
        _hand_over(server)
        for name in _PASSED_ON:
            signal.signal(getattr(signal, name), lambda number, _: _pass_on(server, number))
        signal.signal(_KILLS, lambda *_: _pass_on(server, signal.SIGKILL))
        status = int(server.recv(16) or b"256")  # without an answer the server is gone: status 1
    if os.WIFSIGNALED(status):
        _die_of(os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def _die_of(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _pass_on(server: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the process has ended meanwhile
        server.send(bytes([number]))


def _hand_over(server: socket.socket) -> None:
    descriptors = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # pathlib takes as long to import as all the rest
        with contextlib.suppress(OSError):  # that of the listing itself
            number = int(name)
            if number != server.fileno() and os.get_inheritable(number):
                descriptors.append(number)
    request = {
        "pid": os.getpid(),
        "arguments": sys.argv[2:],
        "environ": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
        "cores": sorted(os.sched_getaffinity(0)),
        "descriptors": descriptors,
    }
    socket.send_fds(server, [json.dumps(request).encode()], descriptors)


main()
