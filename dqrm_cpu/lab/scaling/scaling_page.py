"""The page of `bench scaling`: rates over cores as curves, every binding in figures, and the published run beside."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from dqrm_cpu import __version__
from dqrm_cpu.base.memory import format_size
from dqrm_cpu.base.wording import counted
from dqrm_cpu.lab.bench.harness.benchmark import RunEnvironment
from dqrm_cpu.lab.bench.harness.result import CaseResult, compare
from dqrm_cpu.lab.scaling.core_bindings import CoreBinding
from dqrm_cpu.lab.scaling.scaling_benchmark import contestant_names, scaling_ratios
from dqrm_cpu.lab.scaling.scaling_cases import MLPERF, PUBLISHED_GFLOPS_PER_CORE, PUBLISHED_SAMPLES_PER_S
from dqrm_cpu.report.chart import Axis, Curve, CurveChart, Panel, color
from dqrm_cpu.report.markup import heading, paragraph, table, words
from dqrm_cpu.report.page import PagePart, PageSection, write_page

_HEAD = ("", "ms", "samples/s", "of a core", "GFLOP/s of a core", "efficiency", "over its floor")


def write_scaling_page(
    results: Sequence[CaseResult], bindings: Sequence[CoreBinding], environment: RunEnvironment, out: Path
) -> None:
    """Writes the page of these cases."""
    sections = [PageSection(result.name, result.name, tuple(_case_parts(result, bindings))) for result in results]
    sections.append(PageSection("environment", "Environment", (words(_environment(environment)),)))
    write_page("A training step over cores", environment.machine.cpu_model, sections, out, None)


def _case_parts(result: CaseResult, bindings: Sequence[CoreBinding]) -> Iterator[PagePart]:
    yield paragraph(f"{result.about}.")
    yield _chart(result, [one for one in bindings if one.is_usual])
    over_floor = {
        compared.ratio.numerator: compared.value
        for compared in compare(scaling_ratios(bindings), result.medians_s())
        if compared.ratio.key.endswith("over_floor")
    }
    for group, binding in zip(result.groups, bindings, strict=True):
        yield heading(binding.name.replace("_", " "))
        if group.entries:
            yield table(_HEAD, [_row(result, name, binding, over_floor) for name in group.medians_s()])
        yield from (paragraph(f"{name} is absent: {reason}", "faint") for name, reason in group.absent.items())
    if result.name == MLPERF:
        yield paragraph(_published(result.facts["flops_per_sample"]))
    yield paragraph(
        "Medians. GFLOP/s counts the products of the MLPs that a step needs and nothing else; the floor is those "
        "products and the bytes that a step must move, measured in turn with it on the same cores. Efficiency is the "
        "rate over that of one core times the number of cores.",
        "faint",
    )


def _chart(result: CaseResult, usual: Sequence[CoreBinding]) -> CurveChart:
    rates = result.summaries["samples_per_s"]
    curves = []
    for number, kind in enumerate(contestant_names()):
        there = [one for one in usual if f"{kind}_{one.name}" in rates]
        if there:
            cores = [float(one.cores) for one in there]
            curves.append(Curve(kind, [cores], [rates[f"{kind}_{one.name}"] for one in there], color(number)))
    panel = Panel("Rate", "samples / s", curves, y_range=(0, None))
    return CurveChart(f"rate-{result.name}", "Samples per second over cores.", [Axis("cores")], [panel])


def _row(result: CaseResult, name: str, binding: CoreBinding, over_floor: dict[str, float]) -> list[str]:
    figures = result.summaries
    over = f"{over_floor[name]:.2f}" if name in over_floor else "-"
    return [
        name.removesuffix(f"_{binding.name}"),
        f"{result.medians_s()[name] * 1e3:,.2f}",
        f"{figures['samples_per_s'][name]:,.0f}",
        f"{figures['samples_per_s_per_core'][name]:,.0f}",
        f"{figures['gflops_per_core'][name]:.1f}",
        f"{figures['efficiency'][name]:.0%}",
        over,
    ]


def _published(flops: int) -> str:
    of_core = PUBLISHED_GFLOPS_PER_CORE * 1e9 / flops
    return (
        f"Beside it: Intel's published MLPerf run reached {PUBLISHED_SAMPLES_PER_S:,.0f} samples/s on two sockets, "
        f"about {PUBLISHED_GFLOPS_PER_CORE:.0f} GFLOP/s of a core if it had 112, which is {of_core:,.0f} samples/s "
        "of a core; its tables were not cut."
    )


def _environment(environment: RunEnvironment) -> Iterator[tuple[str, str]]:
    machine = environment.machine
    yield "processor", f"{machine.cpu_model}, {counted(machine.cores, 'core')}, {', '.join(machine.isa)}"
    yield "sockets and memory nodes", f"{machine.sockets} and {len(machine.numa_nodes)}"
    yield "memory", f"{format_size(machine.memory_total_bytes)}, huge pages {machine.huge_pages or '-'}"
    yield "load before it began", ", ".join(f"{load:.1f}" for load in environment.load_average)
    yield "taken at", f"{environment.taken_at}, {counted(environment.plan.rounds, 'round')}"
    packages = [f"{package.name} {package.version}" for package in machine.packages if package.version]
    yield "software", ", ".join([f"dqrm-cpu {__version__}", f"Python {machine.python}", *packages])
