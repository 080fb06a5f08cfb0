"""Cells of columns that are carried along with their rows: text that is neither read nor looked up."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.errors import DataError
from dqrm_cpu.kernels.jit.compile import thorough_kernel


class KeyCells(NamedTuple):
    """The cells of one column: that of row i is text[offsets[i] : offsets[i + 1]], in UTF-8."""

    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    values: Any = None  # a pyarrow.Array of the same cells, where they came with a type of their own

    def cell(self, row: int) -> bytes:
        """Returns the cell of a row."""
        return self.text[self.offsets[row] : self.offsets[row + 1]].tobytes()


def cells_of(text: NDArray[np.uint8], places: NDArray[np.int64]) -> KeyCells:
    """Copies cells out of a text; places = int64[n, 2] says where each begins, and its bytes."""
    offsets = np.zeros(places.shape[0] + 1, np.int64)
    np.cumsum(places[:, 1], out=offsets[1:])
    cells = np.empty(int(offsets[-1]), np.uint8)
    copy_cells(text, places, cells)
    return KeyCells(cells, offsets)


def cells_of_values(values: Any, name: str) -> KeyCells:
    """Writes the values of a pyarrow.Array as text, an empty one for a null."""
    return KeyCells(*arrow_text(values, name), values)


def arrow_text(values: Any, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns the text of a pyarrow.Array, empty for a null, and where each value begins in it: int64[n + 1]."""
    try:
        texts = values.cast("large_string").fill_null("")
    except (ValueError, NotImplementedError) as error:  # both are how pyarrow says that a type has no text
        raise DataError(f"column {name} holds {values.type}, which cannot be read as text ({error})") from None
    _, starts, content = texts.buffers()
    offsets = np.zeros(1, np.int64) if starts is None else np.frombuffer(starts, np.int64)
    offsets = offsets[texts.offset : texts.offset + len(texts) + 1]
    text = np.zeros(0, np.uint8) if content is None else np.frombuffer(content, np.uint8)[: offsets[-1]]
    return text, offsets


@thorough_kernel
def copy_cells(text: NDArray[np.uint8], places: NDArray[np.int64], cells: NDArray[np.uint8]) -> None:
    """Copies the cells one behind another."""
    written = 0
    for i in range(places.shape[0]):
        for at in range(places[i, 0], places[i, 0] + places[i, 1]):
            cells[written] = text[at]
            written += 1
