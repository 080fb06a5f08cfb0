"""Rules between settings: each looks at a configuration whose single values are in range."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dqrm_cpu.config.schema import Config


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


_RULES: tuple[Callable[[Config], Conflict | None], ...] = (
    _bottom_ends_in_embedding_dim,
    _top_ends_in_one,
    _rank_gets_rows,
    _decay_has_length,
    _decay_follows_warmup,
    _kernels_fit_device,
)
