"""Metrics of a model over a part, over shares, and on a model that is broken."""

import pytest
import torch

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config
from dqrm_cpu.data.source import open_data
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.metrics.click import ClickAccumulator
from dqrm_cpu.train.session import Session, build_session, load_kernels
from plain_dlrm import PlainDlrm
from tiny import CPU, tiny_config


def session_of(config: Config) -> Session:
    return build_session(config, load_kernels(config, CPU), open_data(config), SingleTransport(), CPU)


def test_metrics_are_those_of_the_plain_model() -> None:
    config = tiny_config()
    session = session_of(config)
    session.model.tables.weight.mul_(20)
    assert session.scales.trackers[0] is not None
    session.scales.trackers[0].rebuild(session.model.tables)
    plain, expected = PlainDlrm(config, session.model), ClickAccumulator()
    for number in range(session.loaders.test.num_batches):
        batch = session.loaders.test.batches(number)[0]
        expected.add(plain(batch), batch.label)
    found, wanted = session.evaluate(session.loaders.test), expected.compute()
    assert found.examples == wanted.examples == config.data.test_rows
    assert found.auc == pytest.approx(wanted.auc, abs=1e-4)
    assert found.log_loss == pytest.approx(wanted.log_loss, rel=1e-4)


def test_a_broken_hidden_weight_is_found_though_the_rectifier_hides_it() -> None:
    session = session_of(tiny_config())
    session.model.dense[5] = float("nan")
    with pytest.raises(TrainingError, match="the MLPs hold NaN"):
        session.evaluate(session.loaders.validation)


def test_evaluation_leaves_the_scale_in_use_alone() -> None:
    session = session_of(tiny_config(quant={"scale_period": 50}))
    in_use = session.scales.for_training(0)
    session.model.tables.weight.mul_(2)
    assert session.scales.trackers[0] is not None
    session.scales.trackers[0].rebuild(session.model.tables)
    session.evaluate(session.loaders.validation)
    assert torch.equal(session.scales.for_training(1), in_use)
