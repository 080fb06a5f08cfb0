"""The per-table scale: its formula, its period, its two finders, its errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqrm_cpu.errors import TrainingError
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.quant.methods import uniform_scale
from dqrm_cpu.quant.scale import TableScales
from tiny import CPU, tiny_config


@given(st.floats(min_value=0, max_value=2.0**99, width=32), st.integers(2, 16))
def test_the_largest_weight_is_the_largest_code(absmax: float, bits: int) -> None:
    scale = uniform_scale(torch.tensor([absmax]), bits).item()
    assert scale >= 1e-8 * (1 - 1e-6)
    if absmax > 1e-2:
        assert round(absmax / scale) == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("finder", ["scan", "track"])
def test_evaluation_uses_the_weights_as_they_stand(finder: str) -> None:
    config = tiny_config(quant={"scale_period": 100, "scale_finder": finder})
    model = Dlrm(config, select_kernels("numba", CPU), CPU)
    model.initialize_(seed=1)
    scales = TableScales(config.quant, model.kernels, model.groups)
    in_use = scales.for_training(0).clone()
    model.tables.weight.mul_(2)
    if scales.trackers[0] is not None:
        scales.trackers[0].rebuild(model.tables)
    torch.testing.assert_close(scales.for_evaluation(), 2 * in_use)
    torch.testing.assert_close(scales.for_training(1), in_use)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    config = tiny_config(quant={"scale_finder": "scan"})
    model = Dlrm(config, select_kernels("numba", CPU), CPU)
    model.initialize_(seed=1)
    model.tables.weight[41, 2] = bad  # row 1 of the second table
    with pytest.raises(TrainingError, match="table C2 "):
        TableScales(config.quant, model.kernels, model.groups).for_training(0)


def test_fp32_needs_no_scale() -> None:
    config = tiny_config(quant={"method": "none"})
    model = Dlrm(config, select_kernels("numba", CPU), CPU)
    model.tables.weight.fill_(float("nan"))
    scales = TableScales(config.quant, model.kernels, model.groups)
    assert scales.trackers == (None,)
    assert torch.equal(scales.for_training(0), torch.ones(3))
