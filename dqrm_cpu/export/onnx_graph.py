"""An exported file as an ONNX graph of standard operators: INT4 codes stay packed, in the file and in memory.

All tables of one dimension are one array of bytes. A row is gathered, each of its bytes looked up in a table of the two
(or four or one) codes that it holds, and multiplied by the scale of its table; one of another dimension than those that
interact is projected. Layers are looked up likewise, once, when a session is made. Inputs are numbers as the model
reads them, f32[n, D], and rows of tables, int64[n, S], one of each table or as many as a bag may have; the outputs are
logits and probabilities, f32[n]. The names of columns, their transforms and their vocabulary stand in the metadata, as
in docs/serving.md.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu import __version__
from dqrm_cpu.base.files import remove_abandoned, replace_file
from dqrm_cpu.base.tensor_header import HEADER_CHECKSUM
from dqrm_cpu.errors import CheckpointError, ConfigError, DeviceError
from dqrm_cpu.serving.description import (
    BANDS,
    BOTTOM,
    CROSS,
    DENSE,
    DOT,
    FLOAT_BITS,
    MODEL,
    PLATT,
    PROJECT,
    TOP,
    Calibrating,
    Description,
    LayerDescription,
)
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.stored import row_bytes, unpacked

OPSET = 17
IR_VERSION = 8
_PACKED_BITS = (2, 4, 8)
LEAST_PROBABILITY = 1e-6
"""Probabilities of an isotonic calibration, whose ends may be 0 and 1, stay this far from both."""

_PIECE_BYTES = 16 << 20


def require_onnx() -> Any:
    """Returns the package onnx; DeviceError where it is not installed."""
    try:
        import onnx
    except ImportError:
        raise DeviceError("ONNX files need the package onnx: pip install 'dqrm-cpu[export]'") from None
    return onnx


def write_onnx(file: MappedFile, description: Description, out: Path) -> int:
    """Writes OUT and, beside it, OUT-CHECKSUM.data with the tables; returns the bytes of both.

    A file that is replaced has its own tables until the moment at which it goes.
    """
    onnx = require_onnx()
    require_whole_codes(file, description, "ONNX files")
    graph = _Graph(onnx, file, description)
    data_name = f"{out.name}-{file.metadata[HEADER_CHECKSUM]}.data"
    model = graph.model(data_name)
    remove_abandoned(out.with_name(data_name))
    replace_file(out.with_name(data_name), _pieces(file, graph.tables), CheckpointError)
    content = model.SerializeToString()
    replace_file(out, [content], CheckpointError)
    for old in out.parent.iterdir():
        if re.fullmatch(re.escape(out.name) + r"-[0-9a-f]{8}\.data", old.name) and old.name != data_name:
            old.unlink(missing_ok=True)
    return len(content) + sum(table.nbytes for table in graph.tables)


def require_whole_codes(file: MappedFile, description: Description, what: str) -> None:
    """Raises ConfigError for a file whose rows are not all there, or of whose codes no whole number fits a byte."""
    if description.layout == BANDS:
        raise ConfigError(f"{file.path} has rows of different bits, which {what} have no place for: leave out --budget")
    if description.layout != DENSE:
        raise ConfigError(f"{file.path} leaves out rows, which {what} have no place for: export it with --layout dense")
    widths = {description.table_bits, description.bias_bits, *(layer.bits for layer in description.layers)}
    if not widths <= {*_PACKED_BITS, FLOAT_BITS}:
        raise ConfigError(f"{file.path} has {min(widths)} bits; {what} have 2, 4, 8 or 32, for tables and layers")


def _pieces(file: MappedFile, tables: Sequence[NDArray[np.uint8]]) -> Iterable[memoryview]:
    for table in tables:
        flat = table.reshape(-1)
        for first in range(0, flat.size, _PIECE_BYTES):
            yield flat[first : first + _PIECE_BYTES].data


class _Group(NamedTuple):
    """The tables of one dimension."""

    dim: int
    tables: list[int]


class _Graph:
    """Nodes and constants, in the order in which they are computed."""

    def __init__(self, onnx: Any, file: MappedFile, description: Description) -> None:
        self._onnx, self._file, self._model = onnx, file, description
        self._members = file.members(description.members)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._count = 0
        dims = [column.dim for column in description.categories]
        self._groups = [_Group(dim, [t for t, its in enumerate(dims) if its == dim]) for dim in dict.fromkeys(dims)]
        self._projections = {layer.name.removeprefix("project."): layer for layer in description.part(PROJECT)}
        self._offset = 0  # of the tables of the next group in their file
        self.tables: list[NDArray[np.uint8]] = []

    def _codes(self, t: int) -> NDArray[np.uint8]:
        column = self._model.categories[t]
        width = row_bytes(column.dim, self._model.table_bits)
        return self._file.tensor(f"C{t + 1}.codes", "U8", (column.rows, width))

    def model(self, data_name: str) -> Any:
        """Returns the finished model, whose tables are in the file of that name."""
        helper, types = self._onnx.helper, self._onnx.TensorProto
        self._calibrated(self._mean_of_members(data_name))
        self._nodes[-1].output[0] = "logits"
        self._node("Sigmoid", ["logits"], output="probabilities")
        inputs = [
            helper.make_tensor_value_info("dense", types.FLOAT, ["rows", len(self._model.dense)]),
            helper.make_tensor_value_info("ids", types.INT64, ["rows", len(self._model.slots)]),
        ]
        outputs = [helper.make_tensor_value_info(name, types.FLOAT, ["rows"]) for name in ("logits", "probabilities")]
        graph = helper.make_graph(self._nodes, "dqrm", inputs, outputs, self._constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="dqrm-cpu")
        model.producer_version = __version__
        helper.set_model_props(model, {MODEL: self._model.to_json()})
        return model

    def _mean_of_members(self, data_name: str) -> str:
        """Computes the mean of the members' logits; of one model its own."""
        logits = []
        for file in self._members:
            self._file = file
            logits.append(self._network(data_name))
        if len(logits) == 1:
            return logits[0]
        return self._node("Mul", [self._node("Sum", logits), self._constant(np.float32(1 / len(logits)))])

    def _network(self, data_name: str) -> str:
        x = "dense"
        for i, layer in enumerate(self._model.part(BOTTOM)):
            x = self._layer(layer, x, unsigned=i > 0)
        first = self._node("Unsqueeze", [x, self._whole([1])])
        features = self._node("Concat", [first, self._rows_of_tables(data_name)], axis=1)
        joined = self._joined(x, features)
        x = self._crossed(joined)
        for i, layer in enumerate(self._model.part(TOP)):
            x = self._layer(layer, x, unsigned=i > 0)
        return self._node("Squeeze", [x, self._whole([1])])

    def _rows_of_tables(self, data_name: str) -> str:
        """Gathers packed rows of all tables, adds up those of a bag, and projects them: f32[n, T, D]."""
        features, order = [], []
        for group in self._groups:
            rows = self._external(group, data_name)
            features += self._projected(group, self._rows_of_group(group, rows))
            order += group.tables
        if len(features) == 1:
            return features[0]
        joined = self._node("Concat", features, axis=1)
        return self._node("Gather", [joined, self._whole(np.argsort(order))], axis=1)

    def _projected(self, group: _Group, values: str) -> list[str]:
        """Returns what interacts of f32[n, T, D of the group]: the whole, or table by table where it is projected."""
        if group.dim == self._model.dim:
            return [values]
        found = []
        for k, t in enumerate(group.tables):
            rows = self._node("Gather", [values, self._constant(np.int64(k))], axis=1)
            projected = self._layer(self._projections[f"C{t + 1}"], rows, unsigned=False)
            found.append(self._node("Unsqueeze", [projected, self._whole([1])]))
        return found

    def _rows_of_group(self, group: _Group, tables: str) -> str:
        model, of_slot = self._model, np.array(self._model.slots)
        places = np.flatnonzero(np.isin(of_slot, group.tables))
        slots, counts = of_slot[places], [model.categories[t].rows for t in group.tables]
        first = np.cumsum([0, *counts[:-1]])[np.searchsorted(group.tables, slots)]
        given = "ids" if len(places) == len(of_slot) else self._node("Gather", ["ids", self._whole(places)], axis=1)
        ids = self._node("Max", [given, self._whole([0])]) if model.has_bags else given
        packed = self._node("Gather", [tables, self._node("Add", [ids, self._whole(first)])], axis=0)
        values = self._unpacked(packed, model.table_bits, [0, len(slots), -1], group.dim)
        for operator, name in (("Mul", "tables.step"), ("Add", "tables.offset")):
            if name in self._file.entries:
                values = self._node(operator, [values, self._constant(self._tensor(name, "F32")[slots, None])])
        belongs = (np.array(group.tables)[:, None] == slots).astype(np.float32)
        return self._pooled(values, given, belongs) if model.has_bags else values

    def _pooled(self, values: str, ids: str, belongs: NDArray[np.float32]) -> str:
        """Adds up the values of each bag, f32[n, S, D], where there is an id; or takes their mean."""
        there = self._node("GreaterOrEqual", [ids, self._whole([0])])
        there = self._node("Unsqueeze", [there, self._whole([2])])
        counted = self._node("Cast", [there], to=self._onnx.TensorProto.FLOAT)
        summed = self._node("MatMul", [self._constant(belongs), self._node("Mul", [values, counted])])
        if not self._model.mean_pooling:
            return summed
        counts = self._node("MatMul", [self._constant(belongs), counted])
        return self._node("Div", [summed, self._node("Max", [counts, self._constant(np.float32(1))])])

    def _external(self, group: _Group, data_name: str) -> str:
        """Names the bytes of a group's tables, which lie in another file behind those of the groups before."""
        codes = [self._codes(t) for t in group.tables]
        tensor = self._onnx.TensorProto()
        number = len(self.tables) // len(self._model.categories)
        tensor.name = f"tables.{group.dim}" if number == 0 else f"member{number + 1}.tables.{group.dim}"
        tensor.data_type = self._onnx.TensorProto.UINT8
        tensor.dims.extend([sum(map(len, codes)), codes[0].shape[1]])
        tensor.data_location = self._onnx.TensorProto.EXTERNAL
        length = sum(table.nbytes for table in codes)
        for key, value in (("location", data_name), ("offset", str(self._offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        self._constants.append(tensor)
        self.tables += codes
        self._offset += length
        return str(tensor.name)

    def _unpacked(self, packed: str, bits: int, shape: Sequence[int], width: int) -> str:
        """Looks up the codes of bytes: f32 of that shape, `width` of them at the end."""
        codes = unpacked(np.arange(256, dtype=np.uint8)[:, None], bits, 8 // bits)
        index = self._node("Cast", [packed], to=self._onnx.TensorProto.INT32)
        each = self._node("Gather", [self._constant(codes), index], axis=0)
        values = self._node("Reshape", [each, self._whole(shape)])
        if width * bits % 8:
            ends = [self._whole([0]), self._whole([width]), self._whole([-1])]
            values = self._node("Slice", [values, *ends])
        return values

    def _joined(self, x: str, features: str) -> str:
        count = 1 + len(self._model.categories)
        if self._model.interaction != DOT:
            return self._node("Reshape", [features, self._whole([0, self._model.joined_width])])
        turned = self._node("Transpose", [features], perm=[0, 2, 1])
        dots = self._node("Reshape", [self._node("MatMul", [features, turned]), self._whole([0, count * count])])
        rows, columns = np.tril_indices(count, -1)
        below = self._node("Gather", [dots, self._whole(rows * count + columns)], axis=1)
        return self._node("Concat", [x, below], axis=1)

    def _crossed(self, first: str) -> str:
        x = crossed = first
        for layer in self._model.part(CROSS):
            crossed = self._layer(layer, crossed, unsigned=False)
            if layer.has_bias:
                x = crossed = self._node("Add", [self._node("Mul", [first, crossed]), x])
        return x

    def _layer(self, layer: LayerDescription, x: str, unsigned: bool) -> str:
        inputs = [self._rounded(layer, x, unsigned), self._weight(layer)]
        if layer.has_bias:
            inputs.append(self._bias(layer))
        y = self._node("Gemm", inputs, transB=1)
        return self._node("Relu", [y]) if layer.relu else y

    def _weight(self, layer: LayerDescription) -> str:
        if layer.bits == FLOAT_BITS:
            return self._stored(f"{layer.name}.weight", (layer.outputs, layer.inputs))
        packed = self._constant(self._tensor(f"{layer.name}.codes", "U8"))
        values = self._unpacked(packed, layer.bits, [layer.outputs, -1], layer.inputs)
        values = self._node("Mul", [values, self._stored(f"{layer.name}.step", (-1, 1))])
        if f"{layer.name}.offset" in self._file.entries:
            values = self._node("Add", [values, self._stored(f"{layer.name}.offset", (-1, 1))])
        return values

    def _bias(self, layer: LayerDescription) -> str:
        bits = self._model.bias_bits
        if bits == FLOAT_BITS:
            return self._stored(f"{layer.name}.bias", (layer.outputs,))
        codes = unpacked(self._tensor(f"{layer.name}.bias_codes", "U8"), bits, layer.outputs)
        return self._constant(codes[0] * self._tensor(f"{layer.name}.bias_step", "F32"))

    def _rounded(self, layer: LayerDescription, x: str, unsigned: bool) -> str:
        """Rounds what a layer reads to the codes of its activations, where they have some."""
        if self._model.activation_bits == FLOAT_BITS:
            return x
        half = 1 << (self._model.activation_bits - 1)
        low, high = (0, 2 * half - 1) if unsigned else (-half, half - 1)
        largest = self._tensor(f"{layer.name}.input_max", "F32")
        scale = np.maximum(largest / np.float32(high), np.float32(1e-8))
        codes = self._node("Round", [self._node("Mul", [x, self._constant(np.reciprocal(scale))])])
        ends = [self._constant(np.float32(low)), self._constant(np.float32(high))]
        return self._node("Mul", [self._node("Clip", [codes, *ends]), self._constant(scale)])

    def _calibrated(self, logits: str) -> str:
        calibration = self._model.calibration
        if calibration is None:
            return logits
        if calibration.kind == PLATT:
            scaled = self._node("Mul", [logits, self._constant(np.float32(calibration.first[0]))])
            return self._node("Add", [scaled, self._constant(np.float32(calibration.second[0]))])
        return self._isotonic(logits, calibration)

    def _isotonic(self, logits: str, calibration: Calibrating) -> str:
        """Adds up what the line rises between each two knots: its logit, of a probability that is neither 0 nor 1."""
        knots, values = np.array(calibration.first), np.array(calibration.second)
        wide = np.diff(knots) > 0
        slopes = np.diff(values)[wide] / np.diff(knots)[wide]
        column = self._node("Unsqueeze", [logits, self._whole([1])])
        low, high = knots[:-1][wide].astype(np.float32), knots[1:][wide].astype(np.float32)
        within = self._node("Min", [self._node("Max", [column, self._constant(low)]), self._constant(high)])
        rise = self._node("Mul", [self._node("Sub", [within, self._constant(low)]), self._constant(np.float32(slopes))])
        total = self._node("ReduceSum", [rise, self._whole([1])], keepdims=0)
        total = self._node("Add", [total, self._constant(np.float32(values[0]))])
        ends = [self._constant(np.float32(end)) for end in (LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)]
        share = self._node("Clip", [total, *ends])
        rest = self._node("Sub", [self._constant(np.float32(1)), share])
        return self._node("Log", [self._node("Div", [share, rest])])

    def _tensor(self, name: str, dtype: str) -> NDArray[Any]:
        entry = self._file.entries.get(name)
        return self._file.tensor(name, dtype, entry.shape if entry else ())

    def _stored(self, name: str, shape: tuple[int, ...]) -> str:
        return self._constant(self._tensor(name, "F32").reshape(shape))

    def _whole(self, values: Sequence[int] | NDArray[np.int64]) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, values: NDArray[Any] | np.generic) -> str:
        self._count += 1
        name = f"c{self._count}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.array(values), name))
        return name

    def _node(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        self._count += 1
        name = output or f"v{self._count}"
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name
