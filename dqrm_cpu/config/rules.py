"""Rules between settings: each looks at a configuration whose single values are in range."""

from collections.abc import Callable, Iterator

from dqrm_cpu.config.combinations import (
    averages_are_possible,
    integer_products_are_possible,
    master_rows_are_possible,
    resets_are_possible,
    shards_are_possible,
)
from dqrm_cpu.config.schema import (
    FP32_BITS,
    LARGEST_SEED,
    TRAINED_UNIFORM_METHODS,
    UNIFORM_METHODS,
    Config,
    ModelConfig,
)
from dqrm_cpu.config.setting import BadValueError, Conflict
from dqrm_cpu.config.table_dims import named_dims
from dqrm_cpu.errors import ConfigError

DENSE_WIRE_LIMIT_BYTES = 256 << 20
"""The largest tables whose whole gradient is sent: a step moves about twice their size."""


def conflicts(config: Config) -> Iterator[Conflict]:
    """Yields every rule that the configuration breaks."""
    for rule in _RULES:
        conflict = rule(config)
        if conflict is not None:
            yield conflict


def _bottom_ends_in_embedding_dim(config: Config) -> Conflict | None:
    last, dim = config.model.bottom_mlp[-1], config.model.embedding_dim
    if last == dim:
        return None
    keys = ("model.bottom_mlp", "model.embedding_dim")
    return Conflict(keys, f"the last layer of model.bottom_mlp is {last}, it must equal model.embedding_dim {dim}")


def _table_dims_are_dims(config: Config) -> Conflict | None:
    try:
        named_dims(config.model.table_dims)
        if config.data.source == "synthetic":  # the tables of any other are not known yet
            _ = config.model.dims
    except BadValueError as error:
        return Conflict(("model.table_dims",), f"model.table_dims {error}")
    except ConfigError as error:
        return Conflict(("model.table_dims", "model.table_rows"), str(error))
    return None


def _top_ends_in_one(config: Config) -> Conflict | None:
    last = config.model.top_mlp[-1]
    if last == 1:
        return None
    return Conflict(("model.top_mlp",), f"the last layer of model.top_mlp is {last}, it must be 1 (the click)")


def _cross_layers_are_used(config: Config) -> Conflict | None:
    model, standard = config.model, ModelConfig()
    if model.interaction == "cross":
        return None
    for name in ("cross_layers", "cross_rank"):
        if getattr(model, name) != getattr(standard, name):
            return Conflict(
                (f"model.{name}", "model.interaction"),
                f"model.{name} is about model.interaction cross, that is {model.interaction}, set it to cross",
            )
    return None


def _cross_rank_is_low(config: Config) -> Conflict | None:
    model, width = config.model, (1 + len(config.model.table_rows)) * config.model.embedding_dim
    if model.cross_rank < width:
        return None
    return Conflict(
        ("model.cross_rank", "model.embedding_dim", "model.table_rows"),
        f"model.cross_rank {model.cross_rank} is not below {width}, the values of all features together, set it to 0 "
        "for whole matrices, or to less than half of that for smaller ones",
    )


def _rank_gets_rows(config: Config) -> Conflict | None:
    batch, ranks = config.train.batch_size, config.comm.simulated_ranks
    if batch >= ranks:
        return None
    keys = ("train.batch_size", "comm.simulated_ranks")
    return Conflict(keys, f"train.batch_size {batch} leaves ranks without a row, comm.simulated_ranks is {ranks}")


def _decay_has_length(config: Config) -> Conflict | None:
    train = config.train
    if train.decay_steps or not train.decay_start_step:
        return None
    keys = ("train.decay_start_step", "train.decay_steps")
    return Conflict(
        keys, f"train.decay_start_step {train.decay_start_step} does nothing, set train.decay_steps above 0 as well"
    )


def _decay_follows_warmup(config: Config) -> Conflict | None:
    train = config.train
    if not train.decay_steps or train.decay_start_step >= train.warmup_steps:
        return None
    keys = ("train.decay_start_step", "train.warmup_steps")
    return Conflict(
        keys,
        f"train.decay_start_step {train.decay_start_step} lies within the warm-up, "
        f"it must be train.warmup_steps {train.warmup_steps} or more",
    )


def _members_begin_fresh(config: Config) -> Conflict | None:
    if config.ensemble == 1 or not config.init_from:
        return None
    return Conflict(
        ("ensemble", "init_from"),
        f"ensemble {config.ensemble} is of models that begin with different weights, init_from gives all "
        "the same, leave out one of them",
    )


def _members_have_seeds(config: Config) -> Conflict | None:
    last = config.training_seed + config.ensemble - 1
    if last <= LARGEST_SEED:
        return None
    return Conflict(
        ("ensemble", "weights_seed", "seed"),
        f"ensemble {config.ensemble} counts seeds up to {last:,}, {LARGEST_SEED:,} is the largest, set "
        "weights_seed to a smaller one",
    )


def _kernels_fit_device(config: Config) -> Conflict | None:
    if config.device == "cpu" or config.kernels not in ("numba", "ipex"):
        return None
    return Conflict(
        ("kernels", "device"), f"kernels {config.kernels} run on a CPU only, set kernels auto or torch with device cuda"
    )


def _nccl_has_gpus(config: Config) -> Conflict | None:
    if config.comm.transport != "nccl" or config.device == "cuda":
        return None
    return Conflict(
        ("comm.transport", "device"),
        f"comm.transport nccl is for models on GPUs, device is {config.device}, set that to cuda, or comm.transport "
        "to auto",
    )


def _dense_tables_are_small(config: Config) -> Conflict | None:
    if config.comm.wire != "dense" or _table_dims_are_dims(config) is not None:
        return None
    model, named = config.model, named_dims(config.model.table_dims)
    num_bytes = sum(rows * named.get(number, model.embedding_dim) for number, rows in enumerate(model.table_rows)) * 4
    if num_bytes <= DENSE_WIRE_LIMIT_BYTES:
        return None
    return Conflict(
        ("comm.wire", "model.table_rows", "model.embedding_dim"),
        f"comm.wire dense would send the tables' whole gradient, {num_bytes / 2**30:.2f} GiB, at every step, it is "
        f"made for up to {DENSE_WIRE_LIMIT_BYTES / 2**30:.2f} GiB; set it to sparse or int8",
    )


def _feedback_has_a_source(config: Config) -> Conflict | None:
    comm = config.comm
    if comm.error_feedback == "none":
        return None
    of_tables = comm.error_feedback == "all" and comm.integer_width
    if comm.mlp_gradients == "fp32" and not of_tables:
        return Conflict(
            ("comm.error_feedback", "comm.mlp_gradients"),
            f"comm.error_feedback {comm.error_feedback} has nothing to give back, comm.mlp_gradients fp32 loses "
            "nothing, set that to int8 or bf16",
        )
    if comm.error_feedback == "all" and not comm.integer_width:
        return Conflict(
            ("comm.error_feedback", "comm.wire"),
            f"comm.error_feedback all has nothing to give back to tables, comm.wire {comm.wire} loses nothing, "
            "set that to int8, or comm.error_feedback to mlp",
        )
    return None


def _scales_are_used(config: Config) -> Conflict | None:
    comm = config.comm
    if comm.integer_width or comm.mlp_gradients == "int8":
        return None
    chosen = {"comm.scale_reduce": comm.scale_reduce != "max", "comm.simulated_scale": comm.simulated_scale != "all"}
    for key, is_chosen in chosen.items():
        if is_chosen:
            return Conflict(
                (key, "comm.wire", "comm.mlp_gradients"),
                f"{key} chooses a scale, but comm.wire {comm.wire} and comm.mlp_gradients {comm.mlp_gradients} have "
                "none, set one of them to int8",
            )
    return None


def _rounding_is_of_integers(config: Config) -> Conflict | None:
    comm = config.comm
    if comm.rounding == "nearest" or comm.integer_width or comm.mlp_gradients == "int8":
        return None
    return Conflict(
        ("comm.rounding", "comm.wire", "comm.mlp_gradients"),
        f"comm.rounding {comm.rounding} is about integers, and neither comm.wire {comm.wire} nor comm.mlp_gradients "
        f"{comm.mlp_gradients} sends any, set one of them to int8",
    )


def _first_scale_is_simulated(config: Config) -> Conflict | None:
    comm = config.comm
    if comm.simulated_scale == "all" or comm.simulated_ranks > 1:
        return None
    return Conflict(
        ("comm.simulated_scale", "comm.simulated_ranks"),
        "comm.simulated_scale first is about simulated ranks, set comm.simulated_ranks to 2 or more",
    )


def _widths_fit_tables(config: Config) -> Conflict | None:
    widths, tables = len(config.quant.step_width), len(config.model.table_rows)
    if widths in (1, tables):
        return None
    keys = ("quant.step_width", "model.table_rows")
    return Conflict(keys, f"quant.step_width has {widths} numbers, give one, or one per table: {tables}")


def _width_has_a_scale(config: Config) -> Conflict | None:
    quant = config.quant
    if quant.method in UNIFORM_METHODS:
        return None
    chosen = {"quant.step_width": set(quant.step_width) != {1.0}, "quant.target_alive": quant.target_alive > 0}
    for key, is_chosen in chosen.items():
        if is_chosen:
            return Conflict(
                (key, "quant.method"), f"{key} is about the scale of dqrm, hawq and ptq, quant.method is {quant.method}"
            )
    return None


def _width_is_set_once(config: Config) -> Conflict | None:
    quant = config.quant
    if quant.target_alive == 0 or (set(quant.step_width) == {1.0} and not quant.step_width_ramp_steps):
        return None
    return Conflict(
        ("quant.target_alive", "quant.step_width"),
        "quant.target_alive finds the width of the scale itself, leave quant.step_width at 1 and "
        "quant.step_width_ramp_steps at 0",
    )


def _ramp_leads_somewhere(config: Config) -> Conflict | None:
    quant = config.quant
    if not quant.step_width_ramp_steps:
        return None
    if quant.method in TRAINED_UNIFORM_METHODS and set(quant.step_width) != {1.0}:
        return None
    return Conflict(
        ("quant.step_width_ramp_steps", "quant.step_width", "quant.method"),
        "quant.step_width_ramp_steps goes to quant.step_width while dqrm or hawq trains, set that to another width "
        "than 1 and quant.method to one of them",
    )


def _mask_is_a_choice(config: Config) -> Conflict | None:
    quant = config.quant
    if not quant.clip_mask or quant.method in TRAINED_UNIFORM_METHODS:
        return None
    return Conflict(
        ("quant.clip_mask", "quant.method"),
        f"quant.clip_mask is about dqrm and hawq, quant.method is {quant.method} (lsq and pact always have theirs)",
    )


def _pretraining_ends(config: Config) -> Conflict | None:
    quant, epochs = config.quant, config.train.epochs
    if not quant.pretrain_epochs:
        return None
    if quant.method in ("none", "ptq"):
        return Conflict(
            ("quant.pretrain_epochs", "quant.method"),
            f"quant.pretrain_epochs comes before quantization-aware training, quant.method {quant.method} has none",
        )
    if quant.pretrain_epochs < epochs:
        return None
    return Conflict(
        ("quant.pretrain_epochs", "train.epochs"),
        f"quant.pretrain_epochs {quant.pretrain_epochs} leaves nothing of train.epochs {epochs} to train quantized",
    )


def _late_start_leaves_something(config: Config) -> Conflict | None:
    quant = config.quant
    if not quant.start_at:
        return None
    if quant.method in ("none", "ptq"):
        return Conflict(
            ("quant.start_at", "quant.method"),
            "quant.start_at is where quantization-aware training begins, "
            f"quant.method {quant.method} has none, set it to dqrm",
        )
    if quant.pretrain_epochs:
        return Conflict(
            ("quant.start_at", "quant.pretrain_epochs"),
            f"quant.start_at {quant.start_at} and quant.pretrain_epochs {quant.pretrain_epochs} both say when training "
            "becomes quantized, leave out one of them",
        )
    if quant.start_at < 1:
        return None
    return Conflict(
        ("quant.start_at",), "quant.start_at 1 leaves nothing to train quantized, set it below 1, such as 0.9"
    )


def _bits_have_a_method(config: Config) -> Conflict | None:
    quant = config.quant
    if quant.method != "none":
        return None
    for name in ("activation_bits", "mlp_bias_bits"):
        bits = getattr(quant, name)
        if bits != FP32_BITS:
            return Conflict(
                (f"quant.{name}", "quant.method"),
                f"quant.{name} {bits} is about a quantized model, quant.method is none, choose one",
            )
    return None


def _rounding_is_trained(config: Config) -> Conflict | None:
    quant = config.quant
    for name in ("rounding", "mlp_rounding"):
        if getattr(quant, name) == "nearest":
            continue
        if quant.method not in TRAINED_UNIFORM_METHODS:
            return Conflict(
                (f"quant.{name}", "quant.method"),
                f"quant.{name} stochastic is about training with dqrm or hawq, quant.method is {quant.method}",
            )
        if name == "mlp_rounding" and quant.mlp_bits == FP32_BITS:
            return Conflict(
                ("quant.mlp_rounding", "quant.mlp_bits"),
                "quant.mlp_rounding stochastic has nothing to round, quant.mlp_bits is 32, set that to 4 or 8",
            )
    return None


_RULES: tuple[Callable[[Config], Conflict | None], ...] = (
    _bottom_ends_in_embedding_dim,
    _table_dims_are_dims,
    _top_ends_in_one,
    _cross_layers_are_used,
    _cross_rank_is_low,
    _rank_gets_rows,
    _decay_has_length,
    _decay_follows_warmup,
    _members_begin_fresh,
    _members_have_seeds,
    _kernels_fit_device,
    _nccl_has_gpus,
    _dense_tables_are_small,
    _feedback_has_a_source,
    _scales_are_used,
    _rounding_is_of_integers,
    _first_scale_is_simulated,
    _widths_fit_tables,
    _width_has_a_scale,
    _width_is_set_once,
    _ramp_leads_somewhere,
    _mask_is_a_choice,
    _pretraining_ends,
    _late_start_leaves_something,
    _bits_have_a_method,
    _rounding_is_trained,
    shards_are_possible,
    master_rows_are_possible,
    resets_are_possible,
    averages_are_possible,
    integer_products_are_possible,
)
