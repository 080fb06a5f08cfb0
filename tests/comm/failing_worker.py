"""One rank of a world in which the last rank comes to the end that MODE names, while the others wait for it."""

import os
import signal
import sys
import time

from numba.core.compiler_lock import global_compiler_lock

from dqrm_cpu.base.decode import Json
from dqrm_cpu.comm.coordination import require_agreement
from dqrm_cpu.comm.transports.process_transport import ProcessTransport
from dqrm_cpu.comm.transports.selection import open_transport
from dqrm_cpu.errors import CommError, DataError


def main(name: str, mode: str) -> None:
    with open_transport(name, timeout_s=4 if mode in ("hang", "stay") else 60) as transport:
        transport.barrier()
        if mode in ("stop", "compile"):
            # Only from here on: many worlds start at once, and that may take longer.
            assert isinstance(transport, ProcessTransport)
            transport._watchdog._timeout_s = 3
        if mode == "disagree":
            document: dict[str, Json] = {"world": transport.size, "train": {"lr": 0.1 * (1 + transport.rank)}}
            try:
                require_agreement(transport, document)
            except CommError as error:
                print(f"unanimous={error.unanimous} {error}", flush=True)
                raise
        if transport.rank == transport.size - 1:
            end(mode)
        elif mode == "stay":
            return
        print("waiting", flush=True)
        transport.barrier()
        print("survived", flush=True)


def end(mode: str) -> None:
    if mode == "raise":
        raise DataError("shard 7 is damaged")
    if mode == "bug":
        raise ZeroDivisionError("a bug")
    if mode == "exit":
        sys.exit(3)
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if mode == "memory":
        raise MemoryError
    if mode == "compile":
        with global_compiler_lock:
            time.sleep(6)
    if mode in ("hang", "stay"):
        time.sleep(7)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
