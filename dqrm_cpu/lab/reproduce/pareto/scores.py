"""Logits of a run for validation and test rows, kept beside it: for means of several runs, and tests over rows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from dqrm_cpu.base.files import replace_file
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.errors import ConfigError, TrainingError
from dqrm_cpu.export.model_files import layers_of_model
from dqrm_cpu.export.safetensors_writer import whole, write_tensors
from dqrm_cpu.kernels.ensemble import mean_logits
from dqrm_cpu.lab.reproduce.outcome import RunOutcome
from dqrm_cpu.metrics.click import ClickAccumulator, ClickMetrics
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.shapes import table_names
from dqrm_cpu.train.checkpoint_folder import find_checkpoint
from dqrm_cpu.train.run_place import checkpoints_folder
from dqrm_cpu.train.session import trained_session

_FILE_NAME = "scores.safetensors"


@dataclass(frozen=True)
class PartScores:
    """The rows of a part in their order, as a model scored them."""

    logits: NDArray[np.float32]  # f32[N]
    clicks: NDArray[np.bool_]  # bool[N]

    def metrics(self) -> ClickMetrics:
        """Computes the metrics of the rows, each of which counts once."""
        scored = ClickAccumulator(self.logits.size)
        scored.add(torch.from_numpy(self.logits), torch.from_numpy(self.clicks.astype(np.float32)))
        return scored.compute()


@dataclass(frozen=True)
class Scores:
    """Validation and test rows, by the checkpoint that validation chose."""

    validation: PartScores
    test: PartScores

    @classmethod
    def of(cls, validation: ClickAccumulator, test: ClickAccumulator) -> Self:
        """Takes what an evaluation collected."""
        return cls(*(PartScores(part.logits.copy(), part.clicks.copy()) for part in (validation, test)))

    def write(self, folder: Path) -> None:
        """Writes the file whole or not at all."""
        arrays = {f"{part}.logits": scores.logits for part, scores in self._parts()}
        arrays |= {f"{part}.clicks": scores.clicks.astype(np.uint8) for part, scores in self._parts()}
        replace_file(folder / _FILE_NAME, [safetensors.numpy.save(arrays)], TrainingError)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads what `write` wrote."""
        path = folder / _FILE_NAME
        try:
            arrays = safetensors.numpy.load(path.read_bytes())
            return cls(
                *(
                    PartScores(arrays[f"{part}.logits"], arrays[f"{part}.clicks"].astype(np.bool_))
                    for part in ("validation", "test")
                )
            )
        except (OSError, SafetensorError, KeyError) as error:
            raise ConfigError(f"{path} holds no scores ({error}); remove {folder} to make them again") from error

    def _parts(self) -> tuple[tuple[str, PartScores], tuple[str, PartScores]]:
        return ("validation", self.validation), ("test", self.test)


def keep_scores(config: Config, folder: Path, transport: Transport) -> int | None:
    """Keeps the scores of a run's chosen checkpoint; returns the bytes of an FP32 model as a file, None of others."""
    path = find_checkpoint(checkpoints_folder(folder), "best")
    session = trained_session(config, path, transport, lambda _: None)
    parts = (session.loaders.validation, session.loaders.test)
    Scores.of(*map(session.evaluate.predictions, parts)).write(folder)
    return _written_fp32(config, session.model, folder) if config.quant.method == "none" else None


def _written_fp32(config: Config, model: Dlrm, folder: Path) -> int:
    """Writes all weights in FP32 as a packed file would have them, and returns its bytes; the file goes again."""
    names, weights = table_names(len(model.groups.weights)), model.groups.weights
    tables = [whole(f"{name}.weight", weight.numpy()) for name, weight in zip(names, weights, strict=True)]
    path = folder / "fp32.safetensors"
    size = write_tensors(path, [*tables, *layers_of_model(model).tensors()], {"config": config.to_toml()})
    path.unlink()
    return size


def mean_job(members: Sequence[Path], folder: Path) -> RunOutcome:
    """Scores rows by the mean of the logits of finished runs, as `train --ensemble` does; the outcome has its folder.

    Bytes and times are those of all members together.
    """
    start_s = time.perf_counter()
    outcomes = [outcome for member in members if (outcome := RunOutcome.read(member)) is not None]
    assert len(outcomes) == len(members), f"members of {folder} are not all trained"
    parts = [Scores.read(member) for member in members]
    validation, test = (
        PartScores(mean_logits(one.logits for one in part), part[0].clicks)
        for part in ([one.validation for one in parts], [one.test for one in parts])
    )
    folder.mkdir(parents=True, exist_ok=True)
    Scores(validation, test).write(folder)
    of_validation, of_test = validation.metrics(), test.metrics()
    outcome = replace(
        outcomes[0],
        validation_best=of_validation,
        validation_last=of_validation,
        test_best=of_test,
        test_last=of_test,
        best_step=-1,
        steps=sum(one.steps for one in outcomes),
        model_bytes=sum(one.model_bytes for one in outcomes),
        written_bytes=sum(one.written_bytes for one in outcomes),
        wall_s=time.perf_counter() - start_s,
    )
    outcome.write(folder)
    return outcome
