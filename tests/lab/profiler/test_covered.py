"""Phases are all of a step: what a step computes, it computes inside one of them, for every way to train."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from dqrm_cpu import kernels
from dqrm_cpu.cli.main import main
from dqrm_cpu.lab.profiler import run, timeline
from dqrm_cpu.lab.profiler.timeline import Recorder
from dqrm_cpu.timing import spans
from dqrm_cpu.timing.phases import Phase

pytestmark = pytest.mark.slow

STEPS = 3
WAYS = {"AbsmaxTracker.absmax", "aten.aminmax.default", "scan_tables"}  # to find max|W| of all tables
VARIANTS = {"this configuration", "FP32", "QAT, torch.aminmax", "QAT, our scan", "QAT, tracked"}
KERNELS = str(Path(kernels.__file__).parent)
TICK_NS = 1000
# A few numbers, not arrays: the flag that asks ranks to stop, and the key by which a step rounds.
NEGLIGIBLE = ["aten.fill_.Scalar", "mix64", "splitmix64"]


class WorkClock(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """A clock that ticks when an operation of torch or a function of the kernels begins, and at no other time.

    It reads the same on every machine, whatever else runs there.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work: list[str] = []

    def now_ns(self) -> int:
        return TICK_NS * len(self.work)

    def __torch_dispatch__(
        self, operation: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.work.append(str(operation))
        return operation(*args, **(kwargs or {}))

    def called(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(KERNELS):
            self.work.append(frame.f_code.co_qualname)


class Kept(Recorder):
    """A recorder whose spans the test looks at, in the order in which they ended."""

    spans: ClassVar[list[tuple[str, set[int]]]] = []  # the label, and the places in `work` of what began inside

    def end(self, label: str, start_ns: int, end_ns: int) -> None:
        super().end(label, start_ns, end_ns)
        self.spans.append((label, set(range(start_ns // TICK_NS, end_ns // TICK_NS))))


@dataclass
class Step:
    """What a step of a variant began, by name."""

    in_phases: dict[str, list[str]]
    outside: list[str]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Step]]:
    """Steps of every variant of a profile."""
    model = ["--model.table-rows", "300,200", "--data.train-rows", "2000", "--train.batch-size", "64"]
    plan = ["--compare", "--warmup", "1", "--steps", str(STEPS), "--rounds", "1", "--train.threads", "1"]
    clock, profiler = WorkClock(), sys.getprofile()
    with pytest.MonkeyPatch.context() as patch, clock:
        patch.setattr(spans, "perf_counter_ns", clock.now_ns)
        patch.setattr(run, "perf_counter_ns", clock.now_ns)
        patch.setattr(timeline, "time", SimpleNamespace(perf_counter_ns=clock.now_ns))
        patch.setattr(run, "Recorder", Kept)
        sys.setprofile(clock.called)
        try:
            assert main(["profile", "--out", str(tmp_path_factory.mktemp("profile")), *model, *plan]) == 0
        finally:
            sys.setprofile(profiler)
    return steps_by_variant(clock.work)


def steps_by_variant(work: list[str]) -> dict[str, list[Step]]:
    found: dict[str, list[Step]] = {}
    steps: list[Step] = []
    phases: list[tuple[str, set[int]]] = []
    for label, inside in Kept.spans:
        if label in VARIANTS:
            found[label], steps = steps[-STEPS:], []  # behind those that warmed up
        elif label == spans.STEP_LABEL:
            missed = inside.difference(*(places for _, places in phases))
            in_phases: dict[str, list[str]] = {}
            for phase, places in phases:
                in_phases.setdefault(phase, []).extend(work[place] for place in sorted(places))
            assert sum(map(len, in_phases.values())) + len(missed) == len(inside), "phases overlap"
            steps.append(Step(in_phases, sorted({work[place] for place in missed})))
            phases = []
        else:
            phases.append((label, inside))
    assert set(found) == VARIANTS
    return found


def test_all_work_of_a_step_is_inside_its_phases(steps: dict[str, list[Step]]) -> None:
    assert all(len(step.in_phases) > 8 for of_variant in steps.values() for step in of_variant)
    outside = {name: [step.outside for step in of_variant] for name, of_variant in steps.items()}
    assert outside == dict.fromkeys(VARIANTS, [NEGLIGIBLE] * STEPS)


@pytest.mark.parametrize(
    ("variant", "way"),
    [
        ("this configuration", {"AbsmaxTracker.absmax"}),
        ("FP32", set()),
        ("QAT, torch.aminmax", {"aten.aminmax.default"}),
        ("QAT, our scan", {"scan_tables"}),
        ("QAT, tracked", {"AbsmaxTracker.absmax"}),
    ],
)
def test_scales_are_found_as_the_variant_says(steps: dict[str, list[Step]], variant: str, way: set[str]) -> None:
    for step in steps[variant]:
        assert WAYS.intersection(step.in_phases.get(Phase.SCALE.label, [])) == way
