"""Training steps of plain PyTorch as contestants: FP32, BF16 by autocast, quantization-aware as in the paper."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag

from dqrm_cpu.bench.arena import Arenas
from dqrm_cpu.bench.cases import Case
from dqrm_cpu.bench.fake_quant import fake_quantize, step_of
from dqrm_cpu.bench.pool import Work
from dqrm_cpu.bench.torch_dlrm import Bags, Interact, TorchDlrm, flat_interaction, make_mlp
from dqrm_cpu.bench.weights import initial_mlps
from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.model.dlrm import mlp_shapes

Extremes = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The smallest and the largest weight of a table."""


def aminmax_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """One pass: PyTorch's fastest."""
    extremes = torch.aminmax(weight)
    return extremes.min, extremes.max


def column_extremes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of each column, then of those: two passes along the rows, as the paper's authors look for them."""
    return weight.min(0).values.min(), weight.max(0).values.max()


@dataclass(frozen=True)
class Recipe:
    """What distinguishes the plain PyTorch contestants."""

    interaction: Callable[[int], Interact] = flat_interaction
    autocast: bool = False
    scale_period: int = 0  # iterations between looks at the whole tables; 0: not quantized
    whole_table: bool = False  # quantizes every row at every step, before the lookup
    extremes: Extremes = aminmax_of


class TorchStep:
    """Forward, autograd's backward, `torch.optim.SGD`."""

    def __init__(self, name: str, about: str, case: Case, arenas: Arenas, recipe: Recipe) -> None:
        self.name, self.about = name, about
        self._case, self._arenas, self._recipe = case, arenas, recipe
        self._model: TorchDlrm | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def setup(self) -> None:
        bags = Bags(self._arenas.shared(), self._case.batch_size)
        pooled: Callable[[Work], Sequence[Tensor]] = bags
        if self._recipe.scale_period:
            kind = WholeTableBags if self._recipe.whole_table else QuantizedBags
            pooled = kind(bags, self._case, self._recipe)
        self._model = make_dlrm(self._case, pooled, self._recipe)
        parameters = [*self._model.parameters(), *bags.weights()]
        self._optimizer = torch.optim.SGD(parameters, lr=self._case.config.train.learning_rate)

    def step(self, work: Work) -> Tensor:
        """The loss of the batch before the update."""
        assert self._model is not None
        assert self._optimizer is not None
        loss = backward_of(self._model, work, self._recipe.autocast)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def teardown(self) -> None:
        self._model = self._optimizer = None


class QuantizedBags:
    """The paper's order: look up, then quantize what was looked up; the scale is found every `period` calls."""

    def __init__(self, bags: Bags, case: Case, recipe: Recipe) -> None:
        self._bags = bags
        self._bits = case.config.quant.embedding_bits
        self._finder = StepFinder(bags, self._bits, recipe)

    def __call__(self, work: Work) -> Sequence[Tensor]:
        step = self._finder.next()
        pooled = torch.stack(self._bags(work), dim=1)
        return [fake_quantize(pooled, step[:, None], self._bits).flatten(1)]


class WholeTableBags:
    """The order of general quantization libraries: quantize every table as a whole, then look up."""

    def __init__(self, bags: Bags, case: Case, recipe: Recipe) -> None:
        self._weights = bags.weights()
        self._bits = case.config.quant.embedding_bits
        self._finder = StepFinder(bags, self._bits, recipe)
        self._offsets = torch.arange(case.batch_size)

    def __call__(self, work: Work) -> Sequence[Tensor]:
        steps, offsets = self._finder.next(), self._offsets[: work.batch.size]
        return [
            embedding_bag(ids, fake_quantize(weight, step, self._bits), offsets, mode="sum")
            for weight, ids, step in zip(self._weights, work.long_ids, steps, strict=True)
        ]


class StepFinder:
    """The quantization step f32[T], from the extremes of each table."""

    def __init__(self, bags: Bags, bits: int, recipe: Recipe) -> None:
        self._weights, self._bits, self._recipe = bags.weights(), bits, recipe
        self._iteration = 0
        self._step = torch.empty(0)

    def next(self) -> Tensor:
        if self._iteration % self._recipe.scale_period == 0:
            lows, highs = zip(*(self._recipe.extremes(weight.detach()) for weight in self._weights), strict=True)
            self._step = step_of(torch.stack(lows), torch.stack(highs), self._bits)
        self._iteration += 1
        return self._step


def make_dlrm(case: Case, pooled: Callable[[Work], Sequence[Tensor]], recipe: Recipe) -> TorchDlrm:
    """Around these embeddings, with the MLPs that every contestant starts from."""
    config, initial, shapes = case.config, initial_mlps(case.config), mlp_shapes(case.config)
    bits = config.quant.mlp_bits if recipe.scale_period else UNQUANTIZED
    bottom, top = make_mlp(shapes.bottom, initial.bottom, bits), make_mlp(shapes.top, initial.top, bits)
    return TorchDlrm(config, bottom, pooled, recipe.interaction(1 + len(config.model.table_rows)), top)


def backward_of(model: nn.Module, work: Work, autocast: bool) -> Tensor:
    """The loss; gradients are left where autograd leaves them."""
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        logits = model(work)
    loss = binary_cross_entropy_with_logits(logits.float(), work.batch.label)
    torch.autograd.backward(loss)
    return loss.detach()
