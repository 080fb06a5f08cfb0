"""What `dqrm-cpu bench` prints: tables of contestants, ratios, and with --against what changed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dqrm_cpu.lab.bench.harness.against import Change, Earlier
    from dqrm_cpu.lab.bench.harness.benchmark import Benchmark
    from dqrm_cpu.lab.bench.harness.result import CaseResult, Comparison, ContestantResult, GroupResult, ServedLoad

_ALONE = "*"
_PHASES_SHOWN = ("coalesce", "quantize_gradients", "wire", "merge")

_LOAD_COLUMNS: "tuple[tuple[str, Callable[[ServedLoad], str]], ...]" = (
    (f"{'99%':>10}", lambda load: _ms(load.p99_s)),
    (f"{'99.9%':>10}", lambda load: _ms(load.p999_s)),
    (f"{'longest':>10}", lambda load: _ms(load.largest_s)),
    (f"{'CPU':>10}", lambda load: _ms(load.cpu_s)),
    (f"{'came':>7}", lambda load: f"{load.per_s:,.0f}/s"),
    (f"{'at most':>8}", lambda load: f"{load.most_per_s:,.0f}/s"),
    (f"{'failed':>6}", lambda load: f"{load.failed:,}"),
)


def format_case(benchmark: "Benchmark", result: "CaseResult") -> str:
    """Returns a table for each group, each contestant against its baseline; then ratios and summaries."""
    from dqrm_cpu.lab.bench.harness.result import compare

    names = [*result.medians_s(), *(name for group in result.groups for name in group.absent)]
    width = max(map(len, names), default=0)
    lines = [f"{result.name}: {result.about}"]
    for group in result.groups:
        lines += ["", *_group_lines(group, width)]
    baseline_s = group.medians_s().get(group.baseline)
    for figure in result.derived:
        over = _over(figure.median_s, baseline_s)
        lines.append(f"  {figure.name:<{width}}  {_ms(figure.median_s)}  {'derived':>21}  {over}".rstrip())
    if benchmark.prints_ratios:
        lines += ["", *_ratio_lines(compare(benchmark.ratios, result.medians_s(), result.samples_s()))]
    for name, figures in result.summaries.items():
        lines += ["", f"  {name.replace('_', ' ')}:"]
        lines += [f"  {contestant:<{width}}  {figure:6.3f}" for contestant, figure in figures.items()]
    return "\n".join([*lines, ""])


def _group_lines(group: "GroupResult", width: int) -> list[str]:
    baseline_s = group.medians_s().get(group.baseline) if len(group.entries) > 1 else None
    columns = _columns(group.entries)
    time = _s if any(entry.rows for entry in group.entries) else _ms
    headings = "".join(f"  {heading}" for heading, _ in columns)
    over = f"over {group.baseline}" if baseline_s else ""
    lines = [f"  {group.name:<{width}}  {'median':>10}  {'quartiles':>21}{headings}  {over}".rstrip()]
    for entry in group.entries:
        lower_s, upper_s = entry.timing.quartiles_s
        median_s, quartiles = entry.timing.median_s, f"{time(lower_s)} -{time(upper_s)}"
        figures = "".join(f"  {figure(entry):>{len(heading)}}" for heading, figure in columns)
        row = f"  {entry.name:<{width}}  {time(median_s):>10}  {quartiles:>21}{figures}  {_over(median_s, baseline_s)}"
        lines.append(row.rstrip())
    return lines + [f"  {name:<{width}}  absent: {reason}" for name, reason in group.absent.items()]


def _columns(entries: "Sequence[ContestantResult]") -> "list[tuple[str, Callable[[ContestantResult], str]]]":
    """Returns headings, as wide as their columns, and what stands in them: of figures that an entry has."""
    columns: list[tuple[str, Callable[[ContestantResult], str]]] = []
    if any(entry.rows for entry in entries):
        columns.append((f"{'rows/s':>11}", lambda entry: f"{entry.rows_per_s or 0:,.0f}"))
        columns.append((f"{'peak':>8}", lambda entry: f"{(entry.peak_bytes or 0) / 1e6:,.0f} MB"))
    if any(entry.load for entry in entries):
        columns += [(heading, partial(_of_load, figure)) for heading, figure in _LOAD_COLUMNS]
    if any(entry.bytes_per_step for entry in entries):
        columns.append((f"{'bytes':>10}", lambda entry: f"{entry.bytes_in_all:,.0f}"))
    if any(entry.phases_s for entry in entries):
        for phase in _PHASES_SHOWN:
            columns.append((f"{phase.partition('_')[0]:>8}", partial(_phase, phase)))
    return columns


def _of_load(figure: "Callable[[ServedLoad], str]", entry: "ContestantResult") -> str:
    return "" if entry.load is None else figure(entry.load)


def _phase(phase: str, entry: "ContestantResult") -> str:
    seconds = (entry.phases_s or {}).get(phase)
    return "" if seconds is None else f"{seconds * 1e3:5.2f} ms"


def _ratio_lines(compared: "Sequence[Comparison]") -> list[str]:
    keys = max((len(comparison.ratio.key) for comparison in compared), default=0)
    variants = max((len(comparison.ratio.variant) for comparison in compared), default=0)
    lines = [f"  {'':<{keys}}  {'':<{variants}}  {'medians':>7}  by round"] if compared else []
    for comparison in compared:
        by_round = "" if comparison.by_round is None else f"{comparison.by_round:8.2f}"
        key, variant = comparison.ratio.key, comparison.ratio.variant
        lines.append(f"  {key:<{keys}}  {variant:<{variants}}  {comparison.value:7.2f}  {by_round}".rstrip())
    return lines


def _over(median_s: float, baseline_s: float | None) -> str:
    if not baseline_s:
        return ""
    ratio = median_s / baseline_s
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:>7.3f} ms"


def _s(seconds: float) -> str:
    return f"{seconds:>7.3f} s"


def format_changes(earlier: "Earlier", changes: "Sequence[Change]", differences: Sequence[str]) -> str:
    """Says what got slower beyond noise, what got quicker, and whether the two may be compared at all."""
    lines = [f"against {earlier.path}, each over its group's baseline:"]
    lines += [f"  not under the same conditions: {text}" for text in differences]
    if not changes:
        return "\n".join([*lines, "  nothing was timed in both"])
    changed = [change for change in changes if change.slower or change.quicker]
    width = max((len(_place(change)) for change in changed), default=0)
    for change in sorted(changed, key=lambda change: -change.ratio):
        verdict = "slower" if change.slower else "quicker"
        lines.append(f"  {_place(change):<{width}}  {change.ratio:5.2f} times  {verdict} (noise {change.noise:.0%})")
    if any(change.alone for change in changed):
        lines.append(f"  {_ALONE} without a baseline beside it: a slow day of the machine looks the same")
    slower = sum(change.slower for change in changes)
    return "\n".join([*lines, f"  {slower} of {len(changes)} got slower beyond noise"])


def _place(change: "Change") -> str:
    return f"{change.case} {change.name}{_ALONE if change.alone else ''}"
