"""Chooses the transport: the one asked for, or the one that fits how the processes were started."""

import importlib.util
import os
from collections.abc import Mapping

from dqrm_cpu.comm.launch import NO_LAUNCHER, TORCHRUN, Launch, detect_launch
from dqrm_cpu.comm.single import SingleTransport
from dqrm_cpu.comm.transport import Transport
from dqrm_cpu.errors import CommError, ConfigError

TRANSPORT_NAMES = ("auto", "mpi", "gloo")


def open_transport(
    name: str, simulated_ranks: int = 1, timeout_s: float = 600.0, environ: Mapping[str, str] | None = None
) -> Transport:
    """The meeting place of this process's world; `reason` of the result says why it is that one.

    `timeout_s` is how long a rank may wait for the others in one operation: longer than the slowest checkpoint takes.
    """
    environ = os.environ if environ is None else environ
    if name not in TRANSPORT_NAMES:
        raise ConfigError(f"unknown transport {name!r}: choose one of {', '.join(TRANSPORT_NAMES)}.")
    if simulated_ranks < 1:
        raise ConfigError(f"simulated ranks must be at least 1, not {simulated_ranks}.")
    if not timeout_s > 0:
        raise ConfigError(f"the communication timeout must be more than 0 s, not {timeout_s:g}.")
    launch = detect_launch(environ)
    if simulated_ranks > 1:
        return _simulated(launch, simulated_ranks)
    chosen, reason = (name, f"{name} was asked for") if name != "auto" else _automatic(launch)
    if chosen == "mpi":
        from dqrm_cpu.comm.mpi import MpiTransport

        return MpiTransport(launch, timeout_s, reason)
    if chosen == "gloo" and launch.launcher != NO_LAUNCHER:
        from dqrm_cpu.comm.gloo import GlooTransport

        return GlooTransport(launch, timeout_s, reason, environ)
    return SingleTransport("one process, started without a launcher" if chosen == "gloo" else reason)


def _simulated(launch: Launch, simulated_ranks: int) -> SingleTransport:
    if launch.size > 1:
        raise CommError(
            f"{launch.launcher} started {launch.size} ranks, and each was asked to simulate {simulated_ranks}: "
            f"simulate ranks in one process, or start real ones."
        )
    return SingleTransport(f"{simulated_ranks} ranks simulated in one process")


def _automatic(launch: Launch) -> tuple[str, str]:
    if launch.size == 1:
        return "single", "one process"
    if launch.launcher == TORCHRUN:
        return "gloo", f"torchrun started {launch.size} processes"
    started = f"{launch.launcher} started {launch.size} processes"
    if importlib.util.find_spec("mpi4py") is None:
        return "gloo", f"{started}, and mpi4py is not installed"
    return "mpi", f"{started}, and mpi4py is installed"
