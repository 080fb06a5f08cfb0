"""A profile as sections of a report."""

from collections.abc import Iterator, Sequence

from dqrm_cpu.base.wording import counted
from dqrm_cpu.lab.profiler.advice import fastest, mends
from dqrm_cpu.lab.profiler.bandwidth import Bandwidth
from dqrm_cpu.lab.profiler.profile_files import ProfileContext
from dqrm_cpu.lab.profiler.result import StepProfile, VariantProfile
from dqrm_cpu.report.build import environment_parts
from dqrm_cpu.report.markup import first_and_others, heading, paragraph, table, warning, words
from dqrm_cpu.report.page import PagePart, PageSection
from dqrm_cpu.report.phases import EXCHANGE, bar_of, phase_breakdown, phase_table, ranks_chart, working_ms
from dqrm_cpu.report.sizes import bytes_per_step
from dqrm_cpu.timing.phases import Phase


def profile_sections(profile: StepProfile, context: ProfileContext) -> list[PageSection]:
    """Makes the sections, in the order in which a reader wants them."""
    made = (
        ("summary", "Summary", _summary(profile, context)),
        ("warnings", "What to change", _warnings(profile)),
        ("phases", "Where a step's time goes", _phases(profile)),
        ("ranks", "Rank by rank", _ranks(profile)),
        ("bytes", "Bytes between ranks", _bytes(profile)),
        ("bandwidth", "Bandwidth", _bandwidth(profile, context)),
        ("environment", "Environment", environment_parts(context.environment, context.config)),
    )
    return [PageSection(key, title, tuple(parts)) for key, title, parts in made]


def _summary(profile: StepProfile, context: ProfileContext) -> Iterator[PagePart]:
    head = ("variant", "median (ms)", "mean (ms)", "p95 (ms)", "over the first", "scale", "exchange", "sent (kB)")
    first = profile.variants[0].ranks[0].summary.step.median_ms
    yield table(head, [_row(measured, first) for measured in profile.variants])
    plan = context.plan
    yield paragraph(
        f"{counted(plan.rounds, 'round')}, in each of which every variant takes {counted(plan.turn_steps, 'step')}, "
        f"after {plan.warmup_steps} to warm up. Figures are those of rank 0; scale and exchange are shares of its "
        "steps.",
        "faint",
    )
    yield words((measured.name, measured.variant.about) for measured in profile.variants)


def _row(measured: VariantProfile, first_ms: float) -> list[str]:
    rank = measured.ranks[0]
    step = rank.summary.step
    figures = [f"{value:.2f}" for value in (step.median_ms, step.mean_ms, step.p95_ms, step.median_ms / first_ms)]
    shares = [f"{rank.summary.share_of(Phase.SCALE):.1%}", f"{rank.summary.share_of(*EXCHANGE):.1%}"]
    return [measured.name, *figures, *shares, f"{sum(rank.sent) / 1e3:,.1f}"]


def _warnings(profile: StepProfile) -> Iterator[PagePart]:
    advice = list(mends(profile))
    yield from (warning(text) for text in advice)
    if nothing_faster := fastest(profile):
        yield paragraph(nothing_faster)
    elif not advice:
        yield paragraph("Nothing stands out among what was run.")


def _phases(profile: StepProfile) -> Iterator[PagePart]:
    yield phase_breakdown([bar_of(measured.name, measured.ranks[0].summary) for measured in profile.variants])
    tables = [phase_table(measured.name, measured.ranks[0].summary) for measured in profile.variants]
    yield from first_and_others(tables, "the other variants in figures")


def _ranks(profile: StepProfile) -> Iterator[PagePart]:
    if len(profile.timelines) == 1:
        yield paragraph("One process was profiled.")
        return
    own = profile.variants[0]
    yield ranks_chart(own.variant.name, "ranks", {rank: seen.summary for rank, seen in enumerate(own.ranks)})
    head = ("variant", "works longest", "(ms)", "works shortest", "(ms)", "rank 0 waits, exchanges (ms)")
    yield table(head, [_rank_row(measured) for measured in profile.variants])


def _rank_row(measured: VariantProfile) -> list[str]:
    working = [working_ms(rank.summary) for rank in measured.ranks]
    longest, shortest = max(working), min(working)
    of_first = measured.ranks[0].summary.step.median_ms - working[0]
    ends = [f"rank {working.index(longest)}", f"{longest:.2f}", f"rank {working.index(shortest)}", f"{shortest:.2f}"]
    return [measured.name, *ends, f"{of_first:.2f}"]


def _bytes(profile: StepProfile) -> Iterator[PagePart]:
    chart = bytes_per_step({measured.name: measured.ranks[0].sent for measured in profile.variants})
    yield chart or paragraph("Nothing was sent: one process was profiled.")


def _bandwidth(profile: StepProfile, context: ProfileContext) -> Iterator[PagePart]:
    names = [measured.name for measured in profile.variants]
    tables = [_bandwidth_table(name, [one for one in context.bandwidths if one.variant == name]) for name in names]
    yield from first_and_others(tables, "the other variants")
    yield paragraph(
        f"Of rank 0, in the median step. Memory is read in order at {profile.floors.reading / 1e9:.1f} GB/s, which is "
        "what is possible for scans. Lookups and updates are held against merely reading, and reading and writing, the "
        "rows of the batches that come next; the wire against messages as large, sent while nothing else is done and "
        "no rank is late, and a message's time is all of its way, also while the step goes on. All ranks measure at "
        "once. Where a phase was quicker than that (-), its rows lay in caches or the machine was busy while the limit "
        "was measured: there is nothing to be gained from memory.",
        "faint",
    )


def _bandwidth_table(name: str, bandwidths: Sequence[Bandwidth]) -> Iterator[str]:
    yield heading(name)
    if not bandwidths:
        yield paragraph("Of none of its phases is known what must be moved: with several ids in a bag, only of scans.")
        return
    rows = [
        [
            one.phase.label,
            f"{one.bytes_per_step / 1e6:,.3f}",
            f"{one.bytes_per_second / 1e9:.3f}",
            f"{one.floor_bytes_per_second / 1e9:.3f}",
            f"{one.share:.0%}" if one.share is not None else "-",
        ]
        for one in bandwidths
    ]
    yield table(("phase", "MB per step", "GB/s", "possible (GB/s)", "of it"), rows)
