"""MLP gradients in short forms: how far off, what feedback gives back, what is refused; one process simulates ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dqrm_cpu.comm.exchange.gradient_exchange import GradientExchange, GradientShape, TableShape, open_exchange
from dqrm_cpu.comm.exchange.mlp_exchange import BLOCK
from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.errors import TrainingError

SCALARS = 2
LENGTHS = [1, 7, BLOCK, 2 * BLOCK + 5, 5000]


def exchange(ranks: int, length: int, **chosen: Any) -> GradientExchange:
    shape = GradientShape((TableShape(torch.tensor([0, 1]), 1),), length)
    return open_exchange(ExchangeSettings(**chosen), SingleTransport(), ranks, shape, lambda grads: grads[0])


def flats(ranks: int, length: int, seed: int = 0) -> list[Tensor]:
    random = np.random.default_rng(seed)
    return [torch.from_numpy(random.standard_normal(length + SCALARS).astype(np.float32)) for _ in range(ranks)]


def summed(made: GradientExchange, local: list[Tensor]) -> Tensor:
    copies = [flat.clone() for flat in local]
    made.mlp.sum_(copies)
    return copies[0]


def blocks_of(values: Tensor) -> Tensor:
    """f32[blocks, BLOCK], zeros behind the last value."""
    padded = torch.zeros(-(-values.numel() // BLOCK) * BLOCK)
    padded[: values.numel()] = values
    return padded.view(-1, BLOCK)


@given(ranks=st.integers(1, 4), length=st.sampled_from(LENGTHS), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_int8_is_off_by_half_a_scale_a_rank_and_half_a_scale_of_the_sum(ranks: int, length: int, seed: int) -> None:
    local = flats(ranks, length, seed)
    found = summed(exchange(ranks, length, mlp_gradients="int8"), local)[:length]
    exact = torch.stack(local)[:, :length].double().sum(0)
    absmax = torch.stack([blocks_of(flat[:length]).abs().amax(1) for flat in local]).amax(0).double()
    # The sum of the codes is at most `ranks` times the largest value.
    bound = ranks * absmax / 127 / 2 + ranks * absmax / 127 / 2
    assert ((blocks_of(found) - blocks_of(exact.float())).abs() <= bound[:, None] * (1 + 1e-5)).all()


@given(ranks=st.integers(1, 4), length=st.sampled_from(LENGTHS), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_bf16_is_off_by_its_rounding(ranks: int, length: int, seed: int) -> None:
    local = flats(ranks, length, seed)
    found = summed(exchange(ranks, length, mlp_gradients="bf16"), local)[:length]
    stacked = torch.stack(local)[:, :length].double()
    bound = stacked.abs().sum(0) * 2**-8 + stacked.sum(0).abs() * 2**-8
    assert ((found - stacked.sum(0)).abs() <= bound * 1.01).all()


@pytest.mark.parametrize("form", ["fp32", "bf16", "int8"])
def test_the_scalars_stay_exact(form: str) -> None:
    local = flats(3, 5000)
    expected = (local[0] + local[1]) + local[2]
    assert torch.equal(summed(exchange(3, 5000, mlp_gradients=form), local)[-SCALARS:], expected[-SCALARS:])


@pytest.mark.parametrize(("form", "scale"), [("bf16", 2**-7), ("int8", 2 / 127)])
def test_feedback_keeps_the_error_from_growing(form: str, scale: float) -> None:
    """What has not arrived is what senders and destinations keep: less than one unit of each scale."""
    ranks, length, steps_done = 3, 3000, 50
    local = flats(ranks, length)
    made = exchange(ranks, length, mlp_gradients=form, error_feedback="mlp")
    arrived = sum(summed(made, local)[:length].double() for _ in range(steps_done))
    exact = torch.stack(local)[:, :length].double().sum(0)
    largest = max(flat[:length].abs().max().item() for flat in local)
    assert (arrived - steps_done * exact).abs().max() <= 2 * ranks * largest * scale


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_without_feedback_the_error_grows(form: str) -> None:
    local = flats(2, 3000)
    made = exchange(2, 3000, mlp_gradients=form)
    exact = (local[0] + local[1])[:3000].double()
    once = (summed(made, local)[:3000] - exact).abs().max()
    thrice = (sum(summed(made, local)[:3000].double() for _ in range(3)) - 3 * exact).abs().max()
    assert thrice > 2 * once


def test_the_first_micro_batch_gives_the_scale() -> None:
    local = flats(2, BLOCK)
    local[1] *= 100
    found = summed(exchange(2, BLOCK, mlp_gradients="int8", simulated_scale="first"), local)[:BLOCK]
    assert found.abs().max() <= 2 * local[0][:BLOCK].abs().max() * 1.01


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_int8_refuses_what_is_not_finite(value: float) -> None:
    local = flats(2, 3 * BLOCK)
    local[1][2 * BLOCK + 3] = value
    with pytest.raises(TrainingError, match=r"MLP block 2 .* on rank 1") as refused:
        summed(exchange(2, 3 * BLOCK, mlp_gradients="int8"), local)
    assert refused.value.unanimous


def test_a_sum_that_overflows_is_refused() -> None:
    local = [torch.full((BLOCK + SCALARS,), 3e38) for _ in range(2)]
    with pytest.raises(TrainingError, match="the sum of MLP block 0"):
        summed(exchange(2, BLOCK, mlp_gradients="int8"), local)


def test_state_of_another_exchange_goes_on_to_the_bit() -> None:
    chosen = {"mlp_gradients": "int8", "error_feedback": "mlp"}
    first, second = exchange(2, 3000, **chosen), exchange(2, 3000, **chosen)
    for seed in range(3):
        summed(first, flats(2, 3000, seed))
    first.gather_state()
    for name, tensor in second.state().items():
        tensor.copy_(first.state()[name])
    assert torch.equal(summed(first, flats(2, 3000, 9)), summed(second, flats(2, 3000, 9)))
