"""What contestants that carry gradients over our wires have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from dqrm_cpu.bench.pool import Work
from dqrm_cpu.comm.exchange.gradient_exchange import GradientExchange


class OurExchange(ABC):
    """Bytes are counted from the messages of a step."""

    _exchange: GradientExchange | None = None

    @abstractmethod
    def step(self, work: Work) -> Tensor: ...

    def bytes_sent(self, work: Work) -> Mapping[str, int]:
        assert self._exchange is not None
        before = self._exchange.sent
        self.step(work)
        return self._exchange.sent.minus(before)._asdict()

    def teardown(self) -> None:
        self._exchange = None
