"""A run that is exported from memory: where its scales follow from all rows at once, or rows are scored by it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.export.model_files import weights_of_model
from dqrm_cpu.export.write import PackedWeights
from dqrm_cpu.kernels.master_rows import row_values
from dqrm_cpu.predict.run_network import Rows
from dqrm_cpu.predict.scorer import Scorer, load_weights
from dqrm_cpu.predict.trained_model import TrainedModel
from dqrm_cpu.train.working import ShowWork


@dataclass(frozen=True)
class WholeRun:
    """A model to write, what scores by it, and the rows of a sample: f32[n, D] of each table."""

    weights: PackedWeights
    scorer: Scorer
    values: Sequence[NDArray[np.float32]]


def open_whole(trained: TrainedModel, sample: Rows, show_work: ShowWork) -> WholeRun:
    """Loads all of a checkpoint."""
    model, scale = load_weights(trained, show_work)
    values = [row_values(weight[rows]).numpy() for weight, rows in zip(model.groups.weights, sample, strict=True)]
    return WholeRun(weights_of_model(model, scale), Scorer(model, scale, quantized=True), values)
