"""The request for a preparation: sources, layout, vocabulary, split, what happens to bad rows."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.prepare.protocols import RandomSplit
from dqrm_cpu.data.prepare.row_layout import Layout
from dqrm_cpu.data.prepare.sources.raw_file import RawFile
from dqrm_cpu.data.store.transform import Transform


@dataclass(frozen=True)
class VocabularySettings:
    """Settings of how categories become ids."""

    kind: str = "exact"  # exact, hash, given or grown
    directory: str = ""  # of the given vocabulary, or the one to grow from
    digest: str = ""  # of that vocabulary's files
    min_count: int = 1  # rarer categories share row 0; of data sets that grew, rows of all of them count
    max_ind_range: int = 0  # hashes are taken modulo this; 0: as they are
    hash_rows: int = 0  # rows of every table when hashing
    history: str = ""  # digest of that of the vocabulary to grow from; empty: it has none
    evict_unseen: int = 0  # categories that none of the last so many data sets had lose their row; 0: none does
    evict_zero: str = ""  # digest of the rows that a model says nothing by, which go if no row has their category

    @property
    def grows(self) -> bool:
        """Says whether a category that the vocabulary lacks is given an id."""
        return self.kind in ("exact", "grown")

    @property
    def is_counted(self) -> bool:
        """Says whether rows are counted by category before it is decided which have a row."""
        return self.kind == "grown" or self.min_count > 1


@dataclass(frozen=True)
class TimeSplit:
    """Settings of a split by time; None for a part that is to have no rows."""

    column: str
    validation: float | None = None  # the share of the rows, or the time from which on they validate
    test: float | None = None  # likewise; later than validation
    are_shares: bool = False
    are_dates: bool = False  # times are seconds since 1970, whatever the sources count
    order: str = "shuffled"  # of training rows; time: as in the sources, which must be sorted by it


@dataclass(frozen=True)
class Settings:
    """All settings that decide what is written."""

    layout: Layout
    split: str = "last-seventh"  # or last-file, none
    vocabulary: VocabularySettings = VocabularySettings()
    bad_rows: str = "stop"  # or skip, quarantine
    max_bad_rows: int = 1000
    seed: int = 1
    shard_rows: int = 262_144
    time_split: TimeSplit | None = None  # instead of `split`
    random_split: RandomSplit | None = None  # likewise
    protocol: str = ""  # whose split this is; empty: nobody's
    transforms: tuple[Transform, ...] | None = None  # of the data set of the given vocabulary; None: to be fitted

    def plain(self) -> dict[str, Any]:
        """Converts to what JSON holds, with fields as a person reads them."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        document["layout"]["fields"] = [str(field) for field in self.layout.fields]
        if not self.layout.quotes:
            del document["layout"]["quotes"]  # as requests read before there were quotes
        for name in ("history", "evict_unseen", "evict_zero"):
            if not document["vocabulary"][name]:
                del document["vocabulary"][name]  # likewise
        for name in ("columns", "carried"):
            if not document["layout"][name]:
                del document["layout"][name]  # likewise
        for name, unset in (("time_split", None), ("random_split", None), ("protocol", ""), ("transforms", None)):
            if getattr(self, name) == unset:
                del document[name]
        if self.layout.positive is None:
            del document["layout"]["positive"]
        return document


@dataclass(frozen=True)
class Resources:
    """Threads, memory, size of a block: what does not change the result."""

    workers: int
    memory_bytes: int
    block_bytes: int = 0  # 0: by the size of the sources
    available_bytes: int = 0  # of memory; 0: not known, nothing is checked
    force: bool = False  # start even where memory or disk seem too small


@dataclass(frozen=True)
class Advance:
    """A report of how far the preparation is."""

    stage: str  # reading or writing
    rows: int
    done_bytes: int
    total_bytes: int  # 0: not known


@dataclass(frozen=True)
class PrepareRequest:
    """One preparation that is asked for."""

    sources: tuple[RawFile, ...]
    out: Path
    settings: Settings
    resources: Resources
    stdin: BinaryIO
    advance: Callable[[Advance], None]
    note: Callable[[str], None]
    zero_rows: tuple[NDArray[np.bool_], ...] = ()  # of each table of the vocabulary to grow from; none: not asked for

    def digest(self) -> str:
        """Digests sources and settings: only the same request goes on with what another one began."""
        content = [[asdict(source) for source in self.sources], self.settings.plain()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
