"""Runs a shell script whose commands `dqrm-cpu` are done by this process or a child of it: a start costs seconds."""

import os
import select
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from commands import CommandOutput

_COMMAND = """#!/bin/bash
printf '%s\\0' "$@" $'\\n' > "$DQRM_COMMANDS/request"
read -r status < "$DQRM_COMMANDS/status"
cat "$DQRM_COMMANDS/out"
cat "$DQRM_COMMANDS/err" >&2
exit "$status"
"""
_END = b"\n\0"


def run_script(
    script: Path,
    folder: Path,
    command: Callable[[list[str]], CommandOutput],
    *arguments: str,
    environ: Mapping[str, str] | None = None,
) -> CommandOutput:
    """Runs the script in `folder`; `command` does what it wants of `dqrm-cpu`, in its order."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "dqrm-cpu").write_text(_COMMAND)
        (place / "dqrm-cpu").chmod(0o700)
        for fifo in ("request", "status"):
            os.mkfifo(place / fifo)
        environment = {**os.environ, "DQRM_COMMANDS": name, "PATH": f"{name}:{os.environ['PATH']}", **(environ or {})}
        pipes = (place / "stdout").open("w"), (place / "stderr").open("w")
        # For reading and writing: neither ever ends, and who reads too early does not meet the end of another's answer.
        requests, statuses = (os.open(place / fifo, os.O_RDWR) for fifo in ("request", "status"))
        process = subprocess.Popen(
            ["bash", str(script), *arguments], cwd=folder, env=environment, stdout=pipes[0], stderr=pipes[1]
        )
        request = b""
        try:
            while process.poll() is None:
                if select.select([requests], [], [], 0.02)[0]:
                    request += os.read(requests, 1 << 16)  # which may come in pieces
                if request.endswith(_END):
                    words, request = request.removesuffix(_END).decode().split("\0")[:-1], b""
                    done = command(words)
                    (place / "out").write_text(done.stdout)
                    (place / "err").write_text(done.stderr)
                    os.write(statuses, f"{done.returncode}\n".encode())
        finally:
            process.kill()
            os.close(requests)
            os.close(statuses)
            for pipe in pipes:
                pipe.close()
        return CommandOutput(process.wait(), (place / "stdout").read_text(), (place / "stderr").read_text())
