"""Stochastic rounding of weights: its values, what its chances follow from, and that only training sees it."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config, QuantConfig
from dqrm_cpu.data.source import open_data
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.reference import splitmix
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.types import Bags, Tables
from dqrm_cpu.quant.rounding import RoundingKey, WeightRounding, stochastic_matrix
from dqrm_cpu.quant.tables import TableQuantizer
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.session import Session, build_session, load_kernels
from dqrm_cpu.train.state import Result
from tiny import CPU, tiny_config


@pytest.fixture(scope="module", params=["numba", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return select_kernels(request.param, CPU)


def oracle(w: np.float32, scale: np.float32, bits: int, row_key: int, column: int) -> float:
    below = np.floor(w / scale)
    code = below + (np.float32((splitmix(row_key, column) >> 40) / 2**24) < w / scale - below)
    return float(np.float32(np.clip(code, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)) * scale)


@settings(max_examples=15)
@given(bits=st.sampled_from([2, 4, 8]), seed=st.integers(0, 2**31), multi_hot=st.booleans())
def test_lookups_are_those_of_the_formula(kernels: Kernels, bits: int, seed: int, multi_hot: bool) -> None:
    """Steps small enough for weights beyond the codes, ids that come twice, in bags with an empty one."""
    generator = torch.Generator().manual_seed(seed)
    tables = Tables(torch.randn(9, 3, generator=generator), torch.tensor([0, 4, 9]))
    scale = torch.rand(2, generator=generator) * 2 ** (1 - bits) + 0.01
    ids = torch.tensor([[3, 0, 3, 1], [4, 4, 0, 2]], dtype=torch.int32)
    bags = Bags(ids.view(-1), torch.tensor([0, 2, 2, 4, 4, 5, 8]), mean=False) if multi_hot else Bags(ids, None)
    batch = 3 if multi_hot else 4
    key, out = RoundingKey(seed), torch.zeros(batch, 3, 3)
    TableQuantizer(QuantConfig(embedding_bits=bits), kernels).look_up(tables, bags, scale, out, True, key)
    offsets = [0, 2, 2, 4, 4, 5, 8] if multi_hot else list(range(9))
    for t, b in np.ndindex(2, batch):
        expected = [0.0] * 3
        for row in ids.view(-1)[offsets[t * batch + b] : offsets[t * batch + b + 1]].tolist():
            weights, row_key = tables.weight[4 * t + row].numpy(), splitmix(splitmix(seed, t), row)
            for column in range(3):
                weight, of_table = np.float32(weights[column]), np.float32(scale.numpy()[t])
                expected[column] += oracle(weight, of_table, bits, row_key, column)
        torch.testing.assert_close(out[b, 1 + t], torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_scales", [1, 5])
def test_matrices_are_those_of_the_formula(kernels: Kernels, num_scales: int) -> None:
    weight, scale = torch.randn(5, 7), torch.rand(num_scales) * 0.2 + 0.05
    found = stochastic_matrix(kernels, weight, scale, 4, RoundingKey(11))
    for row, column in np.ndindex(5, 7):
        table, in_table = (0, row) if num_scales == 1 else (row, 0)
        row_key = splitmix(splitmix(11, table), in_table)
        of_cell, of_table = np.float32(weight.numpy()[row, column]), np.float32(scale.numpy()[table])
        expected = oracle(of_cell, of_table, 4, row_key, column)
        assert found[row, column].item() == pytest.approx(expected, rel=1e-6)


def test_the_mean_is_the_weight(kernels: Kernels) -> None:
    """Also of a weight under half of the scale, which is 0 when it is rounded to the nearest."""
    weight, throws = torch.tensor([[0.3, -0.2, 1.7, -2.5]]), 4000
    total = torch.zeros(1, 4, dtype=torch.float64)
    for iteration in range(throws):
        key = WeightRounding(3, tables=True, mlps=False).keys(iteration).tables
        assert key is not None
        total += stochastic_matrix(kernels, weight, torch.ones(1), 4, key)
    part = weight - weight.floor()
    assert ((total / throws - weight).abs() < 5 * (part * (1 - part) / throws).sqrt()).all(), "five deviations"


def test_every_run_iteration_and_part_has_its_own_chances() -> None:
    rounding = [WeightRounding(seed, tables=True, mlps=True) for seed in (1, 2)]
    keys = [key for r in rounding for iteration in (0, 1) for key in r.keys(iteration)]
    assert len(set(keys)) == 20
    assert WeightRounding(1, tables=False, mlps=True).keys(0) == (None, *rounding[0].keys(0)[1:])
    assert WeightRounding(1, tables=True, mlps=False).keys(0) == (rounding[0].keys(0).tables, None, None, None, None)


STOCHASTIC: dict[str, Any] = {"rounding": "stochastic", "mlp_rounding": "stochastic"}


def session_of(config: Config) -> Session:
    return build_session(config, load_kernels(config, CPU), open_data(config), SingleTransport(), CPU)


def trained(config: Config, steps: int, threads: int = 2) -> Session:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        session = session_of(config)
        for i in range(steps):
            session.step(i, session.loaders.train.batches(i), session.loaders.train.global_size(i), 0.1, False)
    finally:
        torch.set_num_threads(before)
    return session


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.bf16)])
def test_only_training_rounds_by_chance(precision: str) -> None:
    nearest = tiny_config(train={"precision": precision})
    config = replace(nearest, quant=replace(nearest.quant, **STOCHASTIC))
    session = trained(config, 3)
    other = session_of(nearest)
    for name, tensor in other.model.weights().items():
        tensor.copy_(session.model.weights()[name])
    other.scales.tables_loaded()
    assert session.evaluate(session.loaders.test) == other.evaluate(other.loaders.test)


@pytest.mark.parametrize("quant", [{"rounding": "stochastic"}, {"mlp_rounding": "stochastic"}])
def test_training_takes_another_course(quant: dict[str, object]) -> None:
    by_chance, nearest = (trained(tiny_config(quant=q), 3) for q in (quant, {}))
    assert not torch.equal(by_chance.model.dense, nearest.model.dense)


def test_neither_threads_nor_kernels_change_a_bit_of_what_is_read() -> None:
    """Of kernels only sums may differ afterwards."""
    one, two = (trained(tiny_config(quant=STOCHASTIC), 5, threads) for threads in (1, 2))
    assert torch.equal(one.model.tables.weight, two.model.tables.weight)
    assert torch.equal(one.model.dense, two.model.dense)
    plain = trained(replace(tiny_config(quant=STOCHASTIC), kernels="torch"), 5)
    torch.testing.assert_close(plain.model.dense, one.model.dense, rtol=1e-4, atol=1e-5)


def run(config: Config, folder: Path, resume: bool = False) -> Result:
    outcome = train(config, RunRequest(folder, resume, {}, io.StringIO()), SingleTransport())
    assert isinstance(outcome, Result)
    return outcome


def test_an_interrupted_run_throws_the_same_dice(tmp_path: Path) -> None:
    config = tiny_config(quant={**STOCHASTIC, "scale_period": 3, "mlp_granularity": "matrix"})
    whole = run(config, tmp_path / "whole")
    run(replace(config, train=replace(config.train, max_steps=40)), tmp_path / "cut")
    assert run(config, tmp_path / "cut", resume=True).test.last == whole.test.last
