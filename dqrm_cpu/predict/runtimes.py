"""Exported files as the programs open them that score with them, one way to ask all for logits."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dqrm_cpu.base.files import begins_with
from dqrm_cpu.base.precision import FP32
from dqrm_cpu.errors import CheckpointError, ConfigError, DeviceError
from dqrm_cpu.export.openvino_ir import OPENVINO_INFO
from dqrm_cpu.serving import Model
from dqrm_cpu.serving.description import BANDS, MODEL, Description, DescriptionError

PACKED = ".safetensors"

_PROGRAM_MARK = b"ET1"
"""Stands at byte 4 of a program of ExecuTorch, before the digit of the version of its format."""


class OpenedFile(Protocol):
    """An exported file in the runtime that reads its format."""

    runtime: str  # its name and version
    num_bytes: int  # of all the files that belong to it
    description: Description
    is_exact: bool  # written to give the run's logits to rounding

    def logits(self, dense: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the logits f32[n] of prepared rows: numbers f32[n, D], and rows of tables int64[n, S]."""


def open_file(path: Path, products: str = FP32) -> Sequence[OpenedFile]:
    """Opens an exported file by the end of its name, more than once where its runtime has several precisions.

    `products`: other than FP32, a packed file is opened with these too.

    ConfigError for another file, DeviceError where the runtime is not installed.
    """
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        raise ConfigError(f"{path} is no exported file: those end in {', '.join(_OPENERS)}")
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; write it by dqrm-cpu export")
    opened = opener(path)
    return (*opened, _PackedFile(path, products)) if path.suffix == PACKED and products != FP32 else opened


class _PackedFile:
    def __init__(self, path: Path, products: str) -> None:
        self._model = Model.open(path, verify=True, products=products)
        in_bands = self._model.description.layout == BANDS
        self.is_exact = products == FP32 and not in_bands
        self.runtime = ", ".join(
            ["dqrm_cpu.serving", *([] if products == FP32 else [products]), *(["in bands"] if in_bands else [])]
        )
        self.num_bytes, self.description = path.stat().st_size, self._model.description

    def logits(self, dense: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._model.logits_of_ids(dense, ids)


class _OnnxFile:
    def __init__(self, path: Path) -> None:
        runtime = require_runtime("onnxruntime", "ONNX files", "verify")
        try:
            self._session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise _unreadable(path, error) from error
        self.runtime, self.is_exact = f"ONNX Runtime {runtime.__version__}", True
        tables = path.parent.glob(f"{path.name}-*.data")
        self.num_bytes = path.stat().st_size + sum(part.stat().st_size for part in tables)
        self.description = _described(path, self._session.get_modelmeta().custom_metadata_map.get(MODEL))

    def logits(self, dense: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._session.run(["logits"], {"dense": dense, "ids": ids})[0]
        return found


class _OpenVinoFile:
    """IR compiled for the processor; `precision` f32, or None for the one that OpenVINO chooses: BF16 where it is."""

    def __init__(self, path: Path, precision: str | None) -> None:
        openvino = require_runtime("openvino", "OpenVINO's files", "openvino")
        weights, core = path.with_suffix(".bin"), openvino.Core()
        try:
            model = core.read_model(str(path), str(weights))
            document = (
                model.get_rt_info(list(OPENVINO_INFO)).astype(str) if model.has_rt_info(list(OPENVINO_INFO)) else None
            )
            hint = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
            self._compiled = core.compile_model(model, "CPU", hint)
        except Exception as error:  # its errors have no common class
            raise _unreadable(path, error) from error
        self.precision = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        self.runtime = f"OpenVINO {openvino.__version__.partition('-')[0]}, {self.precision}"
        self.is_exact = precision is not None
        self.num_bytes = path.stat().st_size + weights.stat().st_size
        self.description = _described(path, document)

    def logits(self, dense: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._compiled({"dense": dense, "ids": ids})["logits"]
        return found.copy()


class _ExecuTorchFile:
    def __init__(self, path: Path) -> None:
        runtime = require_runtime("executorch.runtime", "programs of ExecuTorch", "executorch").Runtime.get()
        if not begins_with(path, _PROGRAM_MARK, at=4):  # its runtime would end the process
            raise _unreadable(path, ValueError("it is no program of ExecuTorch"))
        try:
            self._program = runtime.load_program(path)
            self._forward = self._program.load_method("forward")
            document = self._program.load_method(MODEL).execute([])[0]
        except Exception as error:  # its errors have no common class
            raise _unreadable(path, error) from error
        self.runtime, self.is_exact = f"ExecuTorch {version('executorch')}", True
        self.num_bytes, self.description = path.stat().st_size, _described(path, document)

    def logits(self, dense: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        inputs = [torch.from_numpy(np.ascontiguousarray(one)) for one in (dense, ids)]
        found: NDArray[np.float32] = self._forward.execute(inputs)[0].numpy()
        return found.copy()


def _open_openvino(path: Path) -> Sequence[OpenedFile]:
    exact, fast = _OpenVinoFile(path, "f32"), _OpenVinoFile(path, None)
    return (exact,) if fast.precision == exact.precision else (exact, fast)


_OPENERS: Mapping[str, Callable[[Path], Sequence[OpenedFile]]] = {
    PACKED: lambda path: (_PackedFile(path, FP32),),
    ".onnx": lambda path: (_OnnxFile(path),),
    ".xml": _open_openvino,
    ".pte": lambda path: (_ExecuTorchFile(path),),
}


def require_runtime(package: str, what: str, extra: str) -> Any:
    """Imports a package of an extra; DeviceError that names the extra where it is not installed."""
    try:
        return import_module(package)
    except ImportError:
        raise DeviceError(
            f"{what} need the package {package.partition('.')[0]}: pip install 'dqrm-cpu[{extra}]'"
        ) from None


def _described(path: Path, document: str | None) -> Description:
    try:
        return Description.from_json(document or "")
    except DescriptionError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is no exported model: {str(error).strip()[:300]}; write it by dqrm-cpu export")
