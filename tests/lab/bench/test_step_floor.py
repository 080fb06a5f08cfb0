"""The floor of a step computes a step's products, moves its bytes, and changes nothing."""

import pytest
import torch
from bench_cases import BATCH, tiny_case, usable

from dqrm_cpu.lab.bench.harness.batch_pool import make_pool
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.step.floor import StepFloor, Way, fastest, products, ways
from dqrm_cpu.model.shapes import LayerShape, mlp_shapes

PRECISIONS = [torch.float32, *([torch.bfloat16] if usable("ours_bf16") else [])]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_every_way_computes_the_product(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(*size, generator=generator).to(dtype) for size in ((33, 17), (17, 21)))
    candidates = ways(left, right)
    assert {way.library for way in candidates} == {"torch", "oneDNN"}
    for way in candidates:
        found = way.compute()
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found.float(), (left.double() @ right.double()).float(), rtol=2e-2, atol=2e-2)


def test_a_layer_has_three_products_and_the_first_one_two() -> None:
    shape = LayerShape(17, 21, relu=True)
    sizes = [candidates[0].compute().shape for candidates in products(shape, 33, torch.float32, reads_data=False)]  # type: ignore[attr-defined]
    assert sizes == [(33, 21), (21, 17), (33, 17)]
    assert len(list(products(shape, 33, torch.float32, reads_data=True))) == 2


def test_the_fastest_is_chosen() -> None:
    matrix = torch.zeros(300, 300)
    slow, quick = Way("slow", lambda: matrix @ matrix @ matrix @ matrix), Way("quick", lambda: None)
    assert fastest([slow, quick]) is quick


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_step_of_it_leaves_the_tables_as_they_were(dtype: torch.dtype) -> None:
    case = tiny_case()
    shared = SharedTables(case)
    floor = StepFloor("floor", case, shared, dtype)
    floor.setup()
    before = shared.untracked().weight.clone()
    floor.step(make_pool(case.config.model, BATCH, 1, seed=3).next())
    assert torch.equal(shared.untracked().weight, before)
    layers = len(mlp_shapes(case.config).layers)
    computed = [int(text) for text in floor.about.replace(")", "").replace(",", "").split() if text.isdigit()]
    assert sum(computed) == 3 * layers - 1
    floor.teardown()
