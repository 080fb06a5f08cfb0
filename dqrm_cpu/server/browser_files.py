"""What a browser needs to score rows by itself: the model's files, the programs that read them, ONNX Runtime's own.

Large files are fetched in pieces (`Range`), each on the condition that the model is still the one whose description was
read (`If-Match`): a model that is replaced meanwhile is never mixed with the next one.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

from dqrm_cpu.base.files import open_regular
from dqrm_cpu.base.tensor_header import HEADER_CHECKSUM
from dqrm_cpu.errors import ConfigError, DqrmError
from dqrm_cpu.server.answers import Answer, AnswerError, Receive, Route
from dqrm_cpu.serving.mapped_file import MappedFile

_PIECE_BYTES = 8 << 20
_SCRIPT, _WASM, _BYTES = b"text/javascript", b"application/wasm", b"application/octet-stream"
_OWN = ("raw_rows.mjs", "browser_scorer.mjs")
_RUNTIME = {
    "ort.wasm.min.mjs": _SCRIPT,
    "ort-wasm-simd-threaded.mjs": _SCRIPT,
    "ort-wasm-simd-threaded.wasm": _WASM,
}
"""The files of onnxruntime-web that score on the processor."""

_MODEL_FILES = ("model.safetensors", "model.onnx", "tables")


@dataclass(frozen=True)
class _ModelFiles:
    """The files of one model, open, so that another one may take their names."""

    checksum: str
    opened: Mapping[str, BinaryIO]
    tables_name: str  # as the ONNX file calls them
    identity: tuple[int, int]  # of the packed file and of the ONNX file


class BrowserFiles:
    """Serves the files of a model and of onnxruntime-web under /browser/."""

    def __init__(self, packed: Path, onnx: Path, runtime: Path) -> None:
        self._packed, self._onnx, self._runtime = packed, onnx, runtime
        missing = [name for name in _RUNTIME if not (runtime / name).is_file()]
        if missing:
            raise ConfigError(
                f"--web-runtime {runtime} has no {missing[0]}: give the folder node_modules/onnxruntime-web/dist of "
                "npm install onnxruntime-web"
            )
        self._files = self._open()

    def routes(self) -> Mapping[str, Route]:
        """Returns what is answered under which path."""
        found: dict[str, Route] = {"/browser/files.json": ("GET", self._document)}
        found |= {f"/browser/{name}": ("GET", partial(self._piece, name)) for name in _MODEL_FILES}
        here = files("dqrm_cpu.server")
        for name in _OWN:
            found[f"/browser/{name}"] = ("GET", partial(_whole, here.joinpath(name).read_bytes(), _SCRIPT))
        for name, kind in _RUNTIME.items():
            found[f"/browser/{name}"] = ("GET", partial(_whole, (self._runtime / name).read_bytes(), kind))
        return found

    def _open(self) -> _ModelFiles:
        """Opens files that belong together: an ONNX file's tables are named after the checksum of the packed one."""
        identity = self._packed.stat().st_ino, self._onnx.stat().st_ino if self._onnx.is_file() else 0
        checksum = MappedFile(self._packed).metadata[HEADER_CHECKSUM]
        tables = self._onnx.with_name(f"{self._onnx.name}-{checksum}.data")
        if not identity[1] or not tables.is_file():
            raise ConfigError(
                f"{self._onnx} is not {self._packed} as ONNX: write both from the same run, by dqrm-cpu export and "
                "dqrm-cpu export --format onnx, with the same options"
            )
        paths = dict(zip(_MODEL_FILES, (self._packed, self._onnx, tables), strict=True))
        return _ModelFiles(checksum, {name: open_regular(path) for name, path in paths.items()}, tables.name, identity)

    async def _document(self, app: Any, headers: Mapping[bytes, bytes], receive: Receive) -> Answer:
        """Says which files there are, of the model that has their names now."""
        now = self._packed.stat().st_ino, self._onnx.stat().st_ino if self._onnx.is_file() else 0
        if now != self._files.identity:
            try:
                self._files = self._open()
            except (DqrmError, OSError) as error:
                raise AnswerError(HTTPStatus.CONFLICT, f"the model was replaced: {error}") from None
        opened = self._files.opened
        sizes = {name: os.fstat(file.fileno()).st_size for name, file in opened.items()}
        document = {"checksum": self._files.checksum, "tables_name": self._files.tables_name, "bytes": sizes}
        return Answer(HTTPStatus.OK, json.dumps(document).encode())

    async def _piece(self, name: str, app: Any, headers: Mapping[bytes, bytes], receive: Receive) -> Answer:
        tag = f'"{self._files.checksum}"'.encode()
        if headers.get(b"if-match", tag) != tag:
            raise AnswerError(HTTPStatus.PRECONDITION_FAILED, "the model was replaced; load it again")
        file = self._files.opened[name]
        size = os.fstat(file.fileno()).st_size
        asked = re.fullmatch(rb"bytes=([0-9]{1,15})-([0-9]{1,15})", headers.get(b"range", b""))
        first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
        if not 0 <= last - first < _PIECE_BYTES:
            why = f"{name} has {size:,} bytes: ask for pieces of {_PIECE_BYTES:,} at most, by Range: bytes=FIRST-LAST"
            raise AnswerError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, why)
        body = os.pread(file.fileno(), last - first + 1, first)
        place = (b"content-range", f"bytes {first}-{last}/{size}".encode())
        status = HTTPStatus.PARTIAL_CONTENT if asked else HTTPStatus.OK
        return Answer(status, body, _BYTES, ((b"etag", tag), *((place,) if asked else ())))


async def _whole(content: bytes, kind: bytes, app: Any, headers: Mapping[bytes, bytes], receive: Receive) -> Answer:
    return Answer(HTTPStatus.OK, content, kind, ((b"cache-control", b"max-age=3600"),))
