"""Raw rows go through the transforms that were fitted on the training rows, as prepared ones have."""

from pathlib import Path

import numpy as np
import pytest

from dqrm_cpu.data.prepare.recorded_layout import recorded_layout
from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.errors import DataError
from scoring import SMALL, succeed
from test_predict_rows import predicted

SCHEMA = """
header = true
delimiter = ","
label = "bought"
categories = ["shop"]
integers = ["hour"]
decimals = ["price", "age", "visits", "weight"]
[transforms]
hour = "buckets:6"
weight = "buckets:5"
price = "standard"
age = "quantile"
visits = "identity"
"""
ROWS = 1400


def lines_of(seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    hour, shop = generator.integers(0, 24, ROWS), generator.integers(0, 30, ROWS)
    price, age, visits, weight = generator.normal(0, 1, (4, ROWS)).round(3)
    bought = generator.random(ROWS) < 1 / (1 + np.exp(-(price + np.cos(hour / 4) + weight)))
    cells = (bought.astype(int), shop, hour, price * 9 + 30, age, visits, weight)
    lines = [",".join(map(str, row)) for row in zip(*(column.tolist() for column in cells), strict=True)]
    return [line.replace(",0.0", ",") for line in lines]  # some are missing


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformed")
    (folder / "rows.csv").write_text("\n".join(["bought,shop,hour,price,age,visits,weight", *lines_of(1)]) + "\n")
    (folder / "schema.toml").write_text(SCHEMA)
    options = ("--schema", folder / "schema.toml", "--out", folder / "data")
    succeed("prepare", folder / "rows.csv", *options)
    succeed("train", "--data", folder / "data", "--run-dir", folder / "run", *SMALL)
    return folder


def test_raw_and_prepared_rows_get_the_same_probabilities(trained: Path, tmp_path: Path) -> None:
    prepared = predicted(trained / "run", trained / "data", "--part", "validation", out=tmp_path / "prepared.csv")
    raw = tmp_path / "rows.csv"
    # Columns in another order, without the label, and with one that nobody knows.
    rows = [line.split(",") for line in lines_of(1)[-prepared.size :]]
    table = [["price", "unknown", "weight", "hour", "visits", "shop", "age"]]
    table += [[price, "x", weight, hour, visits, shop, age] for _, shop, hour, price, age, visits, weight in rows]
    raw.write_text("".join(",".join(row) + "\n" for row in table))
    found = predicted(trained / "run", raw, out=tmp_path / "raw.csv")
    np.testing.assert_allclose(found, prepared, rtol=1e-6, atol=1e-8)
    assert np.ptp(found) > 0.05


def test_later_days_can_be_evaluated_with_the_first_ones_transforms(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "later.csv").write_text("\n".join(["bought,shop,hour,price,age,visits,weight", *lines_of(2)]) + "\n")
    options = ("--schema", trained / "schema.toml", "--vocabulary", trained / "data")
    succeed("prepare", tmp_path / "later.csv", *options, "--out", tmp_path / "later")
    assert "auc" in succeed("evaluate", "--run-dir", trained / "run", "--data", tmp_path / "later").lower()
    manifests = [read_manifest(folder) for folder in (trained / "data", tmp_path / "later")]
    assert manifests[0].transforms == manifests[1].transforms
    assert manifests[0].identity == manifests[1].identity


def test_a_manifest_without_its_transforms_is_no_layout(trained: Path) -> None:
    from dataclasses import replace

    manifest = read_manifest(trained / "data")
    assert recorded_layout(trained / "data", manifest).schema == manifest.schema
    with pytest.raises(DataError, match="is not that of its columns"):
        recorded_layout(trained / "data", replace(manifest, transforms=manifest.transforms[1:]))
