"""Chooses the transport: the one asked for, or the one that fits how the processes were started."""

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dqrm_cpu.comm.transport import SingleTransport, Transport
from dqrm_cpu.comm.transports.launch import NO_LAUNCHER, SLURM, TORCHRUN, Launch, detect_launch
from dqrm_cpu.comm.transports.process_transport import ProcessTransport
from dqrm_cpu.config.schema import TRANSPORTS
from dqrm_cpu.errors import CommError, ConfigError

_LOGGER = logging.getLogger(__name__)

_CCL_BINDINGS = "oneccl_bindings_for_pytorch"


@dataclass(frozen=True)
class _Opening:
    """Holds the arguments that every transport between processes is opened with."""

    launch: Launch
    timeout_s: float
    reason: str
    environ: Mapping[str, str]
    overlap: str


def open_transport(
    name: str,
    simulated_ranks: int = 1,
    timeout_s: float = 600.0,
    environ: Mapping[str, str] | None = None,
    overlap: str = "auto",
) -> Transport:
    """Opens the transport between this process and the others of its job; its `reason` says why it is that one.

    `timeout_s` is how long a rank may wait for the others in one operation: longer than the slowest checkpoint takes.
    `overlap` is that of the comm settings: some libraries must know it when they are loaded.
    """
    environ = os.environ if environ is None else environ
    if name not in TRANSPORTS:
        raise ConfigError(f"unknown transport {name!r}: choose one of {', '.join(TRANSPORTS)}.")
    if simulated_ranks < 1:
        raise ConfigError(f"simulated ranks must be at least 1, not {simulated_ranks}.")
    if not timeout_s > 0:
        raise ConfigError(f"the communication timeout must be more than 0 s, not {timeout_s:g}.")
    launch = detect_launch(environ)
    if simulated_ranks > 1:
        return _simulated(launch, simulated_ranks)
    if name == "sim":
        return _one_process(launch)
    chosen, reason = (name, f"{name} was asked for") if name != "auto" else _automatic(launch, environ)
    if chosen == "nccl":
        _require_gpu(launch)
    if chosen == "single" or (launch.launcher == NO_LAUNCHER and chosen != "mpi"):
        return SingleTransport("one process, started without a launcher" if name != "auto" else reason)
    transport = _OPENERS[chosen](_Opening(launch, timeout_s, reason, environ, overlap))
    transport.start_heartbeat()
    _LOGGER.info(f"rank {transport.rank} of {transport.size} over {transport.name}: {transport.reason}")
    return transport


def _require_gpu(launch: Launch) -> None:
    from dqrm_cpu.comm.transports.torch_distributed import nccl_backend

    nccl_backend(launch)


def _open_mpi(opening: _Opening) -> ProcessTransport:
    from dqrm_cpu.comm.transports.mpi import MpiTransport

    return MpiTransport(opening.launch, opening.timeout_s, opening.reason)


def _open_gloo(opening: _Opening) -> ProcessTransport:
    from dqrm_cpu.comm.transports.torch_distributed import TorchTransport, gloo_backend

    return TorchTransport(gloo_backend(), opening.launch, opening.timeout_s, opening.reason, opening.environ)


def _open_nccl(opening: _Opening) -> ProcessTransport:
    from dqrm_cpu.comm.transports.torch_distributed import TorchTransport, nccl_backend

    backend = nccl_backend(opening.launch)
    return TorchTransport(backend, opening.launch, opening.timeout_s, opening.reason, opening.environ)


def _open_oneccl(opening: _Opening) -> ProcessTransport:
    """Opens it through Intel's PyTorch bindings where they are installed, else directly."""
    launch, timeout_s, reason, environ = opening.launch, opening.timeout_s, opening.reason, opening.environ
    if importlib.util.find_spec(_CCL_BINDINGS) is not None:
        from dqrm_cpu.comm.transports.torch_distributed import TorchTransport, ccl_backend

        backend = ccl_backend(_CCL_BINDINGS)
        return TorchTransport(backend, launch, timeout_s, f"{reason}, through {_CCL_BINDINGS}", environ)
    from dqrm_cpu.comm.transports.oneccl import OneCclTransport

    return OneCclTransport(launch, timeout_s, reason, environ, opening.overlap)


# Each imports what it needs only when it is chosen: a run over gloo must not load MPI.
_OPENERS: dict[str, Callable[[_Opening], ProcessTransport]] = {
    "oneccl": _open_oneccl,
    "mpi": _open_mpi,
    "gloo": _open_gloo,
    "nccl": _open_nccl,
}


def _one_process(launch: Launch) -> SingleTransport:
    if launch.size > 1:
        raise CommError(
            f"{launch.launcher} started {launch.size} processes, and the sim transport simulates all ranks in one: "
            f"leave out the launcher, or choose another --comm.transport."
        )
    return SingleTransport("sim was asked for: ranks simulated in one process")


def _simulated(launch: Launch, simulated_ranks: int) -> SingleTransport:
    if launch.size > 1:
        raise CommError(
            f"{launch.launcher} started {launch.size} ranks, and each was asked to simulate {simulated_ranks}: "
            f"simulate ranks in one process, or start real ones."
        )
    return SingleTransport(f"{simulated_ranks} ranks simulated in one process")


def _automatic(launch: Launch, environ: Mapping[str, str]) -> tuple[str, str]:
    if launch.size == 1:
        return "single", "one process"
    if launch.launcher == TORCHRUN:
        return "gloo", f"torchrun started {launch.size} processes"
    started = f"{launch.launcher} started {launch.size} processes"
    if launch.launcher == SLURM and environ.get("MASTER_ADDR") and environ.get("MASTER_PORT"):
        # With PMI the ranks would count as Hydra's: this srun set nothing up for MPI.
        return "gloo", f"{started} without PMI, and MASTER_ADDR says where they meet"
    if importlib.util.find_spec("mpi4py") is None:
        return "gloo", f"{started}, and mpi4py is not installed"
    return "mpi", f"{started}, and mpi4py is installed"
