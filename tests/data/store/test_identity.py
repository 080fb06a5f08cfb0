"""What a data set says about the meaning of its ids, and whether two of them may feed the same model."""

from dataclasses import replace
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.data.store.manifest import read_manifest, write_manifest
from dqrm_cpu.data.store.schema import DataIdentity, identity_of_generated
from dqrm_cpu.errors import DataError
from stored import write_data_set


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 700 rows, and the same rows in reverse order."""
    folder = tmp_path_factory.mktemp("raw")
    assert main(["data", "generate", str(folder / "rows.txt"), "--rows", "700"]) == 0
    lines = (folder / "rows.txt").read_text().splitlines(keepends=True)
    (folder / "reversed.txt").write_text("".join(reversed(lines)))
    return folder


def identity(source: Path, out: Path, *options: str) -> DataIdentity:
    """Returns the identity of the data set that is prepared from a file."""
    assert main(["prepare", str(source), "--format", "kaggle", "--out", str(out), *options]) == 0
    found = read_manifest(out).identity
    assert found is not None
    return found


def test_another_order_of_first_appearance_is_another_vocabulary(raw: Path, tmp_path: Path) -> None:
    first, again = identity(raw / "rows.txt", tmp_path / "a"), identity(raw / "rows.txt", tmp_path / "b", "--seed", "2")
    other = identity(raw / "reversed.txt", tmp_path / "c")
    assert first == again
    assert first.difference(other) == "vocabulary"


def test_rows_prepared_with_a_vocabulary_have_its_identity(raw: Path, tmp_path: Path) -> None:
    first = identity(raw / "rows.txt", tmp_path / "a")
    options = ["--vocabulary", str(tmp_path / "a"), "--split", "none"]
    assert identity(raw / "reversed.txt", tmp_path / "b", *options) == first


def test_hashed_ids_follow_from_their_rule_alone(raw: Path, tmp_path: Path) -> None:
    hashing = ["--vocabulary", "hash", "--hash-rows"]
    first = identity(raw / "rows.txt", tmp_path / "a", *hashing, "50")
    assert identity(raw / "reversed.txt", tmp_path / "b", *hashing, "50") == first
    other = identity(raw / "rows.txt", tmp_path / "c", *hashing, "60")
    assert first.difference(other) == "vocabulary"


def test_an_identity_comes_back_from_its_text_and_from_the_manifest(tmp_path: Path) -> None:
    one = identity_of_generated(13, (40, 3), seed=1)
    assert DataIdentity.from_text(str(one)) == one
    assert DataIdentity.from_text("") is None
    write_data_set(tmp_path, [40])
    assert read_manifest(tmp_path).identity is None
    write_manifest(tmp_path, replace(read_manifest(tmp_path), identity=one))
    assert read_manifest(tmp_path).identity == one


def test_other_columns_are_another_schema() -> None:
    one, other = identity_of_generated(13, (40, 3), seed=1), identity_of_generated(12, (40, 3), seed=1)
    assert one.difference(other) == "schema"
    assert identity_of_generated(13, (40, 3), seed=2).difference(one) == "vocabulary"


def test_digests_are_checked() -> None:
    with pytest.raises(DataError, match="is no identity"):
        DataIdentity("0" * 16, "xyz")
