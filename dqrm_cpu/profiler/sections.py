"""A profile as sections of a report."""

from collections.abc import Iterator, Sequence

from dqrm_cpu.profile.phases import Phase
from dqrm_cpu.profiler.advice import fastest, mends
from dqrm_cpu.profiler.bandwidth import Bandwidth
from dqrm_cpu.profiler.document import Circumstances
from dqrm_cpu.profiler.result import Profile, VariantProfile
from dqrm_cpu.report.markup import first_and_others, heading, paragraph, table, warning, words
from dqrm_cpu.report.phase_figures import bar_of, phase_breakdown, ranks_figure, working_ms
from dqrm_cpu.report.sections import Part, Section, environment_parts, phase_table
from dqrm_cpu.report.traffic import bytes_per_step

_EXCHANGE = (Phase.QUANTIZE_GRADIENTS, Phase.WIRE, Phase.MERGE, Phase.MLP_EXCHANGE)


def profile_sections(profile: Profile, around: Circumstances) -> list[Section]:
    """In the order in which a reader wants them."""
    made = (
        ("summary", "Summary", _summary(profile, around)),
        ("warnings", "What to change", _warnings(profile)),
        ("phases", "Where a step's time goes", _phases(profile)),
        ("ranks", "Rank by rank", _ranks(profile)),
        ("bytes", "Bytes between ranks", _bytes(profile)),
        ("bandwidth", "Bandwidth", _bandwidth(profile, around)),
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
        f"{plan.warmup_steps} to warm up. Figures are those of rank 0; scale and exchange are shares of its steps.",
        "faint",
    )
    yield words((found.variant.name, found.variant.about) for found in profile.variants)


def _row(found: VariantProfile, first_ms: float) -> list[str]:
    rank = found.ranks[0]
    step = rank.summary.step
    figures = [f"{value:.2f}" for value in (step.median_ms, step.mean_ms, step.p95_ms, step.median_ms / first_ms)]
    shares = [f"{rank.summary.share_of(Phase.SCALE):.1%}", f"{rank.summary.share_of(*_EXCHANGE):.1%}"]
    return [found.variant.name, *figures, *shares, f"{sum(rank.sent) / 1e3:,.1f}"]


def _warnings(profile: Profile) -> Iterator[Part]:
    found = list(mends(profile))
    yield from (warning(text) for text in found)
    said = fastest(profile)
    if said:
        yield paragraph(said)
    elif not found:
        yield paragraph("Nothing stands out among what was run.")


def _phases(profile: Profile) -> Iterator[Part]:
    yield phase_breakdown([bar_of(found.variant.name, found.ranks[0].summary) for found in profile.variants])
    tables = [phase_table(found.variant.name, found.ranks[0].summary) for found in profile.variants]
    yield from first_and_others(tables, "the other variants in figures")


def _ranks(profile: Profile) -> Iterator[Part]:
    if len(profile.timelines) == 1:
        yield paragraph("One process was profiled.")
        return
    own = profile.variants[0]
    yield ranks_figure(own.variant.name, "ranks", {rank: seen.summary for rank, seen in enumerate(own.ranks)})
    head = ("variant", "works longest", "(ms)", "works shortest", "(ms)", "rank 0 waits, exchanges (ms)")
    yield table(head, [_rank_row(found) for found in profile.variants])


def _rank_row(found: VariantProfile) -> list[str]:
    working = [working_ms(rank.summary) for rank in found.ranks]
    longest, shortest = max(working), min(working)
    of_first = found.ranks[0].summary.step.median_ms - working[0]
    ends = [f"rank {working.index(longest)}", f"{longest:.2f}", f"rank {working.index(shortest)}", f"{shortest:.2f}"]
    return [found.variant.name, *ends, f"{of_first:.2f}"]


def _bytes(profile: Profile) -> Iterator[Part]:
    figure = bytes_per_step({found.variant.name: found.ranks[0].sent for found in profile.variants})
    yield figure or paragraph("Nothing was sent: one process was profiled.")


def _bandwidth(profile: Profile, around: Circumstances) -> Iterator[Part]:
    names = [found.variant.name for found in profile.variants]
    tables = [_bandwidth_table(name, [one for one in around.bandwidths if one.variant == name]) for name in names]
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


def _bandwidth_table(name: str, found: Sequence[Bandwidth]) -> Iterator[str]:
    yield heading(name)
    if not found:
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
        for one in found
    ]
    yield table(("phase", "MB per step", "GB/s", "possible (GB/s)", "of it"), rows)
