"""The wire that compression is measured against: the whole gradient of every table, also where no row was looked up."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.overlap import Carrier, Delivery
from dqrm_cpu.comm.exchange.scales import Floats
from dqrm_cpu.comm.exchange.sent_bytes import SentBytes
from dqrm_cpu.comm.exchange.table_exchange import Finish, check_count, exchange_dense_
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config.rules import DENSE_WIRE_LIMIT_BYTES
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.kernels.types import SparseGrad
from dqrm_cpu.profile.spans import Spans


class DenseTableExchange:
    """All-reduces f32[R, D]. A row whose sum is 0 everywhere counts as not looked up: weight decay passes it over."""

    def __init__(self, transport: Transport, row_offset: Tensor, dim: int, spans: Spans, carrier: Carrier) -> None:
        num_bytes = int(row_offset[-1]) * dim * 4
        if num_bytes > DENSE_WIRE_LIMIT_BYTES:
            raise ConfigError(
                f"comm.wire dense sends the whole gradient of all tables, {num_bytes / 2**30:.2f} GiB at every step; "
                f"it is made for up to {DENSE_WIRE_LIMIT_BYTES / 2**20:.0f} MiB: set it to sparse, int8 or int16"
            )
        self._transport = transport
        self._row_offset = row_offset
        self._dim = dim
        self._spans = spans
        self._carrier = carrier
        self.sent = SentBytes()

    def begin(self, local: Sequence[SparseGrad]) -> Finish:
        """To the sum in rank order; `local` as in `SparseExchange`."""
        check_count(self._transport, len(local))
        with self._spans.quantize_gradients:
            own = [self._whole(slot, grad) for slot, grad in enumerate(local)]

        def merged(delivery: Delivery[Floats]) -> SparseGrad:
            self.sent = self.sent.plus(SentBytes(values=delivery.bytes_sent))
            with self._spans.merge:
                return self._sparse(delivery.value.reshape(-1, self._dim))

        return self._carrier.start(lambda way: exchange_dense_(way, own), merged)

    def _whole(self, slot: int, grad: SparseGrad) -> Floats:
        num_rows, offsets = int(self._row_offset[-1]), self._row_offset.numpy()[:-1]
        buffer = self._transport.buffers.take(f"dense.{slot}", num_rows * self._dim * 4).view(np.float32)
        buffer[:] = 0
        rows = grad.rows.numpy() + np.repeat(offsets, np.diff(grad.table_ptr.numpy()))
        buffer.reshape(num_rows, self._dim)[rows] = grad.values.numpy()
        return buffer

    def _sparse(self, whole: Floats) -> SparseGrad:
        rows = np.flatnonzero((whole != 0).any(axis=1))
        offsets = self._row_offset.numpy()
        pointer = np.searchsorted(rows, offsets)
        within = (rows - np.repeat(offsets[:-1], np.diff(pointer))).astype(np.int32)
        return SparseGrad(torch.from_numpy(pointer), torch.from_numpy(within), torch.from_numpy(whole[rows]))
