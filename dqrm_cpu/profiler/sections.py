"""A profile as sections of a report."""

from collections.abc import Iterator

from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profiler.document import Circumstances
from dqrm_cpu.profiler.run import Profile, VariantProfile
from dqrm_cpu.report.markup import paragraph, table, warning
from dqrm_cpu.report.phase_figures import bar_of, phase_breakdown, ranks_figure
from dqrm_cpu.report.sections import Part, Section, environment_parts, phase_table

_SCALE_SHARE = 0.05


def profile_sections(profile: Profile, around: Circumstances) -> list[Section]:
    """In the order in which a reader wants them."""
    made = (
        ("summary", "Summary", _summary(profile, around)),
        ("warnings", "What to change", _warnings(profile)),
        ("phases", "Where a step's time goes", _phases(profile)),
        ("ranks", "Rank by rank", _ranks(profile)),
        ("bandwidth", "Memory bandwidth", _bandwidth(around)),
        ("environment", "Environment", environment_parts(around.environment, around.config)),
    )
    return [Section(key, title, tuple(parts)) for key, title, parts in made]


def _summary(profile: Profile, around: Circumstances) -> Iterator[Part]:
    head = ("variant", "median (ms)", "mean (ms)", "p95 (ms)", "over the first", "scale", "exchange", "sent (kB)")
    first = profile.variants[0].ranks[0].summary.step.median_ms
    yield table(head, [_row(found, first) for found in profile.variants])
    plan = around.plan
    yield paragraph(
        f"{plan.rounds} rounds, in each of which every variant takes {plan.turn_steps} steps in its turn, after "
        f"{plan.warmup_steps} to warm up. Figures are those of rank 0. "
        + "; ".join(f"{found.variant.name}: {found.variant.about}" for found in profile.variants)
        + ".",
        "faint",
    )


def _row(found: VariantProfile, first_ms: float) -> list[str]:
    rank = found.ranks[0]
    step = rank.summary.step
    exchange = _share(found, Phase.QUANTIZE_GRADIENTS, Phase.WIRE, Phase.MERGE, Phase.MLP_EXCHANGE)
    figures = [f"{value:.2f}" for value in (step.median_ms, step.mean_ms, step.p95_ms, step.median_ms / first_ms)]
    shares = [f"{_share(found, Phase.SCALE):.1%}", f"{exchange:.1%}"]
    return [found.variant.name, *figures, *shares, f"{rank.bytes_per_step / 1e3:,.1f}"]


def _share(found: VariantProfile, *phases: Phase) -> float:
    summary = found.ranks[0].summary
    return sum(summary.phases[phase].total_ms for phase in phases if phase in summary.phases) / summary.step.total_ms


def _warnings(profile: Profile) -> Iterator[Part]:
    own, *others = profile.variants
    own_ms, quant = own.ranks[0].summary.step.median_ms, own.variant.config.quant
    found = []
    if _share(own, Phase.SCALE) > _SCALE_SHARE:
        mend = "use --quant.scale-finder track" if quant.scale_finder == "scan" else "lengthen --quant.scale-period"
        found.append(f"Finding scales takes {_share(own, Phase.SCALE):.0%} of the step: {mend}.")
    same_method = [other for other in others if other.variant.config.quant.method == quant.method]
    best = min(same_method, key=lambda other: other.ranks[0].summary.step.median_ms, default=None)
    if best is not None and best.ranks[0].summary.step.median_ms < 0.9 * own_ms:
        best_ms = best.ranks[0].summary.step.median_ms
        found.append(f"{best.variant.name} takes {best_ms:.2f} ms instead of {own_ms:.2f} ms: {best.variant.about}.")
    yield from (warning(text) for text in found)
    if not found:
        yield paragraph("Nothing stands out among what was compared.")


def _phases(profile: Profile) -> Iterator[Part]:
    yield phase_breakdown([bar_of(found.variant.name, found.ranks[0].summary) for found in profile.variants])
    for found in profile.variants:
        yield from phase_table(found.variant.name, found.ranks[0].summary)


def _ranks(profile: Profile) -> Iterator[Part]:
    if len(profile.timelines) == 1:
        yield paragraph("One process was profiled.")
        return
    for number, found in enumerate(profile.variants):
        ranks = {rank: seen.summary for rank, seen in enumerate(found.ranks)}
        yield ranks_figure(found.variant.name, f"ranks-{number}", ranks)


def _bandwidth(around: Circumstances) -> Iterator[Part]:
    floor = around.floor_bytes_per_second
    rows = [
        [
            f"{one.variant}: {one.phase.label}",
            f"{one.bytes_per_step / 1e6:,.2f}",
            f"{one.bytes_per_second / 1e9:.1f}",
            f"{one.bytes_per_second / floor:.0%}",
        ]
        for one in around.bandwidths
    ]
    yield table(("phase", "read per step (MB)", "GB/s", "of the machine's"), rows)
    yield paragraph(
        f"This machine reads {floor / 1e9:.1f} GB/s in order with the threads of rank 0. Lookups may exceed it: "
        "popular rows stay in the caches.",
        "faint",
    )
