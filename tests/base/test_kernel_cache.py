"""A cache of compiled kernels that this user's processes share, and nobody else writes to."""

import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dqrm_cpu.base.kernel_cache import (
    choose_cache_folder,
    compiling_ahead,
    compiling_note,
    find_cache_folder,
    must_compile,
)

ROOT = Path(__file__).parents[2]
PREPARE = "from dqrm_cpu.base.kernel_cache import choose_cache_folder; choose_cache_folder()\n"

RUN_A_KERNEL = """
import os, sys
import numpy as np
from dqrm_cpu.data.prepare.parse.parser import count_lines
print("ready", flush=True)
sys.stdin.readline()
lines = int(count_lines(np.frombuffer(b"a\\nb\\n\\nc" + b"\\0" * 64, np.uint8), 6))
print(os.environ["NUMBA_CACHE_DIR"], sum(count_lines.stats.cache_misses.values()), lines)
"""

KERNEL = """
import os, numba
print(os.environ["NUMBA_CACHE_DIR"], numba.njit(lambda value: 2 * value, cache=True)(4))
"""


class Planted:
    """What creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.marker)!r}, 'w')",)


def start(code: str, cache: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(cache)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_processes_that_compile_at_once_share_a_cache(tmp_path: Path) -> None:
    processes = [start(PREPARE + RUN_A_KERNEL, tmp_path) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    lines = [output(process).split(maxsplit=2) for process in processes]
    assert sorted(int(line[1]) for line in lines) == [0, 1]  # one compiled the kernel, the other waited for it
    assert [line[2].strip() for line in lines] == ["3"] * 2
    [folder] = {Path(line[0]) for line in lines}
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert len(files) == 1
    # The next process only loads it.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")}
    output(start(PREPARE + RUN_A_KERNEL, tmp_path))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")} == before


def test_a_child_of_other_sources_does_not_take_its_parents_cache(tmp_path: Path) -> None:
    other = tmp_path / "other" / "dqrm_cpu"
    shutil.copytree(ROOT / "dqrm_cpu", other, ignore=shutil.ignore_patterns("__pycache__"))
    child = f"import sys; sys.path.insert(0, {str(other.parent)!r})\n{PREPARE}print(os.environ['NUMBA_CACHE_DIR'])"
    code = f"{PREPARE}import os, subprocess, sys\nprint(os.environ['NUMBA_CACHE_DIR'], flush=True)\n"
    code += f"subprocess.run([sys.executable, '-c', 'import os;' + {child!r}], check=True)"
    first, second = output(start(code, tmp_path)).split()
    assert first != second
    assert Path(first).parent == Path(second).parent


def test_a_cache_folder_of_the_user_is_left_alone(tmp_path: Path) -> None:
    code = f"import os; os.environ['NUMBA_CACHE_DIR'] = '/given'\n{PREPARE}print(os.environ['NUMBA_CACHE_DIR'])"
    assert output(start(code, tmp_path)) == "/given\n"


def test_a_root_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    blocked, good = tmp_path / "file", tmp_path / "good"
    blocked.touch()
    folder = find_cache_folder(iter([blocked, good]))
    assert folder is not None
    assert folder.is_relative_to(good)
    assert find_cache_folder(iter([blocked])) is None


def run_with(places: dict[str, str], arguments: list[str | Path]) -> "subprocess.CompletedProcess[str]":
    """Under a home that cannot be written to: the folder for temporary files comes next."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "DQRM_CPU_KERNEL_CACHE")
    }
    environment = kept | {"XDG_CACHE_HOME": "/dev/null"} | places
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)


def test_code_that_somebody_else_planted_does_not_run(tmp_path: Path) -> None:
    """Another user makes the folder in TMPDIR first, with everything that a process would look for there."""
    program = tmp_path / "program.py"
    program.write_text(PREPARE + KERNEL)
    temporary, marker = tmp_path / "tmp", tmp_path / "marker"
    temporary.mkdir()
    temporary.chmod(0o1777)
    first = run_with({"TMPDIR": str(temporary)}, [program])
    planted = Path(first.stdout.split()[0])
    assert planted.is_relative_to(temporary / f"dqrm-cpu-{os.geteuid()}")
    assert any(planted.rglob("*.nbi"))  # numba's own, of a program that is not ours
    for path in planted.rglob("*.nb[ic]"):
        path.write_bytes(pickle.dumps(Planted(marker)))
    planted.chmod(0o777)
    second = run_with({"TMPDIR": str(temporary)}, [program])
    assert not marker.exists()
    folder, result = second.stdout.split()
    assert result == "8"
    assert f"compiled kernels are not kept in {temporary}" in second.stderr
    assert f"compiled kernels are kept in {folder} until this process ends" in second.stderr
    assert not Path(folder).exists()
    # The test itself: with nothing wrong about the folder the planted code runs.
    planted.chmod(0o700)
    subprocess.run([sys.executable, program], env=os.environ | {"NUMBA_CACHE_DIR": str(planted)}, check=False)
    assert marker.exists()


def test_a_root_of_another_user_is_passed_over_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "theirs").symlink_to("/")
    with pytest.warns(UserWarning, match=r"not kept in .*: .*theirs is a symbolic link.*; remove it, or chmod"):
        folder = find_cache_folder(iter([tmp_path / "theirs", tmp_path / "ours"]))
    assert folder is not None
    assert folder.is_relative_to(tmp_path / "ours")


def test_a_cache_folder_of_the_user_that_everyone_can_write_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    with pytest.warns(UserWarning, match="can be written to by every user, who may have put code there"):
        choose_cache_folder()


def test_an_empty_cache_is_told_from_a_filled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert must_compile("numba")
    (tmp_path / "numba_0f1e").mkdir()
    (tmp_path / "numba_0f1e" / "gather.gather_one_hot.nbc").touch()
    assert not must_compile("numba")
    assert must_compile("parse")
    assert "about 10 s before the first rows" in compiling_note("numba", "rows", "packed_network")
    assert compiling_note("numba", "rows", "gather") == ""
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert not must_compile("numba")


def children() -> set[int]:
    return {int(child) for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()}


def helpers(alone: bool) -> set[int]:
    """The processes that compile ahead, which are gone when this returns."""
    before = children()
    with compiling_ahead(alone):
        started = children() - before
    assert not started & children()
    return started


def test_a_process_compiles_ahead_where_nothing_is_compiled_and_a_core_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dqrm_cpu.base.kernel_cache.usable_cores", lambda: 2)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert len(helpers(alone=True)) == 1
    assert not helpers(alone=False)  # ranks wait for each other's kernels
    (tmp_path / "numba_0f1e").mkdir()
    (tmp_path / "numba_0f1e" / "packed_network.score.nbc").touch()  # of an exported file: training needs others
    assert len(helpers(alone=True)) == 1
    monkeypatch.setattr("dqrm_cpu.base.kernel_cache.usable_cores", lambda: 1)
    assert not helpers(alone=True)
    monkeypatch.setattr("dqrm_cpu.base.kernel_cache.usable_cores", lambda: 2)
    (tmp_path / "numba_0f1e" / "update.update.nbc").touch()
    assert not helpers(alone=True)


def test_a_process_that_compiles_ahead_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = "import time\nfrom dqrm_cpu.base.kernel_cache import compiling_ahead\n"
    code += "with compiling_ahead(True):\n    print('inside', flush=True)\n    time.sleep(60)"
    patched = "import dqrm_cpu.base.kernel_cache as cache\ncache.usable_cores = lambda: 2\n"
    parent = start(patched + code, tmp_path)
    assert parent.stdout is not None and parent.stdout.readline() == "inside\n"
    [helper] = [int(child) for child in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    parent.kill()
    parent.communicate(timeout=60)
    until = time.monotonic() + 60
    while Path(f"/proc/{helper}").exists() and "\nState:\tZ" not in Path(f"/proc/{helper}/status").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.long
def test_a_step_needs_no_kernel_but_what_was_compiled_ahead(tmp_path: Path) -> None:
    """A process compiles ahead to its end; then a run in INT4 and one in FP32 find all kernels of a step there."""
    run = "import os, runpy, sys; sys.argv = ['', os.environ['NUMBA_CACHE_DIR']]\n"
    run += "runpy.run_module('dqrm_cpu.kernels.compile_ahead', run_name='__main__')"
    ahead = start(f"{PREPARE}{run}", tmp_path)
    assert ahead.stdout is not None and not ahead.stdout.read()  # its standard input stays open until it is done
    output(ahead)
    compiled = {path.name for path in tmp_path.rglob("numba_*/*.nbc")}
    assert len(compiled) > 10
    for method in ("dqrm", "none"):
        settings = f"run_dir={str(tmp_path / method)!r}, train={{'max_steps': 2}}, quant={{'method': {method!r}}}"
        output(start(f"import dqrm_cpu\nif __name__ == '__main__': dqrm_cpu.train({settings})", tmp_path))
        assert {path.name for path in tmp_path.rglob("numba_*/*.nbc")} == compiled
