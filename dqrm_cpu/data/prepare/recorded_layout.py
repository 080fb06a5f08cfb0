"""The layout of raw rows that are to be scored: as the data set of the model was prepared, wherever its columns stand.

Rows with a header, and Parquet, go by the names of their columns: columns of no interest, the label among them, may
come, go and change places, and weights too. Rows without one have the fields of the data set in their order, with the
label or without.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec

from dqrm_cpu.base.decode import UnreadableError, decoded
from dqrm_cpu.config.load import nearest
from dqrm_cpu.data.prepare.row_layout import CATEGORY_ROLES, DENSE_ROLES, Field, FieldRole, Layout
from dqrm_cpu.data.store.manifest import Manifest
from dqrm_cpu.data.store.schema import Schema
from dqrm_cpu.data.store.transform import BUCKETS, LOG, Text
from dqrm_cpu.errors import DataError

_COMMA = ","
_DELIMITERS = ("\t", _COMMA)
_MOST_SHOWN, _MOST_COMPARED = 30, 1000
_LONGEST_SHOWN = 60  # characters
_LABELS = ("0", "1", "0.0", "1.0", "true", "false", "yes", "no")
_FEATURES = (*DENSE_ROLES, *CATEGORY_ROLES)


class _Recorded(msgspec.Struct):
    """A layout as a manifest holds it."""

    fields: Annotated[tuple[Text, ...], msgspec.Meta(max_length=1 << 16)]
    delimiter: Text
    header: bool
    quotes: bool = False


def recorded_layout(directory: Path, manifest: Manifest) -> Layout:
    """Returns the layout of the raw rows that a data set was prepared from; DataError where there were none."""
    if "layout" not in manifest.settings:
        raise DataError(
            f"{directory} was not prepared from raw rows, so nobody can say how raw rows become its ids; "
            "give a prepared data set with the same ids"
        )
    try:
        recorded = decoded(manifest.settings["layout"], _Recorded)
    except UnreadableError as error:
        raise DataError(f"the layout in the manifest of {directory} {error}; prepare the data set again") from None
    fields = tuple(map(Field.from_text, recorded.fields))
    layout = Layout(fields, recorded.delimiter, recorded.header, recorded.quotes)
    if layout.schema != manifest.schema or not _fits(layout, manifest):
        raise DataError(f"the layout in the manifest of {directory} is not that of its columns; prepare it again")
    return layout


def _fits(layout: Layout, manifest: Manifest) -> bool:
    """Tells whether the fitted transforms of a manifest are those of its layout, and its tables have their buckets."""
    wanted = {(field.name, field.transform) for field in layout.fields if field.transform != LOG}
    rows = dict(zip(manifest.schema.categorical, manifest.table_rows, strict=True))
    return wanted == {(transform.name, transform.kind) for transform in manifest.transforms} and all(
        rows[transform.name] == 1 + transform.num_buckets
        for transform in manifest.transforms
        if transform.kind == BUCKETS
    )


def text_layout(recorded: Layout, path: str, lines: Sequence[str], keys: Sequence[str] | None) -> Layout:
    """Returns the layout of text that begins with these lines: features have roles, and the columns `keys`.

    None for `keys` stands for those of the data set's schema that are there.

    A first line with at least half of the features' names in it is a header. The delimiter is a tab, a comma or that of
    the data set: whichever makes sense of the line.
    """
    first_line, candidates = lines[0], dict.fromkeys((recorded.delimiter, *_DELIMITERS))
    quotes = {one: recorded.quotes if one == recorded.delimiter else one == _COMMA for one in candidates}
    cells = {one: _cells(first_line, one, quotes[one]) for one in candidates}
    names = {field.name for field in recorded.fields if field.role in _FEATURES}
    delimiter = max(candidates, key=lambda one: len(names.intersection(cells[one])))
    if recorded.header or 2 * len(names.intersection(cells[delimiter])) >= len(names):
        layout = column_layout(recorded, path, cells[delimiter], keys)
        return replace(layout, delimiter=delimiter, header=True, quotes=quotes[delimiter])
    # As many cells as the data set's lines, or one less without the label; its own delimiter where none gives that.
    counts = (len(recorded.fields), len(recorded.fields) - recorded.num_labels)
    delimiter = next((one for one in candidates if len(cells[one]) in counts), recorded.delimiter)
    rows = [_cells(line, delimiter, quotes[delimiter]) for line in lines if line.strip()]
    if len(rows[0]) == len(recorded.fields) - recorded.num_labels:
        _require_no_label(recorded, path, rows)
    layout = _layout_in_order(recorded, len(rows[0]), keys)
    return replace(layout, delimiter=delimiter, quotes=quotes[delimiter])


def column_layout(recorded: Layout, path: str, names: Sequence[str], keys: Sequence[str] | None) -> Layout:
    """Returns the layout of a file whose columns have these names."""
    roles = {field.name: field for field in recorded.fields if field.role in _FEATURES}
    keys = [key for key in recorded.keys if key in names] if keys is None else keys
    carried = tuple(key for key in keys if key in roles)
    roles |= {key: Field(FieldRole.KEY, key) for key in keys if key not in roles}
    _require_columns(path, names, list(roles))
    fields = tuple(roles.get(name, Field(FieldRole.IGNORED)) for name in names)
    # Rows to be scored have no weights, whatever stands in that column.
    schema = Schema(recorded.schema.features, recorded.schema.categorical)
    return Layout(fields, columns=schema, carried=carried)


def _cells(line: str, delimiter: str, quotes: bool) -> list[str]:
    """Splits a line; the line itself where that cannot be."""
    if not quotes:
        return [cell.strip() for cell in line.split(delimiter)]
    try:
        return [cell.strip() for cell in next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])]
    except csv.Error:
        return [line]


def _shortened(name: str) -> str:
    """Shortens the name of a column for a message: a file that is no table has any."""
    return name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}..."


def _require_columns(path: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises DataError unless a file has each of the wanted columns once."""
    times = Counter(names)
    for name in wanted:
        if times[name] > 1:
            raise DataError(f"{path} has two columns {name!r}; give each a name of its own")
        if not times[name]:
            near = nearest(name, list(times)[:_MOST_COMPARED])
            there = ", ".join(_shortened(name) for name in list(times)[:_MOST_SHOWN])
            hint = f"nearest is {_shortened(near)!r}" if near else f"there are {there}"
            if not any(map(times.__contains__, wanted)):
                hint += "; is its first line a header?"
            raise DataError(f"{path} has no column {name!r}; {hint}")


def _require_no_label(recorded: Layout, path: str, rows: Sequence[Sequence[str]]) -> None:
    """Raises DataError where rows that lack a field may have a label all the same, and lack another one.

    Then what stands where the label would reads like one in every row that is known: all others would be shifted.
    """
    place = next((k for k, field in enumerate(recorded.fields) if field.role == FieldRole.LABEL), None)
    if place is None or not all(len(row) > place and _reads_like_label(recorded, row[place]) for row in rows):
        return
    raise DataError(
        f"{path} has no header, and {len(rows[0])} fields where the rows of the model's data set have "
        f"{len(recorded.fields)}: it is not clear whether the label is missing, for field {place + 1} reads like one. "
        "Give a header with the names of the columns, or an empty field in the label's place"
    )


def _reads_like_label(recorded: Layout, cell: str) -> bool:
    if recorded.positive is None:
        return cell.lower() in _LABELS
    try:
        return bool(float(cell) + 1)
    except ValueError:
        return False


def _layout_in_order(recorded: Layout, num_cells: int, keys: Sequence[str] | None) -> Layout:
    """Returns the layout of lines with the fields that were prepared, or without the label where they have one less."""
    keys = recorded.keys if keys is None else keys
    known = {field.name for field in recorded.fields if field.role in (*_FEATURES, FieldRole.KEY)}
    for key in keys:
        if key not in known:
            raise DataError(
                f"there is no column {key!r}: the rows have no header, and the schema of the model's data set names no "
                "such field; give rows with a header, or Parquet"
            )
    has_label = num_cells != len(recorded.fields) - recorded.num_labels
    fields = tuple(
        field if field.role in _FEATURES or field.name in keys else Field(FieldRole.IGNORED)
        for field in recorded.fields
        if has_label or field.role != FieldRole.LABEL
    )
    features = {field.name for field in fields if field.role in _FEATURES}
    return Layout(fields, carried=tuple(key for key in keys if key in features))
