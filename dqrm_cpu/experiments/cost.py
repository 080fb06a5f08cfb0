"""How long work takes: a guess from its steps, before anything was timed; measured on two cores of an AMD EPYC."""

import math
from collections.abc import Sequence

from dqrm_cpu.config import Config
from dqrm_cpu.experiments.experiment import Compression
from dqrm_cpu.experiments.job import Job

_STEP_S = 0.002
"""A step of batch 128 on the small tables: FP32, on two cores that others use too."""

_FACTORS = {"hawq": 2.0, "lsq": 2.0, "pact": 2.0, "dorefa": 2.0}
"""Of methods that do not take the fused path, or read whole tables at every step."""

_PER_RUN_S = 6.0  # building, scoring each epoch, saving
_COMPRESSION_S = 10.0
_REFERENCE_BATCH = 128


def job_units(config: Config, compression: Compression | None) -> float:
    """Seconds on two cores at the small scale; only their proportions matter once jobs have been timed."""
    if compression is not None:
        return _COMPRESSION_S
    train = config.train
    steps = train.epochs * math.ceil(config.data.train_rows / train.batch_size)
    steps = min(steps, train.max_steps) if train.max_steps else steps
    width = (train.batch_size / _REFERENCE_BATCH + config.model.embedding_dim / 16) / 2
    ranks = 1 + 0.25 * (config.comm.simulated_ranks - 1)
    return steps * _STEP_S * width * ranks * _FACTORS.get(config.quant.method, 1.0) + _PER_RUN_S


def estimate_s(jobs: Sequence[Job]) -> float:
    """For all jobs, from a cold start."""
    return sum(job_units(job.config, job.compression) for job in jobs)
