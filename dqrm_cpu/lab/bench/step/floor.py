"""The least that a training step can take on this machine: its matrix products, and the bytes that it must move.

Each product runs on the fastest of the machine's ways to compute it; lookup, interaction and updates only read and
write what they must. Nothing else is in it: no element-wise work, no copies, and of Python a call for each product.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqrm_cpu.base.hardware import fingerprint, has_bf16_products
from dqrm_cpu.kernels.jit.arena import arena_of
from dqrm_cpu.lab.bench.harness.batch_pool import Work
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.contestant import AbsentError
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.kernels.memory_floors import read_and_write, read_rows, rewrite_rows
from dqrm_cpu.model.shapes import LayerShape, interaction_width, mlp_shapes

_TRIALS = 7

ABOUT = "its products, each by the fastest library, and the bytes that it must read and write; no more"

Compute = Callable[[], object]


class Way(NamedTuple):
    """One way to compute a product, on factors laid out as suits it."""

    library: str
    compute: Compute


class StepFloor:
    """A contestant that moves a step's bytes and computes its products, each in the way that was fastest at setup."""

    def __init__(self, name: str, case: Case, shared: SharedTables, dtype: torch.dtype) -> None:
        self.name = name
        self.about = ABOUT
        self._case, self._shared, self._dtype = case, shared, dtype
        self._products: list[Compute] = []
        self._move: Callable[[Work], None] | None = None

    def setup(self) -> None:
        if self._dtype == torch.bfloat16 and not has_bf16_products(fingerprint().isa):
            raise AbsentError("bf16 needs AVX512-BF16 or AMX, this CPU has neither: torch would emulate it")
        shapes = mlp_shapes(self._case.config)
        chosen = [
            fastest(candidates)
            for number, shape in enumerate(shapes.layers)
            for candidates in products(shape, self._case.batch_size, self._dtype, reads_data=number == 0)
        ]
        self._products = [way.compute for way in chosen]
        of_torch = sum(way.library == "torch" for way in chosen)
        self.about = f"{ABOUT} (torch's BLAS {of_torch}, oneDNN {len(chosen) - of_torch})"
        self._move = _moved_bytes(self._case, self._shared, self._dtype, shapes.num_parameters)

    def step(self, work: Work) -> Tensor:
        assert self._move is not None
        for compute in self._products:
            compute()
        self._move(work)
        return torch.empty(0)

    def teardown(self) -> None:
        self._products, self._move = [], None


def products(shape: LayerShape, batch: int, dtype: torch.dtype, reads_data: bool) -> Iterator[list[Way]]:
    """Yields the ways to compute each product of a layer: output, gradient of the weight, gradient of the input.

    A layer that `reads_data` needs no gradient of its input.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (
        torch.randn(*size, generator=generator).to(dtype)
        for size in ((batch, shape.inputs), (shape.outputs, shape.inputs), (batch, shape.outputs))
    )
    yield ways(x, weight.t())
    yield ways(grad.t(), x)
    if not reads_data:
        yield ways(grad, weight)


def ways(left: Tensor, right: Tensor) -> list[Way]:
    """Lists ways to compute left @ right: torch's BLAS and oneDNN, each factor by rows or by columns."""
    layouts = list(product((_by_rows, _by_columns), repeat=2))
    found = [Way("torch", _torch_product(lay(left), lay_right(right))) for lay, lay_right in layouts]
    if _has_onednn():
        found += [Way("oneDNN", _onednn_product(lay(left), lay_right(right).t())) for lay, lay_right in layouts]
    return found


def fastest(candidates: Sequence[Way]) -> Way:
    """Returns the way that took the least time in a few trials, in turns."""
    best_s = dict.fromkeys(range(len(candidates)), float("inf"))
    for number in range(_TRIALS):
        for place, way in enumerate(candidates):
            start = time.perf_counter()
            way.compute()
            if number:  # the first call plans
                best_s[place] = min(best_s[place], time.perf_counter() - start)
    return candidates[min(best_s, key=lambda place: best_s[place])]


def _by_rows(matrix: Tensor) -> Tensor:
    return matrix.contiguous()


def _by_columns(matrix: Tensor) -> Tensor:
    return matrix.t().contiguous().t()


def _torch_product(left: Tensor, right: Tensor) -> Compute:
    out = torch.empty(left.shape[0], right.shape[1], dtype=left.dtype)
    return lambda: torch.mm(left, right, out=out)


def _onednn_product(left: Tensor, turned: Tensor) -> Compute:
    linear: Any = torch.ops.mkldnn._linear_pointwise
    return lambda: linear(left, turned, None, "none", [], "")


def _has_onednn() -> bool:
    built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(built_in) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _moved_bytes(case: Case, shared: SharedTables, dtype: torch.dtype, num_parameters: int) -> Callable[[Work], None]:
    """Returns what reads and writes the bytes of lookup, interaction forward and backward, and both updates."""
    model, batch = case.config.model, case.batch_size
    is_half = dtype != torch.float32
    features, dots = batch * (1 + len(model.table_rows)) * model.embedding_dim, batch * interaction_width(model)
    vectors, interaction = (size // 2 if is_half else size for size in (features, dots))  # in floats
    source = torch.zeros(max(vectors + interaction, 2 * num_parameters))
    arena, grad = arena_of(shared.untracked()), torch.zeros(features)
    passes = [
        (0, vectors),  # the lookup's vectors
        (vectors, interaction),
        (vectors + interaction, vectors),  # the interaction's gradient
        (2 * num_parameters, num_parameters),  # the MLPs' weights and gradients, and the new weights
    ]
    target = torch.zeros(max(written for _, written in passes))

    def move(work: Work) -> None:
        ids = work.batch.ids.data_ptr()
        read_rows(arena, ids, batch)
        for read, written in passes:
            read_and_write(source.data_ptr(), read, target.data_ptr(), written)
        if is_half:  # of gradients, which are half as long here, the rows' update reads none
            read_and_write(source.data_ptr(), vectors, target.data_ptr(), 0)
        rewrite_rows(arena, ids, batch, grad.data_ptr(), not is_half)

    return move
