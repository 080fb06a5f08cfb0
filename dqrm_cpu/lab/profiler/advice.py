"""What a profile says should be changed, in figures and options."""

from collections.abc import Iterator

from dqrm_cpu.config.schema import SETTINGS, flatten
from dqrm_cpu.config.setting import value_text
from dqrm_cpu.lab.profiler.result import StepProfile, VariantProfile
from dqrm_cpu.quant import scale_schedule
from dqrm_cpu.report.advice import COVERED_SHARE, SCALE_SHARE, UNEVEN_RATIO
from dqrm_cpu.timing.phases import Phase

_WORTH_SAYING = 0.9


def mends(profile: StepProfile) -> Iterator[str]:
    """Says what to change; nothing where nothing stands out."""
    own, *others = profile.variants
    summary, quant = own.ranks[0].summary, own.variant.config.quant
    scale = summary.share_of(Phase.SCALE)
    if scale > SCALE_SHARE:
        yield f"Finding scales takes {scale:.0%} of the step: {scale_schedule.advice(quant)}."
    yield from _quicker(own, others)
    if summary.step.mean_ms > UNEVEN_RATIO * summary.step.median_ms:
        yield (
            f"Steps are uneven, {summary.step.mean_ms:.2f} ms on average and {summary.step.median_ms:.2f} ms in the "
            "middle: something else uses the same cores, or there are more threads than cores (--train.threads). "
            "Trust medians only, or profile again when the machine is quiet."
        )
    if summary.covered < COVERED_SHARE:
        yield f"{1 - summary.covered:.0%} of a step is outside every phase: look at it with --torch-profiler."


def fastest(profile: StepProfile) -> str:
    """Says that nothing tried is faster than the configuration; empty where something is, or nothing was compared."""
    own, *others = profile.variants
    compared = _alike(own, others)
    if not compared or any(_quicker(own, others)):
        return ""
    return f"Of {len(compared) + 1} ways that quantize alike, none was clearly faster than this configuration."


def _quicker(own: VariantProfile, others: list[VariantProfile]) -> Iterator[str]:
    """Returns the quickest variant that can be asked for instead, if it beats chance."""
    best = min(_alike(own, others), key=_median_ms, default=None)
    if best is None or _median_ms(best) > _WORTH_SAYING * _median_ms(own):
        return
    if best.ranks[0].summary.step.min_ms < _WORTH_SAYING * own.ranks[0].summary.step.min_ms:
        times = f"{_median_ms(best):.2f} ms instead of {_median_ms(own):.2f} ms"
        yield f"{best.name} takes {times}: use {' '.join(_options(own, best))}."


def _alike(own: VariantProfile, others: list[VariantProfile]) -> list[VariantProfile]:
    """Lists variants of the same method that options lead to, but not those of the same configuration."""
    method = own.variant.config.quant.method
    return [
        other
        for other in others
        if other.variant.config.quant.method == method and other.variant.scan is None and _options(own, other)
    ]


def _options(own: VariantProfile, other: VariantProfile) -> list[str]:
    """Returns the options that lead from the configuration to the other variant's."""
    before, after = flatten(own.variant.config), flatten(other.variant.config)
    return [f"{SETTINGS[key].option} {value_text(value)}" for key, value in after.items() if value != before[key]]


def _median_ms(measured: VariantProfile) -> float:
    return measured.ranks[0].summary.step.median_ms
