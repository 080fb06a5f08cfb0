"""Categories that come and go over days: who has a row, since when, and who waits, against plain dictionaries."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dqrm_cpu.base.npy import map_npy
from dqrm_cpu.data.prepare.output import admission
from dqrm_cpu.data.prepare.request import VocabularySettings
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.schema_file import read_schema
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import (
    SavedVocabulary,
    history_of,
    load_vocabulary,
    require_vocabulary,
    verify_vocabulary,
    vocabulary_bytes,
)
from dqrm_cpu.data.store.manifest import Manifest, read_manifest
from dqrm_cpu.errors import DataError
from folders import files_of
from preparing import prepared, rows_of

NAMES = ["click", "hour", "site", "user"]
SCHEMA = 'delimiter = ","\nlabel = "click"\nintegers = ["hour"]\nhashes = ["site", "user"]\n'
ROWS, DAYS = 70, 6
CASES = [(1, 2, "csv"), (3, 0, "csv"), (3, 2, "csv"), (3, 2, "parquet"), (4, 1, "csv")]


@dataclass
class Column:
    """What must be known of a column: its categories in order, when each was seen, and who waits."""

    keys: list[int] = field(default_factory=list)
    last_seen: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, int] = field(default_factory=dict)  # training rows

    def see(self, day: int, train: list[int], others: list[int], min_count: int, evict: int) -> tuple[int, int]:
        """Takes the cells of a day; returns how many categories came and left."""
        rows, known = Counter(key for key in train if key), list(self.keys)
        for key in dict.fromkeys(key for key in [*train, *others] if key):
            self.last_seen[key] = day
            if key not in known:
                count = self.waiting.pop(key, 0) + rows[key]
                if count >= min_count or min_count == 1:
                    self.keys.append(key)
                elif count:
                    self.waiting[key] = count
        if evict:
            gone = {key for key, seen in self.last_seen.items() if seen <= day - evict}
            self.keys = [key for key in self.keys if key not in gone]
            self.waiting = {key: rows for key, rows in self.waiting.items() if key not in gone}
        return len([key for key in self.keys if key not in known]), len([key for key in known if key not in self.keys])


def cells_of_day(day: int) -> list[tuple[int, int]]:
    """Sites and users of a day, 0 where missing: each day some go and others come, some of them come again."""
    random = np.random.default_rng(day)
    sites = random.integers(0, 6, ROWS) + day
    users = 1 + random.integers(0, 60, ROWS) + 13 * (day % 4)
    return list(zip(sites.tolist(), np.where(random.random(ROWS) < 0.1, 0, users).tolist(), strict=True))


def write_day(folder: Path, day: int, kind: str = "csv") -> Path:
    """Writes the rows of a day as text or as Parquet."""
    folder.mkdir(exist_ok=True)
    (folder / "schema.toml").write_text(SCHEMA + f"fields = {json.dumps(NAMES)}\n")
    rows = [
        (row % 2, row, *(f"{key:x}" if key else None for key in keys)) for row, keys in enumerate(cells_of_day(day))
    ]
    path = folder / f"day-{day}.{kind}"
    if kind == "csv":
        path.write_text("".join(",".join("" if cell is None else str(cell) for cell in row) + "\n" for row in rows))
    else:
        pq.write_table(pa.table(dict(zip(NAMES, map(list, zip(*rows, strict=True)), strict=True))), path)
    return path


def layout_of(raw: Path) -> Layout:
    """The layout of text without a header, or of the columns of Parquet."""
    schema = raw.parent / "schema.toml"
    return read_schema(schema, "", NAMES) if raw.suffix == ".parquet" else read_schema(schema, "")


def grow(raw: Path, out: Path, before: Path | None, min_count: int, evict: int, block_bytes: int = 500) -> Manifest:
    """Prepares a day, from the vocabulary of the one before if there is one."""
    layout, vocabulary = layout_of(raw), VocabularySettings(min_count=min_count)
    if before is not None:
        vocabulary = require_vocabulary(before, layout, 0, "grown", min_count)
        vocabulary = replace(vocabulary, evict_unseen=evict)
    return prepared([raw], out, layout=layout, vocabulary=vocabulary, block_bytes=block_bytes, shard_rows=20)


@pytest.mark.parametrize(("min_count", "evict", "kind"), CASES)
def test_days_are_those_of_dictionaries(tmp_path: Path, min_count: int, evict: int, kind: str) -> None:
    columns, came = [Column(), Column()], 0
    for day in range(1, DAYS + 1):
        out, before = tmp_path / f"{day}", tmp_path / f"{day - 1}" if day > 1 else None
        manifest = grow(write_day(tmp_path / "raw", day, kind), out, before, min_count, evict)
        cells = list(zip(*cells_of_day(day), strict=True))
        num_train = ROWS - ROWS // 7
        saved = load_vocabulary(out)
        for t, column in enumerate(columns):
            train, others = list(cells[t][:num_train]), list(cells[t][num_train:])
            changes = column.see(day, train, others, min_count, evict if day > 1 else 0)
            assert saved.keys[t].tolist() == column.keys
            ids = {key: place for place, key in enumerate(column.keys, start=1)}
            statistics = manifest.columns[1 + t]
            assert (statistics.added, statistics.evicted) == (changes if day > 1 else (None, None))
            assert statistics.rare == sum(1 for key in cells[t] if key and key not in ids)
            rows = [rows_of(out, part)[2][:, t].tolist() for part in ("train", "test", "validation")]
            assert Counter(rows[0]) == Counter(ids.get(key, 0) for key in train)
            assert rows[1] + rows[2] == [ids.get(key, 0) for key in others]
            require_history(out, saved, t, column, day)
            came += changes[0]
        assert manifest.table_rows == tuple(1 + len(column.keys) for column in columns)
        heard: list[int] = []
        assert verify_vocabulary(out, manifest, heard.append) == []
        files = list((out / "vocabulary").glob("*.npy"))
        assert sum(heard) == vocabulary_bytes(out) - sum(path.stat().st_size - map_npy(path).nbytes for path in files)
    assert came > 30


def require_history(out: Path, saved: SavedVocabulary, t: int, column: Column, day: int) -> None:
    history = history_of(out, saved)
    if history is None:
        assert day == 1
        return
    found = history.columns[t]
    assert history.data_set == day
    assert found.last_seen.tolist() == [column.last_seen[key] for key in column.keys]
    assert dict(zip(found.waiting.tolist(), found.waiting_rows.tolist(), strict=True)) == column.waiting
    assert found.waiting_seen.tolist() == [column.last_seen[key] for key in found.waiting.tolist()]


def test_blocks_threads_and_interruptions_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (write_day(tmp_path / "raw", day) for day in (1, 2))
    grow(first, tmp_path / "first", None, 3, 0)
    grow(second, tmp_path / "whole", tmp_path / "first", 3, 1)
    grow(second, tmp_path / "blocks", tmp_path / "first", 3, 1, block_bytes=1 << 20)
    for cut in ("write_manifest", "write_shards"):
        with monkeypatch.context() as patch:
            patch.setattr(f"dqrm_cpu.data.prepare.preparation.{cut}", interrupted)
            with pytest.raises(KeyboardInterrupt):
                grow(second, tmp_path / cut, tmp_path / "first", 3, 1)
        grow(second, tmp_path / cut, tmp_path / "first", 3, 1)
    whole = files_of(tmp_path / "whole", "manifest.json")
    assert any("waiting-rows.npy" in name for name in whole)
    for name in ("blocks", "write_manifest", "write_shards"):
        assert files_of(tmp_path / name, "manifest.json") == whole


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_data_set_without_a_history_counts_as_the_first(tmp_path: Path) -> None:
    """As earlier versions wrote them: nothing waits, and all categories were seen in it."""
    first, second = (write_day(tmp_path / "raw", day) for day in (1, 2))
    grow(first, tmp_path / "first", None, 3, 0)
    for path in (tmp_path / "first" / "vocabulary").glob("[!v0]*"):
        path.unlink()
    grow(second, tmp_path / "second", tmp_path / "first", 3, 0)
    known, saved = load_vocabulary(tmp_path / "first"), load_vocabulary(tmp_path / "second")
    history = history_of(tmp_path / "second", saved)
    assert history is not None
    assert history.data_set == 2
    today = [{key for key in column if key} for column in zip(*cells_of_day(2), strict=True)]
    for t, column in enumerate(history.columns):
        expected = [2 if key in today[t] else 1 for key in known.keys[t].tolist()]
        assert column.last_seen[: len(expected)].tolist() == expected


def test_those_who_wait_are_bounded_and_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [Column(), Column()]
    monkeypatch.setattr(admission, "MOST_WAITING", 9)
    for day in (1, 2):
        raw, before = write_day(tmp_path / "raw", day), tmp_path / f"{day - 1}" if day > 1 else None
        grow(raw, tmp_path / f"{day}", before, 5, 0)
        for column, cells in zip(columns, zip(*cells_of_day(day), strict=True), strict=True):
            column.see(day, list(cells[: ROWS - ROWS // 7]), list(cells[ROWS - ROWS // 7 :]), 5, 0)
            order = sorted(column.waiting, key=lambda key: (-column.last_seen[key], -column.waiting[key], key))
            column.waiting = {key: column.waiting[key] for key in order[:9]}
    saved = load_vocabulary(tmp_path / "2")
    assert len(columns[1].waiting) == 9
    for t, column in enumerate(columns):
        require_history(tmp_path / "2", saved, t, column, 2)


@pytest.mark.parametrize(
    "file", ["history.json", "last-seen.npy", "waiting.npy", "waiting-rows.npy", "waiting-seen.npy"]
)
def test_a_damaged_history_is_named(tmp_path: Path, file: str) -> None:
    first, second = (write_day(tmp_path / "raw", day) for day in (1, 2))
    grow(first, tmp_path / "first", None, 3, 0)
    path = tmp_path / "first" / "vocabulary" / file
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{file} is damaged"):
        grow(second, tmp_path / "second", tmp_path / "first", 3, 0)
    assert any(file in text for text in verify_vocabulary(tmp_path / "first", read_manifest(tmp_path / "first")))


def test_a_flipped_bit_of_its_page_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    grow(write_day(tmp_path / "raw", 1), tmp_path / "first", None, 3, 0)
    saved, path = load_vocabulary(tmp_path / "first"), tmp_path / "first" / "vocabulary" / "history.json"
    content, whole, refused = path.read_bytes(), history_of(tmp_path / "first", saved), 0
    assert whole is not None
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = history_of(tmp_path / "first", saved)
        except DataError:
            refused += 1
        else:
            assert found is not None
            assert found.data_set == whole.data_set
            for column, expected in zip(found.columns, whole.columns, strict=True):
                assert all(map(np.array_equal, column, expected))
    assert refused > len(range(0, len(content), 5)) // 2


def test_the_history_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    for day, min_count in product((1, 2), (3, 4)):
        grow(write_day(tmp_path / "raw", day), tmp_path / f"{day}-{min_count}", None, min_count, 0)
    for path in (tmp_path / "1-4" / "vocabulary").glob("[!v0]*"):
        path.rename(tmp_path / "1-3" / "vocabulary" / path.name)
    with pytest.raises(DataError, match="belongs to another vocabulary"):
        grow(tmp_path / "raw" / "day-2.csv", tmp_path / "second", tmp_path / "1-3", 3, 0)
