"""The forward of an exported model from its file as it lies: packed rows, interaction, layers; no thread but one.

Rows go through the network a tile at a time, so that what one layer leaves for the next stays in the core's own cache,
and the rows of tables that the next tile needs are on their way meanwhile. A row's logit has the same bits in any tile.
"""

from typing import NamedTuple

import numpy as np

from ..jit.compile import inlined, kernel, serial
from ..jit.memory import float_at, long_at, set_float
from ..jit.simd import LANES, add, load_part, multiply, multiply_add, round_clamp, splat, store_part, total
from ..jit.simd_nibbles import NIBBLE_MASKS
from .integer_panels import SIGNED_ZERO, IntegerProduct, first_sums, multiply_bytes, packed_bytes
from .packed_rows import BANDED, Ids, TablePlaces, id_at, prefetch_packed, table_at
from .packed_sums import look_up_rows
from .pair_dots import dots
from .panels import PANEL, Product, packed_panels
from .panels import multiply as multiply_rows
from .split_panels import CAN_SPLIT, LEAST_OUTPUTS, PIECES, multiply_split

TILE = 48
"""Rows that go through all layers together: whole tiles of registers, and as many as the caches hold."""

_MANY_ROWS = 8 * TILE
"""Rows for which it pays to read weights in FP32: twice the bytes of BF16, which has to be spread for each product."""

SOUND, REFUSED = 0, 1
"""What `score` returns: REFUSED for a number that is not finite, an id of no row, a file that contradicts itself."""

FLOATS, HALVES, BYTES, SPLIT = 0, 1, 2, 3
"""Forms of a weight in panels: FP32; codes as BF16; codes that are multiplied as they are, by numbers rounded to a byte
each, or by three bytes of each number."""

__all__ = [
    "BANDED",
    "CAN_SPLIT",
    "LANES",
    "LEAST_OUTPUTS",
    "NIBBLE_MASKS",
    "PANEL",
    "PIECES",
    "SIGNED_ZERO",
    "TablePlaces",
    "first_sums",
    "packed_bytes",
    "packed_panels",
    "score",
    "scratch_floats",
]


class LayerPlaces(NamedTuple):
    """A layer; places are addresses."""

    weight: int  # panels
    form: int
    inputs: int
    outputs: int
    affine: int  # f32[2, outputs in whole panels]: scale, bias
    rectify: int
    grid: int  # f32[4]: 1 / scale, scale, least and largest code of quantized inputs; or 0
    ends_cross: int
    first_inputs: int  # of BYTES alone
    zero: int  # this one and the one below: of BYTES and SPLIT
    first_sums: int
    floats: int  # of HALVES: the same weight as panels in FP32, for whole tiles; or 0


LAYER_LONGS = len(LayerPlaces._fields)


class NetworkPlaces(NamedTuple):
    """A model as numbers and addresses; the caller keeps all arrays alive."""

    tables: int  # int64[T, TABLE_LONGS]
    num_tables: int
    projections: int  # int64[T], a table's layer or -1
    layers: int  # int64[layers, LAYER_LONGS]: projections, then those of the parts below
    bottom_first: int
    cross_first: int
    top_first: int
    num_layers: int
    dim: int
    num_dense: int
    joined_width: int
    is_dot: int
    buffer: int  # floats of a row in each of the buffers for layers: the widest
    dots_scratch: int
    codes_stride: int  # bytes of a row's bytes, in PIECES times as many whole lines
    nibble_masks: int  # NIBBLE_MASKS


def scratch_floats(network: NetworkPlaces) -> int:
    """Returns the floats of scratch memory that `score` needs for each thread."""
    features = (1 + network.num_tables) * network.dim
    floats = features + network.joined_width + 4 * network.buffer + network.codes_stride // 4 + 2
    return TILE * floats + network.dots_scratch + 16 * LANES


class BatchPlaces(NamedTuple):
    """Rows to score and where their logits go, as addresses and strides in elements."""

    dense: int  # f32[n, num_dense]
    dense_stride: int
    ids: int
    ids_are_long: int
    row_stride: int
    slot_stride: int
    logits: int  # f32[n]


class _TilePlaces(NamedTuple):
    """Buffers of one tile, as addresses."""

    features: int  # f32[TILE, F, D]
    joined: int  # f32[TILE, joined_width]
    first: int  # f32[TILE, buffer], and so are those below
    second: int
    crossed: int
    on_grid: int
    codes: int  # uint8[TILE, codes_stride]
    row_scales: int  # f32[TILE, 2]
    dots: int
    takes_floats: int  # whether whole tiles read weights in FP32, where there are any


@inlined
def _layer_at(layers: int, number: int) -> LayerPlaces:
    at = layers + 8 * LAYER_LONGS * number
    return LayerPlaces(
        long_at(at, 0),
        long_at(at, 1),
        long_at(at, 2),
        long_at(at, 3),
        long_at(at, 4),
        long_at(at, 5),
        long_at(at, 6),
        long_at(at, 7),
        long_at(at, 8),
        long_at(at, 9),
        long_at(at, 10),
        long_at(at, 11),
    )


@kernel
def score(network: NetworkPlaces, scored: BatchPlaces, first: int, end: int, scratch: int) -> int:
    """Writes the logits of the rows from `first` to `end`; returns SOUND, or what is wrong."""
    ids = Ids(scored.ids, scored.ids_are_long, scored.row_stride, scored.slot_stride)
    features = scratch
    joined = features + 4 * TILE * (1 + network.num_tables) * network.dim
    buffers = joined + 4 * TILE * network.joined_width
    size = 4 * TILE * network.buffer
    codes = buffers + 4 * size
    row_scales = codes + TILE * network.codes_stride
    places = _TilePlaces(
        features,
        joined,
        buffers,
        buffers + size,
        buffers + 2 * size,
        buffers + 3 * size,
        codes,
        row_scales,
        row_scales + 8 * TILE,
        int(end - first >= _MANY_ROWS),
    )
    if not _admit(network, scored, ids, first, min(first + TILE, end)):
        return REFUSED
    for start in range(first, end, TILE):
        stop = min(start + TILE, end)
        if _look_up(network, ids, start, stop, places) or not _admit(network, scored, ids, stop, min(stop + TILE, end)):
            return REFUSED
        _run_layers(network, scored, start, stop - start, places)
    return SOUND


@serial
def _admit(network: NetworkPlaces, scored: BatchPlaces, ids: Ids, start: int, stop: int) -> bool:
    """Asks for the lines of the tables that rows need; tells whether every id is a row, and every number finite."""
    bad = 0
    for t in range(network.num_tables):
        table = table_at(network.tables, t)
        least = -1 if table.is_bag else 0
        for slot in range(table.first_slot, table.first_slot + table.num_slots):
            for row in range(start, stop):
                number = id_at(ids, row, slot)
                bad |= (number < least) | (number >= table.num_rows)
                prefetch_packed(table, number)
    # What is not finite is no number when it is multiplied by 0.
    nothing = splat(np.float32(0))
    products = nothing
    for row in range(start, stop):
        numbers = scored.dense + 4 * row * scored.dense_stride
        for k in range(0, network.num_dense, LANES):
            products = multiply_add(load_part(numbers, k, network.num_dense - k), nothing, products)
    return not bad and total(products) == 0


@serial
def _look_up(network: NetworkPlaces, ids: Ids, start: int, stop: int, places: _TilePlaces) -> int:
    """Writes the tables' part of the features; returns 0, or 1 for a bad file."""
    stride, bad = (1 + network.num_tables) * network.dim, 0
    for t in range(network.num_tables):
        table, target = table_at(network.tables, t), places.features + 4 * (1 + t) * network.dim
        projection = long_at(network.projections, t)
        if projection < 0:
            bad |= look_up_rows(table, ids, start, stop, target, stride, network.nibble_masks)
        else:
            bad |= look_up_rows(table, ids, start, stop, places.first, table.dim, network.nibble_masks)
            layer = _layer_at(network.layers, projection)
            _apply(network, layer, places.first, table.dim, target, stride, places, stop - start)
    return bad


@serial
def _apply(
    network: NetworkPlaces,
    layer: LayerPlaces,
    x: int,
    x_stride: int,
    out: int,
    out_stride: int,
    places: _TilePlaces,
    rows: int,
) -> None:
    """Runs a layer on rows."""
    padded = (layer.outputs + 2 * LANES - 1) // (2 * LANES) * (2 * LANES)
    bias = layer.affine + 4 * padded
    if layer.form >= BYTES:
        of_bytes = IntegerProduct(
            layer.weight,
            layer.first_sums,
            layer.inputs,
            layer.first_inputs,
            layer.zero,
            layer.grid,
            layer.outputs,
            layer.affine,
            bias,
            layer.rectify,
            places.codes,
            network.codes_stride,
            places.row_scales,
        )
        if layer.form == BYTES:
            multiply_bytes(of_bytes, x, x_stride, rows, out, out_stride)
        else:
            multiply_split(of_bytes, x, x_stride, rows, out, out_stride)
        return
    if layer.grid:
        for row in range(rows):
            _round_to_grid(layer, x + 4 * row * x_stride, places.on_grid + 4 * row * layer.inputs)
        x, x_stride = places.on_grid, layer.inputs
    takes_floats = places.takes_floats and rows == TILE and layer.floats != 0
    multiply_rows(
        Product(
            x,
            x_stride,
            layer.floats if takes_floats else layer.weight,
            int(layer.form == HALVES and not takes_floats),
            layer.inputs,
            layer.outputs,
            layer.affine,
            bias,
            layer.rectify,
            out,
            out_stride,
        ),
        rows,
    )


@inlined
def _round_to_grid(layer: LayerPlaces, x: int, out: int) -> None:
    inverse, scale = splat(float_at(layer.grid, 0)), splat(float_at(layer.grid, 1))
    least, largest = float_at(layer.grid, 2), float_at(layer.grid, 3)
    for k in range(0, layer.inputs, LANES):
        codes = round_clamp(multiply(load_part(x, k, layer.inputs - k), inverse), least, largest)
        store_part(out, k, multiply(codes, scale), layer.inputs - k)


@serial
def _run_layers(network: NetworkPlaces, scored: BatchPlaces, start: int, rows: int, places: _TilePlaces) -> None:
    width = (1 + network.num_tables) * network.dim
    x, stride = scored.dense + 4 * start * scored.dense_stride, scored.dense_stride
    for number in range(network.bottom_first, network.cross_first):
        layer = _layer_at(network.layers, number)
        is_last = number == network.cross_first - 1
        out = places.features if is_last else (places.second if x == places.first else places.first)
        out_stride = width if is_last else layer.outputs
        _apply(network, layer, x, stride, out, out_stride, places, rows)
        x, stride = out, out_stride
    x, stride = places.features, width
    if network.is_dot:
        padded = (1 + network.num_tables + LANES - 1) // LANES * LANES
        for row in range(rows):
            sample, result = places.features + 4 * row * width, places.joined + 4 * row * network.joined_width
            dots(sample, 1 + network.num_tables, network.dim, places.dots, padded, result)
        x, stride = places.joined, network.joined_width
    if network.cross_first < network.top_first:
        x, stride = _cross(network, x, stride, rows, places)
    for number in range(network.top_first, network.num_layers):
        layer = _layer_at(network.layers, number)
        out = places.second if x == places.first else places.first
        _apply(network, layer, x, stride, out, layer.outputs, places, rows)
        x, stride = out, layer.outputs
    for row in range(rows):
        set_float(scored.logits, start + row, float_at(x, row * stride))


@serial
def _cross(network: NetworkPlaces, first: int, first_stride: int, rows: int, places: _TilePlaces) -> tuple[int, int]:
    """Runs the cross layers; returns the place and the stride of what they leave."""
    width, result = network.joined_width, places.crossed
    x, stride = first, first_stride
    crossed, crossed_stride = first, first_stride
    for number in range(network.cross_first, network.top_first):
        layer = _layer_at(network.layers, number)
        out = places.second if crossed == places.first else places.first
        _apply(network, layer, crossed, crossed_stride, out, layer.outputs, places, rows)
        crossed, crossed_stride = out, layer.outputs
        if layer.ends_cross:
            for row in range(rows):
                of_first, of_x = first + 4 * row * first_stride, x + 4 * row * stride
                of_crossed, of_result = crossed + 4 * row * width, result + 4 * row * width
                for k in range(0, width, LANES):
                    product = multiply(load_part(of_first, k, width - k), load_part(of_crossed, k, width - k))
                    store_part(of_result, k, add(product, load_part(of_x, k, width - k)), width - k)
            x, stride = result, width
            crossed, crossed_stride = result, width
    return x, stride
