"""The same preparation in polars: what people write who want it fast, on one machine, and without a toolkit.

Imports nothing that brings torch: the memory that it takes would count as polars'.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dqrm_cpu.data.store.schema import CRITEO

PACKAGE = "polars"

_LABEL = "label"


def polars_work(source: str, out: str) -> tuple[Callable[[], object], Callable[[], tuple[int, int, int, float]]]:
    """Returns what is timed, and what then returns (rows, clicks, distinct categories, sum of the logarithms).

    Streamed from scan to file. Categories of a column are numbered by polars' own dictionary, which it builds while
    it reads: ranking the texts afterwards takes more than twice as long. Parquet without compression is its fastest.
    """
    pl: Any = importlib.import_module(PACKAGE)
    path = Path(out).with_suffix(".parquet")

    def work() -> None:
        categories = {name: pl.Categorical(pl.Categories(name)) for name in CRITEO.categorical}
        schema = {_LABEL: pl.UInt8, **dict.fromkeys(CRITEO.dense, pl.Int32), **categories}
        rows = pl.scan_csv(source, separator="\t", has_header=False, schema=schema, quote_char=None)
        dense = [_logarithm(pl, pl.col(name)) for name in CRITEO.dense]
        ids = [(pl.col(name).to_physical().cast(pl.Int32) + 1).fill_null(0) for name in CRITEO.categorical]
        rows.with_columns(dense + ids).sink_parquet(path, compression="uncompressed")

    def summarize() -> tuple[int, int, int, float]:
        rows = pl.read_parquet(path)
        distinct = sum(rows[name].n_unique() for name in CRITEO.categorical)
        dense = sum(rows[name].cast(pl.Float64).sum() for name in CRITEO.dense)
        return rows.height, int(rows[_LABEL].sum()), distinct, float(dense)

    return work, summarize


def _logarithm(pl: Any, column: Any) -> Any:
    return column.clip(0).fill_null(0).cast(pl.Float64).log1p().cast(pl.Float32)
