"""What a rank decides when the configuration leaves it open: how many threads, and where tables lie."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from dqrm_cpu.api import ranks
from dqrm_cpu.api.ranks import own_cores, with_tables_placed
from dqrm_cpu.base.cgroup import default_threads
from dqrm_cpu.comm.transport import Array, Bytes, SingleTransport
from dqrm_cpu.config import Config, load_config
from planted import XEON


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, 8),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3,2"}, 3),
        ({"OMP_NUM_THREADS": "56"}, 8),
        ({"OMP_NUM_THREADS": "0"}, 8),
        ({"OMP_NUM_THREADS": "many"}, 8),
    ],
)
def test_omp_num_threads_lowers_the_number_of_usable_cores(environment: dict[str, str], threads: int) -> None:
    assert default_threads(XEON.usable_cores, environment) == threads


class OfAll(SingleTransport):
    """Four ranks, of which the others have just what this one has."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 4

    def allgatherv(self, payload: Bytes, lengths: Sequence[int] | None = None) -> list[Bytes]:
        return [payload] * 4

    def allgather_small(self, array: Array) -> Array:
        return np.stack([array] * 4)


def auto(**settings: str) -> Config:
    given = {name.replace("__", "."): text for name, text in settings.items()}
    return load_config("terabyte", None, {"comm.tables": "auto", **given})


@pytest.mark.parametrize(
    ("free_gb", "settings", "tables"),
    [
        (100, {}, "replicate"),
        (30, {}, "shard"),  # four ranks of one host, 12.6 GB of tables each
        (30, {"quant__method": "lsq"}, "replicate"),  # which cannot be sharded: the memory is refused later
    ],
)
def test_tables_are_sharded_where_they_do_not_fit(
    free_gb: int, settings: dict[str, str], tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "fingerprint", lambda: replace(XEON, memory_available_bytes=free_gb * 10**9))
    assert with_tables_placed(auto(**settings), OfAll()).comm.tables == tables


def test_a_process_alone_has_all_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "fingerprint", lambda: replace(XEON, memory_available_bytes=1))
    assert with_tables_placed(auto(), SingleTransport()).comm.tables == "replicate"


ALL = range(8)


@pytest.mark.parametrize(
    ("places", "quota", "cores"),
    [
        ([("a", *ALL)], None, [8]),
        ([("a", *ALL), ("a", *ALL)], None, [4, 4]),  # no launcher bound them
        ([("a", *ALL), ("b", *ALL)], None, [8, 8]),
        ([("a", 0, 1, 2, 3), ("a", 4, 5, 6, 7)], None, [4, 4]),
        ([("a", *ALL)] * 3, None, [2, 2, 2]),
        ([("a", 0)] * 2, None, [1, 1]),
        ([("a", 0, 1), ("a", *ALL)], None, [2, 4]),
        ([("a", *ALL)] * 2, 4.0, [2, 2]),
        ([("a", *ALL)] * 2, 1.5, [1, 1]),
    ],
)
def test_ranks_of_a_host_divide_its_cores(
    places: list[tuple[str | int, ...]], quota: float | None, cores: list[int]
) -> None:
    assert [own_cores(places, rank, quota) for rank in range(len(places))] == cores
