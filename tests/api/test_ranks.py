"""How many threads a process takes when the configuration leaves it open."""

import pytest

from dqrm_cpu.api.ranks import default_threads
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
    assert default_threads(XEON, environment) == threads
