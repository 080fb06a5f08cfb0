"""Work is shared out to the threads of torch, every item once, whatever their number."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dqrm_cpu.kernels.jit.compile import njit
from dqrm_cpu.kernels.jit.threads import on_all_threads

Longs = NDArray[np.int64]


@pytest.fixture(autouse=True)
def threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@njit
def _count(times: Longs, who: Longs, weight: float, item: int) -> None:
    times[item] += 1
    who[item] = item if weight > 0.5 else -1
    if item == 13:
        raise ValueError("unlucky")


@njit
def count_all(count: int, times: Longs, who: Longs) -> None:
    on_all_threads(count, _count, (times, who, 0.75))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 12), threads=st.integers(1, 5))
def test_every_item_comes_once(count: int, threads: int) -> None:
    torch.set_num_threads(threads)
    times, who = np.zeros(count, np.int64), np.zeros(count, np.int64)
    count_all(count, times, who)
    assert times.tolist() == [1] * count
    assert who.tolist() == list(range(count))


def test_a_negative_count_is_none() -> None:
    count_all(-3, np.zeros(0, np.int64), np.zeros(0, np.int64))


def test_an_item_that_fails_is_no_secret() -> None:
    times = np.zeros(20, np.int64)
    with pytest.raises(RuntimeError, match="failed on one of its threads"):
        count_all(20, times, np.zeros(20, np.int64))
    assert times.tolist() == [1] * 20


class Room(NamedTuple):
    """Arrays within tuples, and a number."""

    arrays: tuple[Longs, Longs]
    step: int


@njit
def _fill(room: Room, item: int) -> None:
    first, second = room.arrays
    first[item], second[1:][item] = item * room.step, first[item:].size


@njit
def fill_all(count: int, room: Room) -> None:
    on_all_threads(count, _fill, (room,))


def test_arrays_within_tuples_are_written() -> None:
    room = Room((np.zeros(50, np.int64), np.zeros(51, np.int64)), 3)
    fill_all(50, room)
    assert room.arrays[0].tolist() == list(range(0, 150, 3))
    assert room.arrays[1].tolist() == [0, *range(50, 0, -1)]


KERNEL = """
from numba import njit
from dqrm_cpu.kernels.jit.threads import on_all_threads
import ctypes, threading, numpy as np

@njit
def note(ids, ask, item):
    ids[item] = ask()
    total = 0.0
    for i in range(2_000_000):
        total += i * 0.5
    ids[item] += np.int64(total) * 0

@njit
def note_all(ids, ask):
    on_all_threads(ids.size, note, (ids, ask))

ask = ctypes.CDLL(None).gettid
ask.argtypes, ask.restype = (), ctypes.c_int64
ids = np.zeros(8, np.int64)
note_all(ids, ask)
"""
IN_TORCH = "import os, torch; torch.ones(1 << 22).sin(); print(len(os.listdir('/proc/self/task')))\n"
COUNT = "print(len(set(ids.tolist())), len(os.listdir('/proc/self/task')))\n"


def assert_threads_of_torch(code: str, environment: dict[str, str]) -> None:
    code += f"import torch\ntorch.set_num_threads(2)\n{IN_TORCH}{KERNEL}{COUNT}"
    environment = {**os.environ, **environment}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    in_torch, in_kernel = result.stdout.splitlines()
    assert in_kernel.split() == ["2", in_torch]


@pytest.mark.parametrize("first", ["import torch\n", "import dqrm_cpu\n"])
def test_the_threads_are_those_of_torch(first: str) -> None:
    assert_threads_of_torch(first, {})


def test_a_preloaded_runtime_serves_torch_and_kernels(tmp_path: Path) -> None:
    (of_torch,) = Path(torch.__file__).parent.glob("lib/libgomp*")
    preloaded = shutil.copy(of_torch, tmp_path / "libgomp.so.1")
    assert_threads_of_torch("", {"LD_PRELOAD": str(preloaded)})


def test_a_torch_without_openmp_is_told() -> None:
    code = (
        "import ctypes, numba, torch\n"
        "ctypes.CDLL = lambda name: object()\n"
        "from dqrm_cpu.kernels.select import select_kernels\n"
        "select_kernels('numba', torch.device('cpu'))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    message = "KernelsUnavailableError: the numba kernels need a torch that was built with OpenMP; this one was not"
    assert result.stderr.splitlines()[-1].endswith(message)
