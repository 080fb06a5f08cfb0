"""Runs whose tables training keeps in fewer bits: their sizes, resumed to the bit, scored, and what refuses them."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands import dqrm_cpu
from dqrm_cpu.comm.sharding.placement import table_loads
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.model.size import estimate_memory
from dqrm_cpu.predict.scorer import load_weights
from dqrm_cpu.predict.trained_model import find_model
from dqrm_cpu.train.checkpoint_files import load_checkpoint, write_folder
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.checkpoint_manifest import read_manifest
from dqrm_cpu.train.checkpoint_rows import RowReader
from dqrm_cpu.train.checkpoint_shard import DamagedCheckpointError
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.state import Result
from tiny import tiny_config

FORMS = ("bf16", "int8")
DTYPES = {"bf16": "bfloat16", "int8": "uint8"}
CUT = 25


def config_of(form: str) -> Config:
    return tiny_config(
        train={"master_rows": form, "optimizer": "rowwise-adagrad", "learning_rate": 0.05, "evaluate_every": 20}
    )


def run(config: Config, folder: Path, resume: bool = False) -> Result:
    outcome = train(config, RunRequest(folder, resume, {}, io.StringIO()), SingleTransport())
    assert isinstance(outcome, Result)
    return outcome


def last(folder: Path) -> Path:
    return find_checkpoint(checkpoints_folder(folder), "last")


def bits_of(path: Path) -> dict[str, bytes]:
    into = {
        name: torch.empty(info.shape, dtype=getattr(torch, info.dtype))
        for name, info in read_manifest(path).tensors.items()
    }
    load_checkpoint(path, into)
    return {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in into.items() if tensor.dim()}


@pytest.fixture(scope="module", params=FORMS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Result]:
    folder = tmp_path_factory.mktemp("rows") / request.param
    return request.param, folder, run(config_of(request.param), folder)


def test_a_resumed_run_has_the_bits_of_one_that_was_not(whole: tuple[str, Path, Result], tmp_path: Path) -> None:
    form, folder, result = whole
    config = config_of(form)
    run(replace(config, train=replace(config.train, max_steps=CUT)), tmp_path / "run")
    resumed = run(config, tmp_path / "run", resume=True)
    assert bits_of(last(tmp_path / "run")) == bits_of(last(folder))
    assert resumed.test.last == result.test.last


def test_a_checkpoint_has_the_rows_as_they_are_in_memory(whole: tuple[str, Path, Result]) -> None:
    form, folder, _ = whole
    path = last(folder)
    manifest = read_manifest(path)
    assert manifest.tensors["tables"] == (DTYPES[form], (543, 7 if form == "int8" else 6))
    assert json.loads((path / "state.json").read_text())["body"]["format"] == 2
    values = RowReader(path).read("tables", 40, 3)
    assert values.shape == (3, 6)
    assert 0 < abs(values).max() < 10


def test_it_is_scored_as_it_was_trained(whole: tuple[str, Path, Result]) -> None:
    _, folder, result = whole
    done = dqrm_cpu("evaluate", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["auc"] == result.test.best.auc


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_the_packed_file_holds_what_was_scored(whole: tuple[str, Path, Result], layout: str) -> None:
    _, folder, _ = whole
    model, scale = load_weights(find_model(folder))
    packed, _ = load_weights(find_model(folder / "packed" / f"{layout}.safetensors"))
    assert model.table_formula is not None
    for t, rows in enumerate((40, 3, 500)):
        expected = model.table_formula.values(model.groups.values(t, 0, rows), scale[t])
        assert torch.allclose(packed.groups.weights[t], expected, rtol=1e-6)


def test_compress_refuses_it(whole: tuple[str, Path, Result]) -> None:
    form, folder, _ = whole
    done = dqrm_cpu("compress", folder)
    assert done.returncode == 2
    assert f"{folder} has train.master_rows {form}" in done.stderr


def test_a_run_does_not_go_on_in_another_form(whole: tuple[str, Path, Result]) -> None:
    form, folder, _ = whole
    done = dqrm_cpu("train", "--run-dir", folder, "--resume", "auto", "--train.master-rows", "fp32")
    assert done.returncode != 0
    assert f"train.master_rows {form}" in done.stderr.replace(chr(34), "")


@pytest.mark.parametrize(("form", "parts"), [("fp32", 64), ("bf16", 32), ("int8", 17)])
def test_the_estimate_knows_the_bytes_of_a_row(form: str, parts: int) -> None:
    config = tiny_config({"embedding_dim": 16, "bottom_mlp": (9, 16)}, train={"master_rows": form})
    assert estimate_memory(config).parts["tables"] == 543 * parts
    assert [load.row_bytes for load in table_loads(config)] == [parts] * 3


def test_a_row_without_a_finite_scale_is_damage(tmp_path: Path) -> None:
    rows = torch.ones(4, 7, dtype=torch.uint8)
    rows[2, -1] = 255
    write_folder(tmp_path, 1, {"tables": rows}, {}, False, 1 << 20)
    with pytest.raises(DamagedCheckpointError, match="holds NaN or infinite numbers"):
        load_checkpoint(tmp_path, {"tables": torch.empty_like(rows)})
    with pytest.raises(CheckpointError, match="tables is uint8"):
        load_checkpoint(tmp_path, {"tables": torch.empty(4, 6)})
