"""`bench data`: who prepares raw clicks, from which file, and what is compared with what."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dqrm_cpu.bench.benchmark import Ratio
from dqrm_cpu.bench.contestant import AbsentError
from dqrm_cpu.bench.data_polars import PACKAGE as POLARS

QUICK_ROWS = 20_000


def require_package(name: str = POLARS) -> None:
    """AbsentError where it is not installed."""
    if importlib.util.find_spec(name) is None:
        raise AbsentError("not installed; pip install 'dqrm-cpu[bench]'")


@dataclass(frozen=True)
class DataCase:
    """How many generated rows are prepared."""

    name: str
    rows: int


CASES: Mapping[str, DataCase] = MappingProxyType(
    {case.name: case for case in (DataCase("rows_1m", 1_000_000), DataCase("rows_8m", 8_000_000))}
)
DEFAULT_CASES = ("rows_1m",)


@dataclass(frozen=True)
class DataContestant:
    """`source` is what it reads: the plain file, the gzip file, or the rows prepared from them."""

    name: str
    about: str
    kind: str  # of data_work.WORKS
    source: str  # plain, gzip or prepared
    require: Callable[[], None] = lambda: None  # raises AbsentError


@dataclass(frozen=True)
class DataGroup:
    """Contestants that read the same."""

    name: str
    contestants: tuple[DataContestant, ...]
    baseline: str


_OURS = "parsed, ids, logarithms, split, shuffled, checksums, forced to the disk"
_POLARS = "scan_csv to sink_parquet: ids by its categoricals, logarithms; no split, no shuffle"


def _preparing(source: str, floor: DataContestant) -> DataGroup:
    """Ours, polars, and the least that anyone must do."""
    polars = DataContestant(f"polars_{source}", _POLARS, "polars", source, require_package)
    ours = DataContestant(f"ours_{source}", _OURS, "prepare", source)
    return DataGroup(source, (ours, polars, floor), polars.name)


GROUPS = (
    _preparing("plain", DataContestant("read_floor", "the bytes read by one thread and thrown away", "read", "plain")),
    _preparing(
        "gzip", DataContestant("unpack_floor", "unpacked by one thread with isal and thrown away", "unpack", "gzip")
    ),
    DataGroup(
        "loader",
        (DataContestant("loader", "an epoch in batches of 2048, read ahead on a thread", "load", "prepared"),),
        "loader",
    ),
)

RATIOS = (
    Ratio("prepare_over_polars", "plain", "ours_plain", "polars_plain"),
    Ratio("prepare_over_polars", "gzip", "ours_gzip", "polars_gzip"),
    Ratio("prepare_over_floor", "plain", "ours_plain", "read_floor"),
    Ratio("prepare_over_floor", "gzip", "ours_gzip", "unpack_floor"),
)
