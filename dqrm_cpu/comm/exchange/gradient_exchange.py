"""The exchange of gradients that a run's settings ask for, with whatever it must remember from step to step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dqrm_cpu.comm.exchange.codec import Codec, Fp32Codec, Merge, ScaleRule
from dqrm_cpu.comm.exchange.mlp_exchange import (
    Bf16Form,
    Fp32MlpExchange,
    Int8Form,
    MlpExchange,
    MlpForm,
    MlpParts,
    ShortMlpExchange,
)
from dqrm_cpu.comm.exchange.residuals import Residuals, TableResiduals
from dqrm_cpu.comm.exchange.settings import ExchangeSettings, SentBytes
from dqrm_cpu.comm.exchange.table_exchange import (
    Channel,
    DenseTableExchange,
    Finish,
    SparseTableExchange,
    TableExchange,
    open_channel,
)
from dqrm_cpu.comm.sharding.placement import Placement
from dqrm_cpu.comm.sharding.row_exchange import Asked
from dqrm_cpu.comm.sharding.shard_exchange import ShardExchange
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.kernels.hashing import splitmix64
from dqrm_cpu.kernels.types import SparseGrad
from dqrm_cpu.timing.spans import Spans

_HOST = torch.device("cpu")


class TableShape(NamedTuple):
    """The shape of the tables of one dimension."""

    row_offset: Tensor  # int64[T + 1]
    dim: int
    numbers: Sequence[int] = ()  # of the tables among all of the model; empty: these are all


@dataclass(frozen=True)
class GradientShape:
    """Holds the shapes of a model's gradients, by which an exchange makes its buffers."""

    tables: tuple[TableShape, ...]  # of each dimension
    num_parameters: int  # of all dense layers
    device: torch.device = _HOST  # where the gradients are


class GradientExchange:
    """The exchange of a step between ranks: `tables`, one for each dimension, and `mlp` sum the kinds of gradients."""

    def __init__(
        self,
        tables: tuple[TableExchange, ...],
        mlp: MlpExchange,
        is_exact: bool,
        residuals: dict[str, Residuals] | None = None,
        shards: ShardExchange | None = None,
    ) -> None:
        """`shards`: of tables that lie on several ranks; there are no `tables` then."""
        self.tables = tables
        self.shards = shards
        self.mlp = mlp
        self.is_exact = is_exact
        """Says whether a world of one rank would get its gradients back unchanged: then nothing need be exchanged."""
        self._residuals = residuals or {}

    @property
    def sent(self) -> SentBytes:
        """Counts the bytes that this rank has sent since the exchange was built."""
        total = self.mlp.sent
        for tables in self.tables:
            total = total.plus(tables.sent)
        return total if self.shards is None else total.plus(self.shards.sent)

    def begin_tables(
        self,
        local: Sequence[Sequence[SparseGrad]],
        asked: Sequence[Asked] = (),
        in_step: Callable[[], object] | None = None,
    ) -> Callable[[], list[SparseGrad]]:
        """Begins the exchanges of all tables, as `TableExchange.begin` does; `local` has gradients of each dimension.

        Those of several dimensions travel one after the other, in one channel. `asked`: of each of `local`, where
        tables lie on several ranks; the sums are then those of `ShardExchange.begin`, which calls `in_step`.
        """
        if self.shards is not None:
            return self.shards.begin([grad for (grad,) in local], asked, in_step)
        finishes = [tables.begin(grads) for tables, grads in zip(self.tables, zip(*local, strict=True), strict=True)]
        return lambda: [finish() for finish in finishes]

    def gather_state(self) -> None:
        """Completes `state` on every rank; all call it."""
        for residuals in self._residuals.values():
            residuals.gather()

    def state(self) -> dict[str, Tensor]:
        """Returns what a checkpoint holds, of all ranks: the tensors, to be read after `gather_state` or filled."""
        return {name: residuals.of_all for name, residuals in self._residuals.items()}


def open_exchange(
    settings: ExchangeSettings,
    transport: Transport,
    num_local: int,
    shape: GradientShape,
    merge: Merge,
    spans: Spans | None = None,
    placement: Placement | None = None,
) -> GradientExchange:
    """Opens the exchange of `num_local` gradients in this process: 1 of a real rank, or all that are simulated.

    Every rank calls it. `placement`: None where every rank has all tables.
    """
    spans = Spans() if spans is None else spans
    residuals: dict[str, Residuals] = {}
    channel = open_channel(transport, settings.overlap, spans)
    if placement is not None:
        shards = _shard_exchange(settings, transport, num_local, placement, merge, spans, channel)
        mlp = _mlp_exchange(settings, transport, num_local, shape.num_parameters, residuals)
        return GradientExchange((), mlp, settings.is_exact, residuals, shards)
    tables = tuple(
        _table_exchange(
            _of_dimension(settings, shape, one), transport, num_local, one, merge, residuals, spans, channel
        )
        for one in shape.tables
    )
    mlp = _mlp_exchange(settings, transport, num_local, shape.num_parameters, residuals)
    if shape.device.type != "cpu":
        tables, mlp = tuple(_TablesThroughHost(one, spans) for one in tables), _MlpThroughHost(mlp)
    return GradientExchange(tables, mlp, settings.is_exact, residuals)


def _of_dimension(settings: ExchangeSettings, shape: GradientShape, tables: TableShape) -> ExchangeSettings:
    """Returns the settings for tables of one dimension: of several, each is rounded by chances of its own."""
    return settings if len(shape.tables) == 1 else replace(settings, seed=splitmix64(settings.seed, tables.dim))


def _table_exchange(
    settings: ExchangeSettings,
    transport: Transport,
    num_local: int,
    shape: TableShape,
    merge: Merge,
    residuals: dict[str, Residuals],
    spans: Spans,
    channel: Channel,
) -> TableExchange:
    if settings.wire == "dense":
        return DenseTableExchange(transport, shape.row_offset, shape.dim, spans, channel)
    kept = None
    if settings.error_feedback == "all":
        kept = TableResiduals(transport, num_local, shape.row_offset, shape.dim)
        residuals[f"feedback.tables.{shape.dim}" if shape.numbers else "feedback.tables"] = kept
    codec = _codec(settings, transport, num_local, merge)
    return SparseTableExchange(transport, codec, kept, spans, channel, shape.numbers)


def _shard_exchange(
    settings: ExchangeSettings,
    transport: Transport,
    num_local: int,
    placement: Placement,
    merge: Merge,
    spans: Spans,
    channel: Channel,
) -> ShardExchange:
    def codec() -> Codec:
        # Each gradient is encoded twice, by codecs that count their turns alone: once as rows of ranks, once as those
        # of replicated tables.
        return _codec(settings, transport, num_local, merge)

    everywhere = None
    if any(placement.replicated):
        everywhere = SparseTableExchange(transport, codec(), None, spans, channel)
    return ShardExchange(transport, placement, codec(), everywhere, spans, channel)


def _codec(settings: ExchangeSettings, transport: Transport, num_local: int, merge: Merge) -> Codec:
    width = settings.integer_width
    if not width:
        return Fp32Codec(merge)
    # Here, because it loads numba.
    from dqrm_cpu.comm.exchange.integer_codec import GradientKeys, IntegerCodec, StochasticCodec

    fp32_container, rule = settings.wire.endswith("-fp32"), ScaleRule.of(settings, width)
    if settings.rounding == "nearest":
        return IntegerCodec(width, fp32_container, rule)
    keys = GradientKeys(settings.seed, _own_ranks(transport, num_local), lambda: transport.progress.step)
    return StochasticCodec(width, fp32_container, rule, keys)


def _own_ranks(transport: Transport, num_local: int) -> range:
    """Returns the ranks that this process is or simulates."""
    return range(transport.rank * num_local, (transport.rank + 1) * num_local)


def _mlp_exchange(
    settings: ExchangeSettings,
    transport: Transport,
    num_local: int,
    num_parameters: int,
    residuals: dict[str, Residuals],
) -> MlpExchange:
    if settings.mlp_gradients == "fp32":
        return Fp32MlpExchange(transport)
    form = Bf16Form() if settings.mlp_gradients == "bf16" else _int8_form(settings, transport, num_local)
    parts = MlpParts(num_parameters, transport.size * num_local)
    feedback = None
    if settings.error_feedback != "none":
        feedback = Residuals(transport, num_local, parts.padded), Residuals(transport, num_local, parts.part)
        residuals |= {"feedback.mlp": feedback[0], "feedback.mlp_sum": feedback[1]}
    return ShortMlpExchange(transport, form, parts, feedback)


def _int8_form(settings: ExchangeSettings, transport: Transport, num_local: int) -> MlpForm:
    rule = ScaleRule.of(settings, "int8")
    if settings.rounding == "nearest":
        return Int8Form(rule)
    # Here, because it loads numba.
    from dqrm_cpu.comm.exchange.integer_codec import GradientKeys, StochasticInt8Form

    own, total = _own_ranks(transport, num_local), transport.size * num_local
    # At each step the senders' gradients, then the sums of the parts; neither shares its keys with a rank's tables.
    roles = [role * total + rank for role in (1, 2) for rank in own]
    return StochasticInt8Form(rule, GradientKeys(settings.seed, roles, lambda: transport.progress.step))


class _TablesThroughHost:
    """A table exchange for a model on a GPU: gradients come to host memory, where codecs and transports work.

    Nothing else of an exchange knows where the model is. The copies count as part of quantizing and merging.
    """

    def __init__(self, tables: TableExchange, spans: Spans) -> None:
        self._tables = tables
        self._spans = spans

    @property
    def sent(self) -> SentBytes:
        return self._tables.sent

    def begin(self, local: Sequence[SparseGrad]) -> Finish:
        device = local[0].values.device
        with self._spans.quantize_gradients:
            on_host = [_moved(grad, _HOST) for grad in local]
        finish = self._tables.begin(on_host)

        def finish_on_device() -> SparseGrad:
            merged = finish()
            with self._spans.merge:
                return _moved(merged, device)

        return finish_on_device


class _MlpThroughHost:
    """An MLP exchange for a model on a GPU."""

    def __init__(self, mlp: MlpExchange) -> None:
        self._mlp = mlp

    @property
    def sent(self) -> SentBytes:
        return self._mlp.sent

    def sum_(self, local: Sequence[Tensor]) -> None:
        on_host = [flat.to(_HOST) for flat in local]
        self._mlp.sum_(on_host)
        local[0].copy_(on_host[0])


def _moved(grad: SparseGrad, device: torch.device) -> SparseGrad:
    return SparseGrad(*(part.to(device) for part in grad))
