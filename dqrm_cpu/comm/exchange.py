"""What the ranks do with their gradients after each backward (section 3.3): everyone ends with the same sum.

A process that simulates N ranks runs the same codec and sums in the same order as N real ranks: the same bits come out.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from dqrm_cpu.comm.buffers import Bytes
from dqrm_cpu.comm.codec import Codec, Fp32Codec
from dqrm_cpu.comm.transport import Transport, sum_in_order
from dqrm_cpu.errors import CommError
from dqrm_cpu.kernels.types import SparseGrad

Merge = Callable[[Sequence[SparseGrad]], SparseGrad]


def exchange_sparse(
    transport: Transport, local: Sequence[SparseGrad], merge: Merge, codec: Codec | None = None
) -> SparseGrad:
    """The gradients of all ranks, merged in rank order; one message a rank holds all tables.

    `local` holds this rank's gradient; in a world of one process, one for each rank that it simulates.
    What `merge` gets are views into memory that the next exchange overwrites: its result must not share it.
    """
    codec = Fp32Codec() if codec is None else codec
    _check_count(transport, len(local))
    num_tables, dim = local[0].table_ptr.numel() - 1, local[0].values.shape[1]
    messages = [_encode(transport, codec, grad, slot) for slot, grad in enumerate(local)]
    if transport.size > 1:
        messages = transport.allgatherv(messages[0])
    return merge([_decode(codec, message, num_tables, dim, rank) for rank, message in enumerate(messages)])


def exchange_dense_(transport: Transport, local: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """The sum over all ranks of flat gradients, in rank order, written into local[0] and returned."""
    _check_count(transport, len(local))
    if len(local) > 1:
        sum_in_order(local, local[0])
    transport.allreduce_(local[0])
    return local[0]


def _check_count(transport: Transport, count: int) -> None:
    if count < 1 or (count > 1 and transport.size > 1):
        raise ValueError(f"{count} gradients of one process in a world of {transport.size}")


def _encode(transport: Transport, codec: Codec, grad: SparseGrad, slot: int) -> Bytes:
    message = transport.buffers.take(f"encode.{slot}", codec.encoded_bytes(grad))
    codec.encode(grad, message)
    return message


def _decode(codec: Codec, message: Bytes, num_tables: int, dim: int, rank: int) -> SparseGrad:
    try:
        return codec.decode(message, num_tables, dim)
    except CommError as error:
        raise CommError(
            f"the gradient of rank {rank} is not what this rank can add: {error}. Run the same on all."
        ) from error
