"""Rows that say how often they count: read with their rows, trained on and scored with, over any number of ranks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dqrm_cpu.cli.main import main
from dqrm_cpu.data.batch import rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import open_data
from dqrm_cpu.data.store.manifest import FILE_NAME, read_manifest
from dqrm_cpu.data.store.schema import Schema, identity_of_hashing
from dqrm_cpu.errors import DataError
from launching import run_world
from stored import config_of, write_generated
from tiny import CPU

TABLES = (40, 3, 500)
SIZES = {"train": 1300, "validation": 400, "test": 300}
SMALL = {
    "model.embedding-dim": "6",
    "model.bottom-mlp": "9,6",
    "model.top-mlp": "11,1",
    "train.batch-size": "50",
    "train.epochs": "1",
    "train.log-every": "1",
    "train.threads": "1",
}


def of_dense(dense: NDArray[np.float32]) -> NDArray[np.float32]:
    """A weight from 0 to 3.75 that follows from the row, so that a test knows which it must be."""
    weights: NDArray[np.float32] = (np.round(dense[:, 0] * 16) % 16 / 4).astype(np.float32)
    return weights


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weighted")
    write_generated(folder, TABLES, SIZES, weights=of_dense)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write_generated(folder, TABLES, SIZES)
    return folder


def options(data: Path, run_dir: Path, *more: str) -> list[str]:
    settings = [text for key, value in SMALL.items() for text in (f"--{key}", value)]
    return ["train", "--data", str(data), "--run-dir", str(run_dir), *settings, *more]


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of losses and metrics."""
    keys = ("step", "phase", "loss", "auc", "log_loss", "normalized_entropy", "calibration", "accuracy")
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{key: line.get(key) for key in keys} for line in lines]


@pytest.mark.parametrize("data", [{}, {"reshuffle": True}, {"sub_sample_rate": 0.5}])
@pytest.mark.parametrize("max_bag_size", [1, 3])
def test_every_row_comes_with_its_weight(data: dict[str, Any], max_bag_size: int, tmp_path: Path) -> None:
    write_generated(tmp_path, TABLES, SIZES, max_bag_size, weights=of_dense)
    config = config_of(tmp_path, **data)
    assert config.model.num_dense == 13
    loader = Loader(open_data(config).train, 64, rank_shares(0, 1, 2), CPU)
    assert loader.is_weighted
    assert loader.column_names["weight"] == "w"
    for number in range(2 * loader.num_batches):
        for batch in loader.batches(number):
            assert batch.dense.shape == (batch.size, 13)
            assert batch.weight is not None
            assert batch.weight.tolist() == of_dense(batch.dense.numpy()).tolist()
            some = torch.arange(batch.size) % 3 == 0
            for part, chosen in ((batch.copied(), slice(None)), (batch.only(some), some)):
                assert part.weight is not None
                assert torch.equal(part.weight, batch.weight[chosen])


def test_rows_without_weights_have_none(plain: Path) -> None:
    loader = Loader(open_data(config_of(plain)).train, 64, rank_shares(0, 1, 1), CPU)
    assert (loader.is_weighted, loader.batches(0)[0].weight) == (False, None)
    assert "weight" not in json.loads((plain / FILE_NAME).read_text())["schema"], "earlier versions read it"


def test_weights_are_no_part_of_what_ids_mean(plain: Path, weighted: Path) -> None:
    schemas = [read_manifest(folder).schema for folder in (plain, weighted)]
    identities = {str(identity_of_hashing(schema, 32, 0, 100)) for schema in schemas}
    assert len(identities) == 1
    assert schemas[1] == Schema((*schemas[0].dense, "w"), schemas[0].categorical, "w")


@pytest.mark.parametrize(("dense", "weight"), [(("a", "w"), "b"), (("w", "a"), "w"), (("w",), "w")])
def test_weights_are_the_last_of_several_dense_columns(dense: tuple[str, ...], weight: str) -> None:
    with pytest.raises(DataError, match="they stand in the last of several dense columns"):
        Schema(dense, ("c",), weight)


def test_two_data_sets_that_differ_in_what_is_a_weight_have_other_names(weighted: Path) -> None:
    manifest = read_manifest(weighted)
    assert manifest.digest() != replace(manifest, schema=replace(manifest.schema, weight="")).digest()


@pytest.fixture(scope="module")
def trained(weighted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two simulated ranks."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(options(weighted, folder, "--comm.simulated-ranks", "2")) == 0
    return folder


def test_real_ranks_give_the_bits_of_simulated_ones(trained: Path, weighted: Path, tmp_path: Path) -> None:
    command = ["-m", "dqrm_cpu", *options(weighted, tmp_path / "run", "--comm.transport", "gloo")]
    run_world("gloo", command, 2, timeout_s=200).check()
    assert rows_of(tmp_path / "run") == rows_of(trained)


def evaluated(run_dir: Path, data: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", "--run-dir", str(run_dir), "--data", str(data), "--json", *more]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def constant(weight: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda dense: np.full(len(dense), weight, np.float32)


def test_weights_of_one_train_and_score_as_no_weights(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "ones").mkdir()
    write_generated(tmp_path / "ones", TABLES, SIZES, weights=constant(1.0))
    for data, run_dir in ((plain, tmp_path / "a"), (tmp_path / "ones", tmp_path / "b")):
        assert main(options(data, run_dir)) == 0
    without, ones = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert [row["loss"] for row in ones if row["phase"] == "train"] == [
        row["loss"] for row in without if row["phase"] == "train"
    ]
    for one, other in zip(ones, without, strict=True):
        assert (one.pop("step"), one.pop("phase")) == (other.pop("step"), other.pop("phase"))
        assert one == {key: None if value is None else pytest.approx(value, rel=1e-12) for key, value in other.items()}


def test_evaluate_weighs_rows_in_everything_that_it_computes(
    trained: Path, weighted: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--group-by", "C1", "--slice-by", "C1", "--slices", "1", "--part", "test"]
    found, unweighted = (evaluated(trained, data, capsys, *wanted) for data in (weighted, plain))
    assert found["examples"] == unweighted["examples"] == 300
    for key in ("auc", "log_loss", "calibration", "normalized_entropy"):
        assert found[key] != pytest.approx(unweighted[key], rel=1e-6)
    assert found["grouped"]["gauc"] != pytest.approx(unweighted["grouped"]["gauc"], rel=1e-6)
    assert found["slices"]["values"][0]["log_loss"] != unweighted["slices"]["values"][0]["log_loss"]
    expected = json.loads((trained / "result.json").read_text())["test"]["best"]
    assert {key: found[key] for key in expected} == expected


def test_calibrated_probabilities_fit_the_weighted_rows(
    trained: Path, weighted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for how in ("platt", "isotonic"):
        found = evaluated(trained, weighted, capsys, "--part", "validation", "--calibrate", how)
        assert found["calibration"] == pytest.approx(1, abs=0.02)
