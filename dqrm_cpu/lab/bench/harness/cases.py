"""The cases of the benchmarks: shapes of the paper's two models, and one small enough for whole-table quantization."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from dqrm_cpu.config import Config, preset_config

_FLOAT_BYTES = 4
_TERABYTE_BYTES = 6_000_000_000
_QUICK_LARGEST_TABLE = 2_000


@dataclass(frozen=True)
class Case:
    """One shape of model and batch; `config` is trained by every contestant."""

    name: str
    about: str
    config: Config
    whole_table: bool = False  # small enough for contestants that touch every row at every step
    from_paper: bool = False  # the paper's own shape: its authors' way to find scales takes part, in seconds a step

    @property
    def batch_size(self) -> int:
        return self.config.train.batch_size

    @property
    def table_bytes(self) -> int:
        model = self.config.model
        return sum(model.table_rows) * model.embedding_dim * _FLOAT_BYTES


def cap_tables(table_rows: Sequence[int], dim: int, limit_bytes: int) -> tuple[int, ...]:
    """Cuts the largest tables to one length, so that together all stay within the limit."""
    low, high = 1, max(table_rows)
    while low < high:
        middle = (low + high + 1) // 2
        fits = sum(min(rows, middle) for rows in table_rows) * dim * _FLOAT_BYTES <= limit_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return tuple(min(rows, low) for rows in table_rows)


def quick(case: Case) -> Case:
    """Returns the case with small tables and a small batch: to see the benchmark work; its times mean nothing."""
    model, train = case.config.model, case.config.train
    rows = tuple(min(rows, _QUICK_LARGEST_TABLE) for rows in model.table_rows)
    config = replace(
        case.config,
        model=replace(model, table_rows=rows),
        train=replace(train, batch_size=min(train.batch_size, 64)),
    )
    return replace(case, about=f"{case.about}; quick: tables and batch cut", config=config)


def _preset_case(name: str, about: str, preset: str, batch_size: int) -> Case:
    config = preset_config(preset)
    return Case(name, about, replace(config, train=replace(config.train, batch_size=batch_size)))


def _demo() -> Case:
    about = "Kaggle's tables cut to 100,000 rows, D 16, batch 128"
    return replace(_preset_case("demo_128", about, "demo", 128), whole_table=True)


def _terabyte() -> Case:
    about = "Terabyte's tables cut to 6 GB in total, D 64, batch 2048"
    case = _preset_case("terabyte_2048", about, "terabyte", 2048)
    model = case.config.model
    rows = cap_tables(model.table_rows, model.embedding_dim, _TERABYTE_BYTES)
    return replace(case, config=replace(case.config, model=replace(model, table_rows=rows)), from_paper=True)


CASES: Mapping[str, Callable[[], Case]] = MappingProxyType(
    {
        "demo_128": _demo,
        "kaggle_128": lambda: replace(
            _preset_case("kaggle_128", "Kaggle's tables, D 16, batch 128", "kaggle", 128), from_paper=True
        ),
        "kaggle_2048": lambda: _preset_case("kaggle_2048", "Kaggle's tables, D 16, batch 2048", "kaggle", 2048),
        "terabyte_2048": _terabyte,
    }
)
"""Makers of the cases, by name, in the order in which they run."""
