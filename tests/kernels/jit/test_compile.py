"""Compiled kernels on disk: what is damaged is compiled again, and nothing about them ends a run."""

import errno
import fcntl
import gc
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numba
import pytest
from numba.core import event

from dqrm_cpu.kernels.jit.compile import cached
from dqrm_cpu.kernels.sealed import CacheWarning, is_whole, seal


def double(value: int) -> int:
    return 2 * value


def fresh_kernel() -> Any:
    """Returns a kernel as a new process has it, nothing loaded yet."""
    options: dict[str, Any] = {"no_cfunc_wrapper": True}  # which numba's annotations do not know
    return cached(numba.njit(double, **options))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "CACHE_DIR", str(folder))
        assert fresh_kernel()(4) == 8
    return folder


@pytest.fixture
def cache(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one kernel; numba looks there."""
    folder = Path(shutil.copytree(filled, tmp_path / "cache"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    return folder


def compiles(kernel: Any) -> bool:
    """Whether calling it compiles rather than loads."""
    assert kernel(4) == 8
    return bool(kernel.stats.cache_misses)


def test_a_kernel_is_loaded_from_its_file(cache: Path) -> None:
    assert not compiles(fresh_kernel())


@pytest.mark.parametrize("how", ["empty", "one byte", "cut", "garbage", "flipped", "FIFO"])
def test_a_damaged_file_is_thrown_away_and_compiled_again(cache: Path, how: str) -> None:
    [path] = cache.rglob("*.nbc")
    content = path.read_bytes()
    path.unlink()
    if how == "FIFO":
        os.mkfifo(path)
    elif how == "flipped":
        path.write_bytes(content[:600] + bytes([content[600] ^ 16]) + content[601:])
    elif how == "garbage":
        path.write_bytes(bytes(range(256)) * 8)
    else:
        path.write_bytes(content[: {"empty": 0, "one byte": 1, "cut": len(content) // 2}[how]])
    with pytest.warns(CacheWarning, match=f"{path.name} is damaged, and is thrown away"):
        assert compiles(fresh_kernel())
    assert not compiles(fresh_kernel())


def test_files_without_a_seal_are_not_believed(cache: Path) -> None:
    [path] = cache.rglob("*.nbc")
    path.write_bytes(path.read_bytes()[: -len(seal(b""))])
    with pytest.warns(CacheWarning, match="is damaged"):
        assert compiles(fresh_kernel())


def test_a_file_of_another_kernel_is_not_believed(cache: Path) -> None:
    """Whole, and named as the one that is looked for: what it was compiled for stands in it too."""
    [path] = cache.rglob("*.nbc")
    kernel = fresh_kernel()
    assert kernel(4.5) == 9
    [other] = set(cache.rglob("*.nbc")) - {path}
    shutil.copy(other, path)
    assert compiles(fresh_kernel())


def test_a_kernel_compiled_anew_leaves_no_old_file(cache: Path) -> None:
    kernel = fresh_kernel()
    assert kernel(4) == 8
    kernel._cache.flush()
    assert not list(cache.rglob("*.nbc"))


def test_what_a_killed_process_left_is_not_in_the_way(cache: Path) -> None:
    [path] = cache.rglob("*.nbc")
    path.rename(path.with_name(f"{path.name}.1234.writing"))
    assert compiles(fresh_kernel())
    assert not compiles(fresh_kernel())


def test_a_process_that_does_not_go_on_compiling_is_not_waited_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped holds the lock for as long as it is stopped."""
    [path] = cache.rglob("*.nbc")
    path.unlink()
    lock = path.parent / "double.compiling"
    monkeypatch.setattr("dqrm_cpu.kernels.jit.compile._LONGEST_S", 0.05)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert compiles(fresh_kernel())
        assert lock.exists()
    assert not compiles(fresh_kernel())
    assert not lock.exists()


class CollectorSeen(event.Listener):
    """Notes whether the collector of cycles is on whenever a compilation begins or ends."""

    def __init__(self) -> None:
        self.enabled: list[bool] = []

    def on_start(self, event: object) -> None:
        self.enabled.append(gc.isenabled())

    on_end = on_start


def test_the_collector_waits_while_a_kernel_is_compiled(cache: Path) -> None:
    seen = CollectorSeen()
    assert gc.isenabled()
    with event.install_listener("numba:compile", seen):
        assert fresh_kernel()(4.5) == 9
    assert seen.enabled == [False, False]
    assert gc.isenabled()


def test_a_disk_that_is_full_ends_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    kernel = fresh_kernel()
    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(CacheWarning, match="not kept in .*: No space left on device"):
        assert compiles(kernel)


def test_a_folder_that_cannot_be_written_to_is_said_once_and_nothing_is_written_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "/dev/null/cache")
    with pytest.warns(CacheWarning, match="compiled kernels are not kept: NUMBA_CACHE_DIR cannot be written to"):
        kernel = fresh_kernel()
    assert compiles(kernel)
    assert not any((Path(__file__).parent / "__pycache__").glob("*.double*.nb*"))


def test_a_seal_knows_every_bit_and_every_length(tmp_path: Path) -> None:
    content = bytes(range(40))
    whole = content + seal(content)
    path = tmp_path / "file"
    path.write_bytes(whole)
    assert is_whole(path)
    bits = range(8 * len(whole))
    flipped = [whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :] for bit in bits]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        for damaged in (*flipped, *(whole[:length] for length in range(len(whole)))):
            path.write_bytes(damaged)
            assert not is_whole(path)
            assert not path.exists()
