"""Lets tests import the helpers that stand beside them: tiny, plain_dlrm, launching; sets up hypothesis."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

import dqrm_cpu  # noqa: F401  # before any test imports numba: it chooses the folder of the cache
from dqrm_cpu.profile.hardware import fingerprint

# The first example compiles kernels, and machines are shared: a deadline would be a hidden test of speed.
settings.register_profile("dqrm", deadline=None)
settings.load_profile("dqrm")

for folder in ("", "model", "comm", "doctor", "quant", "slurm"):
    sys.path.insert(0, str(Path(__file__).parent / folder))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("bf16") and not {"avx512_bf16", "amx_tile"} & set(fingerprint().isa):
        pytest.skip("this CPU has no BF16 products; `train` refuses --train.precision bf16 on it")
