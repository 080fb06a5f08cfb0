"""A data set whose rare categories lose their row afterwards: what a preparation with that count makes, to the byte."""

from dataclasses import replace
from pathlib import Path

import pytest

from dqrm_cpu.data.prepare.recount import counted_folder, recount, why_fixed
from dqrm_cpu.data.prepare.request import VocabularySettings
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import FOLDER
from dqrm_cpu.data.store.manifest import FILE_NAME, read_manifest
from dqrm_cpu.errors import DataError
from preparing import criteo_text, prepared

ROWS = 1500
SHARD_ROWS = 500


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "train.txt"
    path.write_text(criteo_text(ROWS))
    return path


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepares a log so that every category has a row in its table."""
    out = tmp_path_factory.mktemp("whole") / "data"
    prepared([raw], out, shard_rows=SHARD_ROWS)
    return out


@pytest.mark.parametrize("min_count", [2, 5, 10_000])
def test_it_is_what_a_preparation_with_that_count_makes(min_count: int, raw: Path, whole: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    prepared([raw], theirs, shard_rows=SHARD_ROWS, vocabulary=VocabularySettings(min_count=min_count))
    mine = recount(whole, min_count)
    assert mine == counted_folder(whole, min_count)
    for path in sorted(theirs.rglob("*")):
        if path.is_file() and path.name != FILE_NAME:
            assert (mine / path.relative_to(theirs)).read_bytes() == path.read_bytes(), path
    wanted, got = read_manifest(theirs), read_manifest(mine)
    assert got.settings["vocabulary"] == wanted.settings["vocabulary"]
    assert replace(got, settings={}) == replace(wanted, settings={})


def test_it_is_made_once_and_begun_anew_where_it_was_not_finished(whole: Path) -> None:
    seen = 0

    def stop_in_the_middle(rows: int) -> None:
        nonlocal seen
        seen += rows
        if seen > ROWS + ROWS // 2:
            raise KeyboardInterrupt

    out = counted_folder(whole, 3)
    with pytest.raises(KeyboardInterrupt):
        recount(whole, 3, stop_in_the_middle)
    assert list(out.glob("*.shard"))
    assert not (out / FILE_NAME).exists()
    recount(whole, 3)
    content = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert FOLDER in {path.parent.name for path in content}
    recount(whole, 3, stop_in_the_middle)  # which reads nothing
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == content


def test_what_has_other_rules_or_other_rows_is_refused(raw: Path, whole: Path, tmp_path: Path) -> None:
    of_three = recount(whole, 3)
    assert "min-count of 3" in why_fixed(read_manifest(of_three))
    with pytest.raises(DataError, match=r"not chosen by count: it was prepared with a min-count of 3"):
        recount(of_three, 5)
    hashed = tmp_path / "hashed"
    prepared([raw], hashed, vocabulary=VocabularySettings("hash", hash_rows=100))
    with pytest.raises(DataError, match="belongs to other data sets too, or to none"):
        recount(hashed, 5)
    other = tmp_path / "other"
    prepared([raw], other, seed=2)
    counted_folder(other, 3).symlink_to(of_three)
    with pytest.raises(DataError, match="made of other rows"):
        recount(other, 3)
