"""How numbers lie in a model file: codes of 2 to 16 bits, packed; matrices of codes or in FP32; finite floats."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.serving.description import FLOAT_BITS
from dqrm_cpu.serving.mapped_file import MappedFile

_NIBBLES = np.array(
    [[low - 16 * (low > 7), high - 16 * (high > 7)] for high in range(16) for low in range(16)], np.float32
).view(np.uint64)[:, 0]
"""The two codes in a byte, the lower half first: both floats as one word, of which NumPy looks up six times as many."""

WEIGHT_TENSORS, BIAS_TENSORS = ("weight", "codes", "step"), ("bias", "bias_codes", "bias_step")
"""The tensors of a layer that hold a matrix in FP32, or its codes and their scale."""

Floats = NDArray[np.float32]


def row_bytes(dim: int, bits: int) -> int:
    """Returns the bytes of a packed row."""
    return -(-dim * bits // 8)


def unpacked(packed: NDArray[np.uint8], bits: int, dim: int) -> Floats:
    """Unpacks codes uint8[..., bytes of a row] to f32[..., dim]: two's complement, the lowest bits first."""
    if bits == 4:
        pairs = _NIBBLES[packed].view(np.float32)
        return pairs if pairs.shape[-1] == dim else np.ascontiguousarray(pairs[..., :dim])
    if bits in (8, 16):
        return np.ascontiguousarray(packed).view(np.int8 if bits == 8 else "<i2").astype(np.float32)
    single = np.unpackbits(packed, axis=-1, count=dim * bits, bitorder="little").reshape(*packed.shape[:-1], dim, bits)
    values: NDArray[np.int64] = single @ (1 << np.arange(bits)) - (single[..., -1].astype(np.int64) << bits)
    return values.astype(np.float32)


class StoredMatrix(NamedTuple):
    """A matrix as a file has it: numbers, or codes with a scale for each row or for all, and perhaps an offset."""

    values: Floats  # f32[rows, columns]
    scale: Floats | None = None  # f32[rows or 1]
    offset: Floats | None = None  # the same

    def floats(self) -> Floats:
        """Returns the numbers that the matrix stands for, f32[rows, columns]."""
        if self.scale is None:
            return self.values
        scaled = self.values * self.scale[:, None]
        return scaled if self.offset is None else scaled + self.offset[:, None]


def stored_matrix(
    file: MappedFile, layer: str, shape: tuple[int, int], bits: int, names: tuple[str, str, str]
) -> StoredMatrix:
    """Reads a matrix of this shape from the tensors of a layer that are called so."""
    plain, packed, step = (f"{layer}.{name}" for name in names)
    if bits == FLOAT_BITS:
        return StoredMatrix(finite(file, plain, *(shape if names is WEIGHT_TENSORS else shape[1:])).reshape(shape))
    codes = unpacked(file.tensor(packed, "U8", (shape[0], row_bytes(shape[1], bits))), bits, shape[1])
    scales = file.entries[step].shape[0] if step in file.entries and file.entries[step].shape else 1
    offset = f"{layer}.offset"
    has_offset = names is WEIGHT_TENSORS and offset in file.entries
    return StoredMatrix(
        codes,
        finite(file, step, shape[0] if scales > 1 else 1),
        finite(file, offset, scales) if has_offset else None,
    )


def finite(file: MappedFile, name: str, *shape: int) -> Floats:
    """Returns floats of a file, all of which must be finite."""
    values: Floats = file.tensor(name, "F32", shape)
    if not np.isfinite(values).all():
        raise file.foreign(f"{name[:80]} holds a number that is not finite")
    return values
