"""A prepared data set as `--data DIR` opens it: what it decides, what contradicts it, what its manifest must be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dqrm_cpu.config import Config, preset_config
from dqrm_cpu.data.source import open_data
from dqrm_cpu.data.store.manifest import (
    FILE_NAME,
    PART_NAMES,
    ColumnStatistics,
    SourceFile,
    read_manifest,
    write_manifest,
)
from dqrm_cpu.data.store.run_data import follow_data
from dqrm_cpu.errors import ConfigError, DataError
from stored import SCHEMA, TABLE_ROWS, config_of, write_data_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data_set(tmp_path, [80, 40])
    return tmp_path


def asked(folder: Path, **model: Any) -> Config:
    config = preset_config("demo")
    return replace(config, data=replace(config.data, source=str(folder)), model=replace(config.model, **model))


def test_settings_follow_the_data(folder: Path) -> None:
    config = follow_data(asked(folder), frozenset())
    assert (config.model.table_rows, config.model.num_dense) == (TABLE_ROWS, 3)
    assert (config.data.train_rows, config.data.validation_rows, config.data.test_rows) == (120, 50, 50)


def test_what_the_user_set_stays(folder: Path) -> None:
    larger = (300, 70_000, 4_000_000, 5)
    config = follow_data(asked(folder, table_rows=larger), {"model.table_rows", "data.train_rows"})
    assert config.model.table_rows == larger
    assert config.data.train_rows == preset_config("demo").data.train_rows


def test_a_dimension_of_a_table_that_the_data_lack_is_refused(folder: Path) -> None:
    """Only once the data are known: the preset has 26 tables, these 4."""
    assert follow_data(asked(folder, table_dims="C4=2"), frozenset()).model.dims == (16, 16, 16, 2)
    with pytest.raises(ConfigError, match=r"names C5, and there are 4 tables"):
        follow_data(asked(folder, table_dims="C5=2"), frozenset())


def test_generated_data_decide_nothing() -> None:
    assert follow_data(Config(), frozenset()) == Config()


def test_larger_tables_than_needed_are_fine(folder: Path) -> None:
    config = config_of(folder)
    larger = tuple(rows + 1 for rows in TABLE_ROWS)
    open_data(replace(config, model=replace(config.model, table_rows=larger)))


def test_a_table_that_is_too_small_is_named(folder: Path) -> None:
    config = config_of(folder)
    small = (256, 65_536, 2_000_000, 1)
    with pytest.raises(DataError, match=r"table 2 \(wide\) has 2,000,000 rows, and .* needs 3,000,000"):
        open_data(replace(config, model=replace(config.model, table_rows=small)))


@pytest.mark.parametrize(
    ("model", "message"),
    [({"table_rows": (256,)}, "names 1 tables"), ({"num_dense": 13}, "num_dense is 13, and .* has 3")],
)
def test_another_shape_is_refused(folder: Path, model: dict[str, Any], message: str) -> None:
    config = config_of(folder)
    with pytest.raises(DataError, match=message):
        open_data(replace(config, model=replace(config.model, **model)))


def test_more_rows_than_there_are_cannot_be_asked_for(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train_rows is 121, and .* has 120 train rows"):
        open_data(config_of(folder, train_rows=121))


def test_fewer_rows_can(folder: Path) -> None:
    assert open_data(config_of(folder, train_rows=7)).train.num_rows == 7


@pytest.mark.parametrize("setting", [{"reshuffle": True}, {"sub_sample_rate": 0.5}])
def test_generated_rows_refuse_what_only_prepared_ones_can_do(setting: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"data.{next(iter(setting))} works on prepared rows"):
        open_data(Config(data=replace(Config().data, **setting)))


def test_the_fingerprint_is_that_of_the_rows(tmp_path: Path) -> None:
    prints = []
    for name, rows in (("a", 80), ("b", 80), ("c", 81)):
        (tmp_path / name).mkdir()
        write_data_set(tmp_path / name, [rows])
        prints.append(open_data(config_of(tmp_path / name)).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_a_manifest_comes_back(folder: Path) -> None:
    manifest = read_manifest(folder)
    columns = tuple(
        ColumnStatistics(name, missing=k, distinct=None, mean=k / 3)
        for k, name in enumerate((*SCHEMA.dense, *SCHEMA.categorical))
    )
    changed = replace(
        manifest,
        columns=columns,
        sources=(SourceFile("train.txt", 10, "sha256:00", 3),),
        settings={"seed": 1, "days": [1, 2], "out": None},
    )
    write_manifest(folder, changed)
    assert read_manifest(folder) == changed


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no manifest\.json.*dqrm-cpu prepare"):
        open_data(asked(tmp_path))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        open_data(asked(tmp_path / "nowhere"))


def rewrite(folder: Path, **changes: object) -> None:
    document = json.loads((folder / FILE_NAME).read_text())
    (folder / FILE_NAME).write_text(json.dumps({**document, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"table_rows": [1, 1, 1, 1]}, "does not match its own checksum"),
        ({"format": "x"}, "is not a manifest"),
    ],
)
def test_a_changed_manifest_is_not_believed(folder: Path, changes: dict[str, object], message: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(DataError, match=message):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"crc32": 1', "not json"])
def test_a_manifest_cut_short_is_not_believed(folder: Path, text: str) -> None:
    (folder / FILE_NAME).write_text(text)
    with pytest.raises(DataError, match="is not a manifest or was cut short"):
        read_manifest(folder)


def test_a_manifest_must_be_complete(folder: Path) -> None:
    manifest = read_manifest(folder)
    for wrong in (
        replace(manifest, table_rows=(1,)),
        replace(manifest, parts={"train": ()}),
        replace(manifest, columns=()),
    ):
        with pytest.raises(DataError, match="the manifest"):
            write_manifest(folder, wrong)
    assert set(read_manifest(folder).parts) == set(PART_NAMES)
