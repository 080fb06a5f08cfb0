"""A variant that can be run step by step, timed by spans of its own."""

from dqrm_cpu.bench.arena import CPU, Arenas
from dqrm_cpu.bench.ours_step import model_on_shared_tables
from dqrm_cpu.comm.exchange.sent_bytes import NOTHING_SENT, SentBytes
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.shards import Shards, shards_of
from dqrm_cpu.data.source import DataSet
from dqrm_cpu.model.memory import DATA_CACHE_BYTES
from dqrm_cpu.profile.spans import Observer, Spans
from dqrm_cpu.profiler.variants import Variant
from dqrm_cpu.train.optimizers import select_optimizer
from dqrm_cpu.train.session import exchange_settings
from dqrm_cpu.train.step import TrainingStep


class Trainee:
    """All trainees of a profile share their tables: what a step costs does not depend on the weights."""

    def __init__(
        self, variant: Variant, data: DataSet, arenas: Arenas, transport: Transport, observer: Observer | None
    ) -> None:
        self.variant = variant
        self.spans = Spans(observer)
        config = self._config = variant.config
        shards = self._shards = shards_of(transport.rank, transport.size, config.comm.simulated_ranks)
        self.model, scales = model_on_shared_tables(config, arenas, arenas.kernels, self.spans)
        if variant.scan is not None:
            scales.scan = variant.scan
        reading = self.spans.aside("read ahead")
        self._loader = Loader(data.train, config.train.batch_size, shards, CPU, DATA_CACHE_BYTES, reading)
        self._step = TrainingStep(
            self.model,
            scales,
            select_optimizer(config.train, self.model),
            transport,
            len(shards.mine),
            _largest_share(config.train.batch_size, shards),
            exchange_settings(config),
        )
        self.done = 0
        """Steps so far."""
        self._sent_before = NOTHING_SENT

    @property
    def sent(self) -> SentBytes:
        """By this rank, since it forgot what was before."""
        return self._step.sent.minus(self._sent_before)

    def forget(self) -> None:
        """Nothing so far counts: it warmed up."""
        self._sent_before = self._step.sent
        self.spans.forget()

    def run(self, steps: int) -> None:
        """The same steps as of training; batches follow from turn to turn."""
        for _ in range(steps):
            self.spans.begin_step()
            with self.spans.data:
                shares = self._loader.batches(self.done)
            size, rate = self._loader.global_size(self.done), self._config.train.learning_rate
            self._step(self.done, shares, size, rate, stop_requested=False)
            self.spans.step_done()
            self.done += 1


def _largest_share(batch_size: int, shards: Shards) -> int:
    return -(-batch_size // shards.total)
