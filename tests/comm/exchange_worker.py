"""One rank: runs every case of exchanges and saves what came out to FOLDER/CASE.RANK.npz."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from dqrm_cpu.comm.transports.selection import open_transport
from exchange_cases import CASES, run_steps


def main(name: str, folder: Path) -> None:
    with open_transport(name, timeout_s=60) as transport:
        for case in CASES:
            before = transport.bytes_sent
            found, made = run_steps(case, transport, [transport.rank])
            # The state was gathered once, by a message of its own length to each other rank.
            gathered = sum(tensor[0].nbytes for tensor in made.state().values()) * (transport.size - 1)
            found["sent"] = np.array(made.sent)
            found["counted"] = np.array(transport.bytes_sent - before - gathered)
            arrays: dict[str, Any] = found
            np.savez(folder / f"{case}.{transport.rank}.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
