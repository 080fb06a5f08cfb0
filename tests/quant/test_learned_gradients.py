"""Gradients of LSQ's scale and PACT's clip: by finite differences, and with the published factor."""

import math

import pytest
import torch
from formula_oracle import lsq, pact

from dqrm_cpu.kernels.table_groups import one_group
from dqrm_cpu.kernels.types import SparseGrad, Tables
from dqrm_cpu.quant.learned import initial_table_scales, matrix_scale_gradient, table_scale_gradient
from dqrm_cpu.quant.methods import Lsq, Pact

EPS = 1e-4


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_scale_of_lsq_with_its_roundings_held_still(bits: int) -> None:
    """Straight through the rounding, value = (w/s + (round - w/s held still)) s inside: its slope by differences."""
    s, limit = 0.37, 2 ** (bits - 1)
    for w in (0.1, -0.26, 0.8 * limit * s, 3.0 * limit * s, -3.0 * limit * s):
        held = round(w / s) - w / s

        def surrogate(scale: float, w: float = w, held: float = held) -> float:
            clamped: float = min(max(w / scale, -limit), limit - 1)
            inside = -limit < w / scale < limit - 1
            return (clamped + (held if inside else 0.0)) * scale

        numeric = (surrogate(s + EPS) - surrogate(s - EPS)) / (2 * EPS)
        assert lsq(w, s, bits)[2] == pytest.approx(numeric, abs=1e-6)
        found = Lsq(bits).backward_(torch.tensor([[w]]), torch.tensor([[s]]), torch.ones(1, 1))
        assert found is not None
        assert found.item() == pytest.approx(numeric, abs=1e-4 * limit)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_clip_of_pact(bits: int) -> None:
    """Straight through the rounding the value is clamp(w, -a, a): its slope by differences."""
    a = 0.9
    for w in (0.1, -0.5, 0.85, 1.2, -3.0):
        numeric = (min(max(w, -a - EPS), a + EPS) - min(max(w, -a + EPS), a - EPS)) / (2 * EPS)
        assert pact(w, a, bits)[2] == pytest.approx(numeric, abs=1e-6)
        found = Pact(bits).backward_(torch.tensor([[w]]), torch.tensor([[a]]), torch.ones(1, 1))
        assert found is not None
        assert found.item() == pytest.approx(numeric, abs=1e-6)


def sparse_case() -> tuple[Tables, SparseGrad, torch.Tensor]:
    """Three tables of 5, 4 and 6 rows; nothing of the second was looked up."""
    generator = torch.Generator().manual_seed(3)
    tables = Tables(torch.randn(15, 3, generator=generator), torch.tensor([0, 5, 9, 15]))
    rows = torch.tensor([0, 3, 2, 4, 5], dtype=torch.int32)
    values = torch.randn(5, 3, generator=generator)
    return tables, SparseGrad(torch.tensor([0, 2, 2, 5]), rows, values), torch.randn(5, 3, generator=generator)


def test_the_gradient_of_a_tables_scale_counts_all_of_its_weights() -> None:
    """The published factor is 1 / sqrt(N Qp), N the weights of the whole table, not those of the batch."""
    tables, grad, of_scale = sparse_case()
    found = table_scale_gradient(Lsq(4), tables, grad, of_scale)
    expected = [of_scale[:2].sum() / math.sqrt(15 * 7), 0.0, of_scale[2:].sum() / math.sqrt(18 * 7)]
    torch.testing.assert_close(found, torch.tensor(expected))
    plain = table_scale_gradient(Pact(4), tables, grad, of_scale)
    torch.testing.assert_close(plain, torch.stack((of_scale[:2].sum(), torch.tensor(0.0), of_scale[2:].sum())))


def test_the_gradient_of_a_matrix_scale() -> None:
    of_scale = torch.randn(4, 5)
    by_row = matrix_scale_gradient(Lsq(4), of_scale, torch.ones(4, 1))
    torch.testing.assert_close(by_row, of_scale.sum(1, keepdim=True) / math.sqrt(5 * 7))
    whole = matrix_scale_gradient(Lsq(4), of_scale, torch.ones(1, 1))
    torch.testing.assert_close(whole, of_scale.sum().view(1, 1) / math.sqrt(20 * 7))


def test_where_learning_starts() -> None:
    tables, _, _ = sparse_case()
    parts = [tables.weight[:5], tables.weight[5:9], tables.weight[9:]]
    groups = one_group(tables)
    torch.testing.assert_close(
        initial_table_scales(Lsq(4), groups), torch.stack([2 * part.abs().mean() / math.sqrt(7) for part in parts])
    )
    torch.testing.assert_close(initial_table_scales(Pact(4), groups), torch.stack([part.abs().max() for part in parts]))
