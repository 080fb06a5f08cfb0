"""What models do on generated rows whose tables hold the ids that occur, beside what was measured on the real ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.config import Config, preset_config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.source import DataSet, Part, open_data
from dqrm_cpu.data.store.run_data import follow_data
from dqrm_cpu.lab.reproduce.logistic import best_of_rates, metrics
from dqrm_cpu.lab.reproduce.pareto.boosted_trees import boosted_trees
from dqrm_cpu.lab.reproduce.pareto.scores import PartScores
from dqrm_cpu.train.session import Session, build_session, load_kernels

ADAGRAD: dict[str, Any] = {"optimizer": "rowwise-adagrad", "learning_rate": 0.01}
FAST_ADAGRAD: dict[str, Any] = {"optimizer": "rowwise-adagrad", "learning_rate": 0.02}
ROWS: dict[str, Any] = {"train_rows": 62_000, "validation_rows": 6_000, "test_rows": 12_000}
"""The parts of the 80,000 real rows."""


@dataclass(frozen=True)
class Trained:
    """Test AUC after each epoch, the one that validation chooses, and the tables' rows."""

    test_auc: Sequence[float]
    chosen: float
    rows: int
    live_share: float  # of the rows that training updated; of FP32 models 1


class Kept:
    """Rows that are drawn once, for the models of a test that read them several times."""

    def __init__(self, data: DataSet, num_rows: int) -> None:
        self._batch = data.train.source.rows(0, num_rows)

    def rows(self, start: int, stop: int) -> Batch:
        """Returns rows start to stop - 1."""
        one = self._batch
        ids = one.ids[:, start:stop].contiguous()
        return Batch(one.dense[start:stop].contiguous(), ids, None, one.label[start:stop].contiguous())


@dataclass(frozen=True)
class World:
    """The rows of a seed, with tables of the ids that min_count training rows hold."""

    config: Config
    data: DataSet

    @classmethod
    def of(cls, seed: int, min_count: int = 1) -> "World":
        """Draws the rows."""
        demo = preset_config("demo")
        config = replace(demo, seed=seed, data=replace(demo.data, min_count=min_count, **ROWS))
        config = follow_data(config, frozenset())
        kept = Kept(open_data(config), sum(ROWS.values()))
        train, validation, test = ROWS.values()
        parts = (
            Part(kept, 0, train),
            Part(kept, train, validation),
            Part(kept, train + validation, test),
        )
        return cls(config, DataSet(*parts, fingerprint="", identity=None))

    def train(self, epochs: int, train: dict[str, Any], int4: bool = False) -> Trained:
        """Trains the demo's model, in FP32 or in INT4 throughout."""
        config = replace(
            self.config,
            quant=replace(self.config.quant, method="dqrm" if int4 else "none"),
            train=replace(self.config.train, **train),
        )
        device = torch.device("cpu")
        session = build_session(config, load_kernels(config, device), self.data, SingleTransport(), device)
        scores = [_after_epoch(session, epoch, config.train.learning_rate) for epoch in range(epochs)]
        live = session.evaluate.liveness()
        share = 1.0 if live is None else live.live_updated_rows
        rows = sum(config.model.table_rows)
        return Trained([test for _, test in scores], max(scores)[1], rows, share)

    def logistic_regression(self) -> float:
        """Returns the test AUC of a logistic regression, its rate chosen on validation."""
        train, validation, test = self._parts()
        features, weights = best_of_rates(self.config.model.table_rows, train, validation)
        return metrics(weights, features, test).auc

    def boosted_trees(self) -> float:
        """Returns the test AUC of LightGBM with target encoding, its trees chosen on validation."""
        parts = self._parts()
        logits = boosted_trees(*parts).test.astype(np.float32)
        return PartScores(logits, parts[-1].label.numpy() == 1).metrics().auc

    def _parts(self) -> tuple[Batch, Batch, Batch]:
        data = self.data
        train, validation, test = (part.rows(0, part.num_rows) for part in (data.train, data.validation, data.test))
        return train, validation, test


def _after_epoch(session: Session, epoch: int, rate: float) -> tuple[float, float]:
    """Trains one epoch; returns the AUC on validation and on test."""
    loader = session.loaders.train
    for number in range(epoch * loader.num_batches, (epoch + 1) * loader.num_batches):
        session.step(number, loader.batches(number), loader.global_size(number), rate, False)
    return session.evaluate(session.loaders.validation).auc, session.evaluate(session.loaders.test).auc
