"""Numbers that become something else than logarithms: fitted on training rows, kept, used for later days."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.data.prepare.output import fit
from dqrm_cpu.data.prepare.output.fit import given_transforms
from dqrm_cpu.data.prepare.preparation import prepare
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.schema_file import read_schema
from dqrm_cpu.data.prepare.transforms import transformed
from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import require_vocabulary, verify_vocabulary
from dqrm_cpu.data.store.manifest import Manifest, read_manifest
from dqrm_cpu.data.store.transform import Transform
from dqrm_cpu.errors import ConfigError, DataError
from preparing import prepared, request_for, rows_of

NAMES = ["click", "row", "hour", "price", "plain", "age", "rank", "visits"]
SCHEMA = """
header = true
label = "click"
delimiter = ","
categories = ["row"]
integers = ["hour", "visits"]
decimals = ["price", "plain", "age", "rank"]
[transforms]
hour = "buckets:4"
price = "standard"
plain = "identity"
rank = "quantile"
age = "log"
"""
ROWS = 210
HELD_OUT = 30


def layout_of(folder: Path, text: str = SCHEMA) -> Layout:
    (folder / "schema.toml").write_text(text)
    return read_schema(folder / "schema.toml", ",".join(NAMES))


def columns_of(seed: int = 1, held_out_factor: float = 1.0) -> dict[str, list[Any]]:
    """Random rows in which each number is missing now and then; what is held out can be made much larger."""
    generator = np.random.default_rng(seed)
    factors = np.where(np.arange(ROWS) < ROWS - HELD_OUT, 1.0, held_out_factor)

    def some(values: Any) -> list[Any]:
        gone = generator.random(ROWS) < 0.15
        return [None if missing else value for value, missing in zip(values.tolist(), gone, strict=True)]

    return {
        "click": generator.integers(0, 2, ROWS).tolist(),
        "row": [f"row {k}" for k in range(ROWS)],
        "hour": some((generator.integers(-5, 24, ROWS) * factors).astype(np.int64)),
        "price": some(np.round(generator.normal(30, 9, ROWS) * factors, 3)),
        "plain": some(np.round(generator.normal(0, 4, ROWS) * factors, 3)),
        "age": some(np.round(generator.normal(9, 20, ROWS) * factors, 3)),
        "rank": some(np.round(generator.exponential(5, ROWS) * factors, 1)),
        "visits": some(generator.integers(-2, 50, ROWS)),
    }


def write(folder: Path, columns: dict[str, list[Any]]) -> Path:
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in zip(*columns.values(), strict=True)]
    (folder / "rows.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")
    return folder / "rows.csv"


def known_of(cells: list[Any], stop: int = ROWS - HELD_OUT) -> list[float]:
    """The training values that are not missing, as float32."""
    return [float(np.float32(cell)) for cell in cells[:stop] if cell is not None]


def expected(column: str, cells: list[Any]) -> list[float]:
    """Transforms the cells of a column in plain Python: the oracle."""
    values = sorted(known_of(cells))
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    bounds = sorted({values[math.ceil(k * len(values) / 4) - 1] for k in (1, 2, 3)})

    def one(cell: Any) -> float:
        if cell is None:
            return 0.5 if column == "rank" else 0.0
        value = float(np.float32(cell))
        if column == "hour":
            return 1 + sum(value >= bound for bound in bounds)
        if column == "price":
            return (value - mean) / deviation
        if column == "rank":
            return rank_of(values, value)
        return value if column == "plain" else math.log(max(cell, 0) + 1)

    return [one(cell) for cell in cells]


def rank_of(values: list[float], value: float) -> float:
    """The middle of the lowest and the highest rank that a value has in the rising line through the sorted values."""
    if value <= values[0] or value >= values[-1]:
        ends = [k for k, other in enumerate(values) if other == value]
        return sum((ends[0], ends[-1])) / 2 / (len(values) - 1) if ends else float(value > values[-1])
    places = np.arange(len(values)) / (len(values) - 1)
    ends = [k for k, other in enumerate(values) if other == value]
    return float(places[ends[0]] + places[ends[-1]]) / 2 if ends else float(np.interp(value, values, places))


def by_row(out: Path) -> dict[int, tuple[list[float], list[int]]]:
    """Dense values and ids of every row, by its number in the raw file."""
    keys = np.load(out / "vocabulary" / "000.npy")
    rows: dict[int, tuple[list[float], list[int]]] = {}
    for part in ("train", "test", "validation"):
        _, dense, ids = rows_of(out, part)
        rows |= {int(i[0]) - 1: (d.tolist(), i.tolist()) for d, i in zip(dense, ids, strict=True)}
    assert len(rows) <= keys.size
    return rows


def require_rows(out: Path, manifest: Manifest, columns: dict[str, list[Any]]) -> None:
    assert manifest.schema.dense == ("price", "plain", "age", "rank", "visits")
    assert manifest.schema.categorical == ("row", "hour")
    wanted = {name: expected(name, columns[name]) for name in NAMES[2:]}
    rows = by_row(out)
    for k in range(ROWS):
        dense, ids = rows[k]
        for name, value in zip(manifest.schema.dense, dense, strict=True):
            # A quantile is looked up between 1,025 knots.
            tolerance = 2e-3 if name == "rank" else 1e-5
            assert value == pytest.approx(wanted[name][k], rel=1e-5, abs=tolerance), (k, name)
        assert ids[1] == wanted["hour"][k], k
    for statistics in manifest.columns:
        cells = columns[statistics.name]
        assert statistics.missing == sum(cell is None for cell in cells)
        negative = sum(cell is not None and cell < 0 for cell in cells) if statistics.name in ("age", "visits") else 0
        assert (statistics.clamped or 0) == negative
        if statistics.name in ("price", "hour"):
            known = known_of(cells, ROWS)
            assert (statistics.minimum, statistics.maximum) == (min(known), max(known))
            assert statistics.mean == pytest.approx(sum(known) / len(known))


def test_every_transform_does_what_plain_python_does(tmp_path: Path) -> None:
    columns = columns_of()
    manifest = prepared([write(tmp_path, columns)], tmp_path / "out", layout=layout_of(tmp_path))
    require_rows(tmp_path / "out", manifest, columns)
    assert read_manifest(tmp_path / "out") == manifest
    assert verify_vocabulary(tmp_path / "out", manifest) == []
    assert manifest.table_rows[1] <= 5


def test_parquet_blocks_and_workers_give_the_same_bytes(tmp_path: Path) -> None:
    columns, layout = columns_of(), layout_of(tmp_path)
    whole = prepared([write(tmp_path, columns)], tmp_path / "whole", layout=layout, block_bytes=1 << 20)
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    for name, source, workers in (("text", "rows.csv", 1), ("parquet", "rows.parquet", 2)):
        manifest = prepared([tmp_path / source], tmp_path / name, layout=layout, block_bytes=512, workers=workers)
        assert manifest.digest() == whole.digest()
        assert (manifest.transforms, manifest.columns) == (whole.transforms, whole.columns)
        assert manifest.identity == whole.identity


def test_rows_that_are_held_out_decide_nothing(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    first = prepared([write(tmp_path, columns_of())], tmp_path / "a", layout=layout)
    columns = columns_of(held_out_factor=1e6)
    second = prepared([write(tmp_path, columns)], tmp_path / "b", layout=layout)
    assert first.transforms == second.transforms
    require_rows(tmp_path / "b", second, columns)


def test_a_sample_of_many_rows_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, source = layout_of(tmp_path), write(tmp_path, columns_of())
    every = prepared([source], tmp_path / "every", layout=layout)
    monkeypatch.setattr(fit, "SAMPLE_ROWS", 90)
    some = prepared([source], tmp_path / "some", layout=layout)
    again = prepared([source], tmp_path / "again", layout=layout, block_bytes=300)
    assert some.transforms == again.transforms != every.transforms
    means = [next(t for t in manifest.transforms if t.name == "price").numbers[0] for manifest in (every, some)]
    assert means[1] == pytest.approx(means[0], abs=4 * 9 / math.sqrt(90))


def test_later_days_go_through_the_transforms_of_the_first(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    columns = columns_of()
    first = prepared([write(tmp_path, columns)], tmp_path / "first", layout=layout)
    for directory in (tmp_path / "first", tmp_path / "first" / "vocabulary"):
        transforms = given_transforms(directory, layout)
        assert transforms == first.transforms
    # Rows of other sizes, of which only those that are the same as on the first day can be compared.
    later = {name: cells[-HELD_OUT:] for name, cells in columns_of(seed=1, held_out_factor=1.0).items()}
    request = request_for(
        [write(tmp_path, later)], tmp_path / "later", layout=layout, split="none",
        vocabulary=require_vocabulary(tmp_path / "first", layout, 0),
    )  # fmt: skip
    second = prepare(replace(request, settings=replace(request.settings, transforms=transforms)))
    assert (second.transforms, second.identity) == (first.transforms, first.identity)
    before, after = by_row(tmp_path / "first"), by_row(tmp_path / "later")
    assert len(after) == HELD_OUT
    assert all(after[k] == before[k] for k in range(ROWS - HELD_OUT, ROWS))


def test_another_transform_than_that_of_the_vocabulary_is_refused(tmp_path: Path) -> None:
    prepared([write(tmp_path, columns_of())], tmp_path / "first", layout=layout_of(tmp_path))
    other = layout_of(tmp_path, SCHEMA.replace('price = "standard"', 'price = "quantile"'))
    with pytest.raises(DataError, match="transforms price by standard, the schema by quantile"):
        given_transforms(tmp_path / "first", other)
    coarse = layout_of(tmp_path, SCHEMA.replace("buckets:4", "buckets:3"))
    with pytest.raises(DataError, match="transforms hour by buckets:4, the schema by buckets:3"):
        given_transforms(tmp_path / "first", coarse)
    plain = layout_of(tmp_path, SCHEMA.partition("[transforms]")[0])
    with pytest.raises(DataError, match=r"by .*, the schema by log"):
        given_transforms(tmp_path / "first", plain)
    (tmp_path / "first" / "manifest.json").unlink()
    with pytest.raises(DataError, match="no manifest beside its vocabulary"):
        given_transforms(tmp_path / "first", other)
    assert given_transforms(tmp_path / "first", plain) is None


def test_transforms_are_part_of_the_identity_of_data(tmp_path: Path) -> None:
    source = write(tmp_path, columns_of())
    texts = (SCHEMA, SCHEMA.replace('plain = "identity"\n', ""), SCHEMA.replace('price = "standard"', 'price = "log"'))
    manifests = [
        prepared([source], tmp_path / f"{k}", layout=layout_of(tmp_path, text)) for k, text in enumerate(texts)
    ]
    assert len({str(manifest.identity) for manifest in manifests}) == 3


def test_a_column_without_any_value_and_one_with_a_single_value_go_through(tmp_path: Path) -> None:
    columns = columns_of()
    for name in ("hour", "price", "rank"):
        columns[name] = [None] * ROWS
    manifest = prepared([write(tmp_path, columns)], tmp_path / "none", layout=layout_of(tmp_path))
    dense, ids = next(iter(by_row(tmp_path / "none").values()))
    assert (dense[0], dense[3], ids[1], manifest.table_rows[1]) == (0.0, 0.5, 0, 2)
    assert next(column for column in manifest.columns if column.name == "price").mean is None
    for name in ("hour", "price", "rank"):
        columns[name] = [7] * ROWS
    prepared([write(tmp_path, columns)], tmp_path / "one", layout=layout_of(tmp_path))
    dense, ids = next(iter(by_row(tmp_path / "one").values()))
    assert (dense[0], dense[3], ids[1]) == (0.0, 0.5, 2)


def test_an_outlier_behind_a_column_that_hardly_changes_stays_finite() -> None:
    values = np.array([1e30, -1e30, np.nan], np.float32)
    largest = np.finfo(np.float32).max
    for deviation in (1e-9, 1e-300):
        standard = Transform("price", "standard", (0.0, deviation))
        assert transformed(standard, values).tolist() == [largest, -largest, 0.0]


def test_numbers_may_be_the_only_categories(tmp_path: Path) -> None:
    text = SCHEMA.replace('categories = ["row"]', "")
    manifest = prepared([write(tmp_path, columns_of())], tmp_path / "out", layout=layout_of(tmp_path, text))
    assert manifest.schema.categorical == ("hour",)
    assert rows_of(tmp_path / "out", "train")[2].max() == manifest.table_rows[0] - 1


def test_buckets_stand_beside_hashed_and_rare_categories(tmp_path: Path) -> None:
    from dqrm_cpu.data.prepare.request import VocabularySettings

    source, layout = write(tmp_path, columns_of()), layout_of(tmp_path)
    plain = prepared([source], tmp_path / "plain", layout=layout)
    hashing = VocabularySettings("hash", hash_rows=50)
    hashed = prepared([source], tmp_path / "hashed", layout=layout, vocabulary=hashing)
    assert hashed.table_rows == (50, plain.table_rows[1])
    rare = prepared([source], tmp_path / "rare", layout=layout, vocabulary=VocabularySettings(min_count=2))
    assert rare.table_rows == (1, plain.table_rows[1])
    buckets = [rows_of(tmp_path / name, "test")[2][:, 1].tolist() for name in ("plain", "hashed", "rare")]
    assert buckets[0] == buckets[1] == buckets[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("price", "prize"), "transforms 'prize', which is none of its integers and decimals"),
        (("price", "row"), "transforms 'row', which is none"),
        (
            ('"standard"', '"normal"'),
            "is transformed by 'normal'; there are log, identity, standard, quantile, buckets",
        ),
        (('"standard"', '"standard:3"'), "by 'standard:3'"),
        (('"buckets:4"', '"buckets:1"'), "with 2 to 4,096"),
        (('"buckets:4"', '"buckets:many"'), "with 2 to 4,096"),
        (('"standard"', "3"), "is transformed by 3"),
    ],
)
def test_mistakes_in_transforms_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    head, table = SCHEMA.split("[transforms]")
    with pytest.raises(ConfigError, match=message):
        layout_of(tmp_path, f"{head}[transforms]{table.replace(*change)}")


@given(
    knots=st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=9).map(sorted),
    values=st.lists(st.floats(-7, 7, width=32) | st.just(math.nan), min_size=1),
)
def test_quantiles_rise_with_the_values(knots: list[float], values: list[float]) -> None:
    array = np.sort(np.array(values, np.float32))  # NaN last
    ranks = transformed(Transform("x", "quantile", tuple(knots)), array)
    assert ((ranks >= 0) & (ranks <= 1)).all()
    known = ranks[~np.isnan(array)]
    assert (np.diff(known) >= 0).all()
    assert (ranks[np.isnan(array)] == 0.5).all()


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("standard", (1.0,)),
        ("standard", (1.0, 0.0)),
        ("quantile", ()),
        ("quantile", (2.0, 1.0)),
        ("buckets", (1.0, math.nan)),
        ("identity", (1.0,)),
        ("other", ()),
    ],
)
def test_numbers_that_cannot_be_are_refused(kind: str, numbers: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="whose numbers cannot be"):
        Transform("price", kind, numbers)
