"""Tables quantized row by row, the production baseline.

Codes are asymmetric, each row's range narrowed by a greedy search (arXiv 1911.02079).

    x^ = code * scale + bias, codes 0 to 2^b - 1; scale and bias in FP16 behind the codes of each row.
    The search starts from [min, max] of the row and takes a 200th of it off whichever end hurts the squared error less,
    until 16% are gone; the best local optimum on the way is used, the whole range if there is none. Errors are those of
    scale and bias in FP16.

It runs in torch's own operators, the ones that its quantized embedding bags are packed with.
"""

import torch
from torch import Tensor

_BINS = 200
_RATIO = 0.16


def pack_rows(weight: Tensor, bits: int) -> Tensor:
    """Quantizes f32[N, D] row by row, to uint8[N, bytes of the codes + 4]."""
    packed: Tensor = getattr(torch.ops.quantized, f"embedding_bag_{bits}bit_prepack")(weight, True, _BINS, _RATIO)
    return packed


def unpack_rows(packed: Tensor, bits: int) -> Tensor:
    """Returns the values f32[N, D] of uint8[N, bytes of the codes + 4]."""
    values: Tensor = getattr(torch.ops.quantized, f"embedding_bag_{bits}bit_unpack")(packed)
    return values
