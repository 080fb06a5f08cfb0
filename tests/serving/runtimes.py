"""Logits that runtimes of other people compute from an exported ONNX file."""

from pathlib import Path

import numpy as np


def onnx_runtime(path: Path, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["logits"], {"dense": dense, "ids": ids})[0]
    return found


def openvino(path: Path, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """In FP32: by default it takes BF16 where the CPU has it."""
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: np.ndarray = model({"dense": dense, "ids": ids})["logits"]
    return found


RUNTIMES = (onnx_runtime, openvino)
