"""The forward of a packed model by compiled code: arrays as they lie in a file in, logits out. It takes numba.

A logit has the same bits alone, in a batch, and by any number of threads.
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .packed_arrays import (
    MOST_INTEGER_INPUTS,
    Floats,
    LayerArrays,
    NetworkArrays,
    RefusedRowsError,
    TableArrays,
)

_ROWS_OF_A_TURN = 480
"""Rows that a thread takes at a time, more or less: ten tiles, of which each takes a hundred microseconds or two."""

_LINE_BYTES, _LINE_FLOATS = 64, 16

_BF16_BITS = 8
"""The most bits of codes that BF16 holds exactly."""

_MOST_FLOAT_BYTES = 1 << 20
"""Of a model's weights in FP32: as many fit into a core's second cache beside all else."""


class CompiledNetwork:
    """A packed model that compiled code scores with; several threads may use it at a time."""

    def __init__(self, arrays: NetworkArrays, threads: int) -> None:
        """Compiles what was never compiled on this machine; ImportError without numba."""
        from .numba import packed_network

        self._compiled: Any = packed_network
        self._kept: list[NDArray[Any]] = []  # what the kernel has addresses of
        self._network = self._places(arrays)
        self._scratch_floats: int = self._compiled.scratch_floats(self._network)
        self._spare: list[tuple[NDArray[np.float32], int]] = []
        self._threads, self._making = threads, threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        slots = sum(table.num_slots for table in arrays.tables)
        self.logits(np.empty((0, arrays.bottom[0].values.shape[1]), np.float32), np.empty((0, slots), np.int64))

    def logits(self, dense: NDArray[Any], ids: NDArray[np.integer[Any]]) -> Floats:
        """Returns f32[n] of dense values [n, D] and ids [n, S] of any strides; RefusedRowsError for what is unsound."""
        size = ids.itemsize
        if size < 4 or ids.dtype.kind != "i" or any(stride % size for stride in ids.strides):
            ids, size = ids.astype(np.int64), 8
        dense = np.ascontiguousarray(dense, np.float32)
        count = len(dense)
        logits = np.empty(count, np.float32)
        strides = ids.strides[0] // size, ids.strides[1] // size
        rows = self._compiled.BatchPlaces(
            _address(dense), self._network.num_dense, _address(ids), int(size == 8), *strides, _address(logits)
        )
        if self._threads == 1 or count <= _ROWS_OF_A_TURN:
            self._score(rows, 0, count)
            return logits

        # As many turns for each thread, of as many rows: nobody waits for the last one.
        turns = self._threads * max(1, round(count / (_ROWS_OF_A_TURN * self._threads)))
        size = -(-count // turns)

        def take_turn(first: int) -> None:
            self._score(rows, first, min(first + size, count))

        deque(self._workers().map(take_turn, range(0, count, size)), maxlen=0)
        return logits

    def _score(self, rows: Any, first: int, end: int) -> None:
        try:
            scratch = self._spare.pop()
        except IndexError:
            array = np.empty(self._scratch_floats + _LINE_FLOATS, np.float32)
            scratch = array, -(-_address(array) // _LINE_BYTES) * _LINE_BYTES
        found = self._compiled.score(self._network, rows, first, end, scratch[1])
        self._spare.append(scratch)
        if found != self._compiled.SOUND:
            raise RefusedRowsError

    def _workers(self) -> ThreadPoolExecutor:
        with self._making:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, "dqrm-score")
            return self._pool

    def _places(self, arrays: NetworkArrays) -> Any:
        """Returns the model as the kernel reads it."""
        projections = [layer for layer in arrays.projections if layer is not None]
        parts = projections, arrays.bottom, arrays.cross, arrays.top
        numbers = iter(range(len(projections)))
        of_tables = [-1 if layer is None else next(numbers) for layer in arrays.projections]
        layers = [layer for part in parts for layer in part]
        # The raw numbers may be of any size beside each other.
        zeros = [self._split_zero(part, k) for part in parts for k in range(len(part))]
        zeros[len(projections)] = None
        features, lanes = 1 + len(arrays.tables), self._compiled.LANES
        joined = arrays.top[0].values.shape[1]
        keeps_floats = 4 * sum(layer.values.size for layer in layers) <= _MOST_FLOAT_BYTES
        widths = [width for layer in layers for width in layer.values.shape]
        cross_first = len(projections) + len(arrays.bottom)
        tables = [self._table(table, arrays.is_mean) for table in arrays.tables]
        return self._compiled.NetworkPlaces(
            tables=self._address(np.array(tables, np.int64)),
            num_tables=len(tables),
            projections=self._address(np.array(of_tables, np.int64)),
            layers=self._address(
                np.array([self._layer(*one, keeps_floats) for one in zip(layers, zeros, strict=True)], np.int64)
            ),
            bottom_first=len(projections),
            cross_first=cross_first,
            top_first=cross_first + len(arrays.cross),
            num_layers=len(layers),
            dim=arrays.dim,
            num_dense=arrays.bottom[0].values.shape[1],
            joined_width=joined,
            is_dot=int(arrays.is_dot),
            buffer=max(*widths, *(table.dim for table in arrays.tables)),
            dots_scratch=-(-features // lanes) * lanes * -(-arrays.dim // lanes) * lanes,
            codes_stride=self._codes_stride(layers, zeros),
            nibble_masks=self._compiled.NIBBLE_MASKS,
        )

    def _banded(self, table: TableArrays, is_mean: bool) -> Any:
        """Returns a table in bands as the kernel reads it."""
        bands = []
        for band in table.bands:
            rows, row_bytes = band.codes.shape
            its = replace(table, bits=band.bits, scale=band.scale, offset=band.offset, bands=())
            places = self._table(replace(its, codes=band.codes, num_rows=band.first + rows), is_mean)
            bands.append(places._replace(codes=places.codes - band.first * row_bytes))
        places = self._table(replace(table, bands=()), is_mean)
        return places._replace(codes=self._address(np.array(bands, np.int64)), bits=self._compiled.BANDED)

    def _table(self, table: TableArrays, is_mean: bool) -> Any:
        if table.bands:
            return self._banded(table, is_mean)
        return self._compiled.TablePlaces(
            codes=self._address(table.codes),
            row_bytes=table.codes.shape[1],
            dim=table.dim,
            bits=table.bits,
            num_rows=table.num_rows,
            bitmap=0 if table.bitmap is None else self._address(table.bitmap),
            rank=0 if table.rank is None else self._address(table.rank),
            stored_rows=len(table.codes),
            first_slot=table.first_slot,
            num_slots=table.num_slots,
            is_bag=int(table.is_bag),
            is_mean=int(is_mean),
            scale=self._address(table.scale),
            offset=0 if table.offset is None else self._address(table.offset),
            rounded_bits=table.rounded_bits,
        )

    def _split_zero(self, part: Sequence[LayerArrays], number: int) -> int | None:
        """Returns the zero of the highest bytes where a layer multiplies three bytes of each number; else None."""
        layer = part[number]
        outputs, inputs = layer.values.shape
        takes_bytes = layer.integers is None and layer.grid is None and _has_codes(layer)
        if not takes_bytes or inputs > MOST_INTEGER_INPUTS or outputs < self._compiled.LEAST_OUTPUTS:
            return None
        is_unsigned = number > 0 and part[number - 1].rectify
        return (0 if is_unsigned else int(self._compiled.SIGNED_ZERO)) if self._compiled.CAN_SPLIT else None

    def _codes_stride(self, layers: Sequence[LayerArrays], zeros: Sequence[int | None]) -> int:
        """Returns the bytes for a row's rounded numbers, with room for what fills registers; 0: none are rounded."""
        pieces: int = self._compiled.PIECES
        stride = 0
        for layer, split_zero in zip(layers, zeros, strict=True):
            whole: int = -(-layer.values.shape[1] // _LINE_BYTES)
            if split_zero is not None:
                stride = max(stride, whole)
            elif layer.integers is not None:
                stride = max(stride, -(-(whole + 2) // pieces))
        return stride * pieces * _LINE_BYTES

    def _layer(self, layer: LayerArrays, split_zero: int | None, keeps_floats: bool) -> Any:
        outputs, inputs = layer.values.shape
        compiled, integers = self._compiled, layer.integers
        has_codes = _has_codes(layer)
        values = layer.values
        if layer.scale is not None and not has_codes:
            values = values * layer.scale[:, None]
        affine = np.zeros((2, -(-outputs // compiled.PANEL) * compiled.PANEL), np.float32)
        affine[0, :outputs] = layer.scale if has_codes else 1
        affine[1, :outputs] = 0 if layer.bias is None else layer.bias
        grid = 0
        if layer.grid is not None:
            scale, *codes = layer.grid
            grid = self._address(np.array([np.reciprocal(scale), scale, *codes], np.float32))
        first_inputs = zero = first_sums = floats = 0
        if split_zero is not None:
            form, first_inputs, zero = compiled.SPLIT, inputs, split_zero
        elif integers is not None:
            form, first_inputs = compiled.BYTES, integers.first_inputs
            zero = 0 if integers.is_unsigned else compiled.SIGNED_ZERO
        if first_inputs:
            panels = compiled.packed_bytes(values, first_inputs)
            first_sums = self._address(compiled.first_sums(values, first_inputs, zero))
        else:
            form = compiled.HALVES if has_codes else compiled.FLOATS
            panels = compiled.packed_panels(values, has_codes)
            if has_codes and keeps_floats:
                floats = self._address(compiled.packed_panels(values, False))
        return compiled.LayerPlaces(
            weight=self._address(panels),
            form=form,
            inputs=inputs,
            outputs=outputs,
            affine=self._address(affine),
            rectify=int(layer.rectify),
            grid=grid,
            ends_cross=int(layer.ends_cross),
            first_inputs=first_inputs,
            zero=zero,
            first_sums=first_sums,
            floats=floats,
        )

    def _address(self, array: NDArray[Any]) -> int:
        """Returns where an array lies, which is kept alive."""
        self._kept.append(array)
        return _address(array)


def _has_codes(layer: LayerArrays) -> bool:
    return layer.scale is not None and layer.bits <= _BF16_BITS


def _address(array: NDArray[Any]) -> int:
    place: int = array.__array_interface__["data"][0]
    return place
