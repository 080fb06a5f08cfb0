"""What a program reads of each kind of file, as a digest: two digests are equal where everything read is equal.

Every function runs in a child, which raises what the package raises.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch


def digest_of(parts: Iterable[Any]) -> str:
    """Of arrays, tensors and plain values, each with its kind and shape."""
    found = hashlib.sha256()
    for part in parts:
        array = part.detach().numpy() if isinstance(part, torch.Tensor) else part
        if isinstance(array, np.ndarray):
            found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        else:
            found.update(json.dumps(array, sort_keys=True, default=str).encode())
    return found.hexdigest()


def load_modules() -> None:
    """Imports what the readers need, so that no child has to."""
    import dqrm_cpu.cli.compress
    import dqrm_cpu.cli.data
    import dqrm_cpu.cli.evaluate
    import dqrm_cpu.cli.prepare
    import dqrm_cpu.cli.train
    import dqrm_cpu.data.prepare.preparation
    import dqrm_cpu.data.store.stored_rows
    import dqrm_cpu.export.read
    import dqrm_cpu.report.build
    import dqrm_cpu.train.run  # noqa: F401


def data_set(folder: Path) -> str:
    """Reads every row of every part, and the manifest."""
    from dqrm_cpu.data.store.manifest import PART_NAMES, read_manifest
    from dqrm_cpu.data.store.stored_rows import StoredRows

    manifest = read_manifest(folder)
    parts: list[Any] = [asdict(manifest)]
    for part in PART_NAMES:
        if manifest.num_rows(part):
            batch = StoredRows(folder, manifest, part).rows(0, manifest.num_rows(part))
            parts += [batch.dense, batch.ids, batch.label]
    return digest_of(parts)


def usable_rows(folder: Path) -> str:
    """`data_set`, and an AssertionError where kernels would follow an id beyond its table.

    Labels and dense values are checked where they enter a model.
    """
    from dqrm_cpu.data.store.manifest import PART_NAMES, read_manifest
    from dqrm_cpu.data.store.stored_rows import StoredRows

    manifest = read_manifest(folder)
    for part in PART_NAMES:
        rows = manifest.num_rows(part)
        if not rows:
            continue
        batch = StoredRows(folder, manifest, part).rows(0, rows)
        ids = batch.ids.numpy()
        assert batch.dense.shape == (rows, manifest.schema.num_dense)
        assert ids.shape == (manifest.schema.num_tables, rows)
        assert (ids >= 0).all()
        assert (ids < np.asarray(manifest.table_rows)[:, None]).all()
    return data_set(folder)


def vocabulary(folder: Path) -> str:
    """Its keys, names and settings."""
    from dqrm_cpu.data.prepare.vocabulary.saved_vocabulary import load_vocabulary

    saved = load_vocabulary(folder)
    return digest_of([saved.names, saved.max_ind_range, *saved.keys])


def checkpoint(folder: Path, shapes: dict[str, tuple[str, list[int]]]) -> str:
    """Tensors of a model whose names, types and shapes are known, and the state."""
    from dqrm_cpu.train.checkpoint_files import load_checkpoint
    from dqrm_cpu.train.state import RunState

    into = {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in shapes.items()}
    state = load_checkpoint(folder, into)
    return digest_of([*into.values(), RunState.from_dict(state).as_dict()])


def config(path: Path) -> str:
    """All settings."""
    from dqrm_cpu.config.load import load_config

    return load_config(None, path, {}).to_toml()


def packed(path: Path, config_file: Path) -> str:
    """The weights that a packed model stands for."""
    from dqrm_cpu.config.load import load_config
    from dqrm_cpu.export.read import load_packed
    from dqrm_cpu.model.dlrm import Dlrm
    from dqrm_cpu.train.session import load_kernels

    settings, device = load_config(None, config_file, {}), torch.device("cpu")
    model = Dlrm(settings, load_kernels(settings, device), device)
    for weight in model.weights().values():
        weight.zero_()
    load_packed(path, model, settings.quant)
    return digest_of(model.weights().values())


def report(run: Path, page: Path) -> str:
    """The metrics of a run, after its report was made, which reads everything that a run leaves."""
    from dqrm_cpu.report.build import build_report
    from dqrm_cpu.report.run_files import read_runs

    build_report([run], page, None)
    (files,) = read_runs([run])
    result = files.result or {}
    rows = [row.to_json() for row in files.rows]
    return digest_of([{key: result.get(key) for key in ("steps", "best_step", "validation", "test")}, rows])
