"""The explicit backward of the model against autograd on a plain torch DLRM."""

from typing import Any

import pytest
import torch

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.synthetic.stream import SyntheticClicks
from dqrm_cpu.errors import DataError
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.kernels.table_groups import one_group
from dqrm_cpu.kernels.types import UpdateRule
from dqrm_cpu.model.activations import Mode
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.model.tables import allocate_tables
from dqrm_cpu.quant.scale import TableScales
from plain_dlrm import PlainDlrm
from tiny import CPU, tiny_config


def random_batch(config: Config, size: int, max_bag_size: int) -> Batch:
    clicks = SyntheticClicks(config.model.table_rows, config.model.num_dense, seed=5, max_bag_size=max_bag_size)
    return clicks.rows(0, size)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "fp32": ({"method": "none"}, {}, 1),
    "int4": ({}, {}, 1),
    "int4 tables, fp32 MLPs": ({"mlp_bits": 32}, {}, 1),
    "int8 cat": ({"embedding_bits": 8, "mlp_bits": 8}, {"interaction": "cat"}, 1),
    "fp32 cross": ({"method": "none"}, {"interaction": "cross", "cross_layers": 2}, 1),
    "int4 cross": ({}, {"interaction": "cross"}, 1),
    "int4 cross of low rank": ({}, {"interaction": "cross", "cross_rank": 5}, 1),
    "int8 cross, one layer": ({"mlp_bits": 8}, {"interaction": "cross", "cross_layers": 1, "cross_rank": 1}, 3),
    "biases of a cross": ({"mlp_bias_bits": 8}, {"interaction": "cross"}, 1),
    "inputs of a cross": ({"activation_bits": 8}, {"interaction": "cross", "cross_rank": 4}, 1),
    "multi-hot sum": ({}, {}, 4),
    "multi-hot mean": ({}, {"pooling": "mean"}, 4),
    "fp32 dims": ({"method": "none"}, {"table_dims": "C2=4"}, 1),
    "int4 dims, wider and narrower": ({}, {"table_dims": "C1=9,C3=2"}, 1),
    "one dim, not the interaction's": ({"mlp_bits": 8}, {"table_dims": "C1=3,C2=3,C3=3"}, 3),
    "dims of bags": ({"activation_bits": 8}, {"table_dims": "C1=1,C2=17", "pooling": "mean"}, 4),
    "dims crossed": ({"mlp_bias_bits": 8}, {"table_dims": "C3=5", "interaction": "cross"}, 2),
    "dims side by side": ({"mlp_bits": 32}, {"table_dims": "C3=5", "interaction": "cat"}, 1),
}


@pytest.mark.parametrize("kernels", ["torch", "numba"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_autograd(case: str, kernels: str) -> None:
    quant, model_options, max_bag_size = CASES[case]
    config = tiny_config(model=model_options, quant=quant)
    model = Dlrm(config, select_kernels(kernels, CPU), CPU)
    model.initialize_(seed=3)
    for weight in model.groups.weights:
        weight.mul_(8)  # the paper's small initialization hides errors in the interaction
    plain, first = PlainDlrm(config, model), [weight.clone() for weight in model.groups.weights]
    batch = random_batch(config, 37, max_bag_size)

    scales = TableScales(config.quant, model.kernels, model.groups)
    workspace, gradients, bags = model.workspace(37), model.gradients(), model.bags(batch)
    model.quantize_weights()
    model.inputs.mode = Mode.BY_BATCH
    logits = model.forward(batch, bags, scales.for_training(0), workspace)
    model.kernels.click_loss(logits, batch.label, 1 / 37, gradients.loss, workspace.grad_logits)
    model.backward(workspace.grad_logits, workspace, gradients)
    expected = plain.loss(batch)
    expected.backward()  # type: ignore[no-untyped-call]

    close: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-6}
    torch.testing.assert_close(gradients.loss, expected.detach(), **close)
    for part in ("bottom", "projections", "cross", "top"):
        ours, layers = getattr(gradients, part), getattr(plain, part)
        for mine, layer in zip(ours, layers, strict=True):
            torch.testing.assert_close(mine.weight, layer.weight.grad, **close)
            if layer.bias is not None:
                torch.testing.assert_close(mine.bias, layer.bias.grad, **close)
    for group, own, grad in zip(model.groups, bags, workspace.grad_pooled, strict=True):
        model.kernels.update_(group.tables, own, grad, UpdateRule(1.0, 0.0), None)
    for weight, table, before in zip(model.groups.weights, plain.tables, first, strict=True):
        torch.testing.assert_close(before - weight, table.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.bf16
@pytest.mark.parametrize("method", ["none", "dqrm"])
def test_bf16_products_stay_close_to_fp32(method: str) -> None:
    """Eight bits of mantissa: 2^-8 for each of the twelve factors of four layers, forward, backward and weights."""
    found = []
    for precision in ("fp32", "bf16"):
        config = tiny_config(quant={"method": method}, train={"precision": precision})
        model = Dlrm(config, select_kernels("torch", CPU), CPU)
        model.initialize_(seed=3)
        batch = random_batch(config, 64, 1)
        scales = TableScales(config.quant, model.kernels, model.groups)
        workspace, gradients, bags = model.workspace(64), model.gradients(), model.bags(batch)
        model.quantize_weights()
        logits = model.forward(batch, bags, scales.for_training(0), workspace)
        model.kernels.click_loss(logits, batch.label, 1 / 64, gradients.loss, workspace.grad_logits)
        model.backward(workspace.grad_logits, workspace, gradients)
        assert logits.dtype == gradients.flat.dtype == torch.float32
        found.append((logits, gradients.parameters.clone(), workspace.grad_features.clone()))
    for fp32, bf16 in zip(*found, strict=True):
        assert (fp32 - bf16).norm() < 12 * 2**-8 * fp32.norm()
        assert not torch.equal(fp32, bf16)


@pytest.mark.parametrize(("table", "wrong"), [(0, 40), (1, -1), (2, 2**30)])
def test_an_id_outside_its_table_is_refused_before_any_kernel(table: int, wrong: int) -> None:
    config = tiny_config()
    model = Dlrm(config, select_kernels("numba", CPU), CPU)
    batch = random_batch(config, 20, 1)
    batch.ids[table, 7] = wrong
    with pytest.raises(DataError, match=rf"C{table + 1}.*{wrong}"):
        model.bags(batch)


def test_a_model_trains_the_tables_that_it_is_given() -> None:
    config = tiny_config()
    kernels, rows = select_kernels("torch", CPU), config.model.table_rows
    tables = allocate_tables(rows, config.model.embedding_dim, CPU)
    model, own = Dlrm(config, kernels, CPU, tables=one_group(tables)), Dlrm(config, kernels, CPU)
    assert model.tables is tables
    model.initialize_(seed=3)
    own.initialize_(seed=3)
    assert torch.equal(tables.weight, own.tables.weight)


@pytest.mark.parametrize(
    ("shape", "signed"),
    [
        ({}, [True, False, True, False]),
        ({"interaction": "cross", "cross_layers": 1}, [True, False, True, True, False]),
        ({"interaction": "cross", "cross_layers": 1, "cross_rank": 2}, [True, False, True, True, True, False]),
    ],
)
def test_every_layer_has_a_formula_of_what_it_reads(shape: dict[str, Any], signed: list[bool]) -> None:
    model = Dlrm(tiny_config(shape, {"activation_bits": 8}), select_kernels("torch", CPU), CPU)
    assert [formula.signed for formula in model.inputs.formulas] == signed


def test_a_smaller_batch_uses_the_same_buffers() -> None:
    config = tiny_config()
    model = Dlrm(config, select_kernels("torch", CPU), CPU)
    model.initialize_(seed=3)
    model.quantize_weights()
    scale = TableScales(config.quant, model.kernels, model.groups).for_evaluation()
    workspace = model.workspace(64)
    whole, part = random_batch(config, 64, 1), random_batch(config, 10, 1)
    expected = model.forward(whole, model.bags(whole), scale, workspace)[:10].clone()
    found = model.forward(part, model.bags(part), scale, workspace.first(10))
    torch.testing.assert_close(found, expected)


def test_initialization_depends_on_the_seed_alone() -> None:
    config = tiny_config()
    first, second, other = (Dlrm(config, select_kernels("torch", CPU), CPU) for _ in range(3))
    first.initialize_(seed=1)
    second.initialize_(seed=1)
    other.initialize_(seed=2)
    assert torch.equal(first.tables.weight, second.tables.weight)
    assert torch.equal(first.dense, second.dense)
    assert not torch.equal(first.tables.weight, other.tables.weight)
    bound = (1 / 500) ** 0.5
    largest = first.tables.weight[43:].abs().max().item()
    assert 0.9 * bound < largest <= bound
