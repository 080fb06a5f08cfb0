"""IPEX's fused embedding update behind the kernels' interface, for SGD; everything else is the numba set.

`torch_ipex::merged_embeddingbag_backward_sgd` of IPEX 2.8.0 gets every lookup as a bag of one: ragged and empty bags,
mean pooling and coalesced gradients then need no case of their own. docs/ipex.md says what is wrong with that operator
and why row-wise Adagrad does not use it.
"""

import importlib
from importlib import metadata

import torch
from torch import Tensor

from .interface import ForeignTrackerError, KernelsUnavailableError, Tracker
from .jit.arena import Arena, arena_of, prefetch_row
from .jit.compile import kernel, serial
from .jit.memory import int_at, long_at, prefetch
from .jit.simd import LANES, load_part
from .jit.simd_integers import larger, magnitude, no_words
from .jit.threads import on_all_threads
from .numba.absmax_tracker import (
    BLOCK_SHIFT,
    SIGHTING_LONGS,
    AbsmaxTracker,
    Bounds,
    clear_sighting,
    note_row,
    settle_table,
)
from .numba.kernels import NumbaKernels
from .types import Bags, SparseGrad, Tables, UpdateRule

_PACKAGE = "intel-extension-for-pytorch"
_SERIES = "2.8"
_SUM_POOLING = 0
_AHEAD = 16
_HOW_TO = (
    f"`make test-ipex` makes .venv-ipex with {_PACKAGE} 2.8.0 and torch 2.8.0, "
    "then run .venv-ipex/bin/dqrm-cpu; docs/ipex.md says how to install it by hand"
)


class IpexUnavailableError(KernelsUnavailableError):
    """IPEX is not installed, or not beside the torch that it was built for."""


def installed_version(package: str) -> str | None:
    """Returns the version that a package's metadata says, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def require_ipex(ipex: str | None, torch_version: str) -> None:
    """Raises IpexUnavailableError unless these versions work together.

    Importing IPEX beside another torch raises AttributeError, from a call of `os.exit`: look before.
    """
    if ipex is None:
        raise IpexUnavailableError(f"kernels 'ipex' need {_PACKAGE}, which is not installed: {_HOW_TO}")
    for name, version in ((_PACKAGE, ipex), ("torch", torch_version)):
        if not version.startswith(f"{_SERIES}."):
            raise IpexUnavailableError(f"kernels 'ipex' need {name} {_SERIES}, this is {version}: {_HOW_TO}")


def load_ipex() -> int:
    """Imports IPEX, which registers its operators; returns how many floats a register of its kernels holds.

    The import replaces `torch.embedding_bag`; nothing here calls that.
    """
    require_ipex(installed_version(_PACKAGE), torch.__version__)
    ipex = importlib.import_module("intel_extension_for_pytorch")
    return register_floats(str(ipex._C._get_current_isa_level()))


def register_floats(isa_level: str) -> int:
    """Returns the floats of a register of IPEX's kernels at a level; 8 is right, if slow, where registers hold 16."""
    return 16 if isa_level.startswith(("AVX512", "AMX")) else 8


def piece_width(dim: int, register: int) -> int | None:
    """Returns how wide pieces a row is cut into so that the operator updates it rightly; None if it cannot.

    IPEX loads a bag's gradient into one register, once, and uses it for each whole register of the row. Behind the
    last whole register it reads the gradient element by element, so a row below two registers is right as it is.
    """
    if dim < 2 * register:
        return dim
    return register if dim % register == 0 else None


class IpexKernels(NumbaKernels):
    """Implements `interface.Kernels` for contiguous CPU tensors; SGD alone goes through IPEX."""

    name = "ipex"

    def __init__(self) -> None:
        super().__init__()
        self._register = load_ipex()
        self._values = torch.empty(0)

    def update_(
        self, tables: Tables, bags: Bags, grad_features: Tensor, rule: UpdateRule, tracker: Tracker | None
    ) -> None:
        width = self._fused_width(tables, rule)
        if width is None:
            super().update_(tables, bags, grad_features, rule, tracker)
        else:
            grad = self._lookup_gradients(bags, grad_features, tables.num_tables)
            _tracked_sgd_(tables, grad, width, rule, tracker)

    def update_sparse_(self, tables: Tables, grad: SparseGrad, rule: UpdateRule, tracker: Tracker | None) -> None:
        width = self._fused_width(tables, rule)
        if width is None:
            super().update_sparse_(tables, grad, rule, tracker)
        else:
            _tracked_sgd_(tables, grad, width, rule, tracker)

    def _fused_width(self, tables: Tables, rule: UpdateRule) -> int | None:
        """Returns `piece_width` where IPEX's operator does the update; None where numba's does, as for Adagrad."""
        plain = rule.accumulator is None and rule.intervals is None
        return piece_width(tables.dim, self._register) if plain else None

    def _lookup_gradients(self, bags: Bags, grad_features: Tensor, num_tables: int) -> SparseGrad:
        """Returns every lookup with its gradient: rows as in the bags, neither sorted nor unique."""
        batch, _, dim = grad_features.shape
        pooled = self._memory(num_tables * batch, dim)
        pooled.view(num_tables, batch, dim).copy_(grad_features[:, 1:].transpose(0, 1))
        bag_of_table = torch.arange(num_tables + 1) * batch
        if bags.offsets is None:
            return SparseGrad(bag_of_table, bags.ids.view(-1), pooled)
        length = bags.offsets.diff()
        if bags.mean:
            pooled /= length.clamp(min=1)[:, None]
        return SparseGrad(bags.offsets[bag_of_table], bags.ids, pooled.repeat_interleave(length, 0))

    def _memory(self, rows: int, dim: int) -> Tensor:
        """Returns f32[rows, dim], kept between steps: page faults of fresh memory would cost more than the copy."""
        if self._values.numel() < rows * dim:
            self._values = torch.empty(rows * dim)
        return self._values[: rows * dim].view(rows, dim)


def fused_sgd_(tables: Tables, grad: SparseGrad, width: int, lr: float, weight_decay: float) -> None:
    """Calls IPEX's operator, each row cut into pieces of `width`; here rows may be unsorted and repeated.

    The operator takes the number of bags from the first table's gradient. With every lookup a bag of one, tables have
    different numbers: the longest comes first, the others end in empty bags.
    """
    pieces = tables.dim // width
    rows = (grad.rows.long()[:, None] * pieces + torch.arange(pieces)).view(-1)
    count = (grad.table_ptr.diff() * pieces).tolist()
    order = sorted((t for t in range(tables.num_tables) if count[t]), key=lambda t: -count[t])
    if not order:
        return
    weights = tables.weight.view(-1, width).split_with_sizes((tables.row_offset.diff() * pieces).tolist())
    values, rows_of = grad.values.contiguous().view(-1, width).split_with_sizes(count), rows.split_with_sizes(count)
    start = torch.arange(count[order[0]])
    trail = torch.empty(0, dtype=torch.bfloat16)  # the low halves of BF16 tables; FP32 has none
    torch.ops.torch_ipex.merged_embeddingbag_backward_sgd(
        [values[t] for t in order],
        [weights[t] for t in order],
        [rows_of[t] for t in order],
        [start.clamp(max=count[t]) for t in order],
        _SUM_POOLING,
        False,
        [trail] * len(order),
        weight_decay,
        lr,
    )


def _tracked_sgd_(tables: Tables, grad: SparseGrad, width: int, rule: UpdateRule, tracker: Tracker | None) -> None:
    if tracker is not None and not isinstance(tracker, AbsmaxTracker):
        raise ForeignTrackerError(f"{type(tracker).__name__} is not a tracker of the ipex kernels; use make_tracker")
    fused_sgd_(tables, grad, width, rule.lr, rule.weight_decay)
    if tracker is not None:
        # The operator does not tell which rows grew: they are read again.
        rows, sightings = grad.rows.contiguous(), torch.empty(tables.num_tables, SIGHTING_LONGS, dtype=torch.int64)
        places = (grad.table_ptr.data_ptr(), rows.data_ptr(), sightings.data_ptr())
        note_rows(arena_of(tables), *places, tracker.bounds)


@kernel
def note_rows(arena: Arena, table_ptr: int, rows: int, sightings: int, bounds: Bounds) -> None:
    """Brings the bounds up to date after another kernel changed rows int32[N], which count within their table.

    Addresses, as `memory` explains; sightings: int64[T, SIGHTING_LONGS].
    """
    on_all_threads(arena.num_tables, _note_table, (arena, table_ptr, rows, sightings, bounds))
    for table in range(arena.num_tables):
        settle_table(arena, bounds, table, sightings, table, table + 1)


@serial
def _note_table(arena: Arena, table_ptr: int, rows: int, sightings: int, bounds: Bounds, table: int) -> None:
    dim, first_row, sighting = arena.dim, long_at(arena.first_row, table), sightings + 8 * SIGHTING_LONGS * table
    first, last = long_at(table_ptr, table), long_at(table_ptr, table + 1)
    clear_sighting(sighting)
    for i in range(first, last):
        if i + _AHEAD < last:
            ahead = int_at(rows, i + _AHEAD)
            prefetch_row(arena.weight, first_row + ahead, dim)
            prefetch(bounds.block, long_at(bounds.block_start, table) + (ahead >> BLOCK_SHIFT))
        row = int_at(rows, i)
        place, words = arena.weight + 4 * (first_row + row) * dim, no_words()
        for k in range(0, dim, LANES):
            words = larger(words, magnitude(load_part(place, k, dim - k)))
        note_row(bounds, table, row, words, sighting)
