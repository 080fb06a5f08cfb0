"""No peer is a straw man: each contestant of `bench step` computes the losses that ours computes, step after step."""

import pytest
import torch
from bench_cases import BATCH, make_contestant, tiny_case, usable

from dqrm_cpu.lab.bench.harness.batch_pool import make_pool

STEPS = 6
FP32_PEERS = ("torch_fp32", "torch_fp32_flat", *usable("fbgemm_fp32"))
EXACT_PEERS = (
    "ours_int4_scan_every",
    "torch_qat_scan_every",
    "torch_qat_columns_every",
    "torch_qat_whole_table",
    *usable("ours_int4_exact_ipex"),
)


def losses(name: str) -> torch.Tensor:
    """f32[STEPS] of the contestant on tables of its own."""
    contestant = make_contestant(name)
    contestant.setup()
    pool = make_pool(tiny_case().config.model, BATCH, STEPS, seed=3)
    found = torch.stack([contestant.step(pool.next()) for _ in range(STEPS)])
    contestant.teardown()
    return found


@pytest.mark.parametrize("name", FP32_PEERS)
def test_fp32_peers_train_as_ours(name: str) -> None:
    torch.testing.assert_close(losses(name), losses("ours_fp32"), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", EXACT_PEERS)
def test_peers_with_a_scale_at_every_step_train_as_ours(name: str) -> None:
    # A weight on the border between two codes may fall to either side.
    torch.testing.assert_close(losses(name), losses("ours_int4_exact"), rtol=1e-4, atol=0)


def test_a_kept_scale_is_kept_alike() -> None:
    torch.testing.assert_close(losses("torch_qat_scan_kept"), losses("ours_int4_scan_kept"), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["torch_bf16_flat", *usable("ours_bf16")])
def test_bf16_stays_within_its_rounding(name: str) -> None:
    # BF16 keeps 8 significant bits; a loss near 0.7 averages many products.
    torch.testing.assert_close(losses(name), losses("ours_fp32"), rtol=2**-7, atol=0)


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_rows_of_few_bits_train_nearly_as_fp32_ones(form: str) -> None:
    found, expected = losses(f"ours_int4_exact_{form}_rows"), losses("ours_int4_exact")
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)
    assert not torch.equal(found, expected)


def test_quantization_is_visible_in_the_losses() -> None:
    """Else the comparisons above would pass with nothing quantized."""
    assert (losses("ours_int4_exact") - losses("ours_fp32")).abs().max() > 1e-3


def test_a_kept_scale_differs_from_an_exact_one() -> None:
    """Else it would not matter which of them is timed."""
    assert not torch.equal(losses("ours_int4_scan_kept"), losses("ours_int4_exact"))
