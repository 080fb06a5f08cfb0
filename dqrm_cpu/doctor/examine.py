"""Gathers the facts of this machine and goes through all checks."""

import os

from dqrm_cpu.config import Config
from dqrm_cpu.doctor import extras, memory, mpi, openmp, processor
from dqrm_cpu.doctor.finding import Finding
from dqrm_cpu.model.memory import estimate_memory
from dqrm_cpu.profile.hardware import fingerprint


def examine(config: Config) -> list[Finding]:
    """All checks, in the order of a report."""
    machine = fingerprint()
    library, launchers = mpi.read_library(), mpi.read_launchers(os.environ.get("PATH", os.defpath))
    mpi_required = config.comm.transport == "mpi"
    return [
        processor.check_cpu(machine),
        processor.check_isa(machine),
        processor.check_cores(machine),
        processor.check_threads(machine, os.environ, config.train.threads),
        processor.check_numa(machine),
        memory.check_memory(machine, config.preset, estimate_memory(config).parts),
        memory.check_huge_pages(machine),
        openmp.check_openmp(openmp.read_openmp()),
        mpi.check_library(library, mpi_required),
        mpi.check_launcher(library, launchers, mpi_required),
        extras.check_oneccl(machine, extras.read_oneccl()),
        extras.check_ipex(machine),
        extras.check_gpu(machine, config.device),
    ]
