"""Runs whose tables have several dimensions: on ranks, resumed, packed, scored, continued, looked at."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from commands import dqrm_cpu
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config, load_config
from dqrm_cpu.data.batch import rank_shares
from dqrm_cpu.data.loader import Loader
from dqrm_cpu.data.source import open_data
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.size import model_bytes
from dqrm_cpu.train.optimizers import select_optimizer
from dqrm_cpu.train.session import open_scales
from dqrm_cpu.train.step import TrainingStep
from launching import run_world
from plain_dlrm import PlainDlrm
from several_commands import several_commands
from tiny import CPU, tiny_config

DIMS = ("--model.table-rows", "40,3,500", "--model.table-dims", "C1=4,C3=24")
SMALL = [*DIMS, "--data.train-rows", "1000", "--data.validation-rows", "200", "--data.test-rows", "200"]
SMALL += ["--train.batch-size", "50", "--train.epochs", "1", "--train.log-every", "1"]
HARDEST = ["--train.optimizer", "rowwise-adagrad", "--comm.wire", "int8", "--comm.mlp-gradients", "int8"]
HARDEST += ["--comm.error-feedback", "all", "--comm.rounding", "stochastic"]
HARDEST += ["--quant.rounding", "stochastic", "--quant.mlp-rounding", "stochastic"]
WIRES = {
    "hardest": HARDEST,
    "sparse": ["--model.interaction", "cross", "--model.cross-rank", "6"],
    "dense": ["--comm.wire", "dense", "--quant.method", "lsq"],
}


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["phase"] == "train"]


def weights(folder: Path) -> dict[str, np.ndarray]:
    last = sorted(folder.glob("checkpoints/step-*"))[-1]
    return {name: value for path in last.glob("*.safetensors") for name, value in load_file(path).items()}


def require_same(found: Path, expected: Path) -> None:
    assert losses(found) == losses(expected)
    ours, theirs = weights(found), weights(expected)
    assert {name: value.tobytes() for name, value in ours.items()} == {
        name: value.tobytes() for name, value in theirs.items()
    }


def checked(*arguments: object) -> str:
    output = dqrm_cpu(*arguments)
    assert output.returncode == 0, output.stderr
    return output.stdout


def runs(folder: Path, *options: str) -> list[list[object]]:
    return [["train", *SMALL, *wire, *options, "--run-dir", folder / name] for name, wire in WIRES.items()]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two simulated ranks."""
    folder = tmp_path_factory.mktemp("simulated")
    for command in runs(folder, "--comm.simulated-ranks", "2"):
        checked(*command)
    return folder


def test_the_tensors_are_those_of_each_dimension(simulated: Path) -> None:
    shapes = {name: value.shape for name, value in weights(simulated / "hardest").items()}
    assert [shapes[f"tables.{dim}"] for dim in (4, 16, 24)] == [(40, 4), (3, 16), (500, 24)]
    assert [shapes[f"optimizer.rows.{dim}"] for dim in (4, 16, 24)] == [(40,), (3,), (500,)]
    assert [shapes[f"feedback.tables.{dim}"] for dim in (4, 16, 24)] == [(2, 160), (2, 48), (2, 12000)]
    assert shapes["scales.step"] == (3,)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("transport", "overlap"),
    [
        ("mpi", "on"),
        pytest.param("mpi", "off", marks=pytest.mark.long),
        pytest.param("gloo", "on", marks=pytest.mark.long),
    ],
)
def test_real_ranks_come_to_the_same_bits(transport: str, overlap: str, simulated: Path, tmp_path: Path) -> None:
    """Also where the messages of all dimensions wait for their turn beside the step."""
    commands = several_commands(*runs(tmp_path, "--comm.transport", transport, "--comm.overlap", overlap))
    run_world(transport, commands, 2, timeout_s=240).check()
    for name in WIRES:
        require_same(tmp_path / name, simulated / name)


@pytest.mark.parametrize(
    "name", ["hardest", pytest.param("sparse", marks=pytest.mark.long), pytest.param("dense", marks=pytest.mark.long)]
)
def test_an_interrupted_run_goes_on_to_the_bit(name: str, simulated: Path, tmp_path: Path) -> None:
    command = ["train", *SMALL, *WIRES[name], "--comm.simulated-ranks", "2", "--run-dir", tmp_path / name]
    checked(*command, "--train.max-steps", "7")
    checked(*command, "--resume", "auto", "--train.max-steps", "20")
    require_same(tmp_path / name, simulated / name)


@pytest.mark.parametrize("optimizer", ["sgd", "rowwise-adagrad"])
def test_the_course_is_that_of_plain_torch(optimizer: str) -> None:
    """The fused update of one rank, and the sparse one of four that share the batches."""
    config = tiny_config(
        {"table_dims": "C1=3,C3=9"}, train={"optimizer": optimizer, "weight_decay": 1e-3}, data={"max_bag_size": 2}
    )
    whole, shared, plain = SmallTraining(config, 1), SmallTraining(config, 4), SmallTraining(config, 1)
    expected = plain.plain_losses(0.05)
    torch.testing.assert_close(whole.losses(0.05), expected, rtol=2e-4, atol=0)
    torch.testing.assert_close(shared.losses(0.05), expected, rtol=2e-4, atol=0)


class SmallTraining:
    """A model in FP32 and its step over so many simulated ranks."""

    STEPS = 12

    def __init__(self, config: Config, ranks: int) -> None:
        quant = load_config(None, None, {"quant.method": "none"}).quant
        self.config = tiny_config(vars(config.model), vars(quant), vars(config.train), vars(config.data))
        self.model = Dlrm(self.config, select_kernels("numba", CPU), CPU)
        self.model.initialize_(1)
        scales, optimizer = open_scales(quant, self.model), select_optimizer(config.train, self.model)
        self.loader = Loader(open_data(self.config).train, 32, rank_shares(0, 1, ranks), CPU)
        self.step = TrainingStep(self.model, scales, optimizer, SingleTransport(), ranks, -(-32 // ranks))

    def losses(self, lr: float) -> torch.Tensor:
        return torch.tensor(
            [self.step(i, self.loader.batches(i), 32, lr, stop_requested=False).loss for i in range(self.STEPS)]
        )

    def plain_losses(self, lr: float) -> torch.Tensor:
        """Of autograd, and the optimizer as its formula says; rows that no id named stay as they are."""
        plain, found = PlainDlrm(self.config, self.model), []
        sums = [torch.zeros_like(p[:, :1] if p in set(plain.tables) else p) for p in plain.parameters()]
        for i in range(self.STEPS):
            plain.zero_grad()
            loss = plain.loss(self.loader.batches(i)[0])
            loss.backward()  # type: ignore[no-untyped-call]
            found.append(loss.item())
            for parameter, summed in zip(plain.parameters(), sums, strict=True):
                self._update(parameter, summed, any(parameter is table for table in plain.tables), lr)
        return torch.tensor(found)

    def _update(self, parameter: torch.Tensor, summed: torch.Tensor, is_table: bool, lr: float) -> None:
        grad = parameter.grad
        assert grad is not None
        touched = (grad != 0).any(1, keepdim=True) if is_table else torch.ones(1)
        grad = (grad + 1e-3 * parameter.detach()) * touched
        with torch.no_grad():
            if self.config.train.optimizer == "sgd":
                parameter -= lr * grad
                return
            summed += (grad * grad).mean(1, keepdim=True) if is_table else grad * grad
            parameter -= lr * grad / (summed.sqrt() + 1e-8)


def test_a_dimension_that_all_have_is_no_other_model(tmp_path: Path) -> None:
    small = ["train", *SMALL[4:], "--model.table-rows", "40,3,500", "--train.max-steps", "5"]
    checked(*small, "--run-dir", tmp_path / "plain")
    checked(*small, "--run-dir", tmp_path / "named", "--model.table-dims", "C2=16, C1=16")
    require_same(tmp_path / "named", tmp_path / "plain")


def test_dimensions_that_rows_decide_are_those_given_one_by_one(tmp_path: Path) -> None:
    """Also resumed, and where another run begins with them: to the bit, and recorded as what they are."""
    small = ["train", "--model.table-rows", "40,3,500", *SMALL[4:]]
    auto, given = [*small, "--model.table-dims", "auto"], [*small, "--model.table-dims", "C2=8"]
    said = checked(*auto, "--run-dir", tmp_path / "auto", "--train.max-steps", "7")
    assert "table dims              C2=8; the others 16" in said
    checked(*auto, "--run-dir", tmp_path / "auto", "--resume", "auto", "--train.max-steps", "12")
    checked(*given, "--run-dir", tmp_path / "given", "--train.max-steps", "12")
    require_same(tmp_path / "auto", tmp_path / "given")
    assert 'table_dims = "C2=8"' in (tmp_path / "auto" / "config.toml").read_text()
    begun = ("--init-from", tmp_path / "auto", "--model.table-dims", "auto", "--train.max-steps", "1")
    checked("train", *begun, "--run-dir", tmp_path / "next")
    assert 'table_dims = "C2=8"' in (tmp_path / "next" / "config.toml").read_text()


@pytest.mark.parametrize("layout", ["dense", "sparse", "rowwise"])
def test_packed_files_score_as_the_run_does(layout: str, simulated: Path, tmp_path: Path) -> None:
    """Row-wise tables have other scales, and so about the same score."""
    run, path = simulated / "sparse", tmp_path / "model.safetensors"
    packed = json.loads(checked("compress", run, "--layout", layout, "--out", path, "--json"))
    scored = json.loads(checked("evaluate", "--run-dir", run, "--part", "test", "--json"))
    within = 0.05 if layout == "rowwise" else 1e-6
    assert packed["log_loss"] == pytest.approx(scored["log_loss"], abs=within)
    with safe_open(path, "numpy") as file:
        assert file.metadata()["format"] == "4"
        names = file.keys()
    assert {name for name in names if name.startswith("project.")} == {
        *("project.C1.codes", "project.C1.step", "project.C3.codes", "project.C3.step")
    }
    assert "4 to 24" in checked("compress", "--verify", path)


def test_sizes_count_what_there_is() -> None:
    """Of 500 rows of 24 values, 40 of 4 and 3 of 16, and two matrices of 16 rows."""
    config = load_config(None, None, {"model.table_rows": "40,3,500", "model.table_dims": "C1=4,C3=24"})
    plain = load_config(None, None, {"model.table_rows": "40,3,500"})
    tables = 4 * (40 * (4 - 16) + 500 * (24 - 16))
    assert model_bytes(config).fp32 - model_bytes(plain).fp32 == tables + 4 * 16 * (4 + 24)
    rows = 40 * (2 - 8) + 500 * (12 - 8)
    assert model_bytes(config).int4 - model_bytes(plain).int4 == rows + 16 * (2 + 4) + 16 * (12 + 4)
