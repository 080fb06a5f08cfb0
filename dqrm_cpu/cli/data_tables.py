"""Prepared data as text: the description of a data set, and some of its rows."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dqrm_cpu.base.decode import Json
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest
from dqrm_cpu.data.store.transform import LOG

if TYPE_CHECKING:
    from dqrm_cpu.data.batch import Batch

_GB, _MB = 1e9, 1e6
_MOST_IDS = 6
_LONGEST_SETTING = 70


def describe(directory: Path, manifest: Manifest) -> str:
    """Describes a data set, section by section."""
    sections = [_headline(directory, manifest), _parts(manifest)]
    if manifest.sources:
        sections.append(_sources(manifest))
    if manifest.settings:
        sections.append("settings; --json shows all of them\n" + table(list(_settings("", manifest.settings)), left=2))
    sections.append("dense columns; values of log are log(x + 1), others are as they were read\n" + _dense(manifest))
    sections.append("categorical columns\n" + _categorical(manifest))
    return "\n\n".join(sections)


def format_rows(manifest: Manifest, batch: "Batch", start: int) -> str:
    """Formats rows side by side, a line for each column: 40 columns fit a screen better than 40 across."""
    size, schema = batch.size, manifest.schema
    lines = [["", *(f"row {start + k:,}" for k in range(size))]]
    lines.append(["label", *(f"{value:.0f}" for value in batch.label.tolist())])
    for name, column in zip(schema.features, batch.dense.T.tolist(), strict=True):
        lines.append([name, *(f"{value:.4f}" for value in column)])
    if batch.weight is not None:
        lines.append([schema.weight, *(f"{value:.4f}" for value in batch.weight.tolist())])
    for number, name in enumerate(schema.categorical):
        lines.append([name, *(_cell(batch, number, row) for row in range(size))])
    return table(lines, left=1)


def table(rows: Sequence[Sequence[str]], left: int) -> str:
    """Formats columns two spaces apart indented by two; the first `left` columns are aligned to the left."""
    rows = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            text.ljust(width) if k < left else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _headline(directory: Path, manifest: Manifest) -> str:
    schema = manifest.schema
    rows = sum(manifest.num_rows(part) for part in PART_NAMES)
    size = sum(shard.bytes for shards in manifest.parts.values() for shard in shards)
    weights = f", weights in {schema.weight}" if schema.weight else ""
    return (
        f"{directory}: {rows:,} rows of {len(schema.features)} dense and {schema.num_tables} categorical columns"
        f"{weights}, {_size_text(size)}\n"
        f"{sum(manifest.table_rows):,} embedding rows in {schema.num_tables} tables; "
        f"fingerprint {manifest.digest()}; written by dqrm-cpu {_printable(manifest.version)}"
    )


def _parts(manifest: Manifest) -> str:
    rows = [["part", "rows", "clicks", "share", "shards", "size"]]
    for part in PART_NAMES:
        shards, total, clicks = manifest.parts[part], manifest.num_rows(part), manifest.num_clicks(part)
        share = f"{clicks / total:.2%}" if total else "-"
        size = _size_text(sum(shard.bytes for shard in shards))
        rows.append([part, f"{total:,}", f"{clicks:,}", share, f"{len(shards):,}", size])
    return table(rows, left=1)


def _sources(manifest: Manifest) -> str:
    rows = [["file", "digest", "size", "rows"]]
    for file in manifest.sources:
        rows.append([file.path, file.digest or "not taken", _size_text(file.bytes), f"{file.rows:,}"])
    return "sources\n" + table(rows, left=2)


def _dense(manifest: Manifest) -> str:
    becomes = {transform.name: transform.kind for transform in manifest.transforms} | {manifest.schema.weight: "weight"}
    rows = [["column", "becomes", "missing", "negative", "least", "mean", "largest"]]
    for column in manifest.columns[: manifest.schema.num_dense]:
        counts = [_count_text(column.missing), _count_text(column.clamped)]
        values = [_value_text(value) for value in (column.minimum, column.mean, column.maximum)]
        rows.append([column.name, becomes.get(column.name, LOG), *counts, *values])
    return table(rows, left=2)


def _categorical(manifest: Manifest) -> str:
    columns = manifest.columns[manifest.schema.num_dense :]
    names = ["distinct", "missing", "rare", "unseen"]
    # Of a vocabulary that grew, or in which categories wait for more rows; of cells with several values.
    more = ("added", "evicted", "waiting", "cut")
    names += [name for name in more if any(getattr(column, name) is not None for column in columns)]
    rows = [["column", "table rows", *names]]
    for size, column in zip(manifest.table_rows, columns, strict=True):
        rows.append([column.name, f"{size:,}", *(_count_text(getattr(column, name)) for name in names)])
    return table(rows, left=1)


def _cell(batch: "Batch", number: int, row: int) -> str:
    if batch.offsets is None:
        return f"{int(batch.ids[number, row])}"
    place = number * batch.size + row
    ids = batch.ids[int(batch.offsets[place]) : int(batch.offsets[place + 1])].tolist()
    more = " ..." if len(ids) > _MOST_IDS else ""
    return " ".join(map(str, ids[:_MOST_IDS])) + more if ids else "-"


def _count_text(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _value_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _settings(prefix: str, settings: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    """Yields dotted names and values; what is empty says nothing, and what is long is for programs."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _settings(f"{prefix}{key}.", value)
        elif value not in ("", None, []):
            text = repr(value)[1:-1] if isinstance(value, str) else json.dumps(value)
            yield f"{prefix}{key}", text if len(text) <= _LONGEST_SETTING else text[: _LONGEST_SETTING - 4] + " ..."


def _printable(text: str) -> str:
    """Escapes a name: a stranger's file may hold what moves the cursor of a terminal, or what it cannot encode."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _size_text(size: int) -> str:
    return f"{size / _GB:.2f} GB" if size >= _GB else f"{size / _MB:.2f} MB"
