"""Quantized activations: the formula, where its scale comes from, what a checkpoint and a packed file keep of it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.cli.main import main
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.source import open_data
from dqrm_cpu.export.read import load_packed
from dqrm_cpu.export.write import packed_path
from dqrm_cpu.model.activations import MOMENTUM, ActivationFormula, Mode
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.session import Session, build_session, load_kernels, load_session, load_weights
from dqrm_cpu.train.state import Result
from tiny import CPU, tiny_config


def oracle(x: np.ndarray, bits: int, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Values in FP64, from the formula alone; and which of them lie so near the middle of two that FP32 may differ."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    scaled = x / (np.abs(x).max() / high)
    near_middle = np.abs(np.abs(scaled - np.rint(scaled)) - 0.5) < 1e-6 * high
    return np.clip(np.rint(scaled), low, high) * np.abs(x).max() / high, near_middle


@given(bits=st.sampled_from([4, 8, 16]), signed=st.booleans(), seed=st.integers(0, 2**31))
def test_values_are_those_of_the_formula(bits: int, signed: bool, seed: int) -> None:
    formula, x = ActivationFormula(bits, signed), 3 * torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
    x = x if signed else x.relu()
    found = formula.values(x, formula.scale(formula.absmax(x))).numpy()
    expected, open_to_both = oracle(x.double().numpy(), bits, signed)
    np.testing.assert_allclose(found[~open_to_both], expected[~open_to_both], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_a_layer_that_reads_nothing_but_zeros_keeps_them(signed: bool) -> None:
    formula, x = ActivationFormula(4, signed), torch.zeros(3, 2)
    assert torch.equal(formula.values(x, formula.scale(formula.absmax(x))), x)


def test_a_nan_is_not_hidden() -> None:
    for signed in (True, False):
        formula, x = ActivationFormula(4, signed), torch.tensor([1.0, float("nan")])
        assert formula.values(x, formula.scale(formula.absmax(x))).isnan().all()


def session_of(config: Config) -> Session:
    return build_session(config, load_kernels(config, CPU), open_data(config), SingleTransport(), CPU)


def forward(session: Session, batch: Batch, mode: Mode) -> torch.Tensor:
    model = session.model
    model.quantize_weights()
    model.inputs.mode = mode
    scale = session.scales.for_evaluation()
    return model.forward(batch, model.bags(batch), scale, model.workspace(batch.size))


def first_rows(batch: Batch, count: int) -> Batch:
    return Batch(batch.dense[:count], batch.ids[:, :count].contiguous(), None, batch.label[:count])


def maxima(session: Session, share: float = 1.0) -> torch.Tensor:
    out = torch.empty_like(session.model.inputs.running)
    session.model.inputs.write_seen(share, out)
    return out


def test_the_prediction_for_a_row_does_not_depend_on_its_batch() -> None:
    session = session_of(tiny_config(quant={"activation_bits": 4}))
    batch = session.loaders.train.batches(0)[0]
    forward(session, batch, Mode.BY_BATCH)
    session.model.inputs.follow(maxima(session))
    whole, part = (forward(session, b, Mode.BY_RUNNING) for b in (batch, first_rows(batch, 5)))
    # Not to the bit: some releases of oneDNN sum a product in another order where there are fewer rows.
    torch.testing.assert_close(whole[:5], part, rtol=1e-5, atol=1e-6)
    by_batch = [forward(session, b, Mode.BY_BATCH).clone() for b in (batch, first_rows(batch, 5))]
    assert float((by_batch[0][:5] - by_batch[1]).abs().max()) > 1e-4


def test_the_running_maximum_is_a_moving_average() -> None:
    session = session_of(tiny_config(quant={"activation_bits": 8}))
    expected, loader = None, session.loaders.train
    for i in range(6):
        session.step(i, loader.batches(i), loader.global_size(i), 0.1, False)
        seen = maxima(session).double()
        expected = seen if expected is None else MOMENTUM * expected + (1 - MOMENTUM) * seen
    torch.testing.assert_close(session.model.inputs.running.double(), expected, rtol=1e-5, atol=0)


def test_bf16_reads_the_same_codes() -> None:
    """What a product in BF16 reads is what FP32 would read, rounded to BF16."""
    formula, x = ActivationFormula(8, True), torch.randn(50, 20).bfloat16()
    scale = formula.scale(formula.absmax(x))
    found = formula.values(x, scale)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, formula.values(x.float(), scale).bfloat16())


def run(config: Config, folder: Path, resume: bool = False) -> Result:
    outcome = train(config, RunRequest(folder, resume, {}, io.StringIO()), SingleTransport())
    assert isinstance(outcome, Result)
    return outcome


@pytest.mark.parametrize(
    ("quant", "precision"),
    [
        ({"method": "dqrm"}, "fp32"),
        pytest.param({"method": "dqrm"}, "bf16", marks=pytest.mark.bf16),
        ({"method": "lsq"}, "fp32"),
        ({"method": "ptq"}, "fp32"),
        ({"pretrain_epochs": 1}, "fp32"),
        ({"mlp_bias_bits": 4}, "fp32"),
        pytest.param({"mlp_bias_bits": 4}, "bf16", marks=pytest.mark.bf16),
    ],
)
@pytest.mark.parametrize("shape", [{}, {"interaction": "cross", "cross_rank": 4}], ids=["dot", "cross"])
def test_the_packed_file_predicts_what_was_trained(
    quant: dict[str, object], precision: str, shape: dict[str, object], tmp_path: Path
) -> None:
    train_for = {"epochs": 2, "precision": precision}
    config = tiny_config(shape, quant={"activation_bits": 4, **quant}, train=train_for, data={"train_rows": 640})
    result = run(config, tmp_path)
    other = session_of(config)
    load_packed(packed_path(tmp_path / "packed", "dense"), other.model, config.quant)
    found = other.evaluate(other.loaders.test, quantized=False)
    assert found.log_loss == pytest.approx(result.test.best.log_loss, rel=1e-6 if precision == "fp32" else 1e-4)
    other.model.inputs.running.mul_(1.5)
    assert other.evaluate(other.loaders.test, quantized=False).log_loss != found.log_loss


def test_a_resumed_run_goes_on_with_its_running_maxima(tmp_path: Path) -> None:
    config = tiny_config(quant={"activation_bits": 4})
    whole = run(config, tmp_path / "whole")
    run(replace(config, train=replace(config.train, max_steps=40)), tmp_path / "cut")
    resumed = run(config, tmp_path / "cut", resume=True)
    assert resumed.test.last == whole.test.last
    sessions = [session_of(config), session_of(config)]
    for session, name in zip(sessions, ("whole", "cut"), strict=True):
        load_session(session, find_checkpoint(checkpoints_folder(tmp_path / name), "last"))
    assert torch.equal(*(session.model.inputs.running for session in sessions))


def test_an_fp32_run_is_compressed_with_scales_from_training_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fp32 = tiny_config(quant={"method": "none"})
    run(fp32, tmp_path / "run")
    found = {}
    for bits in ("32", "16", "4"):
        arguments = ["compress", str(tmp_path / "run"), "--quant.activation-bits", bits, "--quant.method", "ptq"]
        assert main([*arguments, "--json"]) == 0
        found[bits] = json.loads(capsys.readouterr().out)["log_loss"]
    # Beside scales of 2^-15 or 2^-16: some rows lie beyond the mean of the batches' maxima.
    assert found["16"] == pytest.approx(found["32"], abs=2e-3)
    assert found["4"] != found["16"] != found["32"]
    session = session_of(replace(fp32, quant=replace(fp32.quant, method="ptq", activation_bits=4)))
    load_weights(session, find_checkpoint(checkpoints_folder(tmp_path / "run"), "best"))
    expected, loader = torch.zeros_like(session.model.inputs.running), session.loaders.train
    for i in range(32):
        forward(session, loader.batches(i)[0], Mode.BY_BATCH)
        expected += maxima(session, 1 / 32)
    torch.testing.assert_close(session.model.inputs.running, expected)
