"""Layers in products of whole numbers, against the oracle, to the bit."""

import integer_layer_oracle as oracle
import numpy as np
import pytest
import torch
from torch import Tensor

from dqrm_cpu.kernels.hashing import splitmix64
from dqrm_cpu.kernels.integer_layers import IntegerLayers, IntegerShape, integer_layers
from dqrm_cpu.model.layers import LayerParameters

_KEY = 0x9E3779B97F4A7C15

_CASES = [
    # inputs, outputs, relu, first inputs, unsigned, largest code, batch
    (13, 512, True, 13, False, 127, 5),
    (64, 16, True, 64, True, 7, 97),
    (367, 40, True, 16, False, 127, 50),
    (33, 1, False, 33, True, 127, 131),
    (70, 35, True, 5, False, 7, 1),
]


def _shape(case: tuple[int, int, bool, int, bool, int, int]) -> IntegerShape:
    return IntegerShape(*case[:5])


def _numbers(shape: IntegerShape, batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws weight, bias, input and the gradient of the output; one row of either of the last two is 0."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(shape.outputs, shape.inputs, generator=generator), torch.randn(shape.outputs)
    x, grad = (torch.randn(batch, size, generator=generator) for size in (shape.inputs, shape.outputs))
    x[:, : shape.first_inputs] *= 30
    x, grad = x.abs() if shape.is_unsigned else x, grad * torch.randn(batch, 1, generator=generator)
    x[batch // 2], grad[batch // 3] = 0, 0
    return weight, bias, x.contiguous(), grad.contiguous()


def _run(layers: IntegerLayers, numbers: tuple[Tensor, ...], key: int = _KEY, largest: int = 127) -> list[Tensor]:
    """Returns the output of one layer, and the gradients of input, weight and bias."""
    weight, bias, x, grad = numbers
    layers.follow([LayerParameters(weight, bias)], largest)
    y = layers.forward(x).clone()
    gradients = LayerParameters(torch.empty_like(weight), torch.empty_like(bias))
    of_x = layers.backward(grad, key, [gradients], True)
    assert of_x is not None
    return [y, of_x.clone(), gradients.weight, gradients.bias]


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_every_product_is_that_of_the_oracle_to_the_bit(case: tuple[int, int, bool, int, bool, int, int]) -> None:
    shape, (largest, batch) = _shape(case), case[5:]
    numbers = _numbers(shape, batch)
    weight, bias, x, grad = (one.numpy() for one in numbers)
    layers = integer_layers([shape])
    # Twice, the larger batch first: what an earlier batch left in the scratch memory must not show.
    _run(layers, _numbers(shape, batch + 60, seed=1))
    y, *gradients = _run(layers, numbers, largest=largest)
    coded, read = oracle.code_weight(weight, largest), oracle.read_rows(shape, x)
    expected = oracle.forward(shape, coded, bias, read)
    np.testing.assert_array_equal(y.numpy(), expected)
    key = splitmix64(_KEY, 0)
    of = oracle.backward(shape, coded, read, grad, expected if shape.relu else None, key)
    for ours, theirs in zip(gradients, (of.inputs, of.weight, of.bias), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("wants_input", [True, False])
def test_layers_follow_each_other(wants_input: bool) -> None:
    batch, widths = 110, (37, 70, 33, 1)
    shapes = [
        IntegerShape(widths[i], widths[i + 1], i < 2, 16 if i == 0 else widths[i], is_unsigned=i > 0) for i in range(3)
    ]
    drawn = [_numbers(shape, batch, seed) for seed, shape in enumerate(shapes)]
    x, grad = drawn[0][2], drawn[2][3]
    layers = integer_layers(shapes)
    layers.follow([LayerParameters(weight, bias) for weight, bias, _, _ in drawn], 127)
    y = layers.forward(x)
    gradients = [LayerParameters(torch.empty_like(weight), torch.empty_like(bias)) for weight, bias, _, _ in drawn]
    of_x = layers.backward(grad, _KEY, gradients, wants_input)
    coded = [oracle.code_weight(weight.numpy(), 127) for weight, _, _, _ in drawn]
    read, outputs = [], [x.numpy()]
    for shape, weight, (_, bias, _, _) in zip(shapes, coded, drawn, strict=True):
        read.append(oracle.read_rows(shape, outputs[-1]))
        outputs.append(oracle.forward(shape, weight, bias.numpy(), read[-1]))
    np.testing.assert_array_equal(y.numpy(), outputs[-1])
    passed = grad.numpy()
    for i in (2, 1, 0):
        activation = outputs[i + 1] if shapes[i].relu else None
        of = oracle.backward(shapes[i], coded[i], read[i], passed, activation, splitmix64(_KEY, i))
        np.testing.assert_array_equal(gradients[i].weight.numpy(), of.weight)
        np.testing.assert_array_equal(gradients[i].bias.numpy(), of.bias)
        passed = of.inputs
    assert (of_x is not None) == wants_input
    if of_x is not None:
        np.testing.assert_array_equal(of_x.numpy(), passed)


@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    shape = _shape(_CASES[2])
    numbers = _numbers(shape, 300)
    layers = integer_layers([shape])
    expected = _run(layers, numbers)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = _run(layers, numbers)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


def test_gradients_are_right_on_average() -> None:
    shape = _shape(_CASES[1])
    numbers = _numbers(shape, 96)
    weight, _, x, grad = numbers
    layers = integer_layers([shape])
    drawn = [_run(layers, numbers, key) for key in range(64)]
    coded, read = (oracle.code_weight(weight.numpy(), 127), oracle.read_rows(shape, x.numpy()))
    seen_weight = torch.from_numpy((coded.codes * coded.scale[:, None]).astype(np.float32))
    seen_x = torch.from_numpy((read.codes * read.scales).astype(np.float32))
    rectified = torch.where(drawn[0][0] > 0, grad, 0.0)
    for number, exact in ((1, rectified @ seen_weight), (2, rectified.t() @ seen_x)):
        each = torch.stack([one[number] for one in drawn])
        one_error, mean_error = (each[0] - exact).norm(), (each.mean(0) - exact).norm()
        assert one_error < 0.03 * exact.norm()
        assert mean_error < 0.25 * one_error  # an eighth is expected of 64 draws


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_seen_in_the_gradient(bad: float) -> None:
    shape = _shape(_CASES[2])
    numbers = _numbers(shape, 50)
    numbers[2][7, 3] = bad
    y, _, of_weight, _ = _run(integer_layers([shape]), numbers)
    assert not bool(torch.isfinite(y[7]).any())
    assert not bool(torch.isfinite(of_weight[0, : shape.first_inputs]).all())
