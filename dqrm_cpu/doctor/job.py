"""Gathers the facts of all ranks of a job and goes through the checks of a job."""

from pathlib import Path

from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.config import Config
from dqrm_cpu.doctor.finding import Finding
from dqrm_cpu.doctor.job_checks import check_job
from dqrm_cpu.doctor.job_facts import read_job
from dqrm_cpu.model.memory import estimate_memory
from dqrm_cpu.model.size import model_bytes
from dqrm_cpu.profile.hardware import fingerprint


def examine_job(config: Config, transport: Transport, folder: Path) -> list[Finding]:
    """The same findings on every rank; every rank calls it."""
    job = read_job(transport, fingerprint(), folder)
    # The best checkpoint is kept beside the newest ones, and the next is written before the oldest goes.
    checkpoints = (config.train.keep_checkpoints + 2) * model_bytes(config).fp32
    return check_job(job, estimate_memory(config, transport.size).total_bytes, checkpoints, folder)
