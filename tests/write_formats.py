"""Writes anew what tests/formats holds of a version: a data set, two runs, packed files, and what that version scored.

    python tests/write_formats.py COMMIT
    python tests/write_formats.py COMMIT --bands-of EARLIER

The second exports a run that an earlier version wrote, which is there, as a file in bands.
The code of that commit does all of it, so that later versions can show that they still read its files. Rows are drawn
here, from nobody's data. Everything happens in one folder of a fixed, neutral path, since files record where they were;
the name of the host is taken out.
"""

import argparse
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from launching import clean_environ

FORMATS = Path(__file__).parent / "formats"
_WORK = Path("/tmp/dqrm-formats")

_NUM_ROWS = 720
_SIZES = (40, 24, 9, 7)

_TRAIN = (
    *("--data", "data", "--data.reshuffle", "true", "--model.embedding-dim", "8", "--model.bottom-mlp", "10,8"),
    *("--model.top-mlp", "12,1", "--train.epochs", "1", "--train.batch-size", "24", "--train.log-every", "4"),
    *("--train.threads", "1"),
)
RUNS = {
    "dqrm": (
        *("--quant.method", "dqrm", "--train.optimizer", "rowwise-adagrad", "--train.learning-rate", "0.05"),
        *("--comm.simulated-ranks", "2", "--comm.wire", "int8", "--comm.mlp-gradients", "int8"),
        *(
            "--comm.error-feedback",
            "all",
            "--train.checkpoint-every",
            "12",
            "--train.evaluate-every",
            "12",
            "--train.max-steps",
            "24",
        ),
    ),
    "lsq": ("--quant.method", "lsq", "--quant.mlp-bias-bits", "8", "--train.max-steps", "16"),
}
"""Settings by the name of a run."""

_LEFT_OUT = ("lsq/packed/sparse.safetensors", "lsq/spans/rank0.json")
"""Files that show no more than those of the other run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", metavar="COMMIT", help="the version that writes; its files go to a folder named so")
    parser.add_argument("--bands-of", metavar="EARLIER", help="only a file in bands, of a run that this commit wrote")
    args = parser.parse_args()
    commit, earlier = args.commit, args.bands_of
    shutil.rmtree(_WORK, ignore_errors=True)
    _WORK.mkdir()
    try:
        _unpack(commit)
        if earlier is None:
            _write()
        else:
            _write_bands(FORMATS / earlier)
        out = FORMATS / (commit if earlier is None else f"bands-{commit}-of-{earlier}")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(_WORK / "made", out, ignore=shutil.ignore_patterns(".*", "cache"))
    finally:
        shutil.rmtree(_WORK)
    print(f"{out}: {sum(path.stat().st_size for path in out.rglob('*') if path.is_file()):,} bytes")


def _unpack(commit: str) -> None:
    archive = subprocess.run(["git", "archive", commit], cwd=Path(__file__).parent.parent, capture_output=True)
    archive.check_returncode()
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(_WORK / "tree", filter="fully_trusted")  # its links are ours


def _write_bands(earlier: Path) -> None:
    made, run = _WORK / "made", _WORK / "earlier"
    made.mkdir()
    shutil.copytree(earlier, run)
    file = "model.safetensors"
    _dqrm("export", str(run / "dqrm"), "--data", str(run / "data"), "--budget", "7000", "--out", file)
    scores = _metrics("evaluate", file, "--data", str(run / "data"), "--json")
    (made / "scored.json").write_text(json.dumps(scores, indent=1) + "\n")


def _write() -> None:
    made = _WORK / "made"
    made.mkdir()
    _write_raw(_WORK / "raw.tsv")
    shutil.copy(FORMATS / "schema.toml", _WORK)
    prepared = ("--schema", "../schema.toml", "--min-count", "2", "--shard-rows", "400", "--workers", "1")
    _dqrm("prepare", "../raw.tsv", *prepared, "--out", "data")
    scores: dict[str, Any] = {}
    for name, settings in RUNS.items():
        _dqrm("train", *_TRAIN, *settings, "--run-dir", name)
        _forget_host(made / name / "environment.json")
        for left_out in _LEFT_OUT:
            (made / left_out).unlink(missing_ok=True)
        for which in ("best", "last"):
            scores[f"{name}:{which}"] = _metrics("evaluate", "--run-dir", name, "--checkpoint", which, "--json")
        for file in sorted((made / name / "packed").iterdir()):
            scores[f"{name}/packed/{file.name}"] = scores[f"{name}:best"]
    rowwise = "dqrm/compressed/rowwise.safetensors"
    scores[rowwise] = _metrics("compress", "dqrm", "--layout", "rowwise", "--out", rowwise, "--json")
    (made / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")


def _write_raw(path: Path) -> None:
    """Clicks that depend on the categories, with a long tail of them, and some missing fields."""
    draw = random.Random(7)
    weights = [[draw.gauss(0, 1) for _ in range(size)] for size in _SIZES]
    with path.open("w", encoding="ascii") as file:
        for _ in range(_NUM_ROWS):
            numbers = [draw.randrange(18, 80), int(draw.expovariate(0.2)), draw.randrange(24)]
            categories = [min(int(draw.expovariate(3 / size)), size - 1) for size in _SIZES]
            logit = sum(own[one] for own, one in zip(weights, categories, strict=True)) - numbers[1] / 8
            click = int(draw.random() < 1 / (1 + 2.718281828 ** -(logit - 0.5)))
            words = [f"{name}{one}" for name, one in zip("sapw", categories, strict=True)]
            fields = [text if draw.random() < 0.97 else "" for text in [*map(str, numbers), *words]]
            file.write("\t".join([str(click), *fields]) + "\n")


def _dqrm(*arguments: str) -> str:
    """What a command of that version prints; this one ends where it fails."""
    command = [sys.executable, "-m", "dqrm_cpu", *arguments]
    environment = clean_environ({"PYTHONPATH": str(_WORK / "tree"), "XDG_CACHE_HOME": str(_WORK / "cache")})
    done = subprocess.run(command, env=environment, cwd=_WORK / "made", capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _metrics(*arguments: str) -> dict[str, float]:
    found = json.loads(_dqrm(*arguments))
    return {name: found[name] for name in ("examples", "auc", "accuracy", "log_loss", "calibration")}


def _forget_host(path: Path) -> None:
    document = json.loads(path.read_text())
    for rank in document["ranks"]:
        rank["host"] = "host"
    path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
