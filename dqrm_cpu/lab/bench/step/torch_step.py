"""Training steps of plain PyTorch as contestants: FP32, BF16 by autocast, quantization-aware as in the paper."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag

from dqrm_cpu.kernels.types import UNQUANTIZED
from dqrm_cpu.lab.bench.harness.batch_pool import Work
from dqrm_cpu.lab.bench.harness.cases import Case
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables, initial_mlps
from dqrm_cpu.lab.bench.step.torch_dlrm import (
    EmbeddingBags,
    Interact,
    TorchDlrm,
    fake_quantize,
    flat_interaction,
    make_mlp,
    symmetric_scale,
)
from dqrm_cpu.model.shapes import mlp_shapes

Extremes = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The smallest and the largest weight of a table."""


def aminmax_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Finds both in one pass: PyTorch's fastest."""
    extremes = torch.aminmax(weight)
    return extremes.min, extremes.max


def column_extremes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Finds those of each column, then of those: two passes along the rows, as the paper's authors look for them."""
    return weight.min(0).values.min(), weight.max(0).values.max()


@dataclass(frozen=True)
class Recipe:
    """The choices that distinguish the contestants in plain PyTorch."""

    interaction: Callable[[int], Interact] = flat_interaction
    autocast: bool = False
    scale_period: int = 0  # iterations between looks at the whole tables; 0: not quantized
    whole_table: bool = False  # quantizes every row at every step, before the lookup
    extremes: Extremes = aminmax_of


BASELINE = Recipe()
"""FP32, not quantized, the faster interaction."""


class TorchStep:
    """A training step of plain PyTorch: forward, autograd's backward, `torch.optim.SGD`."""

    def __init__(self, name: str, about: str, case: Case, shared: SharedTables, recipe: Recipe = BASELINE) -> None:
        self.name, self.about = name, about
        self._case, self._shared, self._recipe = case, shared, recipe
        self._model: TorchDlrm | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def setup(self) -> None:
        self._model, trained_tables = self._make_model()
        parameters = [*self._model.parameters(), *trained_tables]
        self._optimizer = torch.optim.SGD(parameters, lr=self._case.config.train.learning_rate)

    def _make_model(self) -> tuple[TorchDlrm, list[Tensor]]:
        """Returns the model, and what the optimizer trains besides its MLPs."""
        bags = EmbeddingBags(self._shared.untracked(), self._case.batch_size)
        pooled: Callable[[Work], Sequence[Tensor]] = bags
        if self._recipe.scale_period:
            kind = WholeTableBags if self._recipe.whole_table else QuantizedBags
            pooled = kind(bags, self._case, self._recipe)
        return make_dlrm(self._case, pooled, self._recipe), bags.weights()

    def step(self, work: Work) -> Tensor:
        """Trains on the batch and returns its loss before the update."""
        assert self._model is not None
        assert self._optimizer is not None
        with torch.autocast("cpu", torch.bfloat16) if self._recipe.autocast else contextlib.nullcontext():
            logits = self._model(work)
        loss = binary_cross_entropy_with_logits(logits.float(), work.batch.label)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def teardown(self) -> None:
        self._model = self._optimizer = None


class QuantizedBags:
    """Pooled rows in the paper's order: look up, then quantize what was looked up."""

    def __init__(self, bags: EmbeddingBags, case: Case, recipe: Recipe) -> None:
        self._bags = bags
        self._bits = case.config.quant.embedding_bits
        self._finder = ScaleFinder(bags, self._bits, recipe)

    def __call__(self, work: Work) -> Sequence[Tensor]:
        scale = self._finder.next()
        pooled = torch.stack(self._bags(work), dim=1)
        return [fake_quantize(pooled, scale[:, None], self._bits).flatten(1)]


class WholeTableBags:
    """Pooled rows in the order of general quantization libraries: quantize every table as a whole, then look up."""

    def __init__(self, bags: EmbeddingBags, case: Case, recipe: Recipe) -> None:
        self._weights = bags.weights()
        self._bits = case.config.quant.embedding_bits
        self._finder = ScaleFinder(bags, self._bits, recipe)
        self._offsets = torch.arange(case.batch_size)

    def __call__(self, work: Work) -> Sequence[Tensor]:
        scales, offsets = self._finder.next(), self._offsets[: work.batch.size]
        return [
            embedding_bag(ids, fake_quantize(weight, scale, self._bits), offsets, mode="sum")
            for weight, ids, scale in zip(self._weights, work.long_ids, scales, strict=True)
        ]


class ScaleFinder:
    """Searches the scales f32[T] every `scale_period` calls, from the extremes of each table."""

    def __init__(self, bags: EmbeddingBags, bits: int, recipe: Recipe) -> None:
        self._weights, self._bits, self._recipe = bags.weights(), bits, recipe
        self._iteration = 0
        self._scale = torch.empty(0)

    def next(self) -> Tensor:
        if self._iteration % self._recipe.scale_period == 0:
            lows, highs = zip(*(self._recipe.extremes(weight.detach()) for weight in self._weights), strict=True)
            self._scale = symmetric_scale(torch.stack(lows), torch.stack(highs), self._bits)
        self._iteration += 1
        return self._scale


def make_dlrm(case: Case, pooled: Callable[[Work], Sequence[Tensor]], recipe: Recipe) -> TorchDlrm:
    """Makes a model of these pooled rows and the MLPs that every contestant starts from."""
    config, initial, shapes = case.config, initial_mlps(case.config), mlp_shapes(case.config)
    bits = config.quant.mlp_bits if recipe.scale_period else UNQUANTIZED
    bottom, top = make_mlp(shapes.bottom, initial.bottom, bits), make_mlp(shapes.top, initial.top, bits)
    return TorchDlrm(config, bottom, pooled, recipe.interaction(1 + len(config.model.table_rows)), top)
