"""One command at a time in a folder, and a lock that a killed process lets go of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dqrm_cpu.base.lock import FolderLock
from dqrm_cpu.errors import ConfigError

_HOLD = """
import sys
from pathlib import Path
from dqrm_cpu.base.lock import FolderLock
from dqrm_cpu.errors import ConfigError
lock = FolderLock(Path(sys.argv[1]), ".lock", "busy", ConfigError)
print("held", flush=True)
sys.stdin.read()
"""


def test_the_second_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with FolderLock(tmp_path, ".lock", "busy", ConfigError) as lock:
        assert lock.held
        with pytest.raises(ConfigError, match=f"^busy .process {os.getpid()} on "):
            FolderLock(tmp_path, ".lock", "busy", ConfigError)
    FolderLock(tmp_path, ".lock", "busy", ConfigError).close()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"process {other.pid} on"):
            FolderLock(tmp_path, ".lock", "busy", ConfigError)
        other.kill()
    FolderLock(tmp_path, ".lock", "busy", ConfigError).close()
