"""How ranks find each other through a store of torch: at MASTER_ADDR and MASTER_PORT, or at an address sent by MPI."""

import datetime
import importlib.util
import os
import socket
from collections.abc import Mapping
from typing import Any

# torch documents them here, and its stubs forget to export them.
from torch.distributed import Store, TCPStore, rendezvous  # type: ignore[attr-defined]

from dqrm_cpu.comm.heartbeat.watchdog import process_deadline
from dqrm_cpu.comm.transport import abort_message
from dqrm_cpu.comm.transports.launch import TORCHRUN, Launch
from dqrm_cpu.errors import CommError, DqrmError

_LOOPBACK = "127.0.0.1"
_KEY = "dqrm_cpu"


def open_store(launch: Launch, environ: Mapping[str, str], timeout_s: float) -> Store | None:
    """Opens a store that all ranks share; None where MASTER_ADDR and MASTER_PORT tell torch all it needs.

    Raises CommError where the ranks can find each other neither through these variables nor through MPI.
    """
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]
    if not missing:
        _check_port(environ["MASTER_PORT"])
        if environ["MASTER_ADDR"] in (_LOOPBACK, "localhost"):
            _stay_on_this_host()
        return None
    wanted = f"the ranks cannot find each other: {' and '.join(missing)} not set"
    if launch.launcher == TORCHRUN:
        raise CommError(f"{wanted}. Start through torchrun, or set them to rank 0's host and a free port.")
    try:
        return _store_through_mpi(launch, timeout_s)
    except DqrmError as error:
        raise CommError(
            f"{wanted}, and MPI cannot choose one ({error}). Set them to rank 0's host and a free port."
        ) from error


def shared_store(launch: Launch, environ: Mapping[str, str], timeout_s: float) -> Store:
    """Does `open_store`, or takes the store that torch makes of MASTER_ADDR and MASTER_PORT (torchrun has its own)."""
    store = open_store(launch, environ, timeout_s)
    return store_from_environment(launch, environ, timeout_s) if store is None else store


def store_from_environment(launch: Launch, environ: Mapping[str, str], timeout_s: float) -> Store:
    """Returns the store of MASTER_ADDR and MASTER_PORT; waits for all ranks."""
    timeout = datetime.timedelta(seconds=timeout_s)
    try:
        found, _, _ = next(rendezvous("env://", launch.rank, launch.size, timeout=timeout))
    except RuntimeError as error:
        place = f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"
        raise CommError(
            f"rank {launch.rank} of {launch.size} cannot reach the others at {place}: MASTER_ADDR and MASTER_PORT must "
            f"be rank 0's host and a port that is free there. ({error})"
        ) from error
    shared: Store = found
    return shared


def gather_through_store(store: Store, launch: Launch, topic: str, mine: str) -> list[str]:
    """Returns the text of each rank, by rank; waits for all.

    Rank 0, which may hold the store and leave because of what it reads, waits until the others have read it as well.
    """
    ranks = range(launch.size)
    try:
        store.set(f"{_KEY}/{topic}/{launch.rank}", mine)
        texts = [store.get(f"{_KEY}/{topic}/{rank}").decode() for rank in ranks]
        store.set(f"{_KEY}/{topic}/read/{launch.rank}", "")
        if launch.rank == 0:
            store.wait([f"{_KEY}/{topic}/read/{rank}" for rank in ranks])
        return texts
    except RuntimeError as error:
        raise CommError(
            f"rank {launch.rank} of {launch.size} reached the others, and one of them is gone before step 1: look at "
            f"the other ranks' output. ({error})"
        ) from error


def _store_through_mpi(launch: Launch, timeout_s: float) -> Store:
    """Opens a store on a port that the system chose; rank 0 listens there and sends it to the others through MPI."""
    if importlib.util.find_spec("mpi4py") is None:
        raise CommError("mpi4py is not installed: pip install 'dqrm-cpu[mpi]'")
    from dqrm_cpu.comm.transports.mpi import start_mpi

    mpi = start_mpi(launch, timeout_s, "gloo")
    # A rank may have given up just when the last one came: MPI would wait for it without end. No watchdog looks yet.
    reason = (
        f"it waited more than {timeout_s:g} s for all ranks to find each other through MPI; look at the other ranks' "
        f"output."
    )
    with process_deadline(timeout_s, abort_message(launch.rank, launch.size, reason)):
        return _store_of_first_rank(mpi, datetime.timedelta(seconds=timeout_s))


def _store_of_first_rank(mpi: Any, timeout: datetime.timedelta) -> Store:
    comm = mpi.COMM_WORLD
    on_one_host = comm.Split_type(mpi.COMM_TYPE_SHARED).size == comm.size
    if on_one_host:
        _stay_on_this_host()
    if comm.rank == 0:
        host = _LOOPBACK if on_one_host else socket.gethostname()
        # The store must not wait here for ranks that do not know its port yet.
        store = TCPStore(host, 0, comm.size, is_master=True, timeout=timeout, wait_for_workers=False)
        comm.bcast((host, store.port), root=0)
        return store
    host, port = comm.bcast(None, root=0)
    return TCPStore(host, port, comm.size, is_master=False, timeout=timeout, wait_for_workers=False)


def _check_port(text: str) -> None:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise CommError(f"MASTER_PORT={text!r} is not a port: set it to a free one between 1024 and 65535.")


def _stay_on_this_host() -> None:
    """Keeps gloo on this host: it listens where the host's name points, which often is no address that others reach."""
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
