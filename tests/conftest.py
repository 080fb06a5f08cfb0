"""Lets tests import the helpers that stand beside them: tiny, plain_dlrm, launching; sets up hypothesis."""

import sys
from pathlib import Path

from hypothesis import settings

import dqrm_cpu  # noqa: F401  # before any test imports numba: it chooses the folder of the cache

# The first example compiles kernels, and machines are shared: a deadline would be a hidden test of speed.
settings.register_profile("dqrm", deadline=None)
settings.load_profile("dqrm")

for folder in ("", "model", "comm", "doctor", "quant", "slurm"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
