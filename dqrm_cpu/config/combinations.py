"""What is not possible together with tables on several ranks, master rows of few bits, or tables that begin anew."""

from collections.abc import Mapping

from dqrm_cpu.config.schema import UNIFORM_METHODS, Config, flatten
from dqrm_cpu.config.setting import Conflict, value_text


def shards_are_possible(config: Config) -> Conflict | None:
    """Finds what is not possible with tables on several ranks."""
    comm, quant = config.comm, config.quant
    if comm.tables != "shard":
        return None
    possible = {
        "comm.wire": (comm.wire != "dense", "sparse or int8"),
        "comm.error_feedback": (comm.error_feedback != "all", "mlp or none"),
        "model.table_dims": (not config.model.table_dims, "nothing"),
        "quant.method": (quant.method in ("none", *UNIFORM_METHODS), "dqrm"),
        "quant.clip_mask": (not quant.clip_mask, "false"),
        "quant.rounding": (quant.rounding == "nearest", "nearest"),
        "quant.target_alive": (quant.target_alive == 0, "0"),
        "init_from": (not config.init_from, "nothing"),
        "device": (config.device == "cpu", "cpu"),
        "kernels": (config.kernels in ("auto", "numba"), "auto"),
    }
    return _first_impossible(config, possible, "comm.tables", "replicate")


def master_rows_are_possible(config: Config) -> Conflict | None:
    """Finds what is not possible with rows of few bits: whatever reads or changes them beside the numba kernels."""
    quant = config.quant
    if config.train.master_rows == "fp32":
        return None
    possible = {
        "quant.method": (quant.method in ("none", *UNIFORM_METHODS), "dqrm"),
        "quant.clip_mask": (not quant.clip_mask, "false"),
        "quant.rounding": (quant.rounding == "nearest", "nearest"),
        "quant.target_alive": (quant.target_alive == 0, "0"),
        "device": (config.device == "cpu", "cpu"),
        "kernels": (config.kernels in ("auto", "numba"), "auto"),
    }
    return _first_impossible(config, possible, "train.master_rows", "fp32")


def resets_are_possible(config: Config) -> Conflict | None:
    """Finds what is not possible with tables that begin anew: what remembers their rows, or does not know the first."""
    if config.train.reset_tables == "never":
        return None
    possible = {
        "quant.method": (config.quant.method not in ("lsq", "pact"), "dqrm"),
        "comm.error_feedback": (config.comm.error_feedback != "all", "mlp or none"),
        "train.epochs": (config.train.epochs > 1, "2 or more"),
        "init_from": (not config.init_from, "nothing"),
    }
    return _first_impossible(config, possible, "train.reset_tables", "never")


def _first_impossible(
    config: Config, possible: Mapping[str, tuple[bool, str]], key: str, usual: str
) -> Conflict | None:
    """Returns the conflict of the first setting that is not possible with that of `key`, with what to set instead."""
    values = flatten(config)
    for other, (is_possible, instead) in possible.items():
        if not is_possible:
            return Conflict(
                (other, key),
                f"{other} {value_text(values[other])} is not possible with {key} {value_text(values[key])}, set it to "
                f"{instead}, or {key} to {usual}",
            )
    return None
