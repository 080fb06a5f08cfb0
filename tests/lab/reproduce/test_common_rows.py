"""A prepared data set without its rare categories: every value of its rows, against counting by hand."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_experiment import EXPERIMENT, FP32, TINY

from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.store.manifest import Manifest, read_manifest
from dqrm_cpu.data.store.stored_rows import StoredRows
from dqrm_cpu.lab.reproduce.pareto.common_rows import common_rows
from dqrm_cpu.lab.reproduce.plan import ReproduceRequest, plan
from stored import write_generated

TABLES = (40, 3, 500)
ROWS = {"train": 300, "validation": 80, "test": 90}
FIRST = {"train": 250, "validation": 80, "test": 60}


@pytest.fixture(scope="module", params=[1, 3], ids=["ids", "bags"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Manifest]:
    """A data set, and what is left of it with a count of 4."""
    folder, out = tmp_path_factory.mktemp("all"), tmp_path_factory.mktemp("common") / "rows"
    write_generated(folder, TABLES, ROWS, request.param, weights=lambda dense: dense[:, 0] + 1)
    return folder, out, common_rows(folder, read_manifest(folder), FIRST, 4, out)


@pytest.mark.parametrize("part", ROWS)
def test_rare_ids_are_0_and_all_else_stays(written: tuple[Path, Path, Manifest], part: str) -> None:
    folder, out, manifest = written
    before = StoredRows(folder, read_manifest(folder), part).rows(0, FIRST[part])
    after = StoredRows(out, manifest, part).rows(0, FIRST[part])
    train = StoredRows(folder, read_manifest(folder), "train").rows(0, FIRST["train"])
    assert torch.equal(before.dense, after.dense)
    assert torch.equal(before.label, after.label)
    assert before.weight is not None
    assert after.weight is not None
    assert torch.equal(before.weight, after.weight)
    for table in range(len(TABLES)):
        counts = Counter(cells(train, table))
        common = sorted({0} | {one for one, count in counts.items() if count >= 4})
        expected = [common.index(one) if one in common else 0 for one in cells(before, table)]
        assert cells(after, table) == expected
        assert manifest.table_rows[table] == len(common)


def cells(batch: Batch, table: int) -> list[int]:
    """All ids of a table, row by row."""
    if batch.offsets is None:
        return [int(one) for one in batch.ids[table]]
    bounds = batch.offsets[[table * batch.size, (table + 1) * batch.size]].tolist()
    return [int(one) for one in batch.ids[bounds[0] : bounds[1]]]


def test_they_are_written_once(written: tuple[Path, Path, Manifest]) -> None:
    folder, out, manifest = written
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert common_rows(folder, read_manifest(folder), FIRST, 4, out).digest() == manifest.digest()
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_count_of_one_leaves_all_ids_of_training_rows(tmp_path: Path) -> None:
    write_generated(tmp_path, TABLES, ROWS)
    manifest = common_rows(tmp_path, read_manifest(tmp_path), ROWS, 1, tmp_path / "out")
    train = StoredRows(tmp_path, read_manifest(tmp_path), "train").rows(0, ROWS["train"])
    assert manifest.table_rows == tuple(len(np.unique(np.append(ids, 0))) for ids in train.ids.numpy())


def test_a_plan_trains_on_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_generated(tmp_path / "data", TABLES, ROWS)
    few = replace(FP32, name="few", settings={**FP32.settings, "data.min_count": 4})
    experiment = replace(EXPERIMENT, variants=(FP32, few))
    request = ReproduceRequest(TINY, str(tmp_path / "data"), (1,), tmp_path / "out")
    (planned,) = plan([experiment], request)
    plain, filtered = (cell.jobs[0] for cell in planned.cells)
    assert Path(filtered.config.data.source).parent == tmp_path / "out" / "data"
    assert sum(filtered.config.model.table_rows) < sum(plain.config.model.table_rows)
    assert filtered.key != plain.key
