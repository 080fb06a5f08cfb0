"""Whole runs over every transport: the same losses and weights to the bit for the same wire."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from commands import dqrm_cpu
from dqrm_cpu.base.hardware import fingerprint, has_int8_products
from launching import run_world
from several_commands import several_commands

pytestmark = pytest.mark.mpi

SMALL = ["--model.table-rows", "40,3,500", "--data.train-rows", "1000", "--train.batch-size", "50"]
SMALL += ["--data.validation-rows", "200", "--data.test-rows", "200", "--train.epochs", "1", "--train.log-every", "1"]
PRODUCTS = "int8" if has_int8_products(fingerprint().isa) else "fp32"
WIRES = {
    "int8-fp32": ["--comm.wire", "int8-fp32", "--train.precision", PRODUCTS],
    "int8": ["--comm.wire", "int8", "--comm.mlp-gradients", "int8", "--comm.error-feedback", "mlp"],
}
WIRES["int8, cross layers"] = [*WIRES["int8"], "--model.interaction", "cross", "--model.cross-rank", "6"]


def runs(folder: Path, *options: str) -> list[list[str | Path]]:
    """A command for each wire, whose run is in the folder of its name."""
    common = ["train", "--preset", "demo", *SMALL, *options]
    return [[*common, *settings, "--run-dir", folder / wire] for wire, settings in WIRES.items()]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, np.ndarray]:
    (last,) = sorted(folder.glob("checkpoints/step-*"))[-1:]
    return {
        f"{path.name}.{name}": value for path in last.glob("*.safetensors") for name, value in load_file(path).items()
    }


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    for command in runs(folder, "--comm.transport", "sim", "--comm.simulated-ranks", "2"):
        assert dqrm_cpu(*command).returncode == 0
    return folder


@pytest.mark.parametrize("transport", ["oneccl", "mpi", "gloo"])
def test_losses_and_weights_do_not_depend_on_the_transport(transport: str, simulated: Path, tmp_path: Path) -> None:
    commands = several_commands(*runs(tmp_path, "--comm.transport", transport))
    run_world(transport, commands, 2, timeout_s=120).check()
    for wire in WIRES:
        chosen = json.loads((tmp_path / wire / "environment.json").read_text())["transport"]
        assert chosen["name"] == transport
        assert chosen["reason"].startswith(f"{transport} was asked for")
        assert len(losses(simulated / wire)) > 20
        assert losses(tmp_path / wire) == losses(simulated / wire)
        expected, found = weights(simulated / wire), weights(tmp_path / wire)
        assert expected
        assert {name: value.tobytes() for name, value in found.items()} == {
            name: value.tobytes() for name, value in expected.items()
        }
