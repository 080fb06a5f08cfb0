"""What a reproduction leaves: a Markdown table and a CSV of each experiment, and one page of all, Markdown and HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.base.files import replace_file
from dqrm_cpu.base.wording import counted
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.lab.reproduce.figures import figures_of
from dqrm_cpu.lab.reproduce.outcome import RunOutcome, RunResult
from dqrm_cpu.lab.reproduce.pareto.front import front_rows
from dqrm_cpu.lab.reproduce.pareto.page import PROTOCOL as OF_FRONTS
from dqrm_cpu.lab.reproduce.pareto.page import budget_table, front_table
from dqrm_cpu.lab.reproduce.plan import PlannedExperiment, ReproduceRequest
from dqrm_cpu.lab.reproduce.table import Table, comma_separated, epoch_table, markdown, table_of
from dqrm_cpu.report.markup import paragraph, table
from dqrm_cpu.report.page import PagePart, PageSection, page

PROTOCOL = (
    "The checkpoint is chosen on validation (early stopping, the same for all); test is scored at that checkpoint "
    "and at the last one. Figures are means over seeds ± their standard deviation. Δ is the difference from the "
    "baseline, which is the first row, or the first of the row's own optimizer, tables or model, taken seed by "
    "seed; p is that of a two-sided paired t-test, uncorrected for the number of rows. All rows share data, initial "
    "weights, epochs and (but for tuning) the learning rate. The paper reports single runs whose checkpoint was "
    "chosen on test, on other data: its columns show what to compare in direction, not in size."
)


@dataclass(frozen=True)
class ExperimentTables:
    """The tables of one experiment, and how long each of its runs took."""

    planned: PlannedExperiment
    table: Table
    second: Table | None  # by epoch, or within budgets
    seconds_by_job: Mapping[str, float]

    def markdown(self) -> str:
        """Writes a section of a Markdown page."""
        experiment = self.planned.experiment
        readings = [f"{reading}\n" for reading in self._readings()]
        parts = [f"## {experiment.title}\n", *readings, markdown(self.table)]
        if self.second is not None:
            parts.append(markdown(self.second))
        if self.planned.left_out:
            parts.append(f"{self._left_out()}\n")
        parts.append(f"`dqrm-cpu reproduce {experiment.name}`; {self._duration()}\n")
        return "\n".join(parts)

    def html(self, results: Mapping[str, RunResult], out: Path) -> PageSection:
        """Makes a section of an HTML page, with the figures of the experiment."""
        experiment = self.planned.experiment
        parts: list[PagePart] = [*map(paragraph, self._readings()), table(self.table.head, self.table.rows)]
        if self.second is not None:
            parts.append(table(self.second.head, self.second.rows))
        if self.planned.left_out:
            parts.append(paragraph(self._left_out(), "faint"))
        parts += figures_of(self.planned, results, out)
        parts.append(paragraph(f"dqrm-cpu reproduce {experiment.name}; {self._duration()}", "faint"))
        return PageSection(experiment.name, experiment.title, tuple(parts))

    def _readings(self) -> tuple[str, ...]:
        experiment = self.planned.experiment
        return (experiment.reading, OF_FRONTS) if experiment.keeps_scores else (experiment.reading,)

    def _left_out(self) -> str:
        return f"Left out on these data: {', '.join(self.planned.left_out)}."

    def _duration(self) -> str:
        """Sums how long all its runs took, whichever experiment they were done for."""
        return f"its runs took {sum(self.seconds_by_job.values()) / 60:.1f} minutes of machine time."


def write_tables(
    planned: Sequence[PlannedExperiment], results: Mapping[str, RunResult], out: Path
) -> list[ExperimentTables]:
    """Writes NAME.md and NAME.csv of each experiment into the folder."""
    written = []
    for one in planned:
        tables = _tables(one, results, out)
        name = one.experiment.name
        texts = {f"{name}.md": tables.markdown(), f"{name}.csv": comma_separated(tables.table)}
        if tables.second is not None:
            second = "within-budgets" if one.experiment.keeps_scores else "by-epoch"
            texts[f"{name}-{second}.csv"] = comma_separated(tables.second)
        for file_name, text in texts.items():
            replace_file(out / file_name, [text.encode()], TrainingError)
        written.append(tables)
    return written


def results_page(written: Sequence[ExperimentTables], request: ReproduceRequest, command: str, machine: str) -> str:
    """Writes all experiments as one Markdown document."""
    seconds = sum({job: s for one in written for job, s in one.seconds_by_job.items()}.values())
    head = [
        "# Results\n",
        f"Written by `{command}`: {request.source} data, scale {request.size.name} ({request.size.about}), "
        f"{_seeds(request)}, on {machine}. The runs took {seconds / 60:.0f} minutes, without sessions that were "
        "interrupted.\n",
        f"{PROTOCOL}\n",
    ]
    return "\n".join([*head, *(one.markdown() for one in written)])


def html_page(
    written: Sequence[ExperimentTables], results: Mapping[str, RunResult], request: ReproduceRequest, command: str
) -> str:
    """Writes all experiments as one HTML document, which needs nothing else, and no network."""
    subtitle = f"{request.source} data, {request.size.name} scale ({request.size.about}), {_seeds(request)}"
    about = PageSection("about", "How to read this", (paragraph(PROTOCOL), paragraph(f"Made by: {command}")))
    return page("DQRM, reproduced", subtitle, [about, *(one.html(results, request.out) for one in written)])


def _seeds(request: ReproduceRequest) -> str:
    return counted(len(request.seeds), "seed")


def _tables(planned: PlannedExperiment, results: Mapping[str, RunResult], out: Path) -> ExperimentTables:
    jobs = [job for cell in planned.cells for job in cell.jobs]
    names = {one.result_name for job in jobs for one in (*job.needs(), job)}
    seconds = {name: outcome.wall_s for name in names if isinstance(outcome := results[name], RunOutcome)}
    if planned.experiment.keeps_scores:
        rows = front_rows(planned, results, out)
        return ExperimentTables(planned, front_table(rows), budget_table(rows), seconds)
    by_epoch = epoch_table(planned, results) if planned.experiment.by_epoch else None
    return ExperimentTables(planned, table_of(planned, results), by_epoch, seconds)
