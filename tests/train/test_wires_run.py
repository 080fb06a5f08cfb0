"""Whole runs over the wires: settings reach the step, feedback survives an interruption, bytes are in the rows."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import dqrm_cpu
from dqrm_cpu.comm.exchange.gradient_exchange import GradientShape, TableShape, open_exchange
from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.comm.transports.selection import _OPENERS
from dqrm_cpu.config import Config
from dqrm_cpu.config.rules import conflicts
from dqrm_cpu.config.schema import SETTINGS, TRANSPORTS
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import SparseGrad
from dqrm_cpu.train.metrics_row import StepTimes
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.session import exchange_settings
from dqrm_cpu.train.state import Result
from launching import run_world
from several_commands import several_commands
from tiny import tiny_config

EXCHANGE_SETTINGS = [
    "wire",
    "scale_reduce",
    "mlp_gradients",
    "error_feedback",
    "simulated_scale",
    "rounding",
    "overlap",
]
"""The comm settings with choices, but for the transport."""

SMALL = ["--model.table-rows", "40,3,500", "--data.train-rows", "1000", "--train.batch-size", "50"]
SMALL += ["--data.validation-rows", "200", "--data.test-rows", "200", "--train.epochs", "1", "--train.log-every", "5"]


def config_with(max_steps: int, **comm: Any) -> Config:
    config = tiny_config(train={"max_steps": max_steps, "checkpoint_every": 7})
    return replace(config, comm=replace(config.comm, **comm))


def run(config: Config, folder: Path, resume: bool = False, *, asked: frozenset[str] = frozenset()) -> Result:
    result = train(config, RunRequest(folder, resume, {}, io.StringIO(), asked), SingleTransport())
    assert isinstance(result, Result)
    return result


def rows(folder: Path, phase: str) -> list[dict[str, float | None]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["phase"] == phase]


def losses(folder: Path) -> dict[float | None, float | None]:
    return {row["step"]: row["loss"] for row in rows(folder, "train")}


@pytest.mark.parametrize(
    ("batch_size", "asked", "used"),
    [(1 << 16, "auto", "auto"), (1 << 10, "auto", "off"), (1 << 10, "on", "on"), (1 << 16, "off", "off")],
)
def test_auto_overlaps_messages_of_large_batches_only(batch_size: int, asked: str, used: str) -> None:
    config = config_with(1, overlap=asked)
    config = replace(
        config,
        model=replace(config.model, table_rows=(4, 5), embedding_dim=4),
        train=replace(config.train, batch_size=batch_size),
    )
    assert exchange_settings(config).overlap == used


@pytest.mark.parametrize("name", EXCHANGE_SETTINGS)
def test_what_the_settings_offer_sums_gradients(name: str) -> None:
    """Of a gradient whose values are all the same: there every choice comes to the same sum."""
    shape = GradientShape((TableShape(torch.tensor([0, 5]), 1),), 0)
    grad = SparseGrad(torch.tensor([0, 2]), torch.tensor([1, 3], dtype=torch.int32), torch.full((2, 1), 127.0))
    merge = select_kernels("numba", torch.device("cpu")).merge_sparse
    for choice in SETTINGS[f"comm.{name}"].choices:
        chosen: dict[str, Any] = {"wire": "int8", "mlp_gradients": "int8", name: choice}
        settings = ExchangeSettings(**chosen)
        merged = open_exchange(settings, SingleTransport(), 2, shape, merge).begin_tables([[grad], [grad]])()[0]
        assert merged.values.flatten().tolist() == pytest.approx([254.0, 254.0])


def test_every_transport_that_the_settings_offer_can_be_opened() -> None:
    assert {*TRANSPORTS} == {"auto", "sim", *_OPENERS}


FEEDBACK = {"mlp_gradients": "int8", "error_feedback": "mlp"}


@pytest.mark.parametrize(
    "comm",
    [
        {"wire": "int8", "rounding": "stochastic", "mlp_gradients": "int8"},
        {"wire": "dense"},
        FEEDBACK,
        {"wire": "int8", **FEEDBACK, "error_feedback": "all"},
    ],
)
def test_a_run_that_stopped_goes_on_to_the_bit(comm: dict[str, str], tmp_path: Path) -> None:
    run(config_with(30, simulated_ranks=3, **comm), tmp_path / "whole")
    run(config_with(13, simulated_ranks=3, **comm), tmp_path / "cut")
    run(config_with(30, simulated_ranks=3, **comm), tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_feedback_of_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    run(config_with(8, simulated_ranks=2, **FEEDBACK), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"feedback\.mlp is float32"):
        three = config_with(20, simulated_ranks=3, **FEEDBACK)
        run(three, tmp_path / "run", resume=True, asked=frozenset({"comm.simulated_ranks"}))


@pytest.mark.parametrize(
    ("comm", "key"),
    [
        ({"error_feedback": "mlp"}, "comm.error_feedback"),
        ({"error_feedback": "all", "mlp_gradients": "int8"}, "comm.error_feedback"),
        ({"scale_reduce": "mean"}, "comm.scale_reduce"),
        ({"rounding": "stochastic", "mlp_gradients": "bf16"}, "comm.rounding"),
        ({"simulated_scale": "first", "simulated_ranks": 2, "mlp_gradients": "bf16"}, "comm.simulated_scale"),
        ({"simulated_scale": "first", "wire": "int8"}, "comm.simulated_scale"),
    ],
)
def test_settings_without_effect_are_refused(comm: dict[str, object], key: str) -> None:
    (conflict,) = conflicts(config_with(1, **comm))
    assert conflict.keys[0] == key


def test_tables_have_feedback_of_their_own() -> None:
    """Whether or not the MLPs' gradients lose anything."""
    assert not list(conflicts(config_with(1, wire="int8", error_feedback="all")))


def test_dense_gradients_of_large_tables_are_refused() -> None:
    config = replace(tiny_config(model={"table_rows": (2**31 - 1,)}), comm=replace(Config().comm, wire="dense"))
    (conflict,) = conflicts(config)
    assert conflict.keys[0] == "comm.wire"


def test_one_process_sends_nothing(tmp_path: Path) -> None:
    run(config_with(10, simulated_ranks=2, wire="int8"), tmp_path / "run")
    assert all(
        row["value_bytes"] == row["index_bytes"] == row["mlp_bytes"] == 0 for row in rows(tmp_path / "run", "train")
    )


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["mpi", pytest.param("gloo", marks=pytest.mark.long)])
def test_real_ranks_log_bytes_by_part_and_resume_to_the_bit(transport: str, tmp_path: Path) -> None:
    wires = ["--comm.wire", "int8", "--comm.mlp-gradients", "int8", "--comm.error-feedback", "mlp"]
    wires += ["--comm.overlap", "on"]  # for the time of messages beside the step
    command = ["train", *SMALL, *wires, "--train.checkpoint-every", "4", "--run-dir"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    runs = several_commands([*command, whole], [*command, cut, "--train.max-steps", "8"])
    run_world(transport, runs, 2, timeout_s=120).check()
    resumed = ["-m", "dqrm_cpu", *command, cut, "--resume", "auto", "--train.max-steps", "20"]
    run_world(transport, resumed, 2, timeout_s=120).check()
    assert losses(cut) == losses(whole)
    simulated = tmp_path / "simulated"
    assert dqrm_cpu(*command, simulated, "--comm.simulated-ranks", "2").returncode == 0
    assert losses(simulated) == losses(whole)
    for row in rows(whole, "train"):
        index_bytes, value_bytes = row["index_bytes"], row["value_bytes"]
        assert index_bytes is not None
        assert value_bytes == index_bytes * 16 / 4, "16 values of a byte for each row of 4"
        assert 0 < row["scale_bytes"] < 2 * 4 * 3 + 3 * 16  # type: ignore[operator]
        assert row["mlp_bytes"] > 0  # type: ignore[operator]
        assert all(row[name] > 0 for name in StepTimes._fields)  # type: ignore[operator]
    total = rows(whole, "validation")[0]
    assert total["index_bytes"] is None
    assert not math.isnan(json.loads((whole / "result.json").read_text())["bytes_per_step"])
