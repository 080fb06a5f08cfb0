"""Every setting of a run. The defaults are the demo preset; `presets` holds the paper's."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any

import tomli_w

from dqrm_cpu.config.setting import OneOf, Range, Setting, Value, plain_value, setting
from dqrm_cpu.config.table_dims import AUTO_DIMS, LARGEST_DIM, named_dims, power_dim
from dqrm_cpu.errors import ConfigError

KAGGLE_TABLE_ROWS = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
DEMO_LARGEST_TABLE = 100_000

TRANSPORTS = ("auto", "oneccl", "mpi", "gloo", "nccl", "sim")
NUMBER_FORMS = ("fp32", "bf16", "int8")
WIRES = ("dense", "sparse", "int8", "int8-fp32", "int16", "int16-fp32")

MOST_INTEGER_TERMS = 1 << 16
"""Rows of a rank's share of a batch, or inputs of a layer, whose products of two bytes an int32 holds the sum of."""

AUTO_COUNT = -1
"""The min_count that is still to be chosen."""

Count = Annotated[int, Range(minimum=0)]
Positive = Annotated[int, Range(minimum=1)]
NotNegative = Annotated[float, Range(minimum=0)]
AboveZero = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(minimum=0, maximum=1)]
KeptShare = Annotated[float, Range(maximum=1, above=0)]

_LARGEST_INT32 = 2**31 - 1
LARGEST_SEED = 2**32 - 1

LARGEST_ENSEMBLE = 64


FP32_BITS = 32
"""The bit width that leaves weights, biases or activations unquantized."""

TRAINED_UNIFORM_METHODS = ("dqrm", "hawq")
"""Methods that train symmetric uniform codes under the scale of max|W|."""

UNIFORM_METHODS = ("ptq", *TRAINED_UNIFORM_METHODS)
"""Methods whose models have such codes."""

OPTIMIZER_RATES: Mapping[str, float] = MappingProxyType({"sgd": 0.1, "rowwise-adagrad": 0.02})
"""The learning rate of each optimizer where nobody gives one: Adagrad moves a weight by as much at its first step."""


@dataclass(frozen=True)
class DataConfig:
    """Settings of the data: which rows are read, and how many."""

    source: str = setting(
        "synthetic",
        "where rows come from: synthetic (generated clicks, no files needed), or the folder of a prepared data set",
    )
    train_rows: Positive = setting(60_000, "rows of the training part; of prepared data all of them, unless set")
    validation_rows: Positive = setting(20_000, "rows that choose the best checkpoint")
    test_rows: Positive = setting(20_000, "rows of the test part, scored once a checkpoint is chosen")
    min_count: Annotated[int, Range(minimum=0, auto=AUTO_COUNT)] = setting(
        0,
        "tables hold the ids that so many training rows have, and every other id is row 0; auto: the largest count "
        "that costs no more than .001 of validation AUC in short trials before training (docs/tuning.md); 0: of "
        "generated rows, tables have model.table_rows rows, whether training sees them or not; of prepared ones, as "
        "they are",
    )
    max_bag_size: Annotated[int, Range(minimum=1, maximum=1024)] = setting(
        1, "of generated rows; 1: one id per feature (one-hot); above: 0 to that many ids per feature"
    )
    reshuffle: bool = setting(False, "of prepared rows: another order of the training rows in every epoch")
    sub_sample_rate: Share = setting(
        0.0, "of prepared rows: the share of the training rows without a click that is left out"
    )
    negative_keep_rate: KeptShare = setting(
        1.0,
        "of a log that was thinned before: the share of rows without a click that its training rows still have; "
        "probabilities are corrected for it, and for sub_sample_rate, in all metrics and packed files",
    )
    evaluation_keep_rate: KeptShare = setting(
        1.0, "the same share of validation and test rows, where they were thinned too"
    )

    @property
    def known_from(self) -> int:
        """The training rows that an id needs to be known, of generated rows: 0 where tables have given sizes."""
        return 1 if self.min_count == AUTO_COUNT else self.min_count

    @property
    def trained_keep_rate(self) -> float:
        """The share of all rows without a click that training sees: thinned before, and by sub_sample_rate."""
        return self.negative_keep_rate * (1 - self.sub_sample_rate)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the DLRM."""

    table_rows: tuple[Annotated[int, Range(minimum=1, maximum=_LARGEST_INT32)], ...] = setting(
        tuple(min(rows, DEMO_LARGEST_TABLE) for rows in KAGGLE_TABLE_ROWS),
        "rows of each embedding table, one number per sparse feature",
    )
    num_dense: Positive = setting(13, "dense features")
    embedding_dim: Annotated[int, Range(minimum=1, maximum=LARGEST_DIM)] = setting(16, "values per embedding row")
    table_dims: str = setting(
        "",
        "tables whose rows have another number of values, such as C3=4,C7=32 for the third and the seventh: a learned "
        "matrix takes what is looked up there to embedding_dim values; auto: fewer in small tables, 6 x rows^(1/4) to "
        "a multiple of 4; empty: none",
    )
    bottom_mlp: tuple[Positive, ...] = setting(
        (128, 64, 16), "layer outputs of the MLP over dense features; the last equals embedding_dim"
    )
    top_mlp: tuple[Positive, ...] = setting(
        (256, 128, 1), "layer outputs of the MLP over the interaction; the last is 1"
    )
    interaction: Annotated[str, OneOf("dot", "cat", "cross")] = setting(
        "dot",
        "dot: dot product of each pair of features; cat: features side by side; cross: the same, through DCNv2's "
        "cross layers",
    )
    cross_layers: Annotated[int, Range(minimum=1, maximum=64)] = setting(3, "cross layers of model.interaction cross")
    cross_rank: Count = setting(
        0, "rank of their matrices, which makes two thin ones of each; 0: whole matrices, as wide as all features"
    )
    pooling: Annotated[str, OneOf("sum", "mean")] = setting("sum", "how the rows of a multi-hot bag become one vector")

    @property
    def dims(self) -> tuple[int, ...]:
        """The values per row of each table; ConfigError where `table_dims` names a table that there is not."""
        if self.table_dims == AUTO_DIMS:
            return tuple(power_dim(rows, self.embedding_dim) for rows in self.table_rows)
        named, tables = named_dims(self.table_dims), len(self.table_rows)
        if named and max(named) >= tables:
            raise ConfigError(
                f"model.table_dims {self.table_dims} names C{max(named) + 1}, and there are {tables} tables: leave it "
                "out, or correct its number"
            )
        return tuple(named.get(number, self.embedding_dim) for number in range(tables))

    def with_named_dims(self) -> "ModelConfig":
        """Returns the model with dimensions that its tables' rows decide named one by one, as a run has them."""
        if self.table_dims != AUTO_DIMS:
            return self
        other = [(t, dim) for t, dim in enumerate(self.dims, 1) if dim != self.embedding_dim]
        return replace(self, table_dims=",".join(f"C{t}={dim}" for t, dim in other))

    @property
    def dims_text(self) -> str:
        """The values per row in a few characters: 16, or 4 to 16."""
        dims = self.dims
        return str(dims[0]) if len(set(dims)) == 1 else f"{min(dims)} to {max(dims)}"


@dataclass(frozen=True)
class QuantConfig:
    """Settings of quantization: how weights are quantized while they are trained."""

    method: Annotated[str, OneOf("none", *UNIFORM_METHODS, "lsq", "pact", "dorefa")] = setting(
        "dqrm",
        "none: plain FP32; ptq: the same, quantized only to be scored; trained quantized: dqrm; hawq (scales by a scan "
        "of whole tables at every step); lsq (a learned scale per table); pact (a learned clip); dorefa (tanh). "
        "dqrm, hawq and ptq take the fused kernels; docs/quantization.md says which parts of the others do not",
    )
    embedding_bits: Annotated[int, Range(minimum=2, maximum=16)] = setting(4, "bits per embedding value")
    mlp_bits: Annotated[int, OneOf(4, 8, 32)] = setting(4, "bits per MLP weight; 32 leaves the MLPs in FP32")
    mlp_granularity: Annotated[str, OneOf("channel", "matrix")] = setting(
        "channel", "of MLP scales; channel: one per output row; matrix: one per layer"
    )
    rounding: Annotated[str, OneOf("nearest", "stochastic")] = setting(
        "nearest", "of table rows while dqrm or hawq trains, not when they are scored; stochastic: up or down by chance"
    )
    mlp_rounding: Annotated[str, OneOf("nearest", "stochastic")] = setting(
        "nearest", "the same, of the MLPs' weights at mlp_bits 4 or 8"
    )
    mlp_bias_bits: Annotated[int, OneOf(4, 8, 16, 32)] = setting(
        32, "bits per bias of the MLPs; 32 leaves biases in FP32"
    )
    activation_bits: Annotated[int, OneOf(4, 8, 16, 32)] = setting(
        32, "bits per value that a layer of the MLPs reads; 32: FP32"
    )
    scale_period: Positive = setting(
        1, "of dqrm and dorefa: iterations from one refresh of the tables' scales to the next"
    )
    scale_finder: Annotated[str, OneOf("scan", "track")] = setting(
        "track",
        "of dqrm and dorefa; track: keep max|W| exact at every update; scan: read the whole table at each refresh",
    )
    step_width: tuple[Annotated[float, Range(maximum=1e6, above=0)], ...] = setting(
        (1.0,),
        "multiplies the tables' scales (dqrm, hawq, ptq), one number or one per table; above 1 more weights become 0, "
        "below 1 large ones are clipped",
    )
    step_width_ramp_steps: Count = setting(0, "iterations in which the width goes from 1 to step_width")
    target_alive: Share = setting(
        0.0,
        "share of each table's rows that keep a non-zero code: the width that does so, 1 or more, is found from all "
        "rows; 0: off",
    )
    target_alive_period: Positive = setting(500, "iterations after which that width is found again")
    target_alive_min_rows: Positive = setting(1000, "smaller tables keep width 1")
    clip_mask: bool = setting(False, "of dqrm and hawq: a weight beyond the codes gets no gradient")
    pretrain_epochs: Count = setting(0, "epochs in FP32 before quantization-aware training begins")
    start_at: Share = setting(
        0.0,
        "the same as a share of the iterations of all train.epochs: 0.9 trains quantized in the last tenth",
    )


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training: how long, how fast, and what is kept."""

    epochs: Positive = setting(12, "passes over the training rows")
    max_steps: Count = setting(0, "stop after this many iterations; 0: no limit")
    batch_size: Positive = setting(128, "rows per iteration, over all ranks together")
    test_batch_size: Positive = setting(16384, "rows per batch when scoring validation and test")
    precision: Annotated[str, OneOf(*NUMBER_FORMS)] = setting(
        "fp32", "of the MLPs' products; bf16: AVX512-BF16 or AMX; int8: AVX512-VNNI"
    )
    optimizer: Annotated[str, OneOf("sgd", "rowwise-adagrad")] = setting("sgd", "sgd is the paper's")
    learning_rate: AboveZero = setting(
        OPTIMIZER_RATES["sgd"],
        f"before warm-up and decay; rowwise-adagrad: {OPTIMIZER_RATES['rowwise-adagrad']:g}",
    )
    master_rows: Annotated[str, OneOf(*NUMBER_FORMS)] = setting(
        "fp32", "of the tables while they train; bf16, int8: rounded by chance"
    )
    reset_tables: Annotated[str, OneOf("never", "each-epoch")] = setting(
        "never",
        "each-epoch: tables begin anew, MLPs go on (MEDA)",
    )
    weight_decay: NotNegative = setting(0.0, "pulls weights to zero by this much of themselves")
    interval_decay: NotNegative = setting(
        0.0,
        "shrinks a row by this much for each iteration since its last update",
    )
    average_snapshots: Annotated[int, Range(minimum=0, maximum=100_000)] = setting(
        0,
        "the model is the mean of the weights at so many iterations; 0: off",
    )
    average_from: Share = setting(0.5, "share of all iterations after which those begin")
    warmup_steps: Count = setting(0, "iterations in which the learning rate rises from 0; 0: none")
    decay_start_step: Count = setting(0, "iteration at which the rate begins to fall")
    decay_steps: Count = setting(0, "iterations in which it falls to 0; 0: it stays")
    evaluate_every: Count = setting(0, "iterations between evaluations; 0: at the end of each epoch")
    log_every: Positive = setting(100, "iterations between lines of progress")
    checkpoint_every: Count = setting(0, "iterations between checkpoints; 0: at evaluations")
    keep_checkpoints: Positive = setting(2, "newest checkpoints kept, beside the best")
    on_disk_full: Annotated[str, OneOf("stop", "continue-without-saving")] = setting(
        "stop", "a full disk ends the run, or is told and tried again later"
    )
    best_by: Annotated[str, OneOf("auc", "log-loss", "ne")] = setting(
        "auc", "decides the best checkpoint, on validation; ne: normalized entropy"
    )
    early_stop_auc: Share = setting(0.0, "stop once validation AUC reaches this; 0: off")
    early_stop_patience: Count = setting(0, "stop after that many evaluations without a new best; 0: off")
    test_first: bool = setting(True, "with --init-from: score that run on these rows before training")
    on_bad_batch: Annotated[str, OneOf("stop", "skip")] = setting(
        "stop",
        "a batch with NaN, another label than 0 or 1, or an impossible id ends the run, or is left out and counted",
    )
    threads: Annotated[int, Range(minimum=0, maximum=4096)] = setting(
        0, "threads of this process; 0: all its cores, or OMP_NUM_THREADS"
    )
    tensorboard: bool = setting(False, "also write TensorBoard events into the run folder")
    mlflow: bool = setting(False, "also log to MLflow, where MLFLOW_TRACKING_URI says")


@dataclass(frozen=True)
class CommConfig:
    """Settings of communication: how processes meet, and what gradients look like between them."""

    transport: Annotated[str, OneOf(*TRANSPORTS)] = setting(
        "auto",
        "what carries gradients between processes; auto: mpi under mpirun, gloo under torchrun; sim: one process alone",
    )
    tables: Annotated[str, OneOf("replicate", "shard", "auto")] = setting(
        "replicate",
        "where the tables' rows are; replicate: all on every rank; shard: large tables on one rank or cut over all, of "
        "which each looks up what a batch needs: for models larger than a machine, to the same bits; auto: shard "
        "where not every host's memory holds them for all of its ranks",
    )
    wire: Annotated[str, OneOf(*WIRES)] = setting(
        "sparse",
        "form of table gradients between ranks; sparse: rows looked up, in FP32; dense: whole tables; "
        "int8, int16: rows as integers; with -fp32: those in FP32 containers (the paper's wire)",
    )
    scale_reduce: Annotated[str, OneOf("max", "mean")] = setting(
        "max", "of the ranks' largest gradients; mean saturates where a rank is above it"
    )
    rounding: Annotated[str, OneOf("nearest", "stochastic")] = setting(
        "nearest", "of integer gradients; stochastic: up or down by chance, right on average"
    )
    mlp_gradients: Annotated[str, OneOf(*NUMBER_FORMS)] = setting("fp32", "form of the MLPs' gradients between ranks")
    error_feedback: Annotated[str, OneOf("none", "mlp", "all")] = setting(
        "none", "add what rounding took from a gradient to the next one; mlp: of the MLPs; all: of the tables too"
    )
    overlap: Annotated[str, OneOf("auto", "on", "off")] = setting(
        "auto",
        "send tables' gradients in a thread while the rest of the backward runs; auto: of large batches, if possible",
    )
    simulated_ranks: Annotated[int, Range(minimum=1, maximum=1024)] = setting(
        1, "data-parallel ranks played one after another in each process (paper, Algorithm 1)"
    )
    simulated_scale: Annotated[str, OneOf("all", "first")] = setting(
        "all",
        "scale of integer gradients of simulated ranks; all: as real ranks; first: that of the first serves the others",
    )
    timeout: AboveZero = setting(300.0, "seconds to wait for the other processes before giving up")

    @property
    def integer_width(self) -> str:
        """The width of the integers of table gradients between ranks; empty where values travel in FP32."""
        return self.wire.partition("-")[0] if self.wire.startswith("int") else ""


@dataclass(frozen=True)
class Config:
    """All settings of one run, fully resolved. The run folder is not part of it."""

    preset: Annotated[str, OneOf("demo", "production", "kaggle", "terabyte", "mlperf-dcnv2")] = setting(
        "demo", "the settings to start from"
    )
    seed: Annotated[int, Range(minimum=0, maximum=LARGEST_SEED)] = setting(
        1, "decides initial weights, generated data and the order of rows"
    )
    weights_seed: Annotated[int, Range(minimum=0, maximum=LARGEST_SEED)] = setting(
        0, "decides the same in its place, but for generated data; 0: seed"
    )
    ensemble: Annotated[int, Range(minimum=1, maximum=LARGEST_ENSEMBLE)] = setting(
        1, "models that differ in their weights_seed; a score is the mean of their logits (docs/ensembles.md)"
    )
    init_from: str = setting(
        "",
        "of train: the run, or one of its checkpoints, whose weights and settings a new run begins with, such as "
        "yesterday's: rows of tables follow their categories, new ones get fresh rows; empty: fresh weights",
    )
    device: Annotated[str, OneOf("cpu", "cuda")] = setting("cpu", "where the model lives")
    kernels: Annotated[str, OneOf("auto", "numba", "torch", "ipex")] = setting(
        "auto", "implementation of the table kernels; auto: numba on a CPU, torch on a GPU; ipex: see docs/ipex.md"
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    quant: QuantConfig = QuantConfig()
    train: TrainConfig = TrainConfig()
    comm: CommConfig = CommConfig()

    @property
    def training_seed(self) -> int:
        """The seed of what training draws: initial weights, rounding, the order of rows."""
        return self.weights_seed or self.seed

    def member(self, number: int) -> "Config":
        """Returns the settings of a member of the ensemble, from 1 on; the first is the model that one would train."""
        seed = self.weights_seed if number == 1 else self.training_seed + number - 1
        return replace(self, ensemble=1, weights_seed=seed)

    def to_toml(self) -> str:
        """Writes the whole configuration; `load_config` reads it back to an equal one."""
        return tomli_w.dumps(_plain(self))


SECTIONS: Mapping[str, type] = MappingProxyType(
    {
        "data": DataConfig,
        "model": ModelConfig,
        "quant": QuantConfig,
        "train": TrainConfig,
        "comm": CommConfig,
    }
)
"""The sections in the order of a file."""


def _settings() -> Iterator[Setting]:
    for section, kind in {"": Config, **SECTIONS}.items():
        for field in dataclasses.fields(kind):
            if field.metadata:  # which the sections themselves have not
                yield Setting.of(field, section)


SETTINGS: Mapping[str, Setting] = MappingProxyType({one.key: one for one in _settings()})
"""Every setting by its dotted key, in the order of a file."""


def flatten(config: Config) -> dict[str, Value]:
    """Returns the values of a configuration by their dotted keys."""
    values: dict[str, Value] = {}
    for key, one in SETTINGS.items():
        owner: Any = getattr(config, one.section) if one.section else config
        values[key] = getattr(owner, one.name)
    return values


def unflatten(values: Mapping[str, Value]) -> Config:
    """Makes the configuration with these values; every key of SETTINGS must be there."""
    parts: dict[str, dict[str, Any]] = {section: {} for section in ("", *SECTIONS)}
    for key, one in SETTINGS.items():
        parts[one.section][one.name] = values[key]
    sections = {name: kind(**parts[name]) for name, kind in SECTIONS.items()}
    return Config(**parts[""], **sections)


def _plain(config: Config) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flatten(config).items():
        one = SETTINGS[key]
        place = tree.setdefault(one.section, {}) if one.section else tree
        place[one.name] = plain_value(one, value)
    return tree
