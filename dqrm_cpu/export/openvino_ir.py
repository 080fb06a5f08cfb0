"""An exported file as OpenVINO's IR: the graph of the ONNX file, whose tables and layers stay packed.

Measured with OpenVINO 2026.4.1, 5 M rows of 16 values: an i4 constant that is converted, multiplied and gathered, and
the bytes of the ONNX graph, gathered and looked up, both stay in the mapped file (9 MB of private memory more after
either is compiled), and take 193 and 183 us for 64 rows of 26 tables. So one graph serves both formats. An i4 constant
that is gathered before it is converted becomes bytes in private memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dqrm_cpu.base.files import remove_abandoned, replace_file
from dqrm_cpu.errors import CheckpointError, DeviceError
from dqrm_cpu.export.onnx_graph import require_onnx, write_onnx
from dqrm_cpu.serving.description import MODEL, Description
from dqrm_cpu.serving.mapped_file import MappedFile

OPENVINO_INFO = ("dqrm_cpu", MODEL)
"""Where the description stands in the runtime information of an IR file."""

_PIECE_BYTES = 16 << 20


def require_openvino() -> Any:
    """Returns the package openvino; DeviceError where it is not installed."""
    try:
        import openvino
    except ImportError:
        raise DeviceError("OpenVINO's files need the package openvino: pip install 'dqrm-cpu[openvino]'") from None
    require_onnx()  # the graph is written by it
    return openvino


def write_openvino(file: MappedFile, description: Description, out: Path, folder: Path) -> int:
    """Writes OUT (.xml) and the .bin beside it, by way of `folder`, which is on the same disk; returns their bytes."""
    openvino = require_openvino()
    write_onnx(file, description, folder / "graph.onnx")
    model = openvino.Core().read_model(str(folder / "graph.onnx"))
    model.set_rt_info(description.to_json(), list(OPENVINO_INFO))
    written = folder / "graph.xml", folder / "graph.bin"
    openvino.serialize(model, *map(str, written))
    # The weights first: a graph that is there never waits for them.
    remove_abandoned(out.with_suffix(".bin"))
    replace_file(out.with_suffix(".bin"), _pieces(written[1]), CheckpointError)
    replace_file(out, _pieces(written[0]), CheckpointError)
    return sum(path.stat().st_size for path in written)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
