"""Where cases are tried: a process that has everything warm forks a child for each command, which costs no start.

The process runs kernels in one thread only, so that its children may: a child of a process with OpenMP threads hangs.
Children run the very `main` of the command line, with a fault armed in their own copy of the library.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

from injection import Fault, calls_met, compile_library
from outcomes import Done
from prestart import python

TIMEOUT_S = 60.0
_PATIENCE = 5  # times the limit, for a command that has not used as much of a core: the machine may be busy


class Lab:
    """The folder of one worker: `case_files` is shared and only read, `fresh` empties the folder of a case."""

    def __init__(self, root: Path, worker: int) -> None:
        self.root = root
        self.case_files = root / "case_files"
        self.library = compile_library(root)
        self._case = root / f"worker-{worker}"

    def fresh(self) -> Path:
        """An empty folder for a case."""
        shutil.rmtree(self._case, ignore_errors=True)
        self._case.mkdir(parents=True)
        return self._case

    @property
    def fresh_folder(self) -> Path:
        """What `fresh` emptied."""
        return self._case

    def command(
        self,
        *arguments: object,
        fault: Fault | None = None,
        limits: Mapping[int, int] | None = None,
        timeout_s: float = TIMEOUT_S,
        cwd: Path | None = None,
        before: Callable[[], None] | None = None,
    ) -> Done:
        """Runs the command line in a child, which calls `before` first; `limits` are those of setrlimit."""
        from dqrm_cpu.cli.main import main

        def run() -> int:
            for limit, value in (limits or {}).items():
                _limit(limit, value)
            if before:
                before()
            return main([str(argument) for argument in arguments])

        return self._forked(run, fault, timeout_s, cwd)

    def call(self, function: Callable[[], Any], timeout_s: float = TIMEOUT_S, fault: Fault | None = None) -> Done:
        """Calls a function in a child as a command would: `out` ends with what it returned, as a line of JSON."""
        from dqrm_cpu.cli import main as command_line

        def run() -> int:
            def instead(argv: list[str]) -> int:
                print(json.dumps(function()))
                return 0

            command_line._run_command = instead
            return command_line.main([])

        return self._forked(run, fault, timeout_s, None)

    def start(self, *arguments: object, fault: Fault | None = None, **more: Any) -> subprocess.Popen[str]:
        """Starts the command line as a process of its own, which does as any other where it has no fault."""
        environ = {**os.environ, "LD_PRELOAD": "", **(fault.environment(self.library) if fault else {})}
        runs_python = [sys.executable] if fault else python(environ)
        command = [*runs_python, "-m", "dqrm_cpu", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        return subprocess.Popen(command, env=environ, **{**pipes, **more})

    def finish(self, process: subprocess.Popen[str], timeout_s: float = TIMEOUT_S) -> Done:
        """Waits for a process that `start` began; kills it and all of its session where it does not end."""
        timed_out = False
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        code = process.returncode
        return Done(code if code >= 0 else 128 - code, code < 0, out or "", err or "", timed_out)

    def _forked(self, run: Callable[[], int], fault: Fault | None, timeout_s: float, cwd: Path | None) -> Done:
        files = [self.root / f"{self._case.name}.{name}" for name in ("out", "err", "calls")]
        for path in files:
            path.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            self._be_child(run, fault, files, cwd)
        code = _wait(child, timeout_s)
        out, err, calls = (path.read_text(errors="replace") if path.exists() else "" for path in files)
        status, killed = (os.WEXITSTATUS(code), False) if os.WIFEXITED(code) else (128 + os.WTERMSIG(code), True)
        timed_out = code == _OUT_OF_TIME
        return Done(status, killed, out, err, timed_out, int(calls or 0))

    def _be_child(
        self, run: Callable[[], int], fault: Fault | None, files: Sequence[Path], cwd: Path | None
    ) -> NoReturn:
        status = 70
        with contextlib.suppress(BaseException):
            os.setsid()
            for number, path in enumerate(files[:2], start=1):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(descriptor, number)
                os.close(descriptor)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
            if cwd:
                os.chdir(cwd)
            try:
                if fault:
                    fault.arm(self.library)
                status = run()
            except BaseException:
                traceback.print_exc()
            if fault:
                files[2].write_text(str(calls_met(self.library)))
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)  # without taking down gigabytes of libraries, which takes longer than a case


_OUT_OF_TIME = signal.SIGKILL | 0x10000


def _wait(child: int, timeout_s: float) -> int:
    """The wait status, or _OUT_OF_TIME after the child's whole session was killed."""
    deadline, pause = time.monotonic() + timeout_s, 0.001
    patient = deadline + (_PATIENCE - 1) * timeout_s
    while (now := time.monotonic()) < deadline or (now < patient and _core_seconds(child) < timeout_s):
        found, code = os.waitpid(child, os.WNOHANG)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # whatever it started and left
            return code
        time.sleep(pause)
        pause = min(pause * 1.3, 0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return _OUT_OF_TIME


def _core_seconds(process: int) -> float:
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


def _limit(limit: int, value: int) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(limit, (value, value))


@contextlib.contextmanager
def restored(path: Path) -> Iterator[Path]:
    """Puts a file's content back at the end."""
    content = path.read_bytes()
    try:
        yield path
    finally:
        path.write_bytes(content)
