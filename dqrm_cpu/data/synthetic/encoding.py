"""From raw rows to what a model reads: logarithms, ids folded to the tables, bags of several ids."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.data.synthetic.kernel import read_quantile, row_key, uniform
from dqrm_cpu.data.synthetic.world import Folding, Records, StreamKeys, World
from dqrm_cpu.kernels.jit.compile import compiled, compiled_part
from dqrm_cpu.kernels.jit.threads import on_all_threads

ROWS_PER_CHUNK = 128
SIZE_DRAW = np.uint64(3)  # after a table's own draw: the size of its bag
MEMBER_STRIDE = np.uint64(1 << 40)  # between the draws of a bag's members


@compiled
def encode_dense(raw: NDArray[np.int32], out: NDArray[np.float32]) -> None:
    """Writes log(max(x, 0) + 1), a missing integer as 0."""
    on_all_threads(raw.shape[0], encode_dense_row, (raw, out))


@compiled_part
def encode_dense_row(raw: NDArray[np.int32], out: NDArray[np.float32], i: int) -> None:
    """Writes row i."""
    for d in range(raw.shape[1]):
        out[i, d] = np.log(np.float32(max(raw[i, d], 0)) + np.float32(1))


@compiled_part
def fold(tables: Folding, t: int, rank: int) -> int:
    """Returns the id of a rank, folded to the table; -1 becomes 0, for first_id is 1 where cells can miss."""
    value = int(rank + tables.first_id[t])
    rows = int(tables.rows[t])
    return value if value < rows else value % rows


@compiled
def encode_ids(tables: Folding, ranks: NDArray[np.int32], out: NDArray[np.int32]) -> None:
    """Writes ids int32[T, n] of ranks int32[T, n]."""
    on_all_threads((ranks.shape[1] + ROWS_PER_CHUNK - 1) // ROWS_PER_CHUNK, encode_chunk, (tables, ranks, out))


@compiled_part
def encode_chunk(tables: Folding, ranks: NDArray[np.int32], out: NDArray[np.int32], chunk: int) -> None:
    """Writes the ids of one chunk of rows."""
    num_tables, num_rows = ranks.shape
    for t in range(num_tables):
        for i in range(chunk * ROWS_PER_CHUNK, min(num_rows, (chunk + 1) * ROWS_PER_CHUNK)):
            out[t, i] = fold(tables, t, ranks[t, i])


@compiled
def draw_bag_sizes(keys: StreamKeys, max_size: int, fields: Records, out: NDArray[np.int64]) -> None:
    """Draws the sizes int64[T * n] of the bags, 0 to max_size alike."""
    on_all_threads(out.shape[0], draw_bag_size, (keys, max_size, fields, out))


@compiled_part
def draw_bag_size(keys: StreamKeys, max_size: int, fields: Records, out: NDArray[np.int64], bag: int) -> None:
    """Draws the size of one bag."""
    num_rows = out.shape[0] // fields.shape[0]
    t, i = bag // num_rows, bag % num_rows
    out[bag] = int(uniform(row_key(keys, i), fields[t].own_draw + SIZE_DRAW) * (max_size + 1))


class DrawnBags(NamedTuple):
    """The bags of n rows, whose sizes are drawn."""

    ranks: NDArray[np.int32]  # [T, n], the row's own value
    offsets: NDArray[np.int64]  # [T * n + 1]
    ids: NDArray[np.int32]  # [offsets[-1]]


@compiled
def fill_bags(keys: StreamKeys, world: World, tables: Folding, bags: DrawnBags) -> None:
    """Writes the ids of bags: first the row's value in that field, then others that are drawn like it on their own."""
    on_all_threads(bags.offsets.shape[0] - 1, fill_bag, (keys, world, tables, bags))


@compiled_part
def fill_bag(keys: StreamKeys, world: World, tables: Folding, bags: DrawnBags, bag: int) -> None:
    """Writes the ids of one bag."""
    ranks, offsets, ids = bags
    num_rows = ranks.shape[1]
    t, i = bag // num_rows, bag % num_rows
    key = row_key(keys, i)
    for place in range(offsets[bag], offsets[bag + 1]):
        rank = ranks[t, i]
        if place > offsets[bag]:
            draw = world.categories[t].own_draw + np.uint64(place - offsets[bag]) * MEMBER_STRIDE
            rank = int(read_quantile(world.category_quantiles, t, uniform(key, draw)))
        ids[place] = fold(tables, t, rank)
