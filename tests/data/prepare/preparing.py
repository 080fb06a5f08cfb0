"""Runs preparations for the tests, and reads what came out."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dqrm_cpu.data.prepare.preparation import prepare
from dqrm_cpu.data.prepare.request import PrepareRequest, Resources, Settings, VocabularySettings
from dqrm_cpu.data.prepare.row_layout import CRITEO_LAYOUT, Layout
from dqrm_cpu.data.prepare.sources.raw_file import examine
from dqrm_cpu.data.store.manifest import Manifest, read_manifest


def request_for(
    sources: Sequence[str | Path],
    out: Path,
    layout: Layout = CRITEO_LAYOUT,
    workers: int = 2,
    block_bytes: int = 1 << 12,
    stdin: bytes = b"",
    vocabulary: VocabularySettings | None = None,
    memory_bytes: int = 0,
    **settings: Any,
) -> PrepareRequest:
    return PrepareRequest(
        sources=tuple(examine(str(source)) for source in sources),
        out=out,
        settings=Settings(layout, vocabulary=vocabulary or VocabularySettings(), **settings),
        resources=Resources(workers, memory_bytes, block_bytes),
        stdin=io.BytesIO(stdin),
        advance=lambda advance: None,
        note=lambda text: None,
    )


def prepared(sources: Sequence[str | Path], out: Path, **options: Any) -> Manifest:
    return prepare(request_for(sources, out, **options))


def rows_of(out: Path, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label [n], dense [n, D] and ids [n, T] of a part."""
    from dqrm_cpu.data.store.stored_rows import StoredRows  # with torch, which processes that only prepare do not need

    manifest = read_manifest(out)
    if not manifest.parts[part]:
        schema = manifest.schema
        return np.zeros(0), np.zeros((0, schema.num_dense), np.float32), np.zeros((0, schema.num_tables), np.int32)
    batch = StoredRows(out, manifest, part).rows(0, manifest.num_rows(part))
    return batch.label.numpy(), batch.dense.numpy(), batch.ids.numpy().T


def criteo_text(num_rows: int, seed: int = 1) -> str:
    """Lines in which categories come again, cells miss, and numbers are negative or large."""
    generator = np.random.default_rng(seed)
    lines = []
    for _ in range(num_rows):
        numbers = [str(int(x)) for x in np.round(np.exp(generator.normal(2, 3, 13))) - 2]
        values = (generator.pareto(0.7, 26) * 3).astype(np.int64) % 5000 * 2654435761 % 2**32
        cells = [*numbers, *(f"{value:08x}" for value in values)]
        gone = generator.random(39) < 0.2
        cells = ["" if empty else cell for cell, empty in zip(cells, gone, strict=True)]
        lines.append("\t".join([str(int(generator.random() < 0.3)), *cells]))
    return "\n".join(lines) + "\n"
