"""What somebody may ask of `prepare`, on the command line or in Python, and within which limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dqrm_cpu.data.prepare.protocols import PROTOCOLS
from dqrm_cpu.errors import ConfigError

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "format": ("kaggle", "terabyte", "tsv"),
        "split": ("last-file", "last-seventh", "none"),
        "protocol": tuple(PROTOCOLS),
        "bad_rows": ("stop", "skip", "quarantine"),
    }
)
"""The words that an option takes."""

LIMITS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "seed": (0, 2**32 - 1),
        "shard_rows": (1, 1 << 26),
        "workers": (1, 256),
        "hash_rows": (2, 2**31 - 1),
        "min_count": (1, 2**31 - 1),
        "evict_unseen": (1, 2**31 - 1),
        "max_ind_range": (1, 2**31 - 1),
        "max_bad_rows": (0, 2**62),
        "memory_budget": (1, 2**62),
    }
)
"""The least and the largest number that an option takes."""

_OFF: Mapping[str, int] = MappingProxyType({"max_ind_range": 0, "evict_unseen": 0})
"""The number below its limits by which an option is left out."""


@dataclass(frozen=True)
class PrepareOrder:
    """A preparation as somebody asks for it; every field is an option of the command line with the same name."""

    raw: tuple[str, ...]
    out: Path
    format: str | None = None
    schema: Path | None = None
    split: str | None = None
    protocol: str | None = None
    seed: int = 1
    vocabulary: str = "exact"  # or hash, or the folder of a data set
    grow_from: Path | None = None
    hash_rows: int | None = None
    min_count: int | None = None  # None: that of the protocol, or 1
    evict_unseen: int = 0
    evict_zero: Path | None = None  # the folder of a run, or a packed file
    max_ind_range: int = 0
    bad_rows: str = "stop"
    max_bad_rows: int = 1000
    shard_rows: int = 262_144
    workers: int | None = None
    memory_budget: int | None = None
    force: bool = False
    restart: bool = False

    def check(self) -> None:
        """Raises ConfigError where an option has a value that it does not take."""
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ConfigError(f"{_option(name)} {value}: no such choice; there are {', '.join(choices)}")
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if value is None or value == _OFF.get(name):
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{_option(name)} {value!r} is not a whole number")
            if not least <= value <= most:
                raise ConfigError(f"{_option(name)} {value} is out of range: want {least:,} to {most:,}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
