"""The comparison of golden runs sees a changed weight, a changed metric and a changed shard, and nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from golden_runs import compare, digests_in


def a_run(folder: Path, weight: float = 1.0, loss: float = 0.5, shard: bytes = b"rows") -> dict[str, str]:
    last = folder / "checkpoints" / "step-000000002"
    last.mkdir(parents=True)
    (folder / "checkpoints" / "step-000000001").mkdir()
    save_file({"tables": np.full(3, weight)}, last / "shard-00000.safetensors")
    (folder / "metrics.jsonl").write_text(json.dumps({"loss": loss, "scale_ms": id(last)}) + "\n")
    (folder / "0.shard").write_bytes(shard)
    return dict(digests_in(folder))


def test_only_what_differs_is_told(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {}, {"weight": 2.0}, {"loss": 0.6}, {"shard": b"row"}]
    runs = [a_run(tmp_path / str(number) / "run", **change) for number, change in enumerate(changes)]
    same, again, *changed = runs
    assert compare(same, again) == []
    assert [[name.split("/")[-1] for name in compare(same, other)] for other in changed] == [
        ["shard-00000.safetensors:tables"],
        ["metrics.jsonl:0:loss"],
        ["0.shard"],
    ]
