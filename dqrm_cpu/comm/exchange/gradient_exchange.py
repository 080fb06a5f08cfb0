"""The exchange that a run's settings ask for, with whatever it must remember from step to step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.codec import Codec, Fp32Codec, Merge
from dqrm_cpu.comm.exchange.dense_tables import DenseTableExchange
from dqrm_cpu.comm.exchange.mlp_exchange import Fp32Mlp, MlpExchange, Parts, ShortMlp
from dqrm_cpu.comm.exchange.mlp_forms import Bf16Form, Form, Int8Form
from dqrm_cpu.comm.exchange.overlap import open_carrier
from dqrm_cpu.comm.exchange.residuals import Residuals, TableResiduals
from dqrm_cpu.comm.exchange.scales import ScaleRule
from dqrm_cpu.comm.exchange.sent_bytes import SentBytes
from dqrm_cpu.comm.exchange.settings import WireSettings
from dqrm_cpu.comm.exchange.table_exchange import Finish, SparseExchange, TableExchange
from dqrm_cpu.comm.exchange.through_host import HOST, MlpThroughHost, TablesThroughHost
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.kernels.types import SparseGrad
from dqrm_cpu.profile.spans import Spans


@dataclass(frozen=True)
class Shape:
    """What of a model the wires must know."""

    row_offset: Tensor  # int64[T + 1], of the tables
    dim: int
    num_parameters: int  # of both MLPs
    device: torch.device = HOST  # where its gradients are


class GradientExchange:
    """Everything that ranks tell each other in a step."""

    def __init__(
        self, tables: TableExchange, mlp: MlpExchange, exact: bool, residuals: dict[str, Residuals] | None = None
    ) -> None:
        self._tables = tables
        self.mlp = mlp
        self.exact = exact
        """Whether one rank alone would get back what it gave."""
        self._residuals = residuals or {}

    def begin_tables(self, local: Sequence[SparseGrad]) -> Finish:
        """The caller may use the MLPs' exchange, and nothing else between the ranks, before it finishes this one."""
        return self._tables.begin(local)

    def tables(self, local: Sequence[SparseGrad]) -> SparseGrad:
        """From beginning to end."""
        return self.begin_tables(local)()

    @property
    def sent(self) -> SentBytes:
        """Since it was built."""
        return self._tables.sent.plus(self.mlp.sent)

    def gather_state(self) -> None:
        """Completes `state` on every rank; all call it."""
        for residuals in self._residuals.values():
            residuals.gather()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds, of all ranks: the tensors themselves, to be read after `gather_state` or filled."""
        return {name: residuals.of_all for name, residuals in self._residuals.items()}


def open_exchange(
    settings: WireSettings, transport: Transport, num_local: int, shape: Shape, merge: Merge, spans: Spans | None = None
) -> GradientExchange:
    """For `num_local` gradients in this process: 1 of a real rank, or all that are simulated."""
    spans = Spans() if spans is None else spans
    residuals: dict[str, Residuals] = {}
    tables = _table_exchange(settings, transport, num_local, shape, merge, residuals, spans)
    mlp = _mlp_exchange(settings, transport, num_local, shape.num_parameters, residuals)
    if shape.device.type != "cpu":
        tables, mlp = TablesThroughHost(tables, spans), MlpThroughHost(mlp)
    return GradientExchange(tables, mlp, settings.exact, residuals)


def _table_exchange(
    settings: WireSettings,
    transport: Transport,
    num_local: int,
    shape: Shape,
    merge: Merge,
    residuals: dict[str, Residuals],
    spans: Spans,
) -> TableExchange:
    carrier = open_carrier(transport, settings.overlap, spans)
    if settings.wire == "dense":
        return DenseTableExchange(transport, shape.row_offset, shape.dim, spans, carrier)
    kept = None
    if settings.error_feedback == "all":
        kept = TableResiduals(transport, num_local, shape.row_offset, shape.dim)
        residuals["feedback.tables"] = kept
    return SparseExchange(transport, _codec(settings, transport, num_local, merge), kept, spans, carrier)


def _codec(settings: WireSettings, transport: Transport, num_local: int, merge: Merge) -> Codec:
    if settings.wire == "sparse":
        return Fp32Codec(merge)
    # Here, because it loads numba.
    from dqrm_cpu.comm.exchange.integer_codec import IntegerCodec

    width, _, container = settings.wire.partition("-")
    rule = ScaleRule.of(settings, width)
    if settings.rounding == "nearest":
        return IntegerCodec(width, container == "fp32", rule)
    from dqrm_cpu.comm.exchange.stochastic import Chances, StochasticCodec

    chances = Chances(settings.seed, _own_ranks(transport, num_local), lambda: transport.step)
    return StochasticCodec(width, container == "fp32", rule, chances)


def _own_ranks(transport: Transport, num_local: int) -> range:
    """Those that this process stands for."""
    return range(transport.rank * num_local, (transport.rank + 1) * num_local)


def _mlp_exchange(
    settings: WireSettings,
    transport: Transport,
    num_local: int,
    num_parameters: int,
    residuals: dict[str, Residuals],
) -> MlpExchange:
    if settings.mlp_gradients == "fp32":
        return Fp32Mlp(transport)
    form = Bf16Form() if settings.mlp_gradients == "bf16" else _int8_form(settings, transport, num_local)
    parts = Parts(num_parameters, transport.size * num_local)
    feedback = None
    if settings.error_feedback != "none":
        feedback = Residuals(transport, num_local, parts.padded), Residuals(transport, num_local, parts.part)
        residuals |= {"feedback.mlp": feedback[0], "feedback.mlp_sum": feedback[1]}
    return ShortMlp(transport, form, parts, feedback)


def _int8_form(settings: WireSettings, transport: Transport, num_local: int) -> Form:
    rule = ScaleRule.of(settings, "int8")
    if settings.rounding == "nearest":
        return Int8Form(rule)
    # Here, because it loads numba.
    from dqrm_cpu.comm.exchange.stochastic import Chances, StochasticInt8Form

    own, total = _own_ranks(transport, num_local), transport.size * num_local
    # At each step the senders' gradients, then the sums of the parts; neither shares its chances with a rank's tables.
    roles = [role * total + rank for role in (1, 2) for rank in own]
    return StochasticInt8Form(rule, Chances(settings.seed, roles, lambda: transport.step))
