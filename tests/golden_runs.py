"""Small runs of this tree and of another commit, compared to the bit.

A change that is not meant to be numeric shows no difference.

python tests/golden_runs.py --against COMMIT

Both train on this machine, since matrix products round differently on others: FP32, BF16, INT4 with tracked and scanned
scales, learned scales, Adagrad, a wide scale, two simulated and two real ranks, a prepared data set, a resumed run, a
compressed one. Compared are the tensors of the last checkpoint and of the packed files, the rows of metrics.jsonl
without their times, and the bytes of prepared shards. Keys that only one side writes are named, and are no difference.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from tqdm import tqdm

from dqrm_cpu.base.hardware import fingerprint, has_bf16_products
from launching import clean_environ, mpirun_path

_ROOT = Path(__file__).parent.parent

_SMALL = (
    *("--data.train-rows", "3000", "--data.validation-rows", "1000", "--data.test-rows", "1000"),
    *("--model.table-rows", "40,3,500", "--model.embedding-dim", "16", "--model.bottom-mlp", "19,16"),
    *("--model.top-mlp", "21,1", "--train.epochs", "1", "--train.batch-size", "50", "--train.log-every", "10"),
    *("--train.threads", "1"),
)
RUNS: Mapping[str, Sequence[str]] = {
    "fp32": ("--quant.method", "none"),
    "bf16": ("--train.precision", "bf16"),
    "int4_track": ("--quant.scale-finder", "track", "--quant.scale-period", "1"),
    "int4_scan": ("--quant.scale-finder", "scan", "--quant.scale-period", "20"),
    "lsq": ("--quant.method", "lsq"),
    "adagrad": ("--train.optimizer", "rowwise-adagrad", "--train.learning-rate", "0.02"),
    "wide": ("--quant.step-width", "4", "--quant.mlp-bits", "32"),
    "torch": ("--kernels", "torch"),
    "simulated": ("--comm.simulated-ranks", "2", "--comm.wire", "int8"),
    "two_ranks": ("--comm.wire", "int8"),
    "resumed": ("--train.checkpoint-every", "7"),
}
"""Settings by the name of a run; `compressed` and `prepared` follow from others."""

_TIMES = ("_ms", "ms_", "per_second", "memory", "logged_at")
"""Parts of the names of metrics that no two runs share."""


def run_all(tree: Path, out: Path) -> dict[str, str]:
    """Trains everything with the code in `tree`; returns digests by name."""
    for name, settings in tqdm(RUNS.items(), desc=out.name, unit="run"):
        folder = out / name
        if name == "bf16" and not has_bf16_products(fingerprint().isa):
            print("bf16 is left out: this CPU has no instructions for it", file=sys.stderr)
            continue
        if name == "resumed":
            _dqrm(tree, "train", *_SMALL, *settings, "--train.max-steps", "31", "--run-dir", folder)
            _dqrm(tree, "train", "--run-dir", folder, "--resume", "auto", "--train.max-steps", "60")
        else:
            _dqrm(tree, "train", *_SMALL, *settings, "--run-dir", folder, ranks=2 if name == "two_ranks" else 1)
    _dqrm(tree, "compress", out / "fp32", "--out", out / "compressed")
    _dqrm(tree, "data", "generate", out / "raw.txt", "--rows", 4000)
    _dqrm(tree, "prepare", out / "raw.txt", "--format", "kaggle", "--out", out / "data")
    small = (*_SMALL[12:], "--model.embedding-dim", "16", "--model.bottom-mlp", "19,16", "--data.reshuffle", "true")
    _dqrm(tree, "train", "--data.source", out / "data", *small, "--run-dir", out / "prepared")
    return {name: digest for folder in sorted(out.iterdir()) if folder.is_dir() for name, digest in digests_in(folder)}


def _dqrm(tree: Path, *arguments: object, ranks: int = 1) -> None:
    launcher = [str(mpirun_path()), "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, "-m", "dqrm_cpu", *map(str, arguments)]
    environment = clean_environ({"PYTHONPATH": str(tree)})
    environment.pop("NUMBA_CACHE_DIR", None)  # chosen for this tree's sources
    done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")


def digests_in(folder: Path) -> list[tuple[str, str]]:
    """Names and digests of what a run or data set folder holds that two equal runs share."""
    found = [(f"{folder.name}/{path.name}", _sha256(path.read_bytes())) for path in sorted(folder.rglob("*.shard"))]
    for path in sorted(folder.rglob("*.safetensors")):
        if path.parent.name.startswith("step-") and path.parent != max(path.parent.parent.glob("step-*")):
            continue  # of checkpoints only the last stays on both sides for certain
        with safe_open(path, framework="np") as file:
            names = sorted(file.keys())
            where = f"{folder.name}/{path.relative_to(folder)}"
            found += [(f"{where}:{name}", _sha256(file.get_tensor(name).tobytes())) for name in names]
    metrics = folder / "metrics.jsonl"
    for number, line in enumerate(metrics.read_text().splitlines() if metrics.exists() else []):
        row = {key: value for key, value in json.loads(line).items() if not any(part in key for part in _TIMES)}
        found += [(f"{folder.name}/metrics.jsonl:{number}:{key}", repr(value)) for key, value in row.items()]
    return found


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def compare(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Names whose digests differ."""
    return [name for name in sorted(here.keys() & there.keys()) if here[name] != there[name]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", required=True, help="any name that git knows, such as main~1")
    commit = parser.parse_args().against
    with tempfile.TemporaryDirectory(prefix="golden-") as name:
        other, here, there = Path(name) / "tree", Path(name) / "here", Path(name) / "there"
        git = ["git", "-C", str(_ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(other), commit], check=True)
        try:
            for out in (here, there):
                out.mkdir()
            mine, theirs = run_all(_ROOT, here), run_all(other, there)
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
    different, alone = compare(mine, theirs), sorted({name.split(":")[-1] for name in mine.keys() ^ theirs.keys()})
    print(f"{len(mine.keys() & theirs.keys())} digests compared with {commit}: {len(different)} differ")
    for name in different[:40]:
        print(f"  {name}: {mine[name][:20]} here, {theirs[name][:20]} there")
    if alone:
        print(f"only on one side: {', '.join(alone)}")
    return 1 if different else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
