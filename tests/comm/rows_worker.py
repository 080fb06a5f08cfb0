"""One rank: fetches rows of tables that lie on several ranks, in 4 bits and in FP32, and saves what it got and sent."""

import sys
from pathlib import Path

import numpy as np
import torch

from dqrm_cpu.comm.sharding.placement import TableLoad, place_tables
from dqrm_cpu.comm.sharding.row_exchange import RowExchange
from dqrm_cpu.comm.transports.selection import open_transport
from dqrm_cpu.kernels.types import UNQUANTIZED, Bags, Tables
from dqrm_cpu.timing.spans import Spans

DIM, BATCH = 64, 1024
ROWS = (20_000, 3000, 500)
BITS = (4, UNQUANTIZED)


def whole_tables() -> Tables:
    """All rows of all tables."""
    generator = torch.Generator().manual_seed(7)
    offset = torch.tensor([0, *ROWS]).cumsum(0)
    return Tables(torch.randn(int(offset[-1]), DIM, generator=generator), offset)


def scales() -> torch.Tensor:
    return torch.tensor([0.5, 0.25, 0.125])


def ids_of(rank: int) -> torch.Tensor:
    """int32[T, B]: a few ids often, many once; a rank of its own."""
    random = np.random.default_rng(rank)
    return torch.from_numpy(np.stack([random.zipf(1.2, BATCH) % rows for rows in ROWS]).astype(np.int32))


def main(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    with open_transport(name, timeout_s=60) as transport:
        loads = [TableLoad(rows, 4 * DIM, BATCH) for rows in ROWS]
        placement = place_tables(loads, transport.size, replicated_bytes=0)
        whole, held = whole_tables(), placement.held_rows(transport.rank)
        first = whole.row_offset.tolist()
        parts = [whole.weight[start + a : start + a + n] for start, (a, n) in zip(first, held, strict=False)]
        offset = torch.tensor([0, *(n for _, n in held)]).cumsum(0)
        own = Tables(torch.cat(parts), offset)
        for bits in BITS:
            exchange = RowExchange(transport, placement, own, Spans())
            before = transport.bytes_sent
            fetched = exchange.fetch(Bags(ids_of(transport.rank), None), scales(), bits)
            sent = np.array([*exchange.sent, transport.bytes_sent - before])
            asked = fetched.asked.counts
            np.savez(
                folder / f"{bits}.{transport.rank}.npz",
                values=fetched.tables.weight.numpy(),
                pointer=fetched.tables.row_offset.numpy(),
                ids=fetched.bags.ids.numpy(),
                sent=sent,
                asked=asked,
            )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
