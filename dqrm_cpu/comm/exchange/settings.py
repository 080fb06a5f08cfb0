"""What an exchange of gradients is asked for, and what it reports: settings, and bytes sent by what they held."""

from dataclasses import dataclass, fields
from typing import NamedTuple, Self

from dqrm_cpu.config.schema import SETTINGS, CommConfig
from dqrm_cpu.errors import ConfigError


@dataclass(frozen=True)
class ExchangeSettings(CommConfig):
    """The comm section of a configuration, and the seed of stochastic rounding; the defaults change no bit."""

    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(CommConfig):
            choices, value = SETTINGS[f"comm.{field.name}"].choices, getattr(self, field.name)
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


class SentBytes(NamedTuple):
    """The bytes that one rank sent, by what they held; the parts add up to what its transport counts."""

    indices: int = 0
    values: int = 0
    scales: int = 0  # with the counts and the padding of messages
    mlp: int = 0  # gradients of both MLPs, their scales, the loss

    def plus(self, other: "SentBytes") -> "SentBytes":
        """Returns the sum, part by part."""
        return SentBytes(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, earlier: "SentBytes") -> "SentBytes":
        """Returns what was sent since `earlier`."""
        return SentBytes(*(a - b for a, b in zip(self, earlier, strict=True)))


NOTHING_SENT = SentBytes()
