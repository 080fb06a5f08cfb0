"""A packed file read with NumPy alone, and DLRM's formula on what it holds: dense layout, 4 bits, dqrm."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dqrm_cpu.config import Config

_TYPES = {"U8": np.uint8, "F32": np.float32, "I32": np.int32, "U32": np.uint32, "I64": np.int64}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file: eight bytes of length, JSON, then the bytes of the tensors."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__")
    tensors = {}
    for name, about in header.items():
        if about["dtype"] in _TYPES:
            first, end = about["data_offsets"]
            tensors[name] = np.frombuffer(body[first:end], _TYPES[about["dtype"]]).reshape(about["shape"])
    return tensors


def int4_values(codes: np.ndarray, dim: int, scale: np.ndarray) -> np.ndarray:
    """Two codes a byte, the lower half first, each from -8 to 7."""
    pairs = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)[:, :dim].astype(np.int64)
    values: np.ndarray = np.where(pairs > 7, pairs - 16, pairs) * scale.astype(np.float64)
    return values


def probabilities(path: Path, config: Config | SimpleNamespace, dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Of dense f32[B, D] and ids int[B, T], or lists of ids in an array of objects, whose rows are summed."""
    tensors, model = read_tensors(path), config.model
    features = [_mlp(tensors, "bottom", len(model.bottom_mlp), dense.astype(np.float64), last_relu=True)]
    for t in range(ids.shape[1]):
        table = int4_values(tensors[f"C{t + 1}.codes"], model.dims[t], tensors["tables.step"][t])
        bags = (np.atleast_1d(np.asarray(bag, np.int64)) for bag in ids[:, t])
        pooled = np.array([table[bag].sum(axis=0) for bag in bags])
        if f"project.C{t + 1}.codes" in tensors:
            scale = tensors[f"project.C{t + 1}.step"][:, None]
            pooled = pooled @ int4_values(tensors[f"project.C{t + 1}.codes"], model.dims[t], scale).T
        features.append(pooled)
    stacked = np.stack(features, axis=1)
    below = np.tril_indices(stacked.shape[1], -1)
    dots = (stacked @ stacked.transpose(0, 2, 1))[:, below[0], below[1]]
    logits = _mlp(tensors, "top", len(model.top_mlp), np.concatenate([features[0], dots], axis=1), last_relu=False)
    return np.array([1 / (1 + math.exp(-logit)) for logit in logits[:, 0]])


def _mlp(tensors: dict[str, np.ndarray], name: str, layers: int, x: np.ndarray, last_relu: bool) -> np.ndarray:
    for k in range(layers):
        scale = tensors[f"{name}.{k}.step"][:, None]
        weight = int4_values(tensors[f"{name}.{k}.codes"], x.shape[1], scale)
        x = x @ weight.T + tensors[f"{name}.{k}.bias"].astype(np.float64)
        if last_relu or k < layers - 1:
            x = np.maximum(x, 0.0)
    return x
