"""The fault library (inject.c), compiled where it is needed, and the fault that one process is to meet."""

import ctypes
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("inject.c")

WRITE, SYNC, NAME, CREATE, REMOVE, READ, CLOSE = (1 << bit for bit in range(7))
"""Kinds of calls: write and truncate; fsync; rename and link; mkdir and open for writing; unlink; read; close."""

CHANGES = WRITE | SYNC | NAME | CREATE | REMOVE
NEEDS_SPACE = WRITE | SYNC | CREATE


@dataclass(frozen=True)
class Fault:
    """What happens at call `number` of `kinds` below `folder`, and with `sticky` at every later one too.

    `mode` is kill (before the call), tear (after half of a write, or right behind any other call), short (a write or
    read takes half), delayN (N microseconds), or the name of an errno. Number 0 only counts.
    """

    folder: Path
    number: int = 0
    mode: str = ""
    kinds: int = CHANGES
    sticky: bool = False

    def environment(self, library: Path) -> dict[str, str]:
        """Returns the environment of a process of its own."""
        return {
            "LD_PRELOAD": str(library),
            "FAULT_FOLDER": str(self.folder),
            "FAULT_NUMBER": str(self.number),
            "FAULT_MODE": self.mode,
            "FAULT_KINDS": str(self.kinds),
            "FAULT_STICKY": str(int(self.sticky)),
        }

    def arm(self, library: Path) -> None:
        """For this process, which was started with the library already."""
        arguments = str(self.folder).encode(), ctypes.c_long(self.number), self.mode.encode(), self.kinds
        ctypes.CDLL(str(library)).fault_arm(*arguments, int(self.sticky))


def calls_met(library: Path) -> int:
    """How many calls this process has counted since it was armed."""
    count = ctypes.CDLL(str(library)).fault_count
    count.restype = ctypes.c_long
    return int(count())


def compile_library(folder: Path) -> Path:
    """Path of the library in `folder`."""
    library = folder / "inject.so"
    if not library.exists():
        command = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True)
    return library
