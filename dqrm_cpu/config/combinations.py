"""What is not possible with tables on several ranks or begun anew, integer products, few bits, means of snapshots."""

from collections.abc import Mapping
from math import ceil

from dqrm_cpu.config.schema import FP32_BITS, MOST_INTEGER_TERMS, UNIFORM_METHODS, Config, flatten
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


def averages_are_possible(config: Config) -> Conflict | None:
    """Finds what is not possible with the mean of snapshots: what is learned or kept in another form than weights."""
    train, quant = config.train, config.quant
    if not train.average_snapshots:
        return None
    possible = {
        "quant.method": (quant.method not in ("lsq", "pact"), "dqrm"),
        "quant.activation_bits": (quant.activation_bits == FP32_BITS, "32"),
        "train.master_rows": (train.master_rows == "fp32", "fp32"),
        "train.average_from": (train.average_from < 1, "less, such as 0.5"),
        "init_from": (not config.init_from, "nothing"),
    }
    if train.reset_tables != "never":
        last_epoch = ceil(1000 * (1 - 1 / train.epochs)) / 1000
        possible["train.average_from"] = (
            last_epoch <= train.average_from < 1,
            f"{last_epoch}, the last epoch, or more",
        )
    return _first_impossible(config, possible, "train.average_snapshots", "0")


def integer_products_are_possible(config: Config) -> Conflict | None:
    """Finds what is not possible with products of whole numbers."""
    if config.train.precision != "int8":
        return None
    most_rows = MOST_INTEGER_TERMS * config.comm.simulated_ranks
    possible = {
        "quant.activation_bits": (config.quant.activation_bits == FP32_BITS, str(FP32_BITS)),
        "train.batch_size": (config.train.batch_size <= most_rows, f"{most_rows} or less"),
        "device": (config.device == "cpu", "cpu"),
        "kernels": (config.kernels != "torch", "auto"),
    }
    return _first_impossible(config, possible, "train.precision", "fp32")


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
