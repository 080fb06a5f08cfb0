"""`bench spans`: what the spans of a step cost, against the same step without them."""

from dataclasses import replace
from types import TracebackType

import torch
from torch import Tensor

from dqrm_cpu.lab.bench.harness.batch_pool import Work
from dqrm_cpu.lab.bench.harness.benchmark import model_benchmark
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.contestant import Contestant
from dqrm_cpu.lab.bench.harness.result import Ratio
from dqrm_cpu.lab.bench.harness.runner import Group
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.step.fbgemm import PACKAGE as FBGEMM
from dqrm_cpu.lab.bench.step.our_step import OurStep
from dqrm_cpu.timing.phases import Phase
from dqrm_cpu.timing.spans import Span, Spans
from dqrm_cpu.train.step_rows import Upcoming


class SpannedStep(OurStep):
    """`ours_int4_exact` between the two calls that the training loop adds."""

    def __init__(self, name: str, about: str, case: Case, shared: SharedTables, spans: Spans) -> None:
        quant = replace(case.config.quant, method="dqrm", scale_finder="track", scale_period=1)
        super().__init__(name, about, replace(case.config, quant=quant), shared, spans=spans)
        self._spans = spans

    def step(self, work: Work, upcoming: Upcoming | None = None) -> Tensor:
        self._spans.begin_step()
        with self._spans.data:
            pass
        loss = super().step(work, upcoming)
        self._spans.step_done()
        return loss


class UntimedSpans(Spans):
    """Spans that look at no clock. A `with` that does nothing remains: a little of what spans cost is in both."""

    def _span(self, phase: Phase) -> Span:
        return _Untimed(phase, self._totals)

    def begin_step(self) -> None:
        pass

    def step_done(self) -> float:
        return 0.0


class _Untimed(Span):
    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class SpansAlone:
    """A contestant that enters every span of a step, and does nothing inside: all that they cost."""

    name = "spans_alone"
    about = "the spans of one step around no work"

    def setup(self) -> None:
        self._spans = Spans()

    def step(self, work: Work) -> Tensor:
        spans = self._spans
        spans.begin_step()
        for span in (spans.data, spans.scale, spans.mlp_quantize, spans.data, spans.gather_quantize, spans.mlp_forward):
            with span:
                pass
        for span in (spans.interaction, spans.mlp_forward, spans.loss, spans.mlp_backward, spans.interaction):
            with span:
                pass
        for span in (spans.mlp_backward, spans.embedding_update, spans.dense_update):
            with span:
                pass
        spans.step_done()
        return torch.empty(0)

    def teardown(self) -> None:
        del self._spans


def span_groups(case: Case, shared: SharedTables) -> list[Group]:
    """Makes one group."""
    contestants: list[Contestant] = [
        SpannedStep("with_spans", "ours_int4_exact, as `dqrm-cpu train` runs it", case, shared, Spans()),
        SpannedStep("without_spans", "the same, no clock is looked at", case, shared, UntimedSpans()),
        SpansAlone(),
    ]
    return [Group("spans", contestants, "without_spans")]


SPANS = model_benchmark(
    "spans",
    ("demo_128", "kaggle_128", "kaggle_2048"),
    span_groups,
    (
        Ratio("with_spans_over_without", "fp32", "with_spans", "without_spans"),
        Ratio("spans_alone_over_without", "fp32", "spans_alone", "without_spans"),
    ),
    (FBGEMM,),
)
