"""What a profile advises: options that lead elsewhere, shares that are possible."""

from dataclasses import replace

import pytest

from dqrm_cpu.config import Config, preset_config
from dqrm_cpu.lab.profiler.advice import fastest, mends
from dqrm_cpu.lab.profiler.bandwidth import bandwidths
from dqrm_cpu.lab.profiler.profiled_variant import TrainingVariant, variants_of
from dqrm_cpu.lab.profiler.result import Floors, RankProfile, SentPerStep, StepProfile, StepWork, VariantProfile
from dqrm_cpu.timing.durations import Summary
from dqrm_cpu.timing.phases import Phase
from dqrm_cpu.timing.spans import SpanSummary

OWN = preset_config("demo")
SCANNING = replace(OWN, quant=replace(OWN.quant, scale_finder="scan"))
NOTHING = SentPerStep(0.0, 0.0, 0.0, 0.0)


def lasting(ms: float) -> Summary:
    return Summary(10, ms, ms, ms, ms, 10 * ms)


def timed(variant: TrainingVariant, ms: float, sent: SentPerStep = NOTHING, **phases_ms: float) -> VariantProfile:
    phases = {Phase[name.upper()]: lasting(one) for name, one in phases_ms.items()}
    phases[Phase.MLP_FORWARD] = lasting(ms - sum(phases_ms.values()))
    return VariantProfile(variant, (RankProfile(SpanSummary(lasting(ms), phases), sent, 1e9),))


def profile(*variants: VariantProfile) -> StepProfile:
    return StepProfile(variants, (), Floors(1e10, None, StepWork(0.0, 0.0, 0.0, False)))


def compared(config: Config, own_ms: float, others_ms: float) -> StepProfile:
    own, *others = variants_of(config, 1, compare=True)
    return profile(timed(own, own_ms), *(timed(other, others_ms) for other in others))


def test_a_configuration_is_never_advised_to_itself() -> None:
    """Among those compared is the same once more, which was quicker by chance."""
    own, *others = variants_of(OWN, 1, compare=True)
    twin = next(other for other in others if other.config == OWN)
    found = profile(timed(own, 10.0), *(timed(other, 5.0 if other is twin else 12.0) for other in others))
    assert list(mends(found)) == []
    assert "none was clearly faster than this configuration" in fastest(found)


def test_what_is_quicker_is_advised_by_its_options() -> None:
    found = compared(SCANNING, 10.0, 5.0)
    (advice,) = mends(found)
    assert "5.00 ms instead of 10.00 ms: use --quant.scale-finder track." in advice
    assert fastest(found) == ""


def test_without_a_comparison_nothing_is_called_the_fastest() -> None:
    (own,) = variants_of(OWN, 1, compare=False)
    assert fastest(profile(timed(own, 10.0))) == ""


@pytest.mark.parametrize(("hidden_ms", "share"), [(0.99, 0.1), (0.0, None)])
def test_a_message_beside_the_step_takes_all_of_its_way(hidden_ms: float, share: float | None) -> None:
    """0.1 MB at 1 GB/s take 0.1 ms at least: a step that waited for 0.01 ms did not send them in that time."""
    (own,) = variants_of(OWN, 1, compare=False)
    sent = SentPerStep(0.0, 1e5, 0.0, 0.0)
    (found,) = bandwidths(profile(timed(own, 10.0, sent, wire=0.01, wire_hidden=hidden_ms)))
    assert found.phase is Phase.WIRE
    assert found.share == (None if share is None else pytest.approx(share))
