"""DLRM: embedding tables and a bottom MLP, their interaction, a top MLP; an explicit backward instead of autograd."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqrm_cpu.config import Config
from dqrm_cpu.data.batch import BadBatchError, Batch
from dqrm_cpu.errors import TrainingError
from dqrm_cpu.kernels.interface import Kernels
from dqrm_cpu.kernels.types import UNQUANTIZED, Bags, SparseGrad, Tables
from dqrm_cpu.kernels.validate import (
    BagError,
    RowError,
    runs_are_finite,
    sound_samples,
    validate_bags,
    validate_rows,
)
from dqrm_cpu.model.activations import LayerInputs
from dqrm_cpu.model.gemm import select_gemm
from dqrm_cpu.model.interaction import Interaction, select_interaction
from dqrm_cpu.model.layers import LayerParameters, LayerShape, initialize_, layer_shapes, split_parameters
from dqrm_cpu.model.mlp import Mlp
from dqrm_cpu.model.quantized import ScaleCounts, quantized_matrices, quantized_weights, scale_counts
from dqrm_cpu.model.tables import allocate_tables, table_names
from dqrm_cpu.model.workspace import Workspace, allocate_workspace
from dqrm_cpu.profile.spans import Spans
from dqrm_cpu.quant.formula import Formula
from dqrm_cpu.quant.learned import LearnedScales, initial_table_scales
from dqrm_cpu.quant.rounding import NEAREST, Rounding
from dqrm_cpu.quant.select import learned_formula, select_formula
from dqrm_cpu.quant.tables import TableQuantizer
from dqrm_cpu.quant.uniform import Uniform


@dataclass(frozen=True)
class MlpShapes:
    """The layers of both MLPs of a model."""

    bottom: tuple[LayerShape, ...]
    top: tuple[LayerShape, ...]

    @property
    def num_parameters(self) -> int:
        return sum(shape.num_parameters for shape in (*self.bottom, *self.top))

    @property
    def bottom_parameters(self) -> int:
        return sum(shape.num_parameters for shape in self.bottom)


def mlp_shapes(config: Config) -> MlpShapes:
    """What the configuration's widths come to once the interaction's width is known."""
    model = config.model
    num_features = 1 + len(model.table_rows)
    width = {
        "dot": model.embedding_dim + num_features * (num_features - 1) // 2,
        "cat": num_features * model.embedding_dim,
    }[model.interaction]
    return MlpShapes(
        layer_shapes(model.num_dense, model.bottom_mlp, last_relu=True),
        layer_shapes(width, model.top_mlp, last_relu=False),
    )


class DenseGradients:
    """Gradients of both MLPs in one flat buffer, with room behind them for what travels along in an exchange, exact:
    scalars, the maxima of the layers' inputs, and the gradients of learned scales."""

    NUM_SCALARS = 2

    def __init__(self, shapes: MlpShapes, num_inputs: int, scale_counts: ScaleCounts, device: torch.device) -> None:
        maxima = shapes.num_parameters + self.NUM_SCALARS
        behind = maxima + num_inputs
        self.flat = torch.zeros(behind + scale_counts.total, device=device)
        self.parameters = self.flat[: shapes.num_parameters]
        self.scalars = self.flat[shapes.num_parameters : maxima]
        self.loss, self.stop_requested = self.scalars.unbind()
        self.input_maxima = self.flat[maxima:behind]
        self.scales: LearnedScales = scale_counts.split(self.flat[behind:])
        self.bottom: tuple[LayerParameters, ...] = split_parameters(self.parameters, shapes.bottom)
        self.top: tuple[LayerParameters, ...] = split_parameters(
            self.parameters[shapes.bottom_parameters :], shapes.top
        )
        self._probed = _probed_runs(self.flat, (*self.bottom, *self.top), maxima)

    def are_finite(self) -> bool:
        """Whether no NaN or infinity went through the MLPs, though their rectifiers hide it from the loss.

        A NaN in one value that a layer read is in every row of the layer's weight gradient, and one in the gradient of
        an output is in that of its bias: the first row and the biases tell, at no cost that can be measured.
        """
        return runs_are_finite(self.flat, *self._probed)


def _probed_runs(flat: Tensor, layers: Sequence[LayerParameters], scalars_end: int) -> tuple[Tensor, Tensor]:
    """Where the first row and the bias of each layer, and what lies behind the scalars, begin and end in `flat`."""
    runs = [
        (part.storage_offset(), part.storage_offset() + part.numel())
        for layer in layers
        for part in (layer.weight[0], layer.bias)
    ]
    first, after = torch.tensor([*runs, (scalars_end, flat.numel())], dtype=torch.int64).unbind(1)
    return first.contiguous(), after.contiguous()


class Dlrm:
    """The model on one device. `step` arguments are the tables' scales, f32[T]."""

    def __init__(self, config: Config, kernels: Kernels, device: torch.device, spans: Spans | None = None) -> None:
        self.spans = spans or Spans()
        model, quant = config.model, config.quant
        self.device = device
        self.kernels = kernels
        self.shapes = mlp_shapes(config)
        self.tables: Tables = allocate_tables(model.table_rows, model.embedding_dim, device)
        self.dense = torch.zeros(self.shapes.num_parameters, device=device)
        self._scale_counts = scale_counts(quant, len(model.table_rows), (*self.shapes.bottom, *self.shapes.top))
        self.scales: LearnedScales = self._scale_counts.split(torch.zeros(self._scale_counts.total, device=device))
        self._learned = learned_formula(quant, quant.embedding_bits)
        self.table_formula = select_formula(quant, quant.embedding_bits)
        self.bias_formula = None if quant.mlp_bias_bits == UNQUANTIZED else Uniform(quant.mlp_bias_bits)
        self._table_quantizer = TableQuantizer(quant, kernels)
        self._quantized = True
        self._rounding = Rounding(config.seed, quant.rounding == "stochastic", quant.mlp_rounding == "stochastic")
        self._keys = NEAREST
        self._gemm = gemm = select_gemm(config.train.precision, device)
        of_bottom, of_top = (quantized_matrices(quant, scales) for scales in self._of_mlps(self.scales))
        self._matrices = of_bottom, of_top
        self.inputs = LayerInputs(quant.activation_bits, (self.shapes.bottom, self.shapes.top), device)
        readers = self.inputs.reader(0), self.inputs.reader(len(self.shapes.bottom))
        top = self.dense[self.shapes.bottom_parameters :]
        self._bottom = Mlp(
            self.shapes.bottom, self.dense, quantized_weights(quant, of_bottom), kernels, gemm, readers[0]
        )
        self._top = Mlp(self.shapes.top, top, quantized_weights(quant, of_top), kernels, gemm, readers[1])
        self._interaction: Interaction = select_interaction(
            model.interaction, kernels, 1 + self.tables.num_tables, model.embedding_dim
        )
        self._table_names = table_names(self.tables.num_tables)
        self._mean_pooling = model.pooling == "mean"
        self.seed: int | None = None
        """That of the weights with which training began; None: they were not drawn."""

    def initialize_(self, seed: int) -> None:
        """Fresh weights: the same for the same seed on any device and any number of threads."""
        self.seed = seed
        self.kernels.init_uniform_(self.tables, seed)
        generator = torch.Generator().manual_seed(seed)
        initialize_(self.shapes.bottom, self._bottom.layers, generator)
        initialize_(self.shapes.top, self._top.layers, generator)

    def first_rows(self, table: int, row: int, out: Tensor) -> None:
        """What `initialize_` gave a table's rows from `row` on, into f32[n, D]."""
        assert self.seed is not None
        first, end = self.tables.row_offset[table : table + 2].tolist()
        self.kernels.initial_rows(self.seed, first + row, end - first, out)

    def require_finite_mlps(self) -> None:
        """oneDNN's rectifier turns NaN into 0: a broken weight of a hidden layer would never reach the loss."""
        if not bool(torch.isfinite(self.dense).all()):
            raise TrainingError(
                "the MLPs hold NaN or infinite weights: training has diverged; go back to an earlier checkpoint with "
                "a lower --train.learning-rate or some --train.warmup-steps"
            )

    def weights(self) -> dict[str, Tensor]:
        """All parameters by the names they have in a checkpoint; the tensors themselves."""
        learned = {"scales": self.scales.flat} if self.scales.flat.numel() else {}
        seen = {"activations": self.inputs.running} if self.inputs.running.numel() else {}
        return {"tables": self.tables.weight, "mlps": self.dense, **seen, **learned}

    def workspace(self, batch: int) -> Workspace:
        """Buffers for batches of up to `batch` examples."""
        return allocate_workspace(
            batch, 1 + self.tables.num_tables, self.tables.dim, self._interaction.width, self._gemm.dtype, self.device
        )

    def gradients(self) -> DenseGradients:
        """A buffer for the MLPs' gradients."""
        return DenseGradients(self.shapes, len(self.inputs.formulas), self._scale_counts, self.device)

    def bags(self, batch: Batch) -> Bags:
        """The batch's lookups as the kernels take them. All of the batch is checked: BadBatchError.

        A kernel would write wherever an id points, and a NaN would spread through all weights unseen.
        """
        bags = Bags(batch.ids, batch.offsets, self._mean_pooling)
        try:
            validate_bags(self.tables, bags, self._table_names, batch.size)
            validate_rows(batch.dense, batch.label)
        except BagError as error:
            column = None if error.table is None else self._table_names[error.table]
            raise BadBatchError(f"{error.fault}, or check --model.table-rows", error.sample, column) from error
        except RowError as error:
            if error.column is None:
                raise BadBatchError(f"is {error.value}, not 0 or 1", error.sample, "label") from error
            raise BadBatchError(
                f"is {error.value}, not a finite number", error.sample, f"I{error.column + 1}"
            ) from error
        return bags

    def sound_rows(self, batch: Batch) -> Tensor:
        """Which examples bool[B] of a batch can be taken; BadBatchError if they cannot be told apart."""
        bags = Bags(batch.ids, batch.offsets, self._mean_pooling)
        try:
            return sound_samples(self.tables, bags, batch.dense, batch.label)
        except BagError as error:
            raise BadBatchError(str(error)) from error

    def mlp_layers(self) -> Iterator[tuple[str, LayerParameters, tuple[Formula, Tensor] | None]]:
        """Name, parameters, and what quantizes the weight: a formula and its scale; None: it stays in FP32."""
        for name, mlp, matrices in zip(("bottom", "top"), (self._bottom, self._top), self._matrices, strict=True):
            for i, layer in enumerate(mlp.layers):
                quantized = None if matrices is None else (matrices.formula, matrices.scales.of(i, layer.weight))
                yield f"{name}.{i}", layer, quantized

    @property
    def straight_through(self) -> bool:
        """Whether the gradient of the pooled vectors is that of the tables: in FP32, and where the method has it so."""
        return not self._quantized or self._table_quantizer.straight_through

    def begin_learning_scales(self) -> None:
        """Before the first step of quantization-aware training: learned scales start from the weights as they stand."""
        if self.scales.flat.numel() and not self.scales.begun:
            assert self._learned is not None
            self.scales.tables.copy_(initial_table_scales(self._learned, self.tables))
            self._bottom.begin_learning_scales()
            self._top.begin_learning_scales()

    def quantize_weights(self, quantized: bool = True, iteration: int | None = None) -> None:
        """Follows the MLPs' parameters; once before the forwards of a step. Not `quantized`: all of them are FP32.

        `iteration`: that of training, which may round by chance; None: to the nearest.
        """
        self._quantized = quantized
        self._keys = self._rounding.keys(iteration) if quantized and iteration is not None else NEAREST
        with self.spans.mlp_quantize:
            self._bottom.follow_weights(quantized, self._keys.bottom)
            self._top.follow_weights(quantized, self._keys.top)

    def forward(self, batch: Batch, bags: Bags, step: Tensor, workspace: Workspace) -> Tensor:
        """Logits f32[B]."""
        features, spans = workspace.features, self.spans
        with spans.gather_quantize:
            self._table_quantizer.look_up(self.tables, bags, step, features, self._quantized, self._keys.tables)
        with spans.mlp_forward:
            features[:, 0, :] = self._bottom.forward(batch.dense)
        with spans.interaction:
            self._interaction.forward(features, workspace.interaction)
        with spans.mlp_forward:
            return self._top.forward(workspace.interaction).view(-1).float()

    def backward(self, grad_logits: Tensor, workspace: Workspace, gradients: DenseGradients) -> None:
        """From the gradient of the logits f32[B] to `gradients` and workspace.grad_features (of the latest forward)."""
        self.backward_top(grad_logits, workspace, gradients)
        self.backward_bottom(workspace, gradients)

    def backward_top(self, grad_logits: Tensor, workspace: Workspace, gradients: DenseGradients) -> None:
        """The first half of a backward: the top MLP's gradients, and those of all features."""
        spans = self.spans
        _, of_top = self._of_mlps(gradients.scales)
        with spans.mlp_backward:
            grad = self._top.backward(grad_logits.view(-1, 1), gradients.top, of_top, needs_grad_input=True)
        assert grad is not None
        with spans.interaction:
            self._interaction.backward(workspace.features, grad, workspace.grad_features)

    def backward_bottom(self, workspace: Workspace, gradients: DenseGradients) -> None:
        """The second half: the bottom MLP's gradients, which nothing else waits for."""
        of_bottom, _ = self._of_mlps(gradients.scales)
        with self.spans.mlp_backward:
            self._bottom.backward(workspace.grad_features[:, 0, :], gradients.bottom, of_bottom, needs_grad_input=False)

    def backward_tables_(self, grad: SparseGrad, step: Tensor, gradients: DenseGradients) -> None:
        """From the gradient of what was looked up to that of the tables, in place, where they differ."""
        if not self.straight_through:
            self._table_quantizer.backward_(self.tables, grad, step, gradients.scales.tables)

    def _of_mlps(self, scales: LearnedScales) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The learned scales of the bottom MLP's layers, and of the top one's."""
        split = len(self.shapes.bottom)
        return scales.matrices[:split], scales.matrices[split:]
