"""Gradients of a model on a GPU: wires and transports work in host memory, so they come here and their sum goes back.

Nothing else of an exchange knows where the model is. The sums are those of a model on the CPU, in rank order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.mlp_exchange import MlpExchange
from dqrm_cpu.comm.exchange.sent_bytes import SentBytes
from dqrm_cpu.comm.exchange.table_exchange import Finish, TableExchange
from dqrm_cpu.kernels.types import SparseGrad
from dqrm_cpu.profile.spans import Spans

HOST = torch.device("cpu")


class TablesThroughHost:
    """Implements TableExchange for gradients on another device; the copies count as part of quantizing and merging."""

    def __init__(self, tables: TableExchange, spans: Spans) -> None:
        self._tables = tables
        self._spans = spans

    @property
    def sent(self) -> SentBytes:
        return self._tables.sent

    def begin(self, local: Sequence[SparseGrad]) -> Finish:
        device = local[0].values.device
        with self._spans.quantize_gradients:
            here = [_moved(grad, HOST) for grad in local]
        finish = self._tables.begin(here)

        def finish_there() -> SparseGrad:
            merged = finish()
            with self._spans.merge:
                return _moved(merged, device)

        return finish_there


class MlpThroughHost:
    """Implements MlpExchange for gradients on another device."""

    def __init__(self, mlp: MlpExchange) -> None:
        self._mlp = mlp

    @property
    def sent(self) -> SentBytes:
        return self._mlp.sent

    def __call__(self, local: Sequence[Tensor]) -> None:
        here = [flat.to(HOST) for flat in local]
        self._mlp(here)
        local[0].copy_(here[0])


def _moved(grad: SparseGrad, device: torch.device) -> SparseGrad:
    return SparseGrad(*(part.to(device) for part in grad))
