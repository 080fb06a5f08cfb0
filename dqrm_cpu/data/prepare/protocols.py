"""Protocols by which others split Criteo's log, what they found, and when figures must not stand side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from dqrm_cpu.data.store.manifest import Manifest, holds_manifest, read_manifest
from dqrm_cpu.errors import DataError


class Published(NamedTuple):
    """What others report of a model by a protocol; None where they do not give it."""

    model: str
    auc: float
    log_loss: float | None = None


@dataclass(frozen=True)
class RandomSplit:
    """Settings of a split by chance: the shares of the rows that validate and test, as near as bins allow."""

    validation: float
    test: float


@dataclass(frozen=True)
class Protocol:
    """How a log is split and which categories have a row."""

    about: str
    random_split: RandomSplit | None  # None: by time
    min_count: int
    embedding_dim: int
    published: tuple[Published, ...]


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "paper": Protocol("chronological: the last seventh of the rows held out, half of it for test", None, 1, 16, ()),
        "x1": Protocol(
            "random, 72:18:10",
            RandomSplit(validation=0.18, test=0.10),
            10,
            10,
            (Published("DLRM", 0.8138, 0.4382), Published("DCNv2", 0.8142), Published("FinalNet", 0.8154)),
        ),
        "x4": Protocol(
            "random, 80:10:10",
            RandomSplit(validation=0.10, test=0.10),
            10,
            16,
            (
                Published("LR", 0.7934),
                Published("FM", 0.8086),
                Published("DNN", 0.8140),
                Published("DeepFM", 0.8143),
            ),
        ),
    }
)
"""By the names of `--protocol`: the paper's, and BARS's Criteo_x1 and Criteo_x4."""


def protocol_of(manifest: Manifest) -> str:
    """Returns the protocol by which a data set was prepared; empty where it was by none."""
    name = manifest.settings.get("protocol", "")
    return name if isinstance(name, str) and name in PROTOCOLS else ""


def protocol_at(source: str) -> str:
    """Returns the protocol of the rows that a setting data.source names; empty of others, and where they are gone."""
    folder = Path(source)
    try:
        return protocol_of(read_manifest(folder)) if holds_manifest(folder) else ""
    except DataError:  # said by whoever needs the rows
        return ""


def beside(name: str) -> str:
    """Says what others report by a protocol, and with what it must not be compared."""
    protocol = PROTOCOLS[name]
    if not protocol.published:
        return f"{name}: {protocol.about}; splits are not comparable: figures of x1 and x4 are of random splits"
    figures = ", ".join(
        f"{model} AUC {auc:.4f}{'' if log_loss is None else f' log loss {log_loss:.4f}'}"
        for model, auc, log_loss in protocol.published
    )
    return (
        f"{name}: {protocol.about}; published by it, on all of Criteo's Kaggle log with {protocol.embedding_dim} "
        f"values per row: {figures}; splits are not comparable: no chronological figure belongs beside these, and "
        "their test rows are others than these"
    )


def not_comparable(names: Sequence[str]) -> str:
    """Says in a line that figures of these protocols must not be compared; empty where all are of one."""
    if len(set(names)) < 2:
        return ""
    kinds = [f"{name or 'no protocol'}{f' ({PROTOCOLS[name].about})' if name else ''}" for name in sorted(set(names))]
    return f"splits are not comparable: {', '.join(kinds)}"
