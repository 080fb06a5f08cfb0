"""One rank: runs every operation on the oracle's inputs and saves what came out to FOLDER/RANK.npz."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from comm_oracle import DENSE_SIZES, dense_input, exchange_sparse, message_to, payload, sparse_input
from dqrm_cpu.comm.exchange.table_exchange import sum_over_ranks_
from dqrm_cpu.comm.transport import Stretches
from dqrm_cpu.comm.transports.selection import open_transport


def main(name: str, folder: Path) -> None:
    found: dict[str, Any] = {}
    with open_transport(name, timeout_s=30) as transport:
        rank, size = transport.rank, transport.size
        for dtype in ("float32", "float64"):
            for length in DENSE_SIZES:
                array = dense_input(rank, length, dtype)
                transport.allreduce_(array)
                found[f"allreduce.{dtype}.{length}"] = array
        matrix = dense_input(rank, 6, "float32").reshape(2, 3)
        transport.allreduce_(matrix)
        found["allreduce.matrix"] = matrix
        before = transport.bytes_sent
        found["allgather_small"] = transport.allgather_small(np.array([[rank, rank + 1]], dtype=np.int64))
        found["bytes_sent"] = np.array(transport.bytes_sent - before)
        for r, message in enumerate(transport.allgatherv(payload(rank, size))):
            found[f"allgatherv.{r}"] = message.copy()
        found["all_empty"] = np.array([m.size for m in transport.allgatherv(np.empty(0, np.uint8))])
        for case in ("some", "none"):
            sent = Stretches.of([message_to(case, rank, other).size for other in range(size)])
            send = np.full(sent.num_bytes, 255, dtype=np.uint8)
            for other, room in enumerate(sent.parts(send)):
                room[:] = message_to(case, rank, other)
            before = transport.bytes_sent
            arrived = transport.alltoallv(send, sent, [message_to(case, other, rank).size for other in range(size)])
            for other, from_other in enumerate(arrived):
                found[f"alltoallv.{case}.{other}"] = from_other.copy()
            found[f"alltoallv.{case}.bytes"] = np.array(transport.bytes_sent - before)
        last = size - 1
        found["broadcast"] = np.array(json.dumps(transport.broadcast_json({"from": rank, "text": "\u00fc"}, root=last)))
        found["dense"] = sum_over_ranks_(transport, [dense_input(rank, 301, "float32")])
        for case, empty in (("one_empty", rank == 0), ("all_empty_grads", True), ("all", False)):
            merged = exchange_sparse(transport, [sparse_input(rank, empty)])
            for part, tensor in merged._asdict().items():
                found[f"sparse.{case}.{part}"] = tensor.numpy()
        transport.barrier()
        found["world"] = np.array([rank, size])
        found["name"] = np.array(transport.name)
        np.savez(folder / f"{rank}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
