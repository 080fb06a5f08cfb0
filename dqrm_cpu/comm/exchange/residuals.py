"""Error feedback: what a rank could not send of its gradient is added to its next one (paper 3.3, for the MLPs).

The residual is the local gradient less what the others understood of it. A checkpoint holds those of all ranks, rank by
rank: N real ranks can go on from N simulated ones.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.codec import Floats
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.kernels.types import SparseGrad

LIMIT_BYTES = 1 << 30
"""The most that the residuals of all ranks' tables may take, which every rank has room for."""


class Residuals:
    """The residuals f32[ranks, n] of all ranks; those of this process are live, others as old as the last `gather`."""

    def __init__(self, transport: Transport, num_local: int, length: int) -> None:
        self._transport = transport
        self._first = transport.rank * num_local
        self.of_all = torch.zeros(transport.size * num_local, length)
        self.local: Sequence[Tensor] = [self.of_all[self._first + slot] for slot in range(num_local)]

    def gather(self) -> None:
        """Brings every rank's residuals here; all ranks call it, before a checkpoint."""
        if self._transport.size > 1:
            own = self.of_all[self._first].numpy().view(np.uint8)
            for rank, payload in enumerate(self._transport.allgatherv(own, [own.size] * self._transport.size)):
                self.of_all[rank] = torch.from_numpy(payload.view(np.float32))


class TableResiduals(Residuals):
    """The residuals of table gradients, one for each value of each table; they change where a row is looked up."""

    def __init__(self, transport: Transport, num_local: int, row_offset: Tensor, dim: int) -> None:
        length = int(row_offset[-1]) * dim
        needed = transport.size * num_local * length * 4
        if needed > LIMIT_BYTES:
            raise ConfigError(
                f"comm.error_feedback all keeps the tables' size on each of {transport.size * num_local} ranks, "
                f"{needed / 2**30:.1f} GiB in all, more than the {LIMIT_BYTES / 2**30:.0f} GiB that are sensible: set "
                "it to mlp, or take smaller tables"
            )
        super().__init__(transport, num_local, length)
        self._row_offset = row_offset
        self._dim = dim

    def added(self, slot: int, grad: SparseGrad) -> SparseGrad:
        """Returns the gradient plus what is left of its rows from earlier steps."""
        return grad._replace(values=grad.values + self._of(slot)[self._arena_rows(grad)])

    def keep(self, slot: int, grad: SparseGrad, sent: Floats) -> None:
        """Remembers what of `grad`, an `added` one, was not in `sent` f32[N, D]."""
        self._of(slot)[self._arena_rows(grad)] = grad.values - torch.from_numpy(sent)

    def _of(self, slot: int) -> Tensor:
        return self.local[slot].view(-1, self._dim)

    def _arena_rows(self, grad: SparseGrad) -> Tensor:
        return grad.rows.long() + self._row_offset[:-1].repeat_interleave(grad.table_ptr.diff())
