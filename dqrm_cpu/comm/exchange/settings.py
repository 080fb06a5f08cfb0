"""What gradients look like between ranks: the comm settings of a run, as an exchange needs them."""

from dataclasses import dataclass, fields
from typing import Self

from dqrm_cpu.config.schema import ENTRIES, CommConfig
from dqrm_cpu.errors import ConfigError


@dataclass(frozen=True)
class ExchangeSettings(CommConfig):
    """The comm section of a configuration, and the seed of stochastic rounding; the defaults change no bit."""

    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(CommConfig):
            choices, value = ENTRIES[f"comm.{field.name}"].setting.choices, getattr(self, field.name)
            if choices and value not in choices:
                names = ", ".join(map(str, choices))
                raise ConfigError(f"comm.{field.name} {value!r} does not exist: choose one of {names}.")

    @classmethod
    def of(cls, comm: CommConfig, seed: int) -> Self:
        """Returns the settings of a run's comm section and seed."""
        return cls(**vars(comm), seed=seed)

    @property
    def is_exact(self) -> bool:
        """Says whether gradients reach the other ranks unchanged, without rounding."""
        return not self.integer_width and self.mlp_gradients == "fp32"
