"""Every setting of a run. The defaults are the demo preset; `presets` holds the paper's."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import tomli_w

from dqrm_cpu.config.setting import Entry, Value, entry_of, is_setting, setting

KAGGLE_TABLE_ROWS = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
DEMO_LARGEST_TABLE = 100_000

TRANSPORTS = ("auto", "oneccl", "mpi", "gloo", "nccl", "sim")
WIRES = ("dense", "sparse", "int8", "int8-fp32", "int16", "int16-fp32")

_LARGEST_INT32 = 2**31 - 1
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class DataConfig:
    """Which rows are read, and how many."""

    source: str = setting(
        "synthetic",
        "where rows come from: synthetic (generated clicks, no files needed), or the folder of a prepared data set",
    )
    train_rows: int = setting(60_000, "rows of the training part; of prepared data all of them, unless set", minimum=1)
    validation_rows: int = setting(20_000, "rows that choose the best checkpoint", minimum=1)
    test_rows: int = setting(20_000, "rows of the test part, scored once a checkpoint is chosen", minimum=1)
    max_bag_size: int = setting(
        1,
        "of generated rows; 1: one id per feature (one-hot); above: 0 to that many ids per feature",
        minimum=1,
        maximum=1024,
    )
    reshuffle: bool = setting(False, "of prepared rows: another order of the training rows in every epoch")
    sub_sample_rate: float = setting(
        0.0, "of prepared rows: the share of the training rows without a click that is left out", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the DLRM."""

    table_rows: tuple[int, ...] = setting(
        tuple(min(rows, DEMO_LARGEST_TABLE) for rows in KAGGLE_TABLE_ROWS),
        "rows of each embedding table, one number per sparse feature",
        minimum=1,
        maximum=_LARGEST_INT32,
    )
    num_dense: int = setting(13, "dense features", minimum=1)
    embedding_dim: int = setting(16, "values per embedding row", minimum=1, maximum=4096)
    bottom_mlp: tuple[int, ...] = setting(
        (128, 64, 16), "layer outputs of the MLP over dense features; the last equals embedding_dim", minimum=1
    )
    top_mlp: tuple[int, ...] = setting(
        (256, 128, 1), "layer outputs of the MLP over the interaction; the last is 1", minimum=1
    )
    interaction: str = setting(
        "dot", "dot: dot product of each pair of features; cat: features side by side", choices=("dot", "cat")
    )
    pooling: str = setting("sum", "how the rows of a multi-hot bag become one vector", choices=("sum", "mean"))


@dataclass(frozen=True)
class QuantConfig:
    """How weights are quantized while they are trained."""

    method: str = setting(
        "dqrm",
        "none: plain FP32; ptq: the same, quantized only to be scored; trained quantized: dqrm; hawq (scales by a scan "
        "of whole tables at every step); lsq (a learned step per table); pact (a learned clip); dorefa (tanh). "
        "dqrm, hawq and ptq take the fused kernels; docs/quantization.md says which parts of the others do not",
        choices=("none", "ptq", "dqrm", "hawq", "lsq", "pact", "dorefa"),
    )
    embedding_bits: int = setting(4, "bits per embedding value", minimum=2, maximum=16)
    mlp_bits: int = setting(4, "bits per MLP weight; 32 leaves the MLPs in FP32", choices=(4, 8, 32))
    mlp_granularity: str = setting(
        "channel",
        "of MLP scales; channel: one per output row; matrix: one per layer",
        choices=("channel", "matrix"),
    )
    rounding: str = setting(
        "nearest",
        "of table rows while dqrm or hawq trains, not when they are scored; stochastic: up or down by chance",
        choices=("nearest", "stochastic"),
    )
    mlp_rounding: str = setting(
        "nearest", "the same, of the MLPs' weights at mlp_bits 4 or 8", choices=("nearest", "stochastic")
    )
    mlp_bias_bits: int = setting(32, "bits per bias of the MLPs; 32 leaves biases in FP32", choices=(4, 8, 16, 32))
    activation_bits: int = setting(
        32, "bits per value that a layer of the MLPs reads; 32: FP32", choices=(4, 8, 16, 32)
    )
    scale_period: int = setting(
        1, "of dqrm and dorefa: iterations from one refresh of the tables' scales to the next", minimum=1
    )
    scale_finder: str = setting(
        "track",
        "of dqrm and dorefa; track: keep max|W| exact at every update; scan: read the whole table at each refresh",
        choices=("scan", "track"),
    )
    step_width: tuple[float, ...] = setting(
        (1.0,),
        "multiplies the tables' steps (dqrm, hawq, ptq), one number or one per table; above 1 more weights become 0, "
        "below 1 large ones are clipped",
        above=0,
        maximum=1e6,
    )
    step_width_ramp_steps: int = setting(0, "iterations in which the width goes from 1 to step_width", minimum=0)
    target_alive: float = setting(
        0.0,
        "share of each table's rows that keep a non-zero code: the width that does so, 1 or more, is found from all "
        "rows; 0: off",
        minimum=0,
        maximum=1,
    )
    target_alive_period: int = setting(500, "iterations after which that width is found again", minimum=1)
    target_alive_min_rows: int = setting(1000, "smaller tables keep width 1", minimum=1)
    clip_mask: bool = setting(False, "of dqrm and hawq: a weight beyond the codes gets no gradient")
    pretrain_epochs: int = setting(0, "epochs in FP32 before quantization-aware training begins", minimum=0)


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, and what is kept."""

    epochs: int = setting(12, "passes over the training rows", minimum=1)
    max_steps: int = setting(0, "stop after this many iterations; 0: no limit", minimum=0)
    batch_size: int = setting(128, "rows per iteration, over all ranks together", minimum=1)
    test_batch_size: int = setting(16384, "rows per batch when scoring validation and test", minimum=1)
    precision: str = setting(
        "fp32",
        "of the MLPs' matrix products; bf16 keeps FP32 weights and needs AVX512-BF16 or AMX",
        choices=("fp32", "bf16"),
    )
    optimizer: str = setting("sgd", "sgd is the paper's", choices=("sgd", "rowwise-adagrad"))
    learning_rate: float = setting(0.1, "step size, before warm-up and decay", above=0)
    weight_decay: float = setting(0.0, "pulls weights to zero by this much of themselves", minimum=0)
    warmup_steps: int = setting(0, "iterations in which the learning rate rises from 0; 0: none", minimum=0)
    decay_start_step: int = setting(0, "iteration at which the learning rate begins to fall", minimum=0)
    decay_steps: int = setting(0, "iterations in which it falls to 0; 0: it stays", minimum=0)
    evaluate_every: int = setting(0, "iterations between evaluations; 0: at the end of each epoch", minimum=0)
    log_every: int = setting(100, "iterations between lines of progress", minimum=1)
    checkpoint_every: int = setting(0, "iterations between checkpoints; 0: at each evaluation", minimum=0)
    keep_checkpoints: int = setting(2, "newest checkpoints kept, beside the best", minimum=1)
    on_disk_full: str = setting(
        "stop",
        "a checkpoint that the disk refuses ends the run, or is told and tried again later",
        choices=("stop", "continue-without-saving"),
    )
    early_stop_auc: float = setting(0.0, "stop once validation AUC reaches this; 0: off", minimum=0, maximum=1)
    early_stop_patience: int = setting(
        0, "stop after that many evaluations without a better validation AUC; 0: off", minimum=0
    )
    on_bad_batch: str = setting(
        "stop",
        "a batch with NaN, another label than 0 or 1, or an impossible id ends the run, or is left out and counted",
        choices=("stop", "skip"),
    )
    threads: int = setting(
        0, "threads of this process; 0: every core it may use, or OMP_NUM_THREADS of them", minimum=0, maximum=4096
    )
    tensorboard: bool = setting(False, "also write TensorBoard events into the run folder")


@dataclass(frozen=True)
class CommConfig:
    """How processes meet, and what gradients look like between them."""

    transport: str = setting(
        "auto",
        "what carries gradients between processes; auto: mpi under mpirun, gloo under torchrun; sim: one process alone",
        choices=TRANSPORTS,
    )
    wire: str = setting(
        "sparse",
        "form of table gradients between ranks; sparse: rows looked up, in FP32; dense: whole tables; "
        "int8, int16: rows as integers; with -fp32: those in FP32 containers (the paper's wire)",
        choices=WIRES,
    )
    scale_reduce: str = setting(
        "max", "of the ranks' largest gradients; mean saturates where a rank is above it", choices=("max", "mean")
    )
    rounding: str = setting(
        "nearest",
        "of integer gradients; stochastic: up or down by chance, right on average",
        choices=("nearest", "stochastic"),
    )
    mlp_gradients: str = setting("fp32", "form of the MLPs' gradients between ranks", choices=("fp32", "bf16", "int8"))
    error_feedback: str = setting(
        "none",
        "add what rounding took from a gradient to the next one; mlp: of the MLPs; all: of the tables too",
        choices=("none", "mlp", "all"),
    )
    overlap: str = setting(
        "auto",
        "send tables' gradients in a thread while the rest of the backward runs; auto: of large batches, if possible",
        choices=("auto", "on", "off"),
    )
    simulated_ranks: int = setting(
        1, "data-parallel ranks played one after another in each process (paper, Algorithm 1)", minimum=1, maximum=1024
    )
    simulated_scale: str = setting(
        "all",
        "scale of integer gradients of simulated ranks; all: as real ranks; first: that of the first serves the others",
        choices=("all", "first"),
    )
    timeout: float = setting(300.0, "seconds to wait for the other processes before giving up", above=0)

    @property
    def integer_width(self) -> str:
        """The width of the integers of table gradients between ranks; empty where values travel in FP32."""
        return self.wire.partition("-")[0] if self.wire.startswith("int") else ""


@dataclass(frozen=True)
class Config:
    """One run, fully resolved. The run folder is not part of it."""

    preset: str = setting("demo", "the settings to start from", choices=("demo", "kaggle", "terabyte"))
    seed: int = setting(
        1, "decides initial weights, generated data and the order of rows", minimum=0, maximum=_LARGEST_SEED
    )
    device: str = setting("cpu", "where the model lives", choices=("cpu", "cuda"))
    kernels: str = setting(
        "auto",
        "implementation of the table kernels; auto: numba on a CPU, torch on a GPU; ipex: see docs/ipex.md",
        choices=("auto", "numba", "torch", "ipex"),
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    quant: QuantConfig = QuantConfig()
    train: TrainConfig = TrainConfig()
    comm: CommConfig = CommConfig()

    def to_toml(self) -> str:
        """The whole configuration; `load_config` reads it back to an equal one."""
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


def _entries() -> Iterator[Entry]:
    for field in dataclasses.fields(Config):
        if is_setting(field.metadata):
            yield entry_of(field, "")
    for section, kind in SECTIONS.items():
        for field in dataclasses.fields(kind):
            yield entry_of(field, section)


ENTRIES: Mapping[str, Entry] = MappingProxyType({entry.key: entry for entry in _entries()})
"""Every setting by its dotted key, in the order of a file."""


def flatten(config: Config) -> dict[str, Value]:
    """Dotted keys to values."""
    values: dict[str, Value] = {}
    for key, entry in ENTRIES.items():
        owner: Any = getattr(config, entry.section) if entry.section else config
        values[key] = getattr(owner, entry.name)
    return values


def unflatten(values: Mapping[str, Value]) -> Config:
    """The configuration with these values; every key of ENTRIES must be there."""
    parts: dict[str, dict[str, Any]] = {section: {} for section in ("", *SECTIONS)}
    for key, entry in ENTRIES.items():
        parts[entry.section][entry.name] = values[key]
    sections = {name: kind(**parts[name]) for name, kind in SECTIONS.items()}
    return Config(**parts[""], **sections)


def _plain(config: Config) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flatten(config).items():
        entry = ENTRIES[key]
        place = tree.setdefault(entry.section, {}) if entry.section else tree
        place[entry.name] = list(value) if isinstance(value, tuple) else value
    return tree
