"""Rules between settings: each looks at a configuration whose single values are in range."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dqrm_cpu.config.schema import Config

DENSE_WIRE_LIMIT_BYTES = 256 << 20
"""The largest tables whose whole gradient is sent: a step moves about twice their size."""


@dataclass(frozen=True)
class Conflict:
    """Settings that do not go together, and how to mend it."""

    keys: tuple[str, ...]
    message: str


def conflicts(config: Config) -> Iterator[Conflict]:
    """Every rule that the configuration breaks."""
    for rule in _RULES:
        found = rule(config)
        if found is not None:
            yield found


def _bottom_ends_in_embedding_dim(config: Config) -> Conflict | None:
    last, dim = config.model.bottom_mlp[-1], config.model.embedding_dim
    if last == dim:
        return None
    keys = ("model.bottom_mlp", "model.embedding_dim")
    return Conflict(keys, f"the last layer of model.bottom_mlp is {last}, it must equal model.embedding_dim {dim}")


def _top_ends_in_one(config: Config) -> Conflict | None:
    last = config.model.top_mlp[-1]
    if last == 1:
        return None
    return Conflict(("model.top_mlp",), f"the last layer of model.top_mlp is {last}, it must be 1 (the click)")


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


def _kernels_fit_device(config: Config) -> Conflict | None:
    if config.device == "cpu" or config.kernels not in ("numba", "ipex"):
        return None
    return Conflict(
        ("kernels", "device"), f"kernels {config.kernels} run on a CPU only, set kernels auto or torch with device cuda"
    )


def _dense_tables_are_small(config: Config) -> Conflict | None:
    num_bytes = sum(config.model.table_rows) * config.model.embedding_dim * 4
    if config.comm.wire != "dense" or num_bytes <= DENSE_WIRE_LIMIT_BYTES:
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
    if comm.mlp_gradients == "fp32":
        return Conflict(
            ("comm.error_feedback", "comm.mlp_gradients"),
            f"comm.error_feedback {comm.error_feedback} has nothing to give back, comm.mlp_gradients fp32 loses "
            "nothing, set that to int8 or bf16",
        )
    if comm.error_feedback == "all" and not _integer_wire(config):
        return Conflict(
            ("comm.error_feedback", "comm.wire"),
            f"comm.error_feedback all has nothing to give back to tables, comm.wire {comm.wire} loses nothing, "
            "set that to int8, or comm.error_feedback to mlp",
        )
    return None


def _scales_are_used(config: Config) -> Conflict | None:
    comm = config.comm
    if _integer_wire(config) or comm.mlp_gradients == "int8":
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
    if config.comm.rounding == "nearest" or _integer_wire(config):
        return None
    return Conflict(
        ("comm.rounding", "comm.wire"),
        f"comm.rounding {config.comm.rounding} is about integers, and comm.wire {config.comm.wire} sends none, set "
        "that to int8",
    )


def _first_scale_is_simulated(config: Config) -> Conflict | None:
    comm = config.comm
    if comm.simulated_scale == "all" or comm.simulated_ranks > 1:
        return None
    return Conflict(
        ("comm.simulated_scale", "comm.simulated_ranks"),
        "comm.simulated_scale first is about simulated ranks, set comm.simulated_ranks to 2 or more",
    )


def _integer_wire(config: Config) -> bool:
    return config.comm.wire.startswith("int")


_RULES: tuple[Callable[[Config], Conflict | None], ...] = (
    _bottom_ends_in_embedding_dim,
    _top_ends_in_one,
    _rank_gets_rows,
    _decay_has_length,
    _decay_follows_warmup,
    _kernels_fit_device,
    _dense_tables_are_small,
    _feedback_has_a_source,
    _scales_are_used,
    _rounding_is_of_integers,
    _first_scale_is_simulated,
)
