"""Rows that shrink by the iterations since their last update: against plain arithmetic, resumed, and begun anew."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from dqrm_cpu.train.session import Session, build_session
from tiny import CPU, tiny_config

STEPS, DECAY = 6, 0.05


def session_of(config: Config) -> Session:
    return build_session(config, select_kernels("numba", CPU), open_data(config), SingleTransport(), CPU)


def test_rows_are_what_plain_sgd_makes_of_shrunk_ones() -> None:
    """Without a learning rate to speak of a row is its first weights times what its intervals leave of it."""
    config = tiny_config(quant={"method": "none"}, train={"interval_decay": DECAY})
    session = session_of(config)
    tables, loader = session.model.tables, session.loaders.train
    expected, last = tables.weight.clone().numpy(), np.zeros(tables.weight.shape[0], np.float32)
    first = tables.row_offset[:-1].numpy()[:, None]
    for number in range(STEPS):
        (batch,) = loader.batches(number)
        session.step(number, [batch], batch.size, 1e-30, stop_requested=False)
        rows = np.unique(batch.ids.numpy() + first)
        lapsed = np.float32(number + 1) - last[rows]
        expected[rows] *= (1 - np.minimum(np.float32(DECAY) * lapsed, np.float32(1)))[:, None]
        last[rows] = number + 1
    assert np.array_equal(tables.weight.numpy(), expected)
    assert np.array_equal(session.tensors()["optimizer.last"].numpy(), last)


def test_tables_that_begin_anew_have_no_past() -> None:
    session = session_of(tiny_config(train={"interval_decay": 0.5, "reset_tables": "each-epoch", "epochs": 2}))
    session.optimizer.forget_rows(63)
    assert set(session.tensors()["optimizer.last"].tolist()) == {63}


@pytest.mark.long
@pytest.mark.parametrize("settings", [{}, {"master_rows": "int8"}, {"optimizer": "rowwise-adagrad"}])
def test_resumes_to_the_bit(settings: dict[str, object], tmp_path: Path) -> None:
    config = tiny_config(train={"interval_decay": 1e-2, "evaluate_every": 20, **settings})

    def run(folder: Path, config: Config, resume: bool = False) -> dict[str, torch.Tensor]:
        train(config, RunRequest(folder, resume, {}, io.StringIO()), SingleTransport())
        path = find_checkpoint(checkpoints_folder(folder), "last")
        tensors = read_manifest(path).tensors
        into = {name: torch.empty(info.shape, dtype=getattr(torch, info.dtype)) for name, info in tensors.items()}
        load_checkpoint(path, into)
        return into

    expected = run(tmp_path / "whole", config)
    run(tmp_path / "cut", replace(config, train=replace(config.train, max_steps=25)))
    found = run(tmp_path / "cut", config, resume=True)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    assert len(set(expected["optimizer.last"].tolist())) > 10
