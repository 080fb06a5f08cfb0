"""What the steps of a preparation say together: the manifest of its result."""

import math
from collections.abc import Mapping, Sequence

from dqrm_cpu import __version__
from dqrm_cpu.data.prepare.bad_rows import MOST_OFFENDERS, describe
from dqrm_cpu.data.prepare.frequency import Remap
from dqrm_cpu.data.prepare.request import Request
from dqrm_cpu.data.prepare.spool import Step
from dqrm_cpu.data.store.identity import DataIdentity
from dqrm_cpu.data.store.manifest import FORMAT, ColumnStatistics, Manifest, ShardFile, SourceFile


def rows_per_source(steps: Sequence[Step], num_sources: int) -> list[int]:
    """Rows that each source gave."""
    rows = [0] * num_sources
    for step in steps:
        rows[step.header.after.source] += step.header.rows
    return rows


def manifest_of(
    request: Request,
    steps: Sequence[Step],
    table_rows: tuple[int, ...],
    distinct: Sequence[int | None],
    remap: Remap,
    parts: Mapping[str, tuple[ShardFile, ...]],
    identity: DataIdentity,
) -> Manifest:
    """Everything about the result but its rows."""
    bad = sum(step.header.bad_lines for step in steps)
    settings = {
        **request.settings.plain(),
        "request": request.digest(),
        "bad_lines": bad,
        "first_bad_lines": first_offenders(request, steps),
    }
    columns = (*_dense_columns(request, steps), *_categorical_columns(request, steps, distinct, remap))
    schema = request.settings.layout.schema
    sources = _sources(request, steps)
    return Manifest(FORMAT, schema, table_rows, parts, columns, sources, settings, __version__, identity)


def first_offenders(request: Request, steps: Sequence[Step]) -> list[str]:
    """The first bad lines, each as a person wants to read it."""
    said: list[str] = []
    for step in steps:
        path = request.sources[step.header.after.source].path
        said += [describe(path, offender) for offender in step.header.offenders]
        if len(said) >= MOST_OFFENDERS:
            break
    return said[:MOST_OFFENDERS]


def _dense_columns(request: Request, steps: Sequence[Step]) -> list[ColumnStatistics]:
    schema = request.settings.layout.schema
    counts = [step.header.counts for step in steps if step.header.rows]
    total = sum(step.header.rows for step in steps)
    columns = []
    for d, name in enumerate(schema.dense):
        columns.append(
            ColumnStatistics(
                name,
                missing=sum(count.missing[d] for count in counts),
                clamped=sum(count.clamped[d] for count in counts),
                minimum=min((count.dense_min[d] for count in counts), default=None),
                mean=math.fsum(count.dense_sum[d] for count in counts) / total if total else None,
                maximum=max((count.dense_max[d] for count in counts), default=None),
            )
        )
    return columns


def _categorical_columns(
    request: Request, steps: Sequence[Step], distinct: Sequence[int | None], remap: Remap
) -> list[ColumnStatistics]:
    schema = request.settings.layout.schema
    counts = [step.header.counts for step in steps]
    return [
        ColumnStatistics(
            name,
            missing=sum(count.missing[schema.num_dense + t] for count in counts),
            distinct=distinct[t],
            rare=remap.rare_cells[t],
            unseen=sum(count.unseen[t] for count in counts),
        )
        for t, name in enumerate(schema.categorical)
    ]


def _sources(request: Request, steps: Sequence[Step]) -> tuple[SourceFile, ...]:
    rows = rows_per_source(steps, len(request.sources))
    last = {step.header.after.source: step.header.after for step in steps}
    return tuple(
        SourceFile(
            source.path,
            source.bytes if source.bytes >= 0 else last[k].offset,
            f"crc32:{last[k].crc32:08x}",
            rows[k],
        )
        for k, source in enumerate(request.sources)
    )
