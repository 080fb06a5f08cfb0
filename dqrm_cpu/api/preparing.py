"""A preparation as somebody asks for it, made a request: sources, layout, vocabulary, split, threads and memory."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
from numpy.typing import NDArray

from dqrm_cpu.api.prepare_order import CHOICES, PrepareOrder
from dqrm_cpu.base.cgroup import read_cgroup
from dqrm_cpu.data.prepare.estimate import buffer_bytes, estimate_text_bytes
from dqrm_cpu.data.prepare.output.fit import given_transforms
from dqrm_cpu.data.prepare.protocols import PROTOCOLS, Protocol
from dqrm_cpu.data.prepare.request import (
    Advance,
    PrepareRequest,
    Resources,
    Settings,
    TimeSplit,
    VocabularySettings,
)
from dqrm_cpu.data.prepare.row_layout import CRITEO_LAYOUT, Layout
from dqrm_cpu.data.prepare.schema_file import read_schema, read_time_split
from dqrm_cpu.data.prepare.sources.find import find_sources, require_different
from dqrm_cpu.data.prepare.sources.raw_file import RawFile, examine
from dqrm_cpu.data.prepare.sources.text_stream import REPLACED, first_line, first_lines
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import require_vocabulary
from dqrm_cpu.errors import ConfigError, DataError

_SPLIT_OF = {"kaggle": "last-seventh", "terabyte": "last-file", "tsv": "last-seventh"}


def prepare_request(
    order: PrepareOrder, stdin: BinaryIO, advance: Callable[[Advance], None], note: Callable[[str], None]
) -> PrepareRequest:
    """Looks at the sources and settles everything that is asked; ConfigError or DataError for what cannot be."""
    order.check()
    if (order.format is None) == (order.schema is None):
        raise ConfigError(
            f"give either --format ({', '.join(CHOICES['format'])}) or --schema FILE, which --suggest FILE begins with"
        )
    if order.out.exists() and not order.out.is_dir():
        raise ConfigError(f"--out {order.out} is a file; give a folder, which the data set fills alone")
    paths = find_sources(order.raw)
    require_different(paths)
    sources = tuple(examine(path) for path in paths)
    layout = _layout(order, sources, note)
    vocabulary = _vocabulary(order, layout)
    zero = _zero_rows(order, note)
    if zero:
        vocabulary = replace(vocabulary, evict_zero=_digest_of(zero))
    time_split = read_time_split(order.schema) if order.schema and order.split is None else None
    protocol = _protocol(order, time_split)
    settings = Settings(
        layout=layout,
        time_split=time_split,
        random_split=protocol.random_split if protocol else None,
        protocol=order.protocol or "",
        split=order.split or _SPLIT_OF.get(order.format or "", "last-seventh"),
        vocabulary=vocabulary,
        transforms=given_transforms(Path(vocabulary.directory), layout) if vocabulary.directory else None,
        bad_rows=order.bad_rows,
        max_bad_rows=order.max_bad_rows,
        seed=order.seed,
        shard_rows=order.shard_rows,
    )
    if settings.split == "last-file" and len(sources) < 2:
        raise ConfigError("the last of several files is held out, but there is only one: give all, or --split")
    if settings.split == "last-file" and order.split is None:
        _require_number_order(paths)
    resources = _resources(order, settings, sources)
    return PrepareRequest(sources, order.out, settings, resources, stdin, advance, note, zero)


def _protocol(order: PrepareOrder, time_split: TimeSplit | None) -> Protocol | None:
    """Returns the protocol that is asked for; ConfigError where something else says how rows are split."""
    if order.protocol is None:
        return None
    other = f"--split {order.split}" if order.split else f"[split] in {order.schema}" if time_split else ""
    if order.format == "terabyte" and PROTOCOLS[order.protocol].random_split is not None:
        other = "--format terabyte, which holds out the last file,"
    if other:
        raise ConfigError(
            f"--protocol {order.protocol} says how rows are split ({PROTOCOLS[order.protocol].about}), and {other} "
            "says otherwise; leave out one"
        )
    return PROTOCOLS[order.protocol]


def _min_count(order: PrepareOrder) -> int:
    """Returns the count that is asked for, that of the protocol, or 1; a given vocabulary is as it is."""
    if order.min_count is not None:
        return order.min_count
    is_counted = order.protocol is not None and order.vocabulary == "exact"
    return PROTOCOLS[order.protocol].min_count if order.protocol is not None and is_counted else 1


def _require_number_order(paths: list[str]) -> None:
    """Requires days in the order of their numbers: a shell writes day_10 before day_2, and holds out the wrong one."""
    last = max(paths, key=lambda path: [int(digits) for digits in re.findall(r"\d+", path)])
    if len({re.sub(r"\d+", "", path) for path in paths}) == 1 and last != paths[-1]:
        raise ConfigError(
            f"the last file is held out, which is {paths[-1]}, but {last} has the higher number: give them in order, "
            "as in day_{0..23}.gz, or --split last-file if that one is meant"
        )


def _layout(order: PrepareOrder, sources: tuple[RawFile, ...], note: Callable[[str], None]) -> Layout:
    if sources[0].kind == "parquet":
        from dqrm_cpu.data.prepare.sources.parquet import column_names

        if not order.schema:
            raise ConfigError("Parquet files need --schema FILE, which says what their columns are")
        return read_schema(order.schema, "", column_names(sources[0].path))
    if not order.schema:
        return CRITEO_LAYOUT
    lines = first_lines(sources[0])
    if not lines and sources[0].bytes == 0:
        raise DataError(f"{sources[0].path} is empty; is it the right file?")
    if any(REPLACED in line for line in lines):
        note(f"{sources[0].path} is no text in UTF-8: categories are told apart by their bytes, so convert all or none")
    layout = read_schema(order.schema, lines[0] if lines else "")
    if layout.header:
        _require_same_fields(order.schema, layout, sources[1:])
    return layout


def _require_same_fields(schema: Path, layout: Layout, sources: tuple[RawFile, ...]) -> None:
    """Requires the same header in every file: it is skipped, and other fields would be read wrongly in silence."""
    for source in sources:
        try:
            differs = source.kind != "parquet" and read_schema(schema, first_line(source)) != layout
        except ConfigError as error:
            raise ConfigError(f"the first line of {source.path} is not the header of the first file: {error}") from None
        if differs:
            raise ConfigError(f"the header of {source.path} names other fields than that of the first file")


def _vocabulary(order: PrepareOrder, layout: Layout) -> VocabularySettings:
    kind = order.vocabulary if order.vocabulary in ("exact", "hash") else "given"
    if order.grow_from is not None and kind != "exact":
        raise ConfigError("--grow-from DIR says which vocabulary it is; leave out --vocabulary")
    if order.grow_from is None and (order.evict_unseen or order.evict_zero is not None):
        option = "--evict-unseen N" if order.evict_zero is None else "--evict-zero MODEL"
        raise ConfigError(f"{option} removes categories of an earlier day; give that one with --grow-from DIR")
    if (kind == "hash") != (order.hash_rows is not None):
        raise ConfigError("--vocabulary hash and --hash-rows N belong together")
    min_count = _min_count(order)
    if kind != "exact" and min_count > 1:
        raise ConfigError("--min-count chooses the rows of an exact vocabulary; leave it out with another one")
    if kind == "given" or order.grow_from is not None:
        if order.grow_from is not None:
            grown = require_vocabulary(order.grow_from, layout, order.max_ind_range, "grown", min_count)
            return replace(grown, evict_unseen=order.evict_unseen)
        return require_vocabulary(Path(order.vocabulary), layout, order.max_ind_range)
    return VocabularySettings(kind, "", "", min_count, order.max_ind_range, order.hash_rows or 0)


def _zero_rows(order: PrepareOrder, note: Callable[[str], None]) -> tuple[NDArray[np.bool_], ...]:
    """Finds the rows that a model says nothing by, bool[rows] of each table; none where that was not asked for."""
    if order.evict_zero is None or order.grow_from is None:
        return ()
    from dqrm_cpu.predict.scorer import zero_rows  # with torch, which other preparations do without
    from dqrm_cpu.predict.trained_model import data_of_model, find_model, require_shape

    model = find_model(order.evict_zero)
    folder, manifest, warning = data_of_model(model, order.grow_from)
    require_shape(model, folder, manifest)
    for text in (*model.warnings, *([warning] if warning else [])):
        note(f"warning: {text}")
    rows = tuple(zero_rows(model))
    if tuple(table.size for table in rows) != manifest.table_rows:
        raise DataError(f"{model.path} has larger tables than {folder}; give the model that was trained on it")
    return rows


def _digest_of(rows: tuple[NDArray[np.bool_], ...]) -> str:
    return hashlib.sha256(b"".join(table.tobytes() for table in rows)).hexdigest()[:16]


def _resources(order: PrepareOrder, settings: Settings, sources: tuple[RawFile, ...]) -> Resources:
    workers, available = order.workers or len(os.sched_getaffinity(0)), _free_memory()
    buffers = buffer_bytes(settings, workers, sum(estimate_text_bytes(source) for source in sources))
    budget = order.memory_budget or max(int(0.75 * (available - buffers)), 1)
    return Resources(workers, budget, available_bytes=available, force=order.force)


def _free_memory() -> int:
    """Finds the free memory of the machine, or of the control group that this process is in if that is less."""
    available, of_group = int(psutil.virtual_memory().available), read_cgroup().memory_free_bytes
    return available if of_group is None else min(available, of_group)
