"""What a search may choose: the settings that nobody gave, the values to try of each, and the candidates drawn."""

import itertools
import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from types import MappingProxyType

from dqrm_cpu.config import Config
from dqrm_cpu.config.rules import conflicts
from dqrm_cpu.config.schema import OPTIMIZER_RATES, UNIFORM_METHODS, flatten, unflatten
from dqrm_cpu.config.setting import Value, value_text

Values = Mapping[str, Value]
"""Values of some settings, by their dotted keys."""

SEARCHED = ("train.optimizer", "train.learning_rate", "train.weight_decay", "quant.step_width")
"""The settings that a search chooses, unless they are given."""

_RATES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"sgd": (0.03, 0.1, 0.3, 1.0, 3.0), "rowwise-adagrad": (0.005, 0.01, 0.02, 0.05, 0.1)}
)
_WEIGHT_DECAYS = (1e-6, 1e-5, 1e-4)
_STEP_WIDTHS = ((2.0,), (4.0,))
_STAYS = 0.5  # chance of weight decay and step width to stay as they are: most data want neither
_MOST_DRAWS = 20  # for each trial: when most are drawn, others are hard to find


def searched_settings(config: Config, given: Set[str]) -> tuple[str, ...]:
    """Returns the settings to search: those of `SEARCHED` that were not given and mean something in this run."""
    quant = config.quant
    has_width = quant.method in UNIFORM_METHODS and quant.target_alive == 0
    meaningless = frozenset() if has_width else frozenset({"quant.step_width"})
    return tuple(key for key in SEARCHED if key not in given | meaningless)


def draw_candidates(config: Config, searched: Sequence[str], count: int) -> list[Values]:
    """Draws up to `count` different candidates, the same for the same seed.

    The first are the settings as they are, and each other optimizer with its own learning rate.
    """
    now = flatten(config)
    drawn: list[Values] = [{key: now[key] for key in searched}]
    if "train.optimizer" in searched:
        others = [name for name in OPTIMIZER_RATES if name != config.train.optimizer]
        drawn += [_filled(now, searched, {"train.optimizer": name}) for name in others]
    chance = random.Random(config.seed)
    rates = itertools.cycle(_rates(config, searched, chance))
    for rate in itertools.islice(rates, _MOST_DRAWS * count):
        candidate = _filled(now, searched, {**rate, **_regularization(searched, chance)})
        if candidate not in drawn and not any(conflicts(with_values(config, candidate))):
            drawn.append(candidate)
        if len(drawn) >= count:
            break
    return drawn[:count]


def with_values(config: Config, values: Values) -> Config:
    """Returns the configuration with these values."""
    return unflatten({**flatten(config), **values})


def most_demanding(config: Config, searched: Sequence[str]) -> Config:
    """Returns the candidate that takes the most memory: Adagrad keeps sums beside the weights."""
    if "train.optimizer" not in searched:
        return config
    return replace(config, train=replace(config.train, optimizer="rowwise-adagrad"))


def describe(values: Values) -> str:
    """Writes values in words: `optimizer sgd, learning rate 0.1`."""
    return ", ".join(f"{column_name(key)} {shown(value)}" for key, value in values.items())


def column_name(key: str) -> str:
    """Returns the last part of a dotted key, as words."""
    return key.rpartition(".")[2].replace("_", " ")


def shown(value: Value) -> str:
    """Formats a value for people."""
    if isinstance(value, tuple):
        return ",".join(f"{item:g}" for item in value)
    return f"{value:g}" if isinstance(value, float) else value_text(value)


def _filled(now: Values, searched: Sequence[str], chosen: Values) -> Values:
    """Returns a value of every searched setting: the chosen one, that of the optimizer, or the one as it is."""
    optimizer = chosen.get("train.optimizer", now["train.optimizer"])
    own_rate = {} if optimizer == now["train.optimizer"] else {"train.learning_rate": OPTIMIZER_RATES[str(optimizer)]}
    filled = {**now, **own_rate, **chosen}
    return {key: filled[key] for key in searched}


def _rates(config: Config, searched: Sequence[str], chance: random.Random) -> list[Values]:
    """Returns optimizers to try with each learning rate to try; they take turns, with their own rates last."""
    optimizers = list(OPTIMIZER_RATES) if "train.optimizer" in searched else [config.train.optimizer]
    if "train.learning_rate" not in searched:
        return [{"train.optimizer": name} for name in optimizers]
    columns = []
    for name in optimizers:
        others = [rate for rate in _RATES[name] if rate != OPTIMIZER_RATES[name]]
        rates = [*chance.sample(others, len(others)), OPTIMIZER_RATES[name]]
        columns.append([{"train.optimizer": name, "train.learning_rate": rate} for rate in rates])
    return [pair for turn in zip(*columns, strict=True) for pair in turn]


def _regularization(searched: Sequence[str], chance: random.Random) -> Values:
    options: dict[str, Sequence[Value]] = {"train.weight_decay": _WEIGHT_DECAYS, "quant.step_width": _STEP_WIDTHS}
    return {
        key: chance.choice(values) for key, values in options.items() if chance.random() >= _STAYS and key in searched
    }
