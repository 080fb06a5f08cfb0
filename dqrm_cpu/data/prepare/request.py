"""What is asked for: sources, layout, vocabulary, split, what happens to bad rows."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dqrm_cpu.data.prepare.layout import Layout
from dqrm_cpu.data.prepare.raw_files import RawFile

SPLITS = ("last-file", "last-seventh", "none")
BAD_ROW_POLICIES = ("stop", "skip", "quarantine")
VOCABULARY_KINDS = ("exact", "hash", "given")


@dataclass(frozen=True)
class VocabularySettings:
    """How categories become ids."""

    kind: str = "exact"  # one of VOCABULARY_KINDS
    directory: str = ""  # of the given vocabulary
    digest: str = ""  # of the given vocabulary's files
    min_count: int = 1  # rarer categories share row 0
    max_ind_range: int = 0  # hashes are taken modulo this; 0: as they are
    hash_rows: int = 0  # rows of every table when hashing


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is written."""

    layout: Layout
    split: str = "last-seventh"
    vocabulary: VocabularySettings = VocabularySettings()
    bad_rows: str = "stop"
    max_bad_rows: int = 1000
    seed: int = 1
    shard_rows: int = 262_144

    def plain(self) -> dict[str, Any]:
        """As JSON holds it, fields as a person reads them."""
        said: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        said["layout"]["fields"] = [f"{field.role.name.lower()} {field.name}".strip() for field in self.layout.fields]
        if not self.layout.quotes:
            del said["layout"]["quotes"]  # as requests read before there were quotes
        return said


@dataclass(frozen=True)
class Means:
    """What does not change the result: threads, memory, size of a step."""

    workers: int
    memory_bytes: int
    block_bytes: int = 0  # 0: by the size of the sources
    available_bytes: int = 0  # of memory; 0: not known, nothing is checked
    force: bool = False  # start even where memory or disk seem too small


@dataclass(frozen=True)
class Advance:
    """How far the preparation is."""

    stage: str  # reading or writing
    rows: int
    done_bytes: int
    total_bytes: int  # 0: not known


@dataclass(frozen=True)
class Request:
    """One preparation."""

    sources: tuple[RawFile, ...]
    out: Path
    settings: Settings
    means: Means
    stdin: BinaryIO
    advance: Callable[[Advance], None]
    note: Callable[[str], None]

    def digest(self) -> str:
        """Names sources and settings: only the same request goes on with what another one began."""
        said = [[asdict(source) for source in self.sources], self.settings.plain()]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]
