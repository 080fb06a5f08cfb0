"""The forms in which a request can ask the server for probabilities of raw or prepared rows, as bytes of HTTP."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.serving import Model
from dqrm_cpu.serving.description import BUCKETS, Description

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RequestForm:
    """One way to ask for the probabilities of rows."""

    name: str
    about: str
    write: Callable[[Model, Rows], bytes]  # a whole HTTP request
    read: Callable[[bytes], list[float]]  # the probabilities of an answer's body


def _request(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _json_rows(model: Model, rows: Rows) -> bytes:
    return _request("/predict", json.dumps({"rows": rows}).encode(), "Content-Type: application/json")


def _raw_columns(description: Description, rows: Rows) -> Iterator[tuple[str, str, list[Any]]]:
    """Yields name, datatype and values of each raw column."""
    for number in description.numbers:
        yield number.name, "FP64", [row[number.name] for row in rows]
    for category in description.categories:
        if category.kind != BUCKETS:
            yield category.name, "BYTES", [row[category.name] for row in rows]


def _json_columns(model: Model, rows: Rows) -> bytes:
    inputs = [
        {"name": name, "datatype": datatype, "shape": [len(rows)], "data": values}
        for name, datatype, values in _raw_columns(model.description, rows)
    ]
    return _infer({"inputs": inputs}, b"")


def _binary_columns(model: Model, rows: Rows) -> bytes:
    tensors = []
    for name, datatype, values in _raw_columns(model.description, rows):
        if datatype == "BYTES":
            content = b"".join(len(text).to_bytes(4, "little") + text.encode() for text in values)
        else:
            content = np.array([np.nan if value is None else value for value in values], "<f8").tobytes()
        tensors.append((name, datatype, [len(rows)], content))
    return _binary(tensors)


def _binary_prepared(model: Model, rows: Rows) -> bytes:
    dense, ids = model.prepare(rows)
    arrays: list[tuple[str, str, NDArray[Any]]] = [("dense", "FP32", dense), ("ids", "INT64", ids)]
    return _binary([(name, datatype, list(array.shape), array.tobytes()) for name, datatype, array in arrays])


def _binary(tensors: Sequence[tuple[str, str, list[int], bytes]]) -> bytes:
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(content)}}
        for name, datatype, shape, content in tensors
    ]
    document = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    return _infer(document, b"".join(content for *_, content in tensors))


def _infer(document: Mapping[str, Any], binary: bytes) -> bytes:
    head = json.dumps(document).encode()
    lengths = [f"Inference-Header-Content-Length: {len(head)}"] if binary else []
    return _request("/v2/models/model/infer", head + binary, *lengths)


def binary_answer(body: bytes) -> list[float]:
    _, head = json.JSONDecoder().raw_decode(body.decode("latin-1"))  # a byte of a float may look like its end
    values: list[float] = np.frombuffer(body[head:], "<f4").tolist()
    return values


FORMS = (
    RequestForm(
        "json_rows", "POST /predict: a table for each row", _json_rows, lambda body: json.loads(body)["probabilities"]
    ),
    RequestForm(
        "json_columns",
        "Open Inference Protocol: a list for each column",
        _json_columns,
        lambda body: json.loads(body)["outputs"][0]["data"],
    ),
    RequestForm("binary_columns", "the same in binary", _binary_columns, binary_answer),
    RequestForm(
        "binary_prepared", "numbers and ids as the model reads them, in binary", _binary_prepared, binary_answer
    ),
)
