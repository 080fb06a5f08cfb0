"""A run scored by compiled code gives what torch makes of its weights; what that cannot compute is left to torch."""

from typing import Any

import numpy as np
import pytest
import torch

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import BadBatchError, Batch
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.predict.compiled_run import compile_run
from dqrm_cpu.predict.scorer import CompiledScorer, Scorer
from dqrm_cpu.train.session import open_scales
from tiny import CPU, tiny_config

KERNELS = select_kernels("numba", CPU)
DCN = {"interaction": "cross", "cross_layers": 2}
COMPUTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"embedding_dim": 35, "bottom_mlp": (35,), "top_mlp": (32, 1)}, {"embedding_bits": 7, "mlp_bits": 12}),
    ({"embedding_dim": 16, "bottom_mlp": (16,), "top_mlp": (130, 128, 1)}, {"method": "hawq", "mlp_bias_bits": 8}),
    ({"interaction": "cat"}, {"method": "none"}),
    ({**DCN, "cross_rank": 4}, {"method": "lsq", "embedding_bits": 2}),
    (DCN, {"method": "ptq", "mlp_bits": 32}),
    ({"table_dims": "C1=3,C3=17"}, {"mlp_granularity": "matrix"}),
]


def untrained(config: Config) -> tuple[Dlrm, torch.Tensor]:
    model = Dlrm(config, KERNELS, CPU)
    model.initialize_(1)
    return model, open_scales(config.quant, model).for_evaluation()


def rows(config: Config, count: int) -> Batch:
    rng = np.random.default_rng(4)
    dense = torch.from_numpy(rng.normal(size=(count, config.model.num_dense)).astype(np.float32))
    ids = np.stack([rng.integers(size, size=count) for size in config.model.table_rows]).astype(np.int32)
    return Batch(dense, torch.from_numpy(ids), None, torch.zeros(count))


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize(("shape", "quant"), COMPUTED)
def test_logits_are_those_of_torch(shape: dict[str, Any], quant: dict[str, Any], quantized: bool) -> None:
    config = tiny_config(shape, quant)
    model, scale = untrained(config)
    scorer, network = Scorer(model, scale, quantized), compile_run(config, model, scale, quantized, threads=2)
    assert network is not None
    batch = rows(config, 1003)
    expected, found = scorer.logits(batch), CompiledScorer(scorer, network, -0.5).logits(batch)
    np.testing.assert_allclose(found + 0.5, expected, rtol=2e-6, atol=2e-6)
    assert np.ptp(expected) > 1e-3


@pytest.mark.parametrize(
    ("quant", "train"),
    [({"activation_bits": 8}, {}), ({"method": "dorefa"}, {}), ({}, {"precision": "bf16"})],
)
def test_other_arithmetic_is_left_to_torch(quant: dict[str, Any], train: dict[str, Any]) -> None:
    config = tiny_config({}, quant, train)
    assert compile_run(config, *untrained(config), quantized=True, threads=1) is None


def test_rows_that_are_not_sound_are_named_and_scores_must_be_finite() -> None:
    config = tiny_config()
    model, scale = untrained(config)
    network = compile_run(config, model, scale, quantized=True, threads=1)
    assert network is not None
    scorer = CompiledScorer(Scorer(model, scale, quantized=True), network, 0.0)
    batch = rows(config, 60)
    batch.ids[1, 49] = 3
    with pytest.raises(BadBatchError, match="id 3") as error:
        scorer.logits(batch)
    assert (error.value.row, error.value.column) == (49, "C2")
    batch = rows(config, 60)
    batch.dense.fill_(3e38)
    with pytest.raises(TrainingError, match="not finite"):
        scorer.logits(batch)
