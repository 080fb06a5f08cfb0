"""What `prepare` must make of rows with tags: one by one, with the csv module, lists and dictionaries."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nasty_rows import canonical
from prepare_oracle import is_missing, train_order

NAMES = ("click", "ts", "price", "site", "tags", "topics")
SCHEMA = """
header = true
delimiter = ","
quotes = true
label = "click"
decimals = ["price"]
categories = ["site", "tags", "topics"]

[multi]
tags = "|"
topics = { separator = ",", limit = 2 }
"""
SEPARATORS, LIMITS = {"tags": "|", "topics": ","}, {"tags": 32, "topics": 2}


@dataclass(frozen=True)
class TaggedRow:
    label: int
    price: np.float32
    ids: tuple[tuple[int, ...], ...]  # of each column


@dataclass(frozen=True)
class ExpectedBags:
    rows: list[TaggedRow]  # in the order of the source
    parts: dict[str, list[TaggedRow]]
    table_rows: tuple[int, ...]
    cut: dict[str, int]
    missing: dict[str, int]
    distinct: dict[str, int]
    rare: dict[str, int]


def distinct_values(values: Sequence[str], limit: int) -> tuple[list[str], int]:
    """The first different values of a cell, in their order, and how many others there are."""
    kept: list[str] = []
    cut = 0
    for value in values:
        text = canonical(value.encode()).decode()
        if is_missing(text) or text in kept:
            continue
        if len(kept) < limit:
            kept.append(text)
        else:
            cut += 1
    return kept, cut


def expect_bags(text: str, seed: int, shard_rows: int, min_count: int = 1) -> ExpectedBags:
    """The last seventh held out, its first half for the test."""
    rows = [dict(zip(NAMES, line, strict=True)) for line in list(csv.reader(io.StringIO(text)))[1:]]
    held_out = len(rows) // 7
    num_train = len(rows) - held_out
    cells: dict[str, list[list[str]]] = {}
    cut = dict.fromkeys(LIMITS, 0)
    for name in NAMES[3:]:
        cells[name] = []
        for row in rows:
            values = [row[name]]
            if name in SEPARATORS:
                values = [value.strip(" ") for value in row[name].split(SEPARATORS[name])]
            kept, more = distinct_values(values, LIMITS.get(name, 1))
            cells[name].append(kept)
            if name in cut:
                cut[name] += more
    ids = {name: ids_of(cells[name], num_train, min_count) for name in cells}
    found = [
        TaggedRow(
            int(row["click"]),
            np.float32(math.log(max(float(row["price"] or 0), 0) + 1)),
            # A column with one value has the id 0 where it is missing, one with several has nothing.
            tuple(
                tuple(ids[name].get(v, 0) for v in cells[name][i]) or (() if name in LIMITS else (0,)) for name in cells
            ),
        )
        for i, row in enumerate(rows)
    ]
    num_test = (held_out + 1) // 2
    return ExpectedBags(
        found,
        {
            "train": [found[i] for shard in train_order(num_train, seed, shard_rows) for i in shard],
            "test": found[num_train : num_train + num_test],
            "validation": found[num_train + num_test :],
        },
        tuple(1 + len(ids[name]) for name in cells),
        cut,
        {name: sum(not values for values in cells[name]) for name in cells},
        {name: len({value for values in cells[name] for value in values}) for name in cells},
        {name: sum(value not in ids[name] for values in cells[name] for value in values) for name in cells},
    )


def ids_of(cells: list[list[str]], num_train: int, min_count: int) -> dict[str, int]:
    """Ids from 1 on in the order of appearance, of values that enough training rows have."""
    counts = Counter(value for values in cells[:num_train] for value in set(values))
    order = dict.fromkeys(value for values in cells for value in values)
    kept = [value for value in order if min_count == 1 or counts[value] >= min_count]
    return {value: k for k, value in enumerate(kept, 1)}


def tagged_columns(num_rows: int, seed: int = 1) -> dict[str, list[Any]]:
    """Columns in which tags come again, within a cell too, miss, and are more than their limit."""
    generator = np.random.default_rng(seed)

    def some(word: str, count: int, most: int) -> list[str | None]:
        size = generator.integers(0, most + 1)
        chosen = [f"{word} {n}" for n in generator.zipf(1.5, size) % count]
        return [None if generator.random() < 0.1 else value for value in chosen]

    return {
        "click": generator.integers(0, 2, num_rows).tolist(),
        "ts": list(range(num_rows)),
        "price": (generator.integers(0, 4000, num_rows) / 8).tolist(),
        "site": [None if n == 0 else f"site {n}" for n in generator.integers(0, 6, num_rows)],
        "tags": [None if generator.random() < 0.1 else some("tag", 40, 6) for _ in range(num_rows)],
        "topics": [some("topic \u00fc", 60, 4) for _ in range(num_rows)],
    }


def tagged_text(columns: dict[str, list[Any]]) -> str:
    """The columns as CSV, lists with their separators between the values."""

    def cell(name: str, value: object) -> object:
        if isinstance(value, list):
            return SEPARATORS[name].join("" if v is None else str(v) for v in value)
        return "" if value is None else value

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(NAMES)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([cell(name, value) for name, value in zip(NAMES, row, strict=True)])
    return out.getvalue()
