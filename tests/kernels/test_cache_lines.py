"""Threads of a kernel never write into lines of the cache in common, but where their shares of an array meet."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from kernel_cases import make_case
from numba import njit
from torch import Tensor

from dqrm_cpu.kernels.jit.arena import arena_of
from dqrm_cpu.kernels.numba import gather, interaction, mlp
from dqrm_cpu.kernels.numba.absmax_tracker import SIGHTING_LONGS
from dqrm_cpu.kernels.numba.duplicate_rows import CHAIN_LISTS, DENSE_SUMS
from dqrm_cpu.kernels.numba.lookups import Pooled
from dqrm_cpu.kernels.numba.update import SUM_WIDTH
from dqrm_cpu.kernels.numba.workspace import KernelWorkspace

pytestmark = pytest.mark.long

_LINE = 64
_THREADS = (2, 3, 16, 64)


@njit
def _rectify(layer, partial, item):  # type: ignore[no-untyped-def]
    mlp._rectify_rows(layer, partial, item)


@njit
def _transpose(layer, partial, item):  # type: ignore[no-untyped-def]
    mlp._transpose_item(layer, item)


@njit
def _loss(clicks, share, partial, item):  # type: ignore[no-untyped-def]
    mlp._add_up(clicks, share, partial, item)


@njit
def _interact(features, shape, out, scratch, item):  # type: ignore[no-untyped-def]
    interaction._forward(features, shape, out, scratch, item)


@njit
def _interact_back(features, shape, grad_out, grad, scratch, item):  # type: ignore[no-untyped-def]
    interaction._backward(features, shape, grad_out, grad, scratch, item)


@njit
def _gather(arena, ids, batch, quantizer, out, item):  # type: ignore[no-untyped-def]
    gather._gather_samples(arena, ids, batch, quantizer, out, item)


class Work(NamedTuple):
    """A kernel's items, each run by itself, and the arrays that they write."""

    run: Callable[[int], object]
    items: int
    scratch: tuple[Tensor, ...]  # memory of each thread
    shared: tuple[Tensor, ...] = ()  # of which each thread writes a stretch
    kept: tuple[object, ...] = ()  # whose addresses the kernel has


def lines_of_items(work: Work, array: Tensor) -> list[set[int]]:
    """The lines of `array`, by their addresses, that each item writes: what is no longer as it was, of two fillings."""
    found = []
    content = array.view(torch.uint8).numpy().reshape(-1)
    kept = content.copy()
    for item in range(work.items):
        changed = np.zeros(content.size, dtype=bool)
        for filling in (0x3C, 0x15):
            content[:] = filling
            work.run(item)
            changed |= content != filling
        found.append(set(((np.flatnonzero(changed) + array.data_ptr()) // _LINE).tolist()))
    content[:] = kept
    return found


def lines_in_common(lines: list[set[int]], threads: int) -> int:
    """How many lines several threads write, which take the items as `on_all_threads` hands them out."""
    count, writers = len(lines), dict[int, set[int]]()
    for thread in range(threads):
        for item in range(count * thread // threads, count * (thread + 1) // threads):
            for line in lines[item]:
                writers.setdefault(line, set()).add(thread)
    return sum(len(of_line) > 1 for of_line in writers.values())


def rectifier(batch: int, width: int, dtype: torch.dtype, transposed: bool) -> Work:
    grad, gates, bias = (
        torch.ones(batch, width, dtype=dtype),
        torch.zeros(batch, width, dtype=dtype),
        torch.empty(width),
    )
    partial = torch.empty(mlp.rectify_scratch(batch, width))
    room = torch.empty(-(-width // 32) * 32, -(-batch // 32) * 32)
    places = (grad.data_ptr(), gates.data_ptr(), room.data_ptr() if transposed else 0, bias.data_ptr())
    layer = mlp.Layer(*places, batch, width, room.shape[1], int(dtype == torch.bfloat16))
    rows = -(-batch // 64)
    kept = (gates, bias, grad, partial, room)  # the addresses must stay valid
    return Work(lambda item: _rectify(layer, partial.data_ptr(), item), rows, (partial,), (grad,), kept)


def transposition(batch: int, width: int) -> Work:
    grad = torch.ones(batch, width)
    room = torch.empty(-(-width // 32) * 32, -(-batch // 32) * 32)
    layer = mlp.Layer(grad.data_ptr(), 0, room.data_ptr(), 0, batch, width, room.shape[1], 0)
    items = -(-batch // 256) * -(-width // 64)
    return Work(lambda item: _transpose(layer, 0, item), items, (room,), (), (grad,))


def loss(batch: int) -> Work:
    logits, labels, grad = torch.ones(batch), torch.ones(batch), torch.empty(batch)
    partial = torch.empty(mlp.loss_scratch(batch))
    clicks = mlp.Clicks(logits.data_ptr(), labels.data_ptr(), 0, grad.data_ptr(), batch)
    place, items = partial.data_ptr(), -(-batch // 512)
    return Work(lambda item: _loss(clicks, np.float32(1), place, item), items, (partial, grad), (), (logits, labels))


def interactions(batch: int, dim: int, dtype: torch.dtype, threads: int) -> Iterator[Work]:
    features = torch.rand(batch, 27, dim).to(dtype)
    grad = torch.empty_like(features)
    out, grad_out = (torch.rand(batch, dim + 27 * 13).to(dtype) for _ in range(2))
    sample, width = interaction.scratch_sizes(27, dim)
    memory = torch.empty(threads * (2 * sample + width))
    shape = interaction.InteractionShape(batch, 27, dim, int(dtype == torch.bfloat16))
    scratch = interaction.InteractionScratch(memory.data_ptr(), sample, width, threads)
    read, written = features.data_ptr(), (out.data_ptr(), grad.data_ptr())
    kept = (features, grad_out)
    forward = Work(lambda item: _interact(read, shape, written[0], scratch, item), threads, (memory,), (out,), kept)
    yield forward
    of_out = grad_out.data_ptr()
    arguments = (read, shape, of_out, written[1], scratch)
    yield Work(lambda item: _interact_back(*arguments, item), threads, (memory,), (grad,), kept)


def lookup(batch: int, dim: int, dtype: torch.dtype) -> Work:
    case = make_case([50, 3], dim, batch, False, False, 1)
    out = torch.empty(batch, 3, dim, dtype=dtype)
    quantizer = gather.Quantizer(case.scale.data_ptr(), np.float32(-8), np.float32(7), 1)
    given = (arena_of(case.tables), case.bags.ids.data_ptr(), batch, quantizer)
    pooled = Pooled(out.data_ptr(), int(dtype == torch.bfloat16))
    return Work(lambda item: _gather(*given, pooled, item), -(-batch // 32), (), (out,), (case,))


def works() -> Iterator[tuple[str, Work]]:
    for dtype in (torch.float32, torch.bfloat16):
        for width in (1, 13, 64, 100):
            yield f"rectifier {width} {dtype}", rectifier(1000, width, dtype, False)
        for dim in (3, 16, 64):
            for work in interactions(200, dim, dtype, 64):
                yield f"interaction {dim} {dtype}", work
            yield f"lookup {dim} {dtype}", lookup(1000, dim, dtype)
    yield "rectifier, transposed", rectifier(200, 100, torch.float32, True)
    yield "transposition", transposition(1000, 100)
    yield "loss", loss(5000)


@pytest.mark.parametrize(("name", "work"), [pytest.param(*pair, id=pair[0]) for pair in works()])
def test_threads_share_no_line(name: str, work: Work) -> None:
    for array in (*work.scratch, *work.shared):
        lines = lines_of_items(work, array)
        is_scratch = any(array is one for one in work.scratch)
        assert is_scratch or all(lines), "nothing was seen to be written"
        for threads in _THREADS:
            # Where two threads' stretches of samples meet, a line belongs to both; it is written once by each.
            assert lines_in_common(lines, threads) <= (0 if is_scratch else threads - 1)


@pytest.mark.parametrize("lookups", [1, 63, 128, 2048, 5001])
def test_each_thread_of_an_update_has_lines_of_its_own(lookups: int) -> None:
    scratch = KernelWorkspace().scratch(lookups, dim=5, items=7)
    strides = {
        "chains": 4 * (CHAIN_LISTS * scratch.length + scratch.slots),
        "gradient": 4 * 2 * SUM_WIDTH,
        "sums": 4 * DENSE_SUMS,
        "sightings": 8 * SIGHTING_LONGS,
    }
    assert {name: stride % _LINE for name, stride in strides.items()} == dict.fromkeys(strides, 0)
    assert {getattr(scratch, name) % _LINE for name in strides} == {0}


def test_a_line_in_common_is_seen() -> None:
    array = torch.zeros(32)

    def write(item: int) -> None:
        array[8 * item] = 1.0

    lines = lines_of_items(Work(write, 4, (array,)), array)
    assert (lines_in_common(lines, 4), lines_in_common(lines, 2), lines_in_common(lines, 1)) == (2, 0, 0)
