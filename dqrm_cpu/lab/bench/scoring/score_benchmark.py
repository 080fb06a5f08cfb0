"""A row's or a batch's logits from an exported file, against PyTorch in FP32 and ONNX Runtime on the same weights."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from dqrm_cpu.base.precision import FP32, INT8
from dqrm_cpu.config import Config, preset_config
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.export.onnx_graph import write_onnx
from dqrm_cpu.kernels.types import Tables
from dqrm_cpu.lab.bench.harness.batch_pool import Work
from dqrm_cpu.lab.bench.harness.benchmark import Benchmark, RunEnvironment
from dqrm_cpu.lab.bench.harness.cases import Case, quick
from dqrm_cpu.lab.bench.harness.contestant import AbsentError, Contestant, Prepared, Step
from dqrm_cpu.lab.bench.harness.result import CaseResult, Ratio
from dqrm_cpu.lab.bench.harness.runner import BenchProgress, Group, ProgressObserver, run_case
from dqrm_cpu.lab.bench.harness.shared_tables import SharedTables
from dqrm_cpu.lab.bench.scoring.onednn_mlp import OnednnMlp
from dqrm_cpu.lab.bench.serve.random_model import random_rows, write_random_model
from dqrm_cpu.lab.bench.step.torch_dlrm import (
    EmbeddingBags,
    Interact,
    TorchDlrm,
    flat_interaction,
    indexed_interaction,
    make_mlp,
)
from dqrm_cpu.model.layers import LayerParameters
from dqrm_cpu.model.shapes import mlp_shapes
from dqrm_cpu.serving.layers import AffineLayer
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.model import Model, read_description
from dqrm_cpu.serving.network import Layer, PackedNetwork, dense_codes
from dqrm_cpu.serving.stored import unpacked

_BATCHES = {"kaggle_1": 1, "kaggle_64": 64, "kaggle_2048": 2048}
_ROWS_AT_ONCE = 1 << 16
_MOST_RAW_ROWS = 64

_NOTES = (
    "Times are seconds per batch: one sample per round, the mean of the batches of a turn; quartiles are over rounds.",
    "A batch of one row is scored by one thread, others by as many as --threads says.",
    "fused_int8 and torch_int8* round what layers read to 8 bits; the logits of the others are equal to rounding.",
    "All contestants but those of raw rows get prepared ids, of the type that each of them takes.",
)


class ExportedCase:
    """An exported file with random codes, and what its contestants read."""

    def __init__(self, path: Path, case: Case, shared: SharedTables, threads: int) -> None:
        self.path, self.case, self._shared, self.threads = path, case, shared, threads
        self._is_filled = False

    def network(self) -> tuple[MappedFile, PackedNetwork]:
        """Opens the file once more, for its weights in FP32."""
        file = MappedFile(self.path)
        return file, PackedNetwork(file, read_description(file))

    def fp32_bags(self, file: MappedFile) -> EmbeddingBags:
        """Returns the tables of the file in FP32."""
        tables = self._shared.untracked()
        if not self._is_filled:
            fill_tables(file, tables)
            self._is_filled = True
        return EmbeddingBags(tables, self.case.batch_size)


def fill_tables(file: MappedFile, tables: Tables) -> None:
    """Writes what the codes of a file's tables stand for."""
    description, scale = read_description(file), file.tensor("tables.step", "F32", (None,))
    for t, first in enumerate(tables.row_offset[:-1].tolist()):
        codes = dense_codes(file, description, t)
        for start in range(0, len(codes), _ROWS_AT_ONCE):
            values = unpacked(codes[start : start + _ROWS_AT_ONCE], description.table_bits, tables.dim)
            rows = slice(first + start, first + start + len(values))
            tables.weight[rows] = torch.from_numpy(values * scale[t])


def score_groups(exported: ExportedCase) -> list[Group]:
    """Makes the contestants that get prepared ids, those that get raw rows, and the floor."""
    groups = [Group("score", list(_contestants(exported)), "torch_fp32")]
    if exported.case.batch_size <= _MOST_RAW_ROWS:
        about = "dictionaries of Python's numbers and texts"
        raw = [
            Prepared("raw_fused", f"{about}, compiled", lambda: _raw(exported, True)),
            Prepared("raw_numpy", f"{about}, NumPy alone", lambda: _raw(exported, False)),
        ]
        groups.append(Group("score_raw_rows", raw, "raw_numpy"))
    return groups


def _contestants(exported: ExportedCase) -> Iterator[Contestant]:
    yield Prepared("fused", "the exported file, compiled", lambda: _by_model(exported, True))
    integers = "the exported file, compiled, layers in INT8"
    yield Prepared("fused_int8", integers, lambda: _by_model(exported, True, INT8))
    yield Prepared("numpy", "the exported file, NumPy alone", lambda: _by_model(exported, False))
    yield Prepared("onnxruntime", "the same exported as ONNX", lambda: _by_onnxruntime(exported))
    number = 1 + len(exported.case.config.model.table_rows)
    eager = "PyTorch in FP32, eager: EmbeddingBag for each table, Linear"
    yield Prepared("torch_fp32", f"{eager}; Z[:, i, j]", lambda: _by_torch(exported, indexed_interaction(number)))
    yield Prepared("torch_fp32_flat", f"{eager}; index_select", lambda: _by_torch(exported, flat_interaction(number)))
    dynamic = "the same, quantize_dynamic of its MLPs: INT8, a scale for each output and batch"
    yield Prepared("torch_int8", dynamic, lambda: _by_torch(exported, flat_interaction(number), _dynamically_quantized))
    static = "the same, its MLPs by oneDNN in INT8, scales from a batch, rectifiers fused"
    yield Prepared("torch_int8_static", static, lambda: _by_torch(exported, flat_interaction(number), OnednnMlp))
    yield Prepared("products_floor", "the products of the layers alone, in PyTorch", lambda: _floor(exported))


def _by_model(exported: ExportedCase, fused: bool, products: str = FP32) -> Step:
    model = Model.open(exported.path, fused=fused, threads=exported.threads, products=products)
    if fused:
        try:
            model.load_kernels()
        except ConfigError as error:
            raise AbsentError(str(error)) from error

    def step(work: Work) -> Tensor:
        return torch.from_numpy(model.logits_of_ids(*work.arrays))

    return step


def _raw(exported: ExportedCase, fused: bool) -> Step:
    model = Model.open(exported.path, fused=fused, threads=exported.threads)
    rows = random_rows(exported.case.config, exported.case.batch_size, seed=2)
    return lambda work: torch.from_numpy(model.logits(rows))


def _by_onnxruntime(exported: ExportedCase) -> Step:
    try:
        runtime: Any = import_module("onnxruntime")
        import_module("onnx")
    except ImportError as error:
        raise AbsentError(f"{error.name} is not installed; pip install 'dqrm-cpu[export,verify]'") from error
    file, path = MappedFile(exported.path), exported.path.with_suffix(".onnx")
    write_onnx(file, read_description(file), path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = exported.threads
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def step(work: Work) -> Tensor:
        dense, ids = work.arrays
        return torch.from_numpy(session.run(["logits"], {"dense": dense, "ids": ids})[0])

    return step


def _by_torch(
    exported: ExportedCase, interact: Interact, quantize: Callable[[nn.Module], nn.Module] = lambda mlp: mlp
) -> Step:
    file = MappedFile(exported.path)
    model = torch_model(file, exported.case.config, exported.fp32_bags(file), interact, quantize)

    def step(work: Work) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(work)
        return logits

    return step


def torch_model(
    file: MappedFile,
    config: Config,
    bags: EmbeddingBags,
    interact: Interact,
    quantize: Callable[[nn.Module], nn.Module] = lambda mlp: mlp,
) -> TorchDlrm:
    """Builds the model of a file from PyTorch's modules, its layers in FP32."""
    network, shapes = PackedNetwork(file, read_description(file)), mlp_shapes(config)
    of_bottom, _, _, of_top = shapes.by_part(shapes.layers)
    bottom, top = (
        make_mlp(layers, [_parameters(layer) for layer in its], bits=32)
        for layers, its in ((of_bottom, network.bottom), (of_top, network.top))
    )
    return TorchDlrm(config, quantize(bottom), bags, interact, quantize(top)).eval()


def _dynamically_quantized(mlp: nn.Module) -> nn.Module:
    """Returns layers with INT8 weights, which round what they read by a scale for the batch."""
    quantization = torch.ao.quantization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to another package
        layers = {nn.Linear: quantization.per_channel_dynamic_qconfig}
        made: nn.Module = quantization.quantize_dynamic(mlp, layers)  # type: ignore[no-untyped-call]
    return made


def _parameters(layer: Layer) -> LayerParameters:
    assert isinstance(layer, AffineLayer)
    assert layer.bias is not None
    return LayerParameters(torch.from_numpy(layer.stored.floats()), torch.from_numpy(layer.bias.copy()))


def _floor(exported: ExportedCase) -> Step:
    _, network = exported.network()
    layers = [nn.Linear(one.description.inputs, one.description.outputs) for one in (*network.bottom, *network.top)]
    inputs = [torch.rand(exported.case.batch_size, layer.in_features) for layer in layers]
    outputs = [torch.empty(exported.case.batch_size, layer.out_features) for layer in layers]

    def step(work: Work) -> Tensor:
        with torch.inference_mode():
            for layer, x, y in zip(layers, inputs, outputs, strict=True):
                torch.addmm(layer.bias, x, layer.weight.t(), out=y)
        return outputs[-1][:, 0]

    return step


def _run(name: str, environment: RunEnvironment, observe: ProgressObserver) -> CaseResult:
    batch = _BATCHES[name]
    config = preset_config("kaggle")
    config = replace(config, train=replace(config.train, batch_size=batch))
    case = Case(name, f"Kaggle's tables and MLPs, {batch:,} rows at a time", config)
    case = quick(case) if environment.quick else case
    usual, threads = torch.get_num_threads(), 1 if batch == 1 else environment.threads
    torch.set_num_threads(threads)
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            observe(BenchProgress(name, "writing a model with random codes"))
            write_random_model(path, case.config)

            def groups(case: Case, shared: SharedTables) -> list[Group]:
                return score_groups(ExportedCase(path, case, shared, threads))

            return run_case(case, groups, (), environment.plan, observe)
    finally:
        torch.set_num_threads(usual)


_COMPARED = (
    ("fused_over_torch_fp32", "fused", "torch_fp32"),
    ("fused_over_torch_fp32_flat", "fused", "torch_fp32_flat"),
    ("fused_over_onnxruntime", "fused", "onnxruntime"),
    ("fused_over_numpy", "fused", "numpy"),
    ("int8_over_torch_fp32", "fused_int8", "torch_fp32"),
    ("int8_over_torch_int8", "fused_int8", "torch_int8"),
    ("int8_over_torch_int8_static", "fused_int8", "torch_int8_static"),
    ("int8_over_fused", "fused_int8", "fused"),
    ("fused_over_floor", "fused", "products_floor"),
    ("torch_fp32_over_floor", "torch_fp32", "products_floor"),
    ("raw_over_prepared", "raw_fused", "fused"),
)

SCORE = Benchmark(
    "score",
    tuple(_BATCHES),
    tuple(_BATCHES),
    _run,
    tuple(Ratio(key, "fp32", *names) for key, *names in _COMPARED),
    _NOTES,
    ("onnxruntime", "numba"),
)
