"""What every implementation of the kernels offers; `select` in this package chooses one.

Shapes: T tables, B samples in the batch, D embedding dimension, F = 1 + T feature vectors per sample (the bottom MLP's
output, then one pooled vector per table), R rows of all tables. Feature vectors, what the interaction makes of them,
and the gradients of both are FP32, or all of them BF16; tables, sums and sparse gradients are FP32. Arguments are
checked by the caller (`validate_bags`): an implementation trusts them. A name that ends in `_` or an argument called
`out` is written in place.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from .types import Bags, RowCopy, SparseGrad, Tables, UpdateRule

TILE = 16
"""What the shape of a transposed matrix is rounded up to."""


class KernelsUnavailableError(Exception):
    """The kernels asked for do not exist, or do not run here; the message says what would make them run."""


class ForeignTrackerError(TypeError):
    """A tracker of another implementation cannot follow these updates."""


class Tracker(Protocol):
    """Keeps max|W| of every table exact while the update kernels change rows."""

    def absmax(self) -> Tensor:
        """Returns the exact max|W| per table, f32[T]; NaN for a table that holds a NaN."""

    def rebuild(self, tables: Tables) -> None:
        """Starts again from a full scan: after initialization, and after weights were loaded."""


class Kernels(Protocol):
    """One implementation of everything that touches tables, bags and feature vectors."""

    name: str

    def init_uniform_(self, tables: Tables, seed: int) -> None:
        """Fills table t uniformly in +-sqrt(1 / rows of t); the same for the same seed, whatever the threads."""

    def initial_rows(self, seed: int, first: int, num_rows: int, out: Tensor) -> None:
        """Writes to out f32[N, D] what `init_uniform_` gives rows `first` on, all of one table of num_rows rows."""

    def gather_quantize_pool(self, tables: Tables, bags: Bags, scale: Tensor, bits: int, out: Tensor) -> None:
        """Looks up, fake-quantizes each row with its table's scale f32[T], pools into out[:, 1:, :] of [B, F, D]."""

    def interaction_forward(self, features: Tensor, out: Tensor) -> None:
        """Writes out [B, D + F (F - 1) / 2]: features[:, 0, :], then the dot of each pair i > j in row-major order."""

    def interaction_backward(self, features: Tensor, grad_out: Tensor, grad_features: Tensor) -> None:
        """Writes all of grad_features [B, F, D] from grad_out [B, D + F (F - 1) / 2]."""

    def coalesce(self, tables: Tables, bags: Bags, grad_features: Tensor) -> SparseGrad:
        """Sums the gradients of equal rows in the order of their samples; straight-through, so no scale is needed."""

    def merge_sparse(self, grads: Sequence[SparseGrad]) -> SparseGrad:
        """Sums the gradients of several ranks, equal rows in the order of the ranks."""

    def update_(
        self, tables: Tables, bags: Bags, grad_features: Tensor, rule: UpdateRule, tracker: Tracker | None
    ) -> None:
        """Applies the rule to the rows looked up, their gradients summed over equal rows as `coalesce` does."""

    def update_sparse_(self, tables: Tables, grad: SparseGrad, rule: UpdateRule, tracker: Tracker | None) -> None:
        """Does what `update_` does with a gradient that is coalesced already; the same bits."""

    def scan_absmax(self, tables: Tables) -> Tensor:
        """Returns max|W| per table, f32[T]; NaN for a table that holds a NaN."""

    def make_tracker(self, tables: Tables) -> Tracker:
        """Returns a tracker built from a full scan of the tables."""

    def uniform_scales(self, absmax: Tensor, bits: int, scale: Tensor) -> bool:
        """Writes scale f32[T] = absmax / (2^(bits - 1) - 1), 1e-8 at least; returns whether absmax f32[T] is finite."""

    def click_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        share: float,
        loss: Tensor,
        grad: Tensor,
        weights: Tensor | None = None,
    ) -> None:
        """Writes loss f32[], the binary cross-entropy of logits f32[B] summed, times `share`, and its grad f32[B].

        Each sample's counts as often as weights f32[B] says; None, or weights of 1, to the bit: once.
        """

    def row_copier(self, copies: Sequence[RowCopy]) -> Callable[[], None]:
        """Returns what makes targets follow their sources, to call once per step; the tensors must stay in place."""

    def round_stochastic(self, values: Tensor, rows: Tensor, pointer: Tensor, scale: Tensor, key: int) -> Tensor:
        """Rounds values f32[N, D] to whole multiples of their table's scale f32[T], one of the two next ones.

        The nearer, the more probable: the mean over many keys is the value. pointer int64[T + 1] says which entries
        belong to which table, rows int32[N] in which row of it they stand: the chance of a value follows from the key
        (64 bits), its table, row and column alone, whatever the threads, and is the same in all implementations.
        """

    def rectify_backward_(
        self, grad: Tensor, activation: Tensor | None, bias: Tensor, transposed: Tensor | None
    ) -> None:
        """Sets grad [B, O] to 0 where activation [B, O] is; bias f32[O] = its sum over the batch.

        transposed: f32, for FP32 gradients; its first O rows and B columns become that of grad. It has a multiple of
        TILE rows and columns, whose contents are undefined afterwards where they are beyond those.
        """

    def quantize_rows(self, weight: Tensor, scale: float, bits: int) -> Tensor:
        """Returns the codes of weight f32[N, D] under one scale: int8 up to 8 bits, int16 above."""
