"""MovieLens-100k out of RecBole's files, by hand-made files of the same form."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

from dqrm_cpu.config import preset_config
from dqrm_cpu.config.load import load_config
from dqrm_cpu.data.movielens.prepare import files_in, installed_files, prepare_movielens, split_rows
from dqrm_cpu.data.movielens.ratings import read_ratings
from dqrm_cpu.data.source import open_data
from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.data.store.shard import verify
from dqrm_cpu.errors import DataError

HOUR = 3600
USERS = (
    "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    "7\t24\tM\twriter\t1\n9\t53\tF\tother\t2\n"
)
ITEMS = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "3\tA Film\t1995\tComedy Drama\n5\tOther\t\tDrama\n8\tThird\t1998\t\n"
)


def write_files(folder: Path, ratings: list[tuple[int, int, int, int]]) -> dict[str, Path]:
    lines = "".join("\t".join(map(str, rating)) + "\n" for rating in ratings)
    (folder / "ml-100k.inter").write_text(f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n{lines}")
    (folder / "ml-100k.user").write_text(USERS)
    (folder / "ml-100k.item").write_text(ITEMS)
    return files_in(folder)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return write_files(tmp_path, [(9, 5, 3, 30 * HOUR), (7, 3, 4, HOUR), (7, 8, 5, 2 * HOUR)])


def test_rows_come_in_the_order_of_time(files: dict[str, Path]) -> None:
    ratings = read_ratings(files)
    assert ratings.label.tolist() == [1, 1, 0]
    hours = ratings.ids[5]
    assert hours.tolist() == [1, 2, 6]


def test_features_are_those_of_the_user_and_the_film(files: dict[str, Path]) -> None:
    ratings = read_ratings(files)
    assert ratings.ids[:5].tolist() == [[0, 0, 1], [0, 1, 2], [24, 24, 53], [0, 0, 1], [0, 0, 1]]
    np.testing.assert_allclose(np.expm1(ratings.dense), [[24, 3], [24, 0], [53, 0]], atol=1e-5)


def test_genres_are_a_bag(files: dict[str, Path]) -> None:
    ratings = read_ratings(files)
    assert ratings.genres == ((0, 1), (), (1,))
    ids, offsets = ratings.bags()
    assert ids[-3:].tolist() == [0, 1, 1]
    assert offsets[-4:].tolist() == [18, 20, 20, 21]
    assert ratings.table_rows == (2, 3, 54, 2, 2, 7, 2)


def test_each_users_latest_ratings_are_held_out() -> None:
    user = np.array([0] * 10 + [1] * 20, np.int32)
    train, validation, test = split_rows(user)
    assert sorted(train.tolist()) == [*range(8), *range(10, 26)]
    assert validation.tolist() == [8, 26, 27]
    assert test.tolist() == [9, 28, 29]
    assert train.tolist() != sorted(train.tolist())


def test_a_prepared_set_is_whole_and_opens(tmp_path: Path) -> None:
    rows = [(user, item, 1 + (user + item + k) % 5, k * HOUR) for k in range(20) for user in (7, 9) for item in (3, 5)]
    prepare_movielens(write_files(tmp_path, rows), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert [manifest.num_rows(part) for part in ("train", "validation", "test")] == [64, 8, 8]
    assert verify(tmp_path / "out", manifest, lambda num_bytes: None) == []
    overrides = {
        "data.source": str(tmp_path / "out"),
        "model.table_rows": ",".join(map(str, manifest.table_rows)),
        "model.num_dense": "2",
        "data.train_rows": "64",
        "data.validation_rows": "8",
        "data.test_rows": "8",
    }
    data = open_data(load_config("demo", None, overrides))
    batch = data.test.rows(0, 8)
    assert batch.offsets is not None
    assert preset_config("demo").model.num_dense != batch.dense.shape[1] == 2


def test_a_torn_line_is_named(files: dict[str, Path]) -> None:
    files["inter"].write_text(files["inter"].read_text() + "9\t5\n")
    with pytest.raises(DataError, match=r"ml-100k.inter:5: 2 cells, the head names 4"):
        read_ratings(files)


def test_a_missing_column_is_named(files: dict[str, Path]) -> None:
    files["user"].write_text("user_id:token\tage:token\n7\t24\n9\t53\n")
    with pytest.raises(DataError, match="no column gender"):
        read_ratings(files)


def test_a_rating_of_an_unknown_film_is_named(files: dict[str, Path]) -> None:
    files["inter"].write_text(files["inter"].read_text() + "9\t77\t5\t1\n")
    with pytest.raises(DataError, match="does not know 77"):
        read_ratings(files)


def test_missing_files_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pip install --no-deps"):
        files_in(tmp_path)


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("dqrm_cpu.data.movielens.prepare.distribution", missing)
    with pytest.raises(DataError, match=r"run pip install --no-deps recbole==1\.2\.1"):
        installed_files()
