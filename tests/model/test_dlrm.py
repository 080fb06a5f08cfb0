"""The explicit backward of the model against autograd on a plain torch DLRM."""

import pytest
import torch

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import Batch
from dqrm_cpu.data.synthetic import SyntheticClicks
from dqrm_cpu.errors import DataError
from dqrm_cpu.kernels.select import select_kernels
from dqrm_cpu.model.dlrm import Dlrm
from dqrm_cpu.quant.scale import TableScales
from plain_dlrm import PlainDlrm
from tiny import CPU, tiny_config


def random_batch(config: Config, size: int, max_bag_size: int) -> Batch:
    clicks = SyntheticClicks(config.model.table_rows, config.model.num_dense, seed=5, max_bag_size=max_bag_size)
    return clicks.rows(0, size)


CASES = {
    "fp32": ({"method": "none"}, {}, 1),
    "int4": ({}, {}, 1),
    "int4 tables, fp32 MLPs": ({"mlp_bits": 32}, {}, 1),
    "int8 cat": ({"embedding_bits": 8, "mlp_bits": 8}, {"interaction": "cat"}, 1),
    "multi-hot sum": ({}, {}, 4),
    "multi-hot mean": ({}, {"pooling": "mean"}, 4),
}


@pytest.mark.parametrize("kernels", ["torch", "numba"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_autograd(case: str, kernels: str) -> None:
    quant, model_options, max_bag_size = CASES[case]
    config = tiny_config(model=model_options, quant=quant)
    model = Dlrm(config, select_kernels(kernels, CPU), CPU)
    model.initialize_(seed=3)
    model.tables.weight.mul_(8)  # the paper's small initialization hides errors in the interaction
    plain = PlainDlrm(config, model)
    batch = random_batch(config, 37, max_bag_size)

    scales = TableScales(config.quant, model.kernels, model.tables)
    workspace, gradients, bags = model.workspace(37), model.gradients(), model.bags(batch)
    model.quantize_weights()
    logits = model.forward(batch, bags, scales.for_training(0), workspace)
    model.kernels.click_loss(logits, batch.label, 1 / 37, gradients.loss, workspace.grad_logits)
    model.backward(workspace.grad_logits, workspace, gradients)
    expected = plain.loss(batch)
    expected.backward()

    close = {"rtol": 2e-5, "atol": 2e-6}
    torch.testing.assert_close(gradients.loss, expected.detach(), **close)
    for ours, layers in ((gradients.bottom, plain.bottom), (gradients.top, plain.top)):
        for mine, layer in zip(ours, layers, strict=True):
            torch.testing.assert_close(mine.weight, layer.weight.grad, **close)
            torch.testing.assert_close(mine.bias, layer.bias.grad, **close)
    before = model.tables.weight.clone()
    model.kernels.update_sgd_(model.tables, bags, workspace.grad_features, 1.0, 0.0, None)
    table_gradients = torch.cat([table.grad for table in plain.tables])
    torch.testing.assert_close(before - model.tables.weight, table_gradients, rtol=1e-4, atol=1e-5)


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
        scales = TableScales(config.quant, model.kernels, model.tables)
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


def test_a_smaller_batch_uses_the_same_buffers() -> None:
    config = tiny_config()
    model = Dlrm(config, select_kernels("torch", CPU), CPU)
    model.initialize_(seed=3)
    model.quantize_weights()
    step = TableScales(config.quant, model.kernels, model.tables).for_evaluation()
    workspace = model.workspace(64)
    whole, part = random_batch(config, 64, 1), random_batch(config, 10, 1)
    expected = model.forward(whole, model.bags(whole), step, workspace)[:10].clone()
    found = model.forward(part, model.bags(part), step, workspace.first(10))
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
