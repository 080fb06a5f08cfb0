"""What a reproduction leaves: for each experiment a Markdown table and a CSV, and a Markdown page with everything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.base.files import replace_file
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.experiments.job import Planned
from dqrm_cpu.experiments.outcome import Outcome
from dqrm_cpu.experiments.request import Request
from dqrm_cpu.experiments.runner import Found
from dqrm_cpu.experiments.table import Table, comma_separated, epoch_table, markdown, table_of

PROTOCOL = (
    "The checkpoint is chosen on validation (early stopping, the same for all); test is scored at that checkpoint "
    "and at the last one. Figures are means over seeds ± their standard deviation. Δ is the difference from the "
    "baseline, which is the first row, or the first of the row's own optimizer, tables or model, taken seed by "
    "seed; p is that of a two-sided paired t-test, uncorrected for the number of rows. All rows share data, initial "
    "weights, epochs and (but for tuning) the learning rate. The paper reports single runs whose checkpoint was "
    "chosen on test, on other data: its columns show what to compare in direction, not in size."
)


@dataclass(frozen=True)
class Written:
    """One experiment's tables, as they were written."""

    planned: Planned
    table: Table
    by_epoch: Table | None
    seconds_by_job: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Of all its runs, whichever experiment they were done for."""
        return sum(self.seconds_by_job.values())

    def markdown(self) -> str:
        """A section of a page."""
        experiment = self.planned.experiment
        parts = [f"## {experiment.title}\n", f"{experiment.reading}\n", markdown(self.table)]
        if self.by_epoch is not None:
            parts.append(markdown(self.by_epoch))
        if self.planned.left_out:
            parts.append(f"Left out on these data: {', '.join(self.planned.left_out)}.\n")
        parts.append(f"`dqrm-cpu reproduce {experiment.name}`; {self.duration()}\n")
        return "\n".join(parts)

    def duration(self) -> str:
        """A sentence on what its runs took."""
        return f"its runs took {self.seconds / 60:.1f} minutes of machine time."


def write_tables(planned: Sequence[Planned], found: Mapping[str, Found], request: Request) -> list[Written]:
    """NAME.md and NAME.csv in the output folder."""
    written = []
    for one in planned:
        made = _tables(one, found, request)
        name = one.experiment.name
        _write(request.out / f"{name}.md", made.markdown())
        _write(request.out / f"{name}.csv", comma_separated(made.table))
        if made.by_epoch is not None:
            _write(request.out / f"{name}-by-epoch.csv", comma_separated(made.by_epoch))
        written.append(made)
    return written


def results_page(written: Sequence[Written], request: Request, command: str, machine: str) -> str:
    """All experiments as one Markdown document."""
    seeds = f"{len(request.seeds)} seed{'s' if len(request.seeds) > 1 else ''}"
    seconds = sum({job: s for one in written for job, s in one.seconds_by_job.items()}.values())
    head = [
        "# Results\n",
        f"Written by `{command}`: {request.source} data, scale {request.scale.name} ({request.scale.about}), {seeds}, "
        f"on {machine}. The runs took {seconds / 60:.0f} minutes, without sessions that were interrupted.\n",
        f"{PROTOCOL}\n",
    ]
    return "\n".join([*head, *(one.markdown() for one in written)])


def _tables(planned: Planned, found: Mapping[str, Found], request: Request) -> Written:
    experiment = planned.experiment
    names = {job.result_name for cell in planned.cells for job in cell.jobs}
    seconds = {name: outcome.wall_s for name in names if isinstance(outcome := found[name], Outcome)}
    by_epoch = epoch_table(planned, found, experiment.by_epoch) if experiment.by_epoch else None
    return Written(planned, table_of(planned, found), by_epoch, seconds)


def _write(path: Path, text: str) -> None:
    replace_file(path, [text.encode()], TrainingError)
