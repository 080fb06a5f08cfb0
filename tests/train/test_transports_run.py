"""Whole runs over every transport: the same losses and weights to the bit for the same wire."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from launching import run_mpi, run_world

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

SMALL = ["--model.table-rows", "40,3,500", "--data.train-rows", "1000", "--train.batch-size", "50"]
SMALL += ["--data.validation-rows", "200", "--data.test-rows", "200", "--train.epochs", "1", "--train.log-every", "1"]
WIRES = {
    "int8-fp32": ["--comm.wire", "int8-fp32"],
    "int8": ["--comm.wire", "int8", "--comm.mlp-gradients", "int8", "--comm.error-feedback", "mlp"],
}


def train(wire: str, folder: Path) -> list[str | Path]:
    return ["-m", "dqrm_cpu", "train", "--preset", "demo", *SMALL, *WIRES[wire], "--run-dir", folder]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, np.ndarray]:
    (last,) = sorted(folder.glob("checkpoints/step-*"))[-1:]
    return {
        f"{path.name}.{name}": value for path in last.glob("*.safetensors") for name, value in load_file(path).items()
    }


@pytest.mark.parametrize("wire", WIRES)
def test_losses_and_weights_do_not_depend_on_the_transport(wire: str, tmp_path: Path) -> None:
    alone = tmp_path / "sim"
    simulated = ["--comm.transport", "sim", "--comm.simulated-ranks", "2"]
    run_mpi([*train(wire, alone), *simulated], 1, timeout_s=120).check()
    assert len(losses(alone)) > 20
    for transport in ("oneccl", "mpi", "gloo"):
        folder = tmp_path / transport
        run_world(transport, [*train(wire, folder), "--comm.transport", transport], 2, timeout_s=120).check()
        chosen = json.loads((folder / "environment.json").read_text())["transport"]
        assert chosen["name"] == transport
        assert chosen["reason"].startswith(f"{transport} was asked for")
        assert losses(folder) == losses(alone)
        expected = weights(alone)
        found = weights(folder)
        assert expected
        assert {name: value.tobytes() for name, value in found.items()} == {
            name: value.tobytes() for name, value in expected.items()
        }
