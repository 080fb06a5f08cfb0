"""The manifest of a prepared data set, from what the files of the spool say together."""

import math
from collections.abc import Mapping, Sequence

from dqrm_cpu import __version__
from dqrm_cpu.data.prepare.bad_rows import MOST_SHOWN, describe
from dqrm_cpu.data.prepare.output.admission import Admission
from dqrm_cpu.data.prepare.output.rare import IdRemap
from dqrm_cpu.data.prepare.request import PrepareRequest
from dqrm_cpu.data.prepare.row_layout import raw_numbers
from dqrm_cpu.data.prepare.sources.remote import without_secrets
from dqrm_cpu.data.prepare.spool import SpoolFile
from dqrm_cpu.data.store.manifest import FORMAT, ColumnStatistics, Manifest, ShardFile, SourceFile
from dqrm_cpu.data.store.schema import DataIdentity
from dqrm_cpu.data.store.transform import Transform


def rows_per_source(files: Sequence[SpoolFile], num_sources: int) -> list[int]:
    """Counts the rows that each source gave."""
    rows = [0] * num_sources
    for file in files:
        rows[file.header.after.source] += file.header.rows
    return rows


def manifest_of(
    request: PrepareRequest,
    files: Sequence[SpoolFile],
    table_rows: tuple[int, ...],
    distinct: Sequence[int | None],
    remap: IdRemap,
    admission: Admission | None,
    parts: Mapping[str, tuple[ShardFile, ...]],
    identity: DataIdentity,
    transforms: tuple[Transform, ...],
    parent: DataIdentity | None,
) -> Manifest:
    """Builds the manifest: everything about the result but its rows."""
    bad = sum(file.header.bad_lines for file in files)
    settings = {
        **request.settings.plain(),
        "request": request.digest(),
        "bad_lines": bad,
        "first_bad_lines": _first_bad_lines(request, files),
    }
    numbers, schema = _number_columns(request, files), request.settings.layout.schema
    dense = numbers[: schema.num_dense]
    buckets = numbers[schema.num_dense : schema.num_dense + len(request.settings.layout.buckets)]
    columns = (*dense, *_categorical_columns(request, files, distinct, remap, admission), *buckets)
    sources = _sources(request, files)
    return Manifest(
        FORMAT, schema, table_rows, parts, columns, sources, settings, __version__, identity, transforms, parent
    )


def _first_bad_lines(request: PrepareRequest, files: Sequence[SpoolFile]) -> list[str]:
    """Describes the first bad lines, each for a person."""
    lines: list[str] = []
    for file in files:
        path = request.sources[file.header.after.source].path
        lines += [describe(path, offender) for offender in file.header.offenders]
        if len(lines) >= MOST_SHOWN:
            break
    return lines[:MOST_SHOWN]


def _number_columns(request: PrepareRequest, files: Sequence[SpoolFile]) -> list[ColumnStatistics]:
    """Describes the columns that were read as numbers: logarithms, or the values that are not missing."""
    layout = request.settings.layout
    counts = [file.header.counts for file in files if file.header.rows]
    total = sum(file.header.rows for file in files)
    columns = []
    for d, (name, is_raw) in enumerate(zip(layout.raw.dense, raw_numbers(layout).tolist(), strict=True)):
        missing = sum(count.missing[d] for count in counts)
        known = total - missing if is_raw else total
        columns.append(
            ColumnStatistics(
                name,
                missing=missing,
                clamped=sum(count.clamped[d] for count in counts),
                minimum=min(count.dense_min[d] for count in counts) if known else None,
                mean=math.fsum(count.dense_sum[d] for count in counts) / known if known else None,
                maximum=max(count.dense_max[d] for count in counts) if known else None,
            )
        )
    return columns


def _categorical_columns(
    request: PrepareRequest,
    files: Sequence[SpoolFile],
    distinct: Sequence[int | None],
    remap: IdRemap,
    admission: Admission | None,
) -> list[ColumnStatistics]:
    schema, bags = request.settings.layout.raw, request.settings.layout.bag_tables
    has_grown = admission is not None and request.settings.vocabulary.kind == "grown"
    counts = [file.header.counts for file in files]
    cut = {t: sum(count.cut[b] for count in counts) for b, t in enumerate(bags)}
    return [
        ColumnStatistics(
            name,
            missing=sum(count.missing[schema.num_dense + t] for count in counts),
            distinct=distinct[t],
            rare=remap.rare_cells[t],
            unseen=sum(count.unseen[t] for count in counts),
            added=admission.added[t] if has_grown and admission else None,
            evicted=admission.evicted[t] if has_grown and admission else None,
            waiting=admission.history.columns[t].waiting.size if admission else None,
            cut=cut.get(t),
        )
        for t, name in enumerate(schema.categorical)
    ]


def _sources(request: PrepareRequest, files: Sequence[SpoolFile]) -> tuple[SourceFile, ...]:
    rows = rows_per_source(files, len(request.sources))
    last = {file.header.after.source: file.header.after for file in files}
    return tuple(
        SourceFile(
            without_secrets(source.path),
            source.bytes if source.bytes >= 0 else last[k].offset,
            f"crc32:{last[k].crc32:08x}",
            rows[k],
        )
        for k, source in enumerate(request.sources)
    )
