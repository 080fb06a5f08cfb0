"""Ids of categories: first come, first served; used again for later data; by hashing."""

import errno
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.data.prepare.preparation import prepare
from dqrm_cpu.data.prepare.request import VocabularySettings
from dqrm_cpu.data.prepare.row_layout import CRITEO_LAYOUT
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import load_vocabulary, require_vocabulary
from dqrm_cpu.data.prepare.vocabulary.vocabulary import Vocabulary
from dqrm_cpu.errors import DataError
from preparing import criteo_text, prepared, request_for, rows_of


@settings(max_examples=40)
@given(
    bits=st.sampled_from([32, 64]),
    parts=st.lists(st.lists(st.integers(0, 40) | st.integers(0, 2**32 - 1), max_size=60), max_size=4),
)
def test_ids_are_those_of_a_dictionary(bits: int, parts: list[list[int]]) -> None:
    kind = np.dtype(f"u{bits // 8}")
    vocabulary, ids = Vocabulary(kind), {0: 0}
    for part in parts:
        # Wide keys that share their lower half, or their upper one, are still different.
        keys = np.array(part, kind) if bits == 32 else np.array([key << (key % 33) for key in part], kind)
        found = np.empty(keys.size, np.int32)
        vocabulary.assign(keys, found)
        assert found.tolist() == [ids.setdefault(int(key), len(ids)) for key in keys]
    assert vocabulary.keys.tolist() == list(ids)[1:]


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
def test_a_vocabulary_grows_and_finds_everything_again(kind: type) -> None:
    keys = np.arange(1, 30_001, dtype=kind) * kind(2654435761)
    vocabulary, ids = Vocabulary(np.dtype(kind)), np.empty(keys.size, np.int32)
    vocabulary.assign(keys, ids)
    assert np.array_equal(ids, np.arange(1, keys.size + 1))
    assert vocabulary.find(np.append(keys[::-1], kind(7)), found := np.empty(keys.size + 1, np.int32)) == 1
    assert np.array_equal(found[:-1], ids[::-1])
    assert found[-1] == 0


def test_later_data_gets_the_ids_of_earlier_data(tmp_path: Path) -> None:
    for day in (0, 1):
        (tmp_path / f"day_{day}").write_text(criteo_text(300, seed=day))
    first = prepared([tmp_path / "day_0"], tmp_path / "first", split="none")
    vocabulary = require_vocabulary(tmp_path / "first", CRITEO_LAYOUT, 0)
    # Both days at once: row ids of day 1 that day 0 knows must agree.
    later = prepared([tmp_path / "day_1"], tmp_path / "later", split="none", vocabulary=vocabulary)
    both = [tmp_path / "day_0", tmp_path / "day_1"]
    prepared(both, tmp_path / "both", split="last-file")
    assert later.table_rows == first.table_rows
    together = np.concatenate([rows_of(tmp_path / "both", part)[2] for part in ("test", "validation")])
    wanted = np.where(together < np.array(first.table_rows), together, 0)
    found = rows_of(tmp_path / "later", "train")[2]
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, wanted.tolist()))
    unseen = [column.unseen for column in later.columns[13:]]
    assert unseen == (together >= np.array(first.table_rows)).sum(0).tolist()
    assert sum(count or 0 for count in unseen) > 0


@pytest.mark.parametrize("min_count", [1, 3])
def test_a_vocabulary_grows_by_the_categories_of_later_data(tmp_path: Path, min_count: int) -> None:
    """Known categories keep their ids however rare they are; new ones follow, in order of first appearance."""
    for day in (0, 1):
        (tmp_path / f"day_{day}").write_text(criteo_text(300, seed=day))
    first = prepared([tmp_path / "day_0"], tmp_path / "first", split="none")
    growing = require_vocabulary(tmp_path / "first", CRITEO_LAYOUT, 0, "grown", min_count)
    grown = prepared([tmp_path / "day_1"], tmp_path / "grown", split="none", vocabulary=growing)
    assert (grown.parent, first.parent) == (first.identity, None)
    assert grown.identity is not None
    assert first.identity is not None
    assert grown.identity.difference(first.identity) == "vocabulary"
    old, new = load_vocabulary(tmp_path / "first"), load_vocabulary(tmp_path / "grown")
    cells = [line.split("\t")[14:] for line in (tmp_path / "day_1").read_text().splitlines()]
    for t, (before, after) in enumerate(zip(old.keys, new.keys, strict=True)):
        counts = Counter(int(row[t].strip() or "0", 16) for row in cells)
        found = [key for key, count in counts.items() if key and key not in before and count >= min_count]
        assert after.tolist() == [*before.tolist(), *found]
        ids = {0: 0} | {key: place + 1 for place, key in enumerate(after.tolist())}
        expected = Counter(ids.get(int(row[t].strip() or "0", 16), 0) for row in cells)
        assert Counter(rows_of(tmp_path / "grown", "train")[2][:, t].tolist()) == expected


def test_growing_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in (0, 1):
        (tmp_path / f"day_{day}").write_text(criteo_text(300, seed=day))
    prepared([tmp_path / "day_0"], tmp_path / "first", split="none")
    growing = require_vocabulary(tmp_path / "first", CRITEO_LAYOUT, 0, "grown", 2)
    whole = prepared([tmp_path / "day_1"], tmp_path / "whole", split="none", vocabulary=growing)
    with monkeypatch.context() as patch:
        patch.setattr("dqrm_cpu.data.prepare.preparation.write_manifest", raise_full)
        with pytest.raises(OSError, match="No space"):
            prepared([tmp_path / "day_1"], tmp_path / "cut", split="none", vocabulary=growing)
    again = prepared([tmp_path / "day_1"], tmp_path / "cut", split="none", vocabulary=growing)
    assert (again.digest(), again.identity, again.parent) == (whole.digest(), whole.identity, whole.parent)


def test_a_saved_vocabulary_says_when_it_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "day_0").write_text(criteo_text(50))
    prepared([tmp_path / "day_0"], tmp_path / "out")
    path = tmp_path / "out" / "vocabulary" / "004.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"004\.npy is damaged"):
        load_vocabulary(tmp_path / "out")


def test_a_vocabulary_of_other_columns_or_another_folding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "day_0").write_text(criteo_text(50))
    prepared([tmp_path / "day_0"], tmp_path / "out", vocabulary=VocabularySettings(max_ind_range=100))
    assert require_vocabulary(tmp_path / "out", CRITEO_LAYOUT, 0).max_ind_range == 100
    with pytest.raises(DataError, match="was made with --max-ind-range 100"):
        require_vocabulary(tmp_path / "out", CRITEO_LAYOUT, 50)


def test_hashing_needs_no_vocabulary_and_is_stable(tmp_path: Path) -> None:
    hashing = VocabularySettings("hash", hash_rows=97)
    text = criteo_text(200)
    for name, content in (("a", text), ("b", "".join(reversed(text.splitlines(keepends=True))))):
        (tmp_path / name).write_text(content)
        manifest = prepared([tmp_path / name], tmp_path / f"{name}.out", split="none", vocabulary=hashing)
    assert manifest.table_rows == (97,) * 26
    assert not (tmp_path / "a.out" / "vocabulary").exists()
    first, second = (rows_of(tmp_path / f"{name}.out", "train")[2] for name in "ab")
    assert sorted(map(tuple, first.tolist())) == sorted(map(tuple, second.tolist()))
    assert first.max() < 97
    missing = [column.missing for column in manifest.columns[13:]]
    assert (first == 0).sum(0).tolist() == [
        (count or 0) + sum(line.split("\t")[14 + t].strip() == "00000000" for line in text.splitlines())
        for t, count in enumerate(missing)
    ]


def many_categories(path: Path) -> Path:
    """A file in which every cell is a category of its own."""
    lines = ("\t".join(["0", *["1"] * 13, *(f"{26 * row + t + 1:x}" for t in range(26))]) for row in range(1000))
    path.write_text("\n".join(lines))
    return path


def test_vocabularies_beyond_the_budget_go_on_in_files(tmp_path: Path) -> None:
    raw = many_categories(tmp_path / "day_0")
    notes: list[str] = []
    request = request_for([raw], tmp_path / "small", memory_bytes=26 * 13_000)
    small = prepare(replace(request, note=notes.append))
    assert any("outgrew --memory-budget" in note for note in notes)
    assert small.digest() == prepared([raw], tmp_path / "large").digest()
    again = require_vocabulary(tmp_path / "large", CRITEO_LAYOUT, 0)
    used = prepared([raw], tmp_path / "used", vocabulary=again, memory_bytes=26 * 13_000)
    assert used.digest() == small.digest()


def test_a_disk_too_small_for_vocabularies_is_an_error_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = many_categories(tmp_path / "day_0")
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", raise_full)
        with pytest.raises(DataError, match=r"do not fit on the disk .*raise --memory-budget"):
            prepared([raw], tmp_path / "out", memory_bytes=26 * 13_000)
    manifest = prepared([raw], tmp_path / "out")
    assert manifest.digest() == prepared([raw], tmp_path / "large").digest()


def raise_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
