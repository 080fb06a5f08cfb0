"""Contestants that carry the gradients of both MLPs."""

import torch
from torch import Tensor

from dqrm_cpu.bench.exchange import MLP_FORMS, contestant_name
from dqrm_cpu.bench.exchange_ours import OurExchange
from dqrm_cpu.bench.pool import Work
from dqrm_cpu.comm.exchange.gradient_exchange import GradientShape, open_exchange
from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.kernels.types import SparseGrad
from dqrm_cpu.model.dlrm import DenseGradients

_GRADIENT_SIZE = 1e-3


class OurMlp(OurExchange):
    """A flat gradient in one of our forms. Includes a copy of it: the sum replaces what was summed."""

    def __init__(self, transport: Transport, name: str, num_parameters: int) -> None:
        form, feedback = MLP_FORMS[name]
        self.name = contestant_name(transport.name, name)
        self.about = f"comm.mlp-gradients {form}, error feedback {feedback}, over {transport.name}"
        self._transport, self._num_parameters = transport, num_parameters
        self._settings = ExchangeSettings(mlp_gradients=form, error_feedback=feedback)

    def setup(self) -> None:
        shape = GradientShape(torch.zeros(2, dtype=torch.int64), 1, self._num_parameters)
        self._exchange = open_exchange(self._settings, self._transport, 1, shape, _no_tables)
        generator = torch.Generator().manual_seed(1 + self._transport.rank)
        size = self._num_parameters + DenseGradients.NUM_SCALARS
        self._source = torch.randn(size, generator=generator).mul_(_GRADIENT_SIZE)
        self._flat = torch.empty(size)

    def step(self, work: Work) -> Tensor:
        """The summed gradient f32[P + scalars]."""
        assert self._exchange is not None
        self._flat.copy_(self._source)
        self._exchange.mlp.sum_([self._flat])
        return self._flat


def _no_tables(grads: object) -> SparseGrad:
    raise AssertionError("only MLPs travel here")
