"""One HTML page with every table and figure."""

from collections.abc import Mapping, Sequence

from dqrm_cpu.experiments.figures import figures_of
from dqrm_cpu.experiments.request import Request
from dqrm_cpu.experiments.runner import Found
from dqrm_cpu.experiments.table import Table
from dqrm_cpu.experiments.write_results import PROTOCOL, Written
from dqrm_cpu.report.markup import paragraph, table
from dqrm_cpu.report.page import page
from dqrm_cpu.report.sections import Part, Section


def html_page(written: Sequence[Written], found: Mapping[str, Found], request: Request, command: str) -> str:
    """Needs nothing else: no script, no network."""
    about = Section("about", "How to read this", (paragraph(PROTOCOL), paragraph(f"Made by: {command}")))
    return page("DQRM, reproduced", subtitle(request), [about, *(_section(one, found, request) for one in written)])


def subtitle(request: Request) -> str:
    """What was run, in a line."""
    seeds = f"{len(request.seeds)} seed{'s' if len(request.seeds) > 1 else ''}"
    return f"{request.source} data, {request.scale.name} scale ({request.scale.about}), {seeds}"


def _section(written: Written, found: Mapping[str, Found], request: Request) -> Section:
    experiment = written.planned.experiment
    parts: list[Part] = [paragraph(experiment.reading), _html(written.table)]
    if written.by_epoch is not None:
        parts.append(_html(written.by_epoch))
    if written.planned.left_out:
        parts.append(paragraph(f"Left out on these data: {', '.join(written.planned.left_out)}.", "faint"))
    parts += figures_of(written.planned, found, request.out)
    parts.append(paragraph(f"dqrm-cpu reproduce {experiment.name}; {written.duration()}", "faint"))
    return Section(experiment.name, experiment.title, tuple(parts))


def _html(made: Table) -> str:
    return table(made.head, made.rows)
