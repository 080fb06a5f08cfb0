"""What `prepare` must make of Criteo lines, row by row with the csv module and dictionaries."""

import csv
import io
import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

NUM_DENSE, NUM_TABLES = 13, 26
_MASK = 2**64 - 1
_STRIDE = 0x9E3779B97F4A7C15
_BINS = 1024


@dataclass
class Row:
    label: int
    dense: list[np.float32]
    keys: list[int]  # 0 where missing


@dataclass
class Expected:
    """Parts as lists of rows, with ids in place of keys."""

    parts: dict[str, list[Row]]
    table_rows: list[int]
    missing: Counter[str] = field(default_factory=Counter)
    clamped: Counter[str] = field(default_factory=Counter)


def read_rows(text: str, modulus: int, missing: Counter[str], clamped: Counter[str]) -> list[Row]:
    rows = []
    for line in csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE):
        assert len(line) == 1 + NUM_DENSE + NUM_TABLES
        dense = []
        for d, cell in enumerate(line[1:14]):
            number = whole_number(cell)
            missing[f"I{d + 1}"] += number is None
            clamped[f"I{d + 1}"] += (number or 0) < 0
            dense.append(np.float32(math.log(max(number or 0, 0) + 1)))
        hashes = ["" if is_missing(cell) else cell for cell in line[14:]]
        for t, cell in enumerate(hashes):
            missing[f"C{t + 1}"] += cell == ""
        keys = [int(cell or "0", 16) % modulus if modulus else int(cell or "0", 16) for cell in hashes]
        rows.append(Row(label_of(line[0]), dense, keys))
    return rows


def is_missing(cell: str) -> bool:
    return cell.lower() in ("", "nan", "null") or cell == "\\N"


def whole_number(cell: str) -> int | None:
    if is_missing(cell):
        return None
    return {"true": 1, "false": 0}[cell.lower()] if cell[0].isalpha() else int(cell.partition(".")[0])


def label_of(cell: str) -> int:
    words = {"true": 1, "yes": 1, "t": 1, "y": 1, "false": 0, "no": 0, "f": 0, "n": 0}
    return words[cell.lower()] if cell.lower() in words else int(float(cell))


def expect(text: str, seed: int, shard_rows: int, min_count: int = 1, modulus: int = 0) -> Expected:
    """The last seventh held out, its first half for the test."""
    missing: Counter[str] = Counter()
    clamped: Counter[str] = Counter()
    rows = read_rows(text, modulus, missing, clamped)
    num_held_out = len(rows) // 7
    num_train = len(rows) - num_held_out
    num_test = (num_held_out + 1) // 2
    table_rows = []
    for t in range(NUM_TABLES):
        counts = Counter(row.keys[t] for row in rows[:num_train])
        ids = {0: 0}
        for row in rows:
            key = row.keys[t]
            if key not in ids and (min_count == 1 or counts[key] >= min_count):
                ids[key] = len(ids)
        for row in rows:
            row.keys[t] = ids.get(row.keys[t], 0)
        table_rows.append(len(ids))
    parts = {
        "train": [rows[i] for shard in train_order(num_train, seed, shard_rows) for i in shard],
        "test": rows[num_train : num_train + num_test],
        "validation": rows[num_train + num_test :],
    }
    return Expected(parts, table_rows, missing, clamped)


def train_order(num_train: int, seed: int, shard_rows: int) -> list[list[int]]:
    """Shards of row numbers: neighbouring bins together, shuffled by Fisher and Yates."""
    bins: list[list[int]] = [[] for _ in range(_BINS)]
    for row in range(num_train):
        bins[_mix(seed + row * _STRIDE) >> 54].append(row)
    count = min(_BINS, -(-num_train // shard_rows))
    shards = []
    for k in range(count):
        inside = bins[_BINS * k // count : _BINS * (k + 1) // count]
        shards.append(inside)
    return [_shuffled(shard, (seed * 0xD1342543DE82EF95 + 2 * k + 1) & _MASK) for k, shard in enumerate(shards)]


def _shuffled(bins: list[list[int]], seed: int) -> list[int]:
    rows = [row for rows in bins for row in rows]
    order = list(range(len(rows)))
    state = _mix(seed)
    for i in range(len(rows) - 1, 0, -1):
        state = (state + _STRIDE) & _MASK
        other = ((_mix(state) >> 32) * (i + 1)) >> 32
        order[i], order[other] = order[other], order[i]
    return [rows[k] for k in order]


def _mix(word: int) -> int:
    word &= _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)
