"""The Open Inference Protocol (KServe v2): tensors in JSON or behind it in binary, to rows, and answers back.

A request gives raw columns, one tensor for each by its name, or rows that are prepared: `dense` and `ids`.
"""

import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.server.scoring_queue import PreparedRows
from dqrm_cpu.serving import Model, UnusableRowError
from dqrm_cpu.serving.description import BUCKETS, Description

DENSE_INPUT, IDS_INPUT, OUTPUT = "dense", "ids", "probability"
BYTES = "BYTES"
_DTYPES: Mapping[str, str] = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_MOST_VALUES = 1 << 24
_LENGTH_BYTES = 4
"""Before each text of a binary tensor."""


class RequestError(UnusableRowError):
    """A request that cannot be answered, whoever asks and however often."""


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: Any = None
    parameters: dict[str, Any] = {}  # msgspec copies it


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str = ""
    outputs: list[_Output] = []
    parameters: dict[str, Any] = {}


class InferRequest:
    """One request, read and checked as far as that is possible without the model."""

    def __init__(self, body: bytes, header_bytes: int | None) -> None:
        """`header_bytes`: where the JSON ends and binary tensors begin; None: nowhere."""
        head = body if header_bytes is None else body[:header_bytes]
        if header_bytes is not None and not 0 < header_bytes <= len(body):
            raise RequestError("Inference-Header-Content-Length is not the length of the JSON before the tensors")
        try:
            request = msgspec.json.decode(head, type=_Request)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RequestError(f"the request cannot be read: {str(error)[:200]}") from None
        self.id, self.is_binary_wanted = request.id, _is_binary_wanted(request)
        self.columns = _columns(request.inputs, memoryview(body)[len(head) :])
        self.is_prepared = set(self.columns) == {DENSE_INPUT, IDS_INPUT}
        counts = {len(cells) for cells in self.columns.values()}
        if len(counts) != 1:
            raise RequestError("the inputs have different numbers of rows" if counts else "the request has no inputs")
        self.num_rows = counts.pop()

    def prepare(self, model: Model) -> PreparedRows:
        """Returns the rows as the model reads them."""
        if not self.is_prepared:
            return PreparedRows(*model.prepare(self.columns))
        dense, ids = self.columns[DENSE_INPUT], self.columns[IDS_INPUT]
        if not (_is_array(dense, "fiu", 2) and _is_array(ids, "iu", 2)):
            raise RequestError("dense must be numbers [n, D], ids whole numbers [n, T]")
        return PreparedRows(dense.astype(np.float32, copy=False), ids.astype(np.int64, copy=False))

    def answer(self, model_name: str, probabilities: NDArray[np.float32]) -> tuple[bytes, int | None]:
        """Returns the body of the answer, and the length of its JSON where tensors stand behind it."""
        output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": [len(probabilities)]}
        document = {"model_name": model_name, "model_version": "1", "outputs": [output]}
        if self.id:
            document["id"] = self.id
        if not self.is_binary_wanted:
            output["data"] = probabilities.tolist()
            return msgspec.json.encode(document), None
        content = probabilities.astype("<f4").tobytes()
        output["parameters"] = {"binary_data_size": len(content)}
        head = msgspec.json.encode(document)
        return head + content, len(head)


def metadata(model_name: str, description: Description) -> dict[str, Any]:
    """Returns what the protocol says of a model: an input for each raw column."""
    numbers = [{"name": column.name, "datatype": "FP64", "shape": [-1]} for column in description.numbers]
    texts = [
        {"name": one.name, "datatype": BYTES, "shape": [-1]} for one in description.categories if one.kind != BUCKETS
    ]
    outputs = [{"name": OUTPUT, "datatype": "FP32", "shape": [-1]}]
    return {
        "name": model_name,
        "versions": ["1"],
        "platform": "dqrm",
        "inputs": [*numbers, *texts],
        "outputs": outputs,
    }


def _is_binary_wanted(request: _Request) -> bool:
    """Tells whether the answer's tensor stands behind its JSON."""
    wanted = [output for output in request.outputs if output.name != OUTPUT]
    if wanted:
        raise RequestError(f"there is no output {wanted[0].name[:80]!r}; there is {OUTPUT!r}")
    asked = request.outputs[0].parameters.get("binary_data") if request.outputs else None
    return bool(request.parameters.get("binary_data_output", False) if asked is None else asked)


def _columns(tensors: list[_Tensor], rest: memoryview) -> dict[str, Any]:
    """Returns the values of all tensors; those in binary stand in `rest`, one behind another."""
    columns: dict[str, Any] = {}
    for tensor in tensors:
        if tensor.name in columns:
            raise RequestError(f"input {tensor.name[:80]!r} is given twice")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            columns[tensor.name] = _of_json(tensor)
            continue
        if type(size) is not int or not 0 <= size <= len(rest):
            raise RequestError(f"input {tensor.name[:80]!r} has a binary_data_size beyond the body")
        columns[tensor.name], rest = _of_bytes(tensor, rest[:size]), rest[size:]
    if len(rest):
        raise RequestError(f"{len(rest):,} bytes behind the last tensor belong to none")
    return columns


def _is_array(values: Any, kinds: str, dimensions: int) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in kinds and values.ndim == dimensions


def _count(tensor: _Tensor) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
        if size < 0 or count > _MOST_VALUES:
            raise RequestError(f"input {tensor.name[:80]!r} has an impossible shape")
    if not 1 <= len(tensor.shape) <= 2:
        raise RequestError(f"input {tensor.name[:80]!r} must have one dimension, or two of prepared rows")
    return count


def _of_json(tensor: _Tensor) -> Any:
    """Returns the values of a tensor in JSON: a list of texts, or an array."""
    count = _count(tensor)
    values = tensor.data
    while isinstance(values, list) and values and isinstance(values[0], list):  # rows within rows are allowed
        if not all(isinstance(row, list) for row in values):
            raise RequestError(f"input {tensor.name[:80]!r} has rows of different kinds")
        values = [value for row in values for value in row]
    if not isinstance(values, list) or len(values) != count:
        raise RequestError(f"input {tensor.name[:80]!r} has not as many values as its shape says")
    if tensor.datatype == BYTES:
        return values
    return _numbers(tensor, values)


def _numbers(tensor: _Tensor, values: list[Any]) -> NDArray[Any]:
    """Returns the array of a tensor; null is NaN where the type has one."""
    dtype = _dtype(tensor)
    kinds = (bool,) if dtype.kind == "b" else (int,) if dtype.kind in "iu" else (int, float)
    if dtype.kind == "f":
        values = [np.nan if value is None else value for value in values]
    if any(type(value) not in kinds for value in values):
        raise RequestError(f"input {tensor.name[:80]!r} has values that are no {tensor.datatype}")
    try:
        return np.array(values, dtype).reshape(tensor.shape)
    except (OverflowError, ValueError):
        raise RequestError(f"input {tensor.name[:80]!r} has values beyond {tensor.datatype}") from None


def _dtype(tensor: _Tensor) -> np.dtype[Any]:
    if tensor.datatype not in _DTYPES:
        known = ", ".join((BYTES, *_DTYPES))
        raise RequestError(f"input {tensor.name[:80]!r} has the datatype {tensor.datatype[:20]!r}; known: {known}")
    return np.dtype(_DTYPES[tensor.datatype])


def _of_bytes(tensor: _Tensor, content: memoryview) -> Any:
    """Returns the values of a binary tensor: a list of texts, each behind its length, or an array."""
    count = _count(tensor)
    if tensor.datatype != BYTES:
        dtype = _dtype(tensor)
        if len(content) != count * dtype.itemsize:
            raise RequestError(f"input {tensor.name[:80]!r} has not as many bytes as its shape says")
        return np.frombuffer(content, dtype).reshape(tensor.shape)
    alike = _texts_of_one_length(content, count)
    if alike is not None:
        return alike
    values, at = [], 0
    for _ in range(count):
        if at + _LENGTH_BYTES > len(content):
            raise RequestError(f"input {tensor.name[:80]!r} ends before its last value")
        (length,) = struct.unpack_from("<I", content, at)
        at += _LENGTH_BYTES
        if at + length > len(content):
            raise RequestError(f"input {tensor.name[:80]!r} has a value that is longer than the tensor")
        try:
            values.append(str(content[at : at + length], "utf-8"))
        except UnicodeDecodeError:
            raise RequestError(f"input {tensor.name[:80]!r} has a value that is no UTF-8") from None
        at += length
    if at != len(content):
        raise RequestError(f"input {tensor.name[:80]!r} has bytes behind its last value")
    return values


def _texts_of_one_length(content: memoryview, count: int) -> list[str] | None:
    """Returns ASCII texts that all have one length, as hashes have: several times as fast. None where they have not."""
    stride, rest = divmod(len(content), count or 1)
    if rest or stride < _LENGTH_BYTES:
        return None
    length = (stride - _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "little")
    heads = np.frombuffer(content, np.uint8).reshape(count, stride)[:, :_LENGTH_BYTES]
    if not (heads == np.frombuffer(length, np.uint8)).all():
        return None
    try:
        text = str(content, "ascii")
    except UnicodeDecodeError:
        return None
    return [text[at + _LENGTH_BYTES : at + stride] for at in range(0, len(text), stride)]
