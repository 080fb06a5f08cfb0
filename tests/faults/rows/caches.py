"""Compiled kernels in a cache that was damaged: compiled again, with a word, and never run."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from forked_commands import Lab
from outcomes import CRASH, HANG, REFUSED, SAME, TRACEBACK, WRONG, Verdict
from row import Row, nominal
from rows.flips import damage

_SHARE = 400
_RIGHT = "3"


class _Process:
    """tests/faults/cached_kernel.py, with a cache of its own; `whole` are the files of its kernel."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        script = Path(__file__).parent.parent / "cached_kernel.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            env={**env, "NUMBA_CACHE_DIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask()
        self.whole = {path: path.read_bytes() for path in sorted(folder.rglob("*.nb*"))}

    def ask(self) -> tuple[int | None, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        status, text = json.loads(self._process.stdout.readline())
        return status, text


_PROCESSES: dict[Path, _Process] = {}


def _damaged(lab: Lab, random_: random.Random, number: int) -> Verdict:
    folder = lab.root / f"{lab.fresh_folder.name}-kernels"
    if folder not in _PROCESSES:
        _PROCESSES[folder] = _Process(folder)
    process, how = _PROCESSES[folder], ("flip", "truncation")[number % 2]
    path = random_.choice(sorted(process.whole))
    for other, content in process.whole.items():
        other.write_bytes(content)
    path.write_bytes(damage(process.whole[path], how, random_))
    status, text = process.ask()
    last = text.splitlines()[-1] if text.strip() else ""
    if status is None:
        outcome = HANG
    elif status < 0:
        outcome = CRASH
    elif "Traceback" in text or status:
        outcome = TRACEBACK
    elif last != _RIGHT:
        outcome = WRONG
    else:
        outcome = REFUSED if "compiling again" in text else SAME
    return Verdict(outcome, f"{how} in {path.name}", "" if outcome in (SAME, REFUSED) else text[-2000:], how)


ROWS = (
    Row(
        "kernel-cache",
        "Damaged kernel cache",
        "a bit flipped or the end cut off in a file of a compiled kernel; refused means compiled again, with a "
        "warning and the right result",
        _SHARE,
        _damaged,
        nominal(_SHARE),
    ),
)
