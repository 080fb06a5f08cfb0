"""Tables that begin anew with every epoch: the epochs after the first are those of fresh tables beside trained MLPs."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.data.source import open_data
from dqrm_cpu.kernels.reference import ReferenceKernels
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.train.checkpoint_files import load_checkpoint
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.checkpoint_manifest import read_manifest
from dqrm_cpu.train.run import RunRequest, train
from dqrm_cpu.train.run_folder import read_rows
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.session import Session, build_session
from dqrm_cpu.train.state import Result
from tiny import CPU, tiny_config

EPOCH = 10
ROWS = {"train_rows": 320}


def config_of(reset: str, optimizer: str = "rowwise-adagrad", finder: str = "track", **more: object) -> Config:
    train = {"optimizer": optimizer, "epochs": 3, "reset_tables": reset, **more}
    return tiny_config(quant={"scale_finder": finder, "scale_period": 4}, train=train, data=ROWS)


def session_of(config: Config) -> Session:
    return build_session(config, select_kernels("numba", CPU), open_data(config), SingleTransport(), CPU)


def steps(session: Session, first: int, end: int) -> None:
    loader = session.loaders.train
    for number in range(first, end):
        session.step(number, loader.batches(number), loader.global_size(number), 0.1, stop_requested=False)


@pytest.mark.parametrize(("optimizer", "finder"), [("rowwise-adagrad", "track"), ("sgd", "scan")])
def test_the_second_epoch_begins_with_fresh_tables_and_trained_mlps(optimizer: str, finder: str) -> None:
    anew, by_hand = (session_of(config_of(reset, optimizer, finder)) for reset in ("each-epoch", "never"))
    steps(anew, 0, EPOCH + 7)
    steps(by_hand, 0, EPOCH)
    tables, trained = by_hand.model.tables, by_hand.model.tables.weight.clone()
    ReferenceKernels().init_uniform_(tables, 1 + 2**32)
    assert not torch.equal(tables.weight, trained)
    for name, tensor in by_hand.optimizer.state().items():
        if name == "optimizer.rows":
            tensor.zero_()
    by_hand.scales.restore(by_hand.tensors(), -1)
    steps(by_hand, EPOCH, EPOCH + 7)
    expected = by_hand.tensors()
    for name, tensor in anew.tensors().items():
        assert torch.equal(tensor, expected[name]), name


def test_every_epoch_has_other_first_weights() -> None:
    model = session_of(config_of("each-epoch")).model
    drawn = []
    for _ in range(3):
        drawn.append(model.tables.weight.clone())
        model.begin_tables_anew_()
    assert not any(torch.equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


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
@pytest.mark.parametrize("rows", ["fp32", "int8"])
@pytest.mark.parametrize("cut", [EPOCH - 1, EPOCH, 2 * EPOCH + 3])
def test_resumes_to_the_bit(cut: int, rows: str, tmp_path: Path) -> None:
    """Stopped before an epoch ends, where it ends, and after tables were drawn twice."""
    config = config_of("each-epoch", master_rows=rows)
    whole = run(config, tmp_path / "whole")
    run(replace(config, train=replace(config.train, max_steps=cut)), tmp_path / "cut")
    resumed = run(config, tmp_path / "cut", resume=True)
    expected, found = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "cut")
    assert found.keys() == expected.keys()
    for tensor in expected:
        assert torch.equal(found[tensor], expected[tensor]), tensor
    assert resumed.test.last == whole.test.last


@pytest.mark.long
def test_rows_that_an_epoch_updated_are_told_from_those_that_were_drawn(tmp_path: Path) -> None:
    """Every epoch looks up the same rows, and the run that was never reset counts them, too."""
    run(config_of("never"), tmp_path / "never")
    run(config_of("each-epoch"), tmp_path / "anew")
    counted = []
    for name in ("never", "anew"):
        rows = [row.liveness for row in read_rows(tmp_path / name) if row.phase == "validation"]
        counted.append([liveness.table_updated_rows for liveness in rows if liveness is not None])
    assert counted[0] == counted[1]
    assert len(counted[0]) == 3


@pytest.mark.long
def test_a_bad_batch_that_is_skipped_does_not_keep_tables(tmp_path: Path) -> None:
    config = config_of("each-epoch", on_bad_batch="skip")
    sessions = [session_of(config) for _ in range(2)]
    loader = sessions[0].loaders.train
    for session in sessions:
        steps(session, 0, EPOCH)
    (bad,) = loader.batches(EPOCH)
    sessions[0].step(EPOCH, [replace(bad, label=bad.label + 3)], loader.global_size(EPOCH), 0.1, stop_requested=False)
    sessions[1].model.begin_tables_anew_()
    assert torch.equal(sessions[0].model.tables.weight, sessions[1].model.tables.weight)
