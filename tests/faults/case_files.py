"""What cases work on: a raw log, the data set prepared from it, a whole run, one that was killed, and their digests.

Built once per campaign in ROOT/case_files, by the commands of the command line; cases copy what they change.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from folders import files_of
from forked_commands import Lab
from injection import CHANGES, NAME, Fault
from outcomes import Done

PROCESS_FIELDS = frozenset(
    {"examples_per_second", "memory_bytes", "ms_per_step", "logged_at"}
    | {f"{phase}_ms" for phase in ("coalesce", "quantize", "wire", "wire_hidden", "merge", "mlp_exchange", "update")}
)
"""Fields of a metrics row that tell of the machine rather than of the model."""

MODEL = [
    *("--model.table-rows", ",".join(["600"] * 26), "--model.embedding-dim", "4", "--model.bottom-mlp", "6,4"),
    *("--model.top-mlp", "5,1", "--train.epochs", "1", "--train.batch-size", "40", "--train.test-batch-size", "200"),
    *("--train.max-steps", "12", "--train.checkpoint-every", "4", "--train.log-every", "2", "--train.threads", "1"),
    *("--train.evaluate-every", "6", "--quant.scale-period", "3"),
]
_ROWS, _BAD_EVERY = 800, 97
_COLD_S = 600.0  # the first commands compile kernels, which takes a minute, and more where cores are shared


class CaseFiles:
    """Paths of everything, and the digests that an undisturbed command leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.raw, self.raw_later = folder / "raw.txt", folder / "raw-later.txt"
        self.data, self.later = folder / "data", folder / "later"
        self.run, self.cut = folder / "run", folder / "cut"
        self._facts = folder / "facts.json"

    @property
    def facts(self) -> Mapping[str, Any]:
        """Calls that each command makes, by `COMMAND` (those that change something) and `COMMAND reads`."""
        facts: Mapping[str, Any] = json.loads(self._facts.read_text())
        return facts

    @property
    def dense(self) -> Path:
        return self.run / "packed" / "dense.safetensors"

    def prepare_arguments(self, out: Path) -> list[object]:
        """The command that made `data`."""
        options = ["--shard-rows", "150", "--bad-rows", "quarantine", "--min-count", "2", "--workers", "1"]
        return ["prepare", self.raw, "--format", "kaggle", "--out", out, *options]

    def train_arguments(self, run: Path, data: Path | None = None) -> list[object]:
        """The command that made `run`."""
        return ["train", "--preset", "demo", "--data", data or self.data, *MODEL, "--run-dir", run]

    def write_raw(self) -> None:
        """The raw logs alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, rows in ((self.raw, _ROWS), (self.raw_later, 60)):
            if not path.exists():  # a preparation knows its sources by their times, too
                path.write_text(raw_lines(rows, rows))

    def build(self, lab: Lab) -> None:
        """Makes everything else; a second call finds it."""
        stamp = _sources()
        if self._facts.exists() and self.facts["sources"] == stamp:
            return
        for path in (self.data, self.run, self.cut):
            shutil.rmtree(path, ignore_errors=True)
        _run(lab, *self.prepare_arguments(self.data))
        _run(lab, *self.train_arguments(self.run))
        self._kill_a_run(lab)
        facts: dict[str, object] = {"sources": stamp}
        for name, arguments in self.commands(lab.fresh()).items():
            self.before(name, lab.fresh())
            facts[name] = _run(lab, *arguments, fault=Fault(lab.fresh_folder, kinds=CHANGES)).calls
        self._facts.write_text(json.dumps(facts))

    def commands(self, folder: Path) -> dict[str, list[object]]:
        """Commands that write below `folder`, by name; `before` makes what they need."""
        return {
            "train": self.train_arguments(folder / "run"),
            "resume": [*self.train_arguments(folder / "run"), "--resume", "auto"],
            "prepare": self.prepare_arguments(folder / "data"),
            "export": ["compress", self.run, "--layout", "sparse", "--out", folder / "packed.safetensors"],
        }

    def before(self, name: str, folder: Path) -> None:
        """What a command finds."""
        if name == "resume":
            copy_tree(self.cut, folder / "run")

    def result(self, name: str, folder: Path) -> Any:
        """What a command has left below `folder`, without what differs from one undisturbed run to the next."""
        if name in ("train", "resume"):
            return run_result(folder / "run")
        return _data_set(folder / "data") if name == "prepare" else file_digest(folder / "packed.safetensors")

    def expected(self, name: str) -> Any:
        """`result` of an undisturbed run."""
        if name in ("train", "resume"):
            return run_result(self.run)
        return _data_set(self.data) if name == "prepare" else file_digest(self.folder / "packed.safetensors")

    def _kill_a_run(self, lab: Lab) -> None:
        """A run that ended between two of its checkpoints, as a killed one does."""
        names = _run(lab, *self.train_arguments(lab.fresh() / "run"), fault=Fault(lab.fresh_folder, kinds=NAME)).calls
        for number in range(names * 2 // 3, 0, -1):
            folder = lab.fresh()
            lab.command(*self.train_arguments(folder / "run"), fault=Fault(folder, number, "kill", NAME))
            if len(list((folder / "run" / "checkpoints").glob("step-*"))) == 2:
                break
        copy_tree(folder / "run", self.cut)
        _run(lab, *self.commands(self.folder)["export"])


def _sources() -> str:
    """Changes with the code that is tried: another version may leave other files."""
    found = hashlib.sha256()
    for path in sorted((Path(__file__).parent.parent.parent / "dqrm_cpu").rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def raw_lines(num_rows: int, seed: int) -> str:
    """Criteo's format, few categories, a row in a hundred that is bad."""
    generator = np.random.default_rng(seed)
    lines = []
    for number in range(num_rows):
        numbers = [str(int(x)) for x in np.round(np.exp(generator.normal(2, 2, 13))) - 1]
        values = (generator.pareto(0.9, 26) * 3).astype(np.int64) % 300 * 2654435761 % 2**32
        cells = [*numbers, *(f"{value:08x}" for value in values)]
        cells = ["" if gone else cell for cell, gone in zip(cells, generator.random(39) < 0.1, strict=True)]
        lines.append("\t".join([str(int(generator.random() < 0.3)), *cells]))
        if number % _BAD_EVERY == 50:
            lines.append(f"bad line {number}")
    return "\n".join(lines) + "\n"


def run_result(run: Path) -> list[Any]:
    """Last weights, everything that a checkpoint keeps beside them, logged metrics, result and packed files."""
    newest = max(path for path in (run / "checkpoints").iterdir() if path.name.startswith("step-"))
    state = json.loads((newest / "state.json").read_text())["body"]["state"]
    state.pop("log", None)  # the checksum of a log that holds times
    shards = [file_digest(path) for path in sorted(newest.glob("*.safetensors"))]
    result = json.loads((run / "result.json").read_text())
    kept = {key: result[key] for key in ("steps", "best_step", "validation", "test", "model_bytes")}
    packed = {path.name: file_digest(path) for path in sorted((run / "packed").glob("*.safetensors"))}
    found: list[Any] = json.loads(json.dumps([shards, state, metrics_rows(run), kept, packed]))
    return found


def metrics_rows(run: Path) -> list[dict[str, object]]:
    """Every row of metrics.jsonl without what tells of the machine."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in PROCESS_FIELDS} for row in rows]


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _data_set(folder: Path) -> object:
    """Every file that a finished preparation keeps; a killed one may have left its lock."""
    return files_of(folder, without="lock")


def copy_tree(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def _run(lab: Lab, *arguments: object, fault: Fault | None = None) -> Done:
    done = lab.command(*arguments, fault=fault, timeout_s=_COLD_S)
    if done.status != 0:
        raise RuntimeError(f"{arguments} ended with {done.status}:\n{done.out}\n{done.err}")
    return done
