"""A batch of examples, as every data source hands it out."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B examples.

    One-hot: ids int32[T, B], offsets None. Multi-hot: ids int32[N] table by table, offsets int64[T * B + 1].
    """

    dense: Tensor  # f32[B, num_dense], already log(x + 1)
    ids: Tensor
    offsets: Tensor | None
    label: Tensor  # f32[B], 0 or 1

    @property
    def size(self) -> int:
        return self.label.numel()
