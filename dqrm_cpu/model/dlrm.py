"""DLRM: embedding tables and a bottom MLP, their interaction, a top MLP; an explicit backward instead of autograd.

With a cross network between interaction and top MLP it is DCNv2; that has no layers in other models.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dqrm_cpu.config import Config, QuantConfig
from dqrm_cpu.config.schema import LARGEST_SEED
from dqrm_cpu.data.batch import BadBatchError, Batch
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.master_rows import FP32, ROW_TYPES
from dqrm_cpu.kernels.table_groups import TableGroups
from dqrm_cpu.kernels.types import UNQUANTIZED, Bags, RowChances, SparseGrad, Tables
from dqrm_cpu.kernels.validate import (
    BagError,
    RowError,
    WeightError,
    sound_samples,
    validate_bags,
    validate_rows,
    validate_weights,
)
from dqrm_cpu.model.activations import LayerInputs, ReadInput
from dqrm_cpu.model.correction import keep_rate_correction
from dqrm_cpu.model.gemm import Gemm, select_gemm
from dqrm_cpu.model.integer_mlp import IntegerMlp
from dqrm_cpu.model.interaction import CrossNetwork, Interaction, select_interaction
from dqrm_cpu.model.layers import LayerParameters, initialize_, split_parameters
from dqrm_cpu.model.mlp import Mlp
from dqrm_cpu.model.mlp_weights import (
    MakeWeights,
    WeightSource,
    largest_row_code,
    quantized_matrices,
    quantized_weights,
)
from dqrm_cpu.model.projections import Projections
from dqrm_cpu.model.shapes import interaction_width, mlp_shapes, scale_counts, table_names
from dqrm_cpu.model.tables import HeldRows, allocate_groups
from dqrm_cpu.model.workspace import DenseGradients, Workspace, allocate_workspace
from dqrm_cpu.quant.formula import Formula
from dqrm_cpu.quant.learned import LearnedScales, initial_table_scales, split_scales
from dqrm_cpu.quant.methods import Uniform, learned_formula, select_formula
from dqrm_cpu.quant.rounding import NEAREST, ProductRounding, RoundingKey, RowRounding, WeightRounding
from dqrm_cpu.quant.tables import TableQuantizer
from dqrm_cpu.timing.spans import Spans

AwaitRows = Callable[[], tuple[Tables, Bags]]
"""Waits for the rows of a batch that lie elsewhere, and returns them with the lookups as numbers of those."""


class Dlrm:
    """The model on one device. `scale` arguments are the tables' scales, f32[T].

    `tables`: those to use, of the configuration's shape; None: the model allocates its own. `held`: the rows of each
    table that this process holds; None: all of them. Batches name all rows in any case.
    """

    def __init__(
        self,
        config: Config,
        kernels: Kernels,
        device: torch.device,
        spans: Spans | None = None,
        tables: TableGroups | None = None,
        held: Sequence[HeldRows] | None = None,
    ) -> None:
        self.spans = spans or Spans()
        model, quant = config.model, config.quant
        self.device = device
        self.kernels = kernels
        self.shapes = mlp_shapes(config)
        self._held = [HeldRows(0, rows) for rows in model.table_rows] if held is None else held
        held_rows = [rows.num_rows for rows in self._held]
        row_type = ROW_TYPES[config.train.master_rows]
        self.groups = allocate_groups(held_rows, model.dims, device, dtype=row_type) if tables is None else tables
        first_held = torch.tensor([rows.first_row for rows in self._held])
        self._first_held = self.groups.split(first_held)
        self.dense = torch.zeros(self.shapes.num_parameters, device=device)
        self._scale_counts = scale_counts(quant, len(model.table_rows), self.shapes.layers)
        self.scales: LearnedScales = split_scales(
            torch.zeros(self._scale_counts.total, device=device), *self._scale_counts
        )
        self._learned = learned_formula(quant, quant.embedding_bits)
        self.table_formula = select_formula(quant, quant.embedding_bits)
        self.bias_formula = None if quant.mlp_bias_bits == UNQUANTIZED else Uniform(quant.mlp_bias_bits)
        self._table_quantizer = TableQuantizer(quant, kernels)
        self._quantized = True
        self._row_rounding = RowRounding(config.training_seed)
        self._rounding = WeightRounding(
            config.training_seed, quant.rounding == "stochastic", quant.mlp_rounding == "stochastic"
        )
        self._keys = NEAREST
        self._gemm = select_gemm(config.train.precision, device)
        self.inputs = LayerInputs(quant.activation_bits, self.shapes.by_part(self.shapes.layers), device)
        self._matrices = [quantized_matrices(quant, scales) for scales in self.shapes.by_part(self.scales.matrices)]
        bottom, projections, cross, top = self._dense_parts(quant)
        self._product_rounding = ProductRounding(config.training_seed)
        self._integer_mlps: tuple[()] | tuple[IntegerMlp, IntegerMlp] = ()
        if config.train.precision == "int8":
            largest = [largest_row_code(quant, matrices) for matrices in self._matrices]
            self._integer_mlps = (
                IntegerMlp(*bottom[:3], model.num_dense, largest[0]),
                IntegerMlp(*top[:3], model.embedding_dim, largest[-1]),
            )
        self._bottom, self._top = self._integer_mlps or (Mlp(*bottom), Mlp(*top))
        self._cross = CrossNetwork(*cross)
        self._projections = Projections(*projections, self.groups, self.shapes.projected)
        self._parts = self._bottom, self._projections, self._cross, self._top
        self._interaction: Interaction = select_interaction(model.interaction, kernels)
        self._dim, self._interaction_width = model.embedding_dim, interaction_width(model)
        self._table_names = table_names(self.groups.num_tables)
        row_offset = torch.tensor([0, *model.table_rows]).cumsum(0)
        self._all_rows = Tables(self.groups.weights[0], row_offset)  # for checks, which look at no weight
        self._mean_pooling = model.pooling == "mean"
        self.seed: int | None = None
        """The seed of the weights with which training began; None: they were not drawn."""
        self.table_draws = 0
        """How often the tables have begun anew since; each time they are drawn as by a seed that no run has."""
        self.trained_keep_rate = config.data.trained_keep_rate
        """The share of the rows without a click that training saw, by the configuration."""
        self.is_corrected = False
        """Whether the bias of the last layer makes up for it, as that of a packed model does."""

    def _dense_parts(self, quant: QuantConfig) -> Iterator[tuple[WeightSource, MakeWeights | None, Gemm, ReadInput]]:
        """Yields what bottom MLP, projections, cross network and top MLP are made of."""
        shapes, first = self.shapes, 0
        layers = shapes.by_part(split_parameters(self.dense, shapes.layers))
        for part, parameters, matrices in zip(shapes.by_part(shapes.layers), layers, self._matrices, strict=True):
            source = WeightSource(tuple(part), tuple(parameters), self.kernels, self._gemm.dtype)
            yield source, quantized_weights(quant, matrices), self._gemm, self.inputs.reader(first)
            first += len(part)

    @property
    def tables(self) -> Tables:
        """The arena of all tables, of a model whose tables have one dimension."""
        return self.groups.only

    def initialize_(self, seed: int) -> None:
        """Draws fresh weights: the same for the same seed on any device and any number of threads."""
        self.seed, self.table_draws = seed, 0
        self._draw_tables_()
        initialize_(self.shapes, self.dense, torch.Generator().manual_seed(seed))

    def begin_tables_anew_(self) -> None:
        """Draws other weights for the tables, of a model whose first ones were drawn."""
        self.table_draws += 1
        self._draw_tables_()

    def _draw_tables_(self) -> None:
        for table, weight in enumerate(self.groups.weights):
            if weight.numel():
                self.first_rows(table, 0, weight)

    def logit_correction(self, keep_rate: float = 1.0) -> float:
        """Returns what to add to logits for rows that kept this share of those without a click; 1: all of them."""
        return keep_rate_correction(1.0 if self.is_corrected else self.trained_keep_rate, keep_rate)

    def first_rows(self, table: int, row: int, out: Tensor) -> None:
        """Writes what a table's rows from `row` on, of those held, were last drawn as, into n rows."""
        assert self.seed is not None
        seed = self.seed + self.table_draws * (LARGEST_SEED + 1)
        first, end = self._all_rows.row_offset[table : table + 2].tolist()
        self.kernels.initial_rows(seed, first + self._held[table].first_row + row, end - first, out)

    def row_chances(self, iteration: int) -> list[RowChances | None]:
        """Returns by which chances an iteration's update rounds the rows of each group; None: they are FP32."""
        if self.groups.dtype == FP32:
            return [None] * len(self.groups)
        key = self._row_rounding.key(iteration)
        keys = [key if len(self.groups) == 1 else key.of(group.tables.dim) for group in self.groups]
        return [RowChances(key.word, first) for key, first in zip(keys, self._first_held, strict=True)]

    def require_finite_mlps(self) -> None:
        """Raises TrainingError where the MLPs hold NaN or an infinity.

        oneDNN's rectifier turns NaN into 0: a broken weight of a hidden layer would never reach the loss.
        """
        if not bool(torch.isfinite(self.dense).all()):
            raise TrainingError(
                "the MLPs hold NaN or infinite weights: training has diverged; go back to an earlier checkpoint with "
                "a lower --train.learning-rate or some --train.warmup-steps"
            )

    def weights(self) -> dict[str, Tensor]:
        """Returns all parameters by the names that they have in a checkpoint; the tensors themselves."""
        learned = {"scales": self.scales.flat} if self.scales.flat.numel() else {}
        seen = {"activations": self.inputs.running} if self.inputs.running.numel() else {}
        tables = {
            name: group.tables.weight for name, group in zip(self.groups.names("tables"), self.groups, strict=True)
        }
        return {**tables, "mlps": self.dense, **seen, **learned}

    def workspace(self, batch: int) -> Workspace:
        """Allocates buffers for batches of up to `batch` examples."""
        return allocate_workspace(batch, self.groups, self._dim, self._interaction_width, self._gemm.dtype)

    def gradients(self) -> DenseGradients:
        """Allocates a buffer for the MLPs' gradients."""
        return DenseGradients(self.shapes, len(self.inputs.formulas), self._scale_counts, self.device)

    def bags(self, batch: Batch) -> tuple[Bags, ...]:
        """Returns the batch's lookups in each group as the kernels take them. All of it is checked: BadBatchError.

        A kernel would write wherever an id points, and a NaN would spread through all weights unseen.
        """
        bags = Bags(batch.ids, batch.offsets, self._mean_pooling)
        try:
            validate_bags(self._all_rows, bags, self._table_names, batch.size)
            validate_rows(batch.dense, batch.label)
            if batch.weight is not None:
                validate_weights(batch.weight, batch.size)
        except WeightError as error:
            raise BadBatchError(f"is {error.value}, not a number from 0 on", error.sample, "weight") from error
        except BagError as error:
            column = None if error.table is None else self._table_names[error.table]
            raise BadBatchError(f"{error.fault}, or check --model.table-rows", error.sample, column) from error
        except RowError as error:
            if error.column is None:
                raise BadBatchError(f"is {error.value}, not 0 or 1", error.sample, "label") from error
            raise BadBatchError(
                f"is {error.value}, not a finite number", error.sample, f"I{error.column + 1}"
            ) from error
        return self.groups.bags(bags)

    def sound_rows(self, batch: Batch) -> Tensor:
        """Returns bool[B]: which examples of a batch can be taken; BadBatchError if they cannot be told apart."""
        bags = Bags(batch.ids, batch.offsets, self._mean_pooling)
        try:
            return sound_samples(self._all_rows, bags, batch.dense, batch.label, batch.weight)
        except BagError as error:
            raise BadBatchError(str(error)) from error

    def mlp_layers(self) -> Iterator[tuple[str, LayerParameters, tuple[Formula, Tensor] | None]]:
        """Yields name, parameters, and what quantizes the weight: a formula and its scale; None: it stays in FP32."""
        names_by_part = self.shapes.by_part(self.shapes.names)
        for names, part, matrices in zip(names_by_part, self._parts, self._matrices, strict=True):
            for i, (name, layer) in enumerate(zip(names, part.layers, strict=True)):
                quantized = None if matrices is None else (matrices.formula, matrices.scales.of(i, layer.weight))
                yield name, layer, quantized

    @property
    def straight_through(self) -> bool:
        """Whether the gradient of the pooled vectors is that of the tables: in FP32, or where the method has it so."""
        return not self._quantized or self._table_quantizer.straight_through

    def begin_learning_scales(self) -> None:
        """Starts learned scales from the weights as they stand; before the first quantization-aware step."""
        if self.scales.flat.numel() and not self.scales.begun:
            assert self._learned is not None
            self.scales.tables.copy_(initial_table_scales(self._learned, self.groups))
            for part in self._parts:
                part.begin_learning_scales()

    def quantize_weights(self, quantized: bool = True, iteration: int | None = None) -> None:
        """Makes what is read follow the MLPs' parameters; once before the forwards of a step.

        Not `quantized`: all of them are FP32.

        `iteration`: that of training, which may round by chance; None: to the nearest.
        """
        self._quantized = quantized
        self._keys = self._rounding.keys(iteration) if quantized and iteration is not None else NEAREST
        with self.spans.mlp_quantize:
            for part, key in zip(self._parts, self._keys[1:], strict=True):
                part.follow_weights(quantized, key)
            keys = self._product_rounding.keys(iteration, len(self._integer_mlps))
            for mlp, key in zip(self._integer_mlps, keys, strict=True):
                mlp.begin_step(key)

    def begin_share(self, number: int) -> None:
        """Says whose share of a batch comes next, a rank's, real or simulated; after `quantize_weights`."""
        for mlp in self._integer_mlps:
            mlp.begin_share(number)

    @property
    def lookup_bits(self) -> int:
        """The bits of the codes that the next forwards look tables up as; UNQUANTIZED: as they are."""
        return UNQUANTIZED if self.table_formula is None or not self._quantized else self.table_formula.bits

    def forward(
        self, batch: Batch, bags: Sequence[Bags], scale: Tensor, workspace: Workspace, rows: AwaitRows | None = None
    ) -> Tensor:
        """Returns the logits f32[B]. `rows` waits for what to look up instead of the tables, quantized already."""
        features, spans = workspace.features, self.spans
        if rows is None:
            with spans.gather_quantize:
                self._look_up(bags, scale, workspace)
        with spans.mlp_forward:
            features[:, 0, :] = self._bottom.forward(batch.dense)
        if rows is not None:
            # They travel while the bottom MLP computes.
            values, own = rows()
            with spans.gather_quantize:
                self.kernels.gather_quantize_pool(values, own, scale, UNQUANTIZED, workspace.pooled[0])
        with spans.mlp_forward:
            self._projections.forward(workspace.pooled, features)
        with spans.interaction:
            self._interaction.forward(features, workspace.interaction)
            crossed = self._cross.forward(workspace.interaction)
        with spans.mlp_forward:
            return self._top.forward(crossed).view(-1).float()

    def _look_up(self, bags: Sequence[Bags], scale: Tensor, workspace: Workspace) -> None:
        scales = self.groups.split(scale)
        for group, own, of_group, pooled in zip(self.groups, bags, scales, workspace.pooled, strict=True):
            key = self._key_of(group.tables)
            self._table_quantizer.look_up(group.tables, own, of_group, pooled, self._quantized, key)

    def _key_of(self, tables: Tables) -> RoundingKey | None:
        """Returns the key by which tables are rounded: of several groups each has chances of its own."""
        key = self._keys.tables
        return key if key is None or len(self.groups) == 1 else key.of(tables.dim)

    def backward(self, grad_logits: Tensor, workspace: Workspace, gradients: DenseGradients) -> None:
        """Writes `gradients` and workspace.grad_pooled of the latest forward; grad_logits f32[B]."""
        self.backward_top(grad_logits, workspace, gradients)
        self.backward_bottom(workspace, gradients)

    def backward_top(self, grad_logits: Tensor, workspace: Workspace, gradients: DenseGradients) -> None:
        """Computes the first half of a backward: gradients of top MLP, cross network, projections, all features."""
        spans = self.spans
        _, of_projections, of_cross, of_top = self.shapes.by_part(gradients.scales.matrices)
        with spans.mlp_backward:
            grad = self._top.backward(grad_logits.view(-1, 1), gradients.top, of_top, needs_grad_input=True)
        assert grad is not None
        with spans.interaction:
            grad = self._cross.backward(grad, gradients.cross, of_cross)
            self._interaction.backward(workspace.features, grad, workspace.grad_features)
        with spans.mlp_backward:
            self._projections.backward(
                workspace.grad_features, workspace.grad_pooled, gradients.projections, of_projections
            )

    def backward_bottom(self, workspace: Workspace, gradients: DenseGradients) -> None:
        """Computes the second half: the bottom MLP's gradients, which nothing else waits for."""
        of_bottom, *_ = self.shapes.by_part(gradients.scales.matrices)
        with self.spans.mlp_backward:
            self._bottom.backward(workspace.grad_features[:, 0, :], gradients.bottom, of_bottom, needs_grad_input=False)

    def backward_tables_(self, grads: Sequence[SparseGrad], scale: Tensor, gradients: DenseGradients) -> None:
        """Turns the gradients of what was looked up in each group into the tables' own, in place, where they differ."""
        if self.straight_through:
            return
        of_scales = [
            self._table_quantizer.backward_(group.tables, grad, of_group)
            for group, grad, of_group in zip(self.groups, grads, self.groups.split(scale), strict=True)
        ]
        learned = [of_scale for of_scale in of_scales if of_scale is not None]
        if learned:
            gradients.scales.tables.copy_(self.groups.join(learned))
