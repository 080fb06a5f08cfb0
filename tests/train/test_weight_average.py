"""The mean of snapshots: what it is, that training does not see it, and that all that reads a run finds it."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.data.source import open_data
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.train.checkpoint_files import load_checkpoint
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.checkpoint_manifest import read_manifest
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.session import Session, build_session, trained_session
from dqrm_cpu.train.state import Result
from dqrm_cpu.train.weight_average import snapshot_steps
from tiny import CPU, tiny_config

EPOCH = 63
"""Steps of an epoch of the tiny model."""


def config_of(snapshots: int, **train: object) -> Config:
    return tiny_config(
        train={"average_snapshots": snapshots, "average_from": 0.9, "optimizer": "rowwise-adagrad", **train}
    )


def session_of(config: Config) -> Session:
    return build_session(config, select_kernels("numba", CPU), open_data(config), SingleTransport(), CPU)


def test_snapshots_are_evenly_spaced_and_the_last_is_at_the_end() -> None:
    config = tiny_config(train={"average_snapshots": 4, "average_from": 0.5, "epochs": 2, "max_steps": 7})
    assert snapshot_steps(config, 20) == {25, 30, 35, 40}
    assert snapshot_steps(replace(config, train=replace(config.train, average_snapshots=100)), 20) == set(range(21, 41))


def test_the_model_that_is_scored_is_the_mean_and_training_goes_on_from_its_own() -> None:
    mean_of, plain = session_of(config_of(3)), session_of(config_of(0))
    assert mean_of.average is not None
    kept = []
    for session in (mean_of, plain):
        loader = session.loaders.train
        for number in range(EPOCH):
            session.step(number, loader.batches(number), loader.global_size(number), 0.05, stop_requested=False)
            if session is mean_of:
                mean_of.average.stepped(number + 1)
            elif number + 1 in snapshot_steps(config_of(3), EPOCH):
                kept.append({name: tensor.double() for name, tensor in plain.model.weights().items()})
    trained = plain.tensors()
    for name, tensor in mean_of.model.weights().items():
        assert torch.equal(tensor, trained[name]), name
        expected = sum(one[name] for one in kept) / len(kept)
        torch.testing.assert_close(mean_of.tensors()[name].double(), expected, rtol=1e-6, atol=1e-8)
        plain.model.weights()[name].copy_(mean_of.tensors()[name])
    plain.scales.tables_loaded()
    with mean_of.as_scored():
        found = mean_of.evaluate(mean_of.loaders.test)
    assert found == plain.evaluate(plain.loaders.test)
    assert found != mean_of.evaluate(mean_of.loaders.test)
    assert len(kept) == 3


def test_what_was_exchanged_comes_back_with_its_scales() -> None:
    session = session_of(config_of(3))
    assert session.average is not None
    session.scales.for_training(0)
    session.average.stepped(EPOCH)
    session.model.tables.weight.mul_(2)
    session.scales.tables_loaded()
    before = {name: tensor.clone() for name, tensor in session.tensors().items()}
    scale = session.scales.for_evaluation().clone()
    with session.as_scored():
        torch.testing.assert_close(session.scales.for_evaluation(), scale / 2)
    assert torch.equal(session.scales.for_evaluation(), scale)
    for name, tensor in session.tensors().items():
        assert torch.equal(tensor, before[name]), name


def run(config: Config, folder: Path, resume: bool = False) -> Result:
    outcome = train(config, RunRequest(folder, resume, {}, io.StringIO()), SingleTransport())
    assert isinstance(outcome, Result)
    return outcome


def last_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = find_checkpoint(checkpoints_folder(folder), "last")
    tensors = read_manifest(path).tensors
    into = {name: torch.empty(info.shape, dtype=getattr(torch, info.dtype)) for name, info in tensors.items()}
    load_checkpoint(path, into)
    return into


@pytest.mark.long
@pytest.mark.parametrize("cut", [20, 58, 60])
def test_resumes_to_the_bit(cut: int, tmp_path: Path) -> None:
    """Stopped before the first snapshot, after it, and between others."""
    config = config_of(5)
    whole = run(config, tmp_path / "whole")
    run(replace(config, train=replace(config.train, max_steps=cut)), tmp_path / "cut")
    resumed = run(config, tmp_path / "cut", resume=True)
    expected, found = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "cut")
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    assert resumed.test.last == whole.test.last
    assert not torch.equal(expected["tables"], expected["trained.tables"])


@pytest.mark.long
def test_the_checkpoint_and_the_packed_file_are_the_model_that_was_scored(tmp_path: Path) -> None:
    config = config_of(5, epochs=2, reset_tables="each-epoch")
    result = run(config, tmp_path / "run")
    path = find_checkpoint(checkpoints_folder(tmp_path / "run"), "last")
    session = trained_session(config, path, SingleTransport(), lambda _: None)
    assert session.evaluate(session.loaders.test) == result.test.last
    assert result.packed_files is not None
    assert result.packed_files.rows is not None
    never = run(replace(config, train=replace(config.train, average_snapshots=0)), tmp_path / "never").packed_files
    assert never is not None
    assert never.rows is not None
    assert result.packed_files.rows.updated == never.rows.updated
