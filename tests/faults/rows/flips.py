"""Bit flips and truncations of every kind of file: what is read is the same, or the file is refused."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import readers
from case_files import CaseFiles, copy_tree
from forked_commands import Lab
from outcomes import ACCEPTED, SAME, WRONG, Done, Verdict, verdict_of
from row import Row, nominal

_PLACES = 1000


def damage(content: bytes, how: str, random_: random.Random) -> bytes:
    """One bit flipped, or the end cut off at a place of its own."""
    place = random_.randrange(len(content))
    if how == "truncation":
        return content[:place]
    flipped = bytearray(content)
    flipped[place] ^= 1 << random_.randrange(8)
    return bytes(flipped)


def _case_folder(lab: Lab, name: str, source: Path) -> Path:
    """A copy that stays between cases, each of which puts back what it changed."""
    folder = lab.root / f"{lab.fresh_folder.name}-{name}"
    if not folder.exists():
        copy_tree(source, folder)
    return folder


def _read(
    lab: Lab, source: Path, path: Path, content: bytes, read: Callable[[], str], expected: str, what: str
) -> Verdict:
    whole = path.read_bytes()
    try:
        path.write_bytes(content)
        done = lab.call(read)
    finally:
        path.write_bytes(whole)
    return verdict_of(what, done, done.out.endswith(json.dumps(expected) + "\n"))


class _Expected:
    """What is read of whole files, computed once per worker and kind."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def of(self, lab: Lab, name: str, read: Callable[[], str]) -> str:
        if name not in self._found:
            done = lab.call(read)
            assert done.status == 0, done.err
            self._found[name] = json.loads(done.out.splitlines()[-1])
        return self._found[name]


_EXPECTED = _Expected()


def _in_data(lab: Lab, random_: random.Random, how: str, pattern: str, kind: str) -> Verdict:
    folder = _case_folder(lab, "data", CaseFiles(lab.case_files).data)
    read = partial(readers.vocabulary if kind == "vocabulary" else readers.data_set, folder)
    expected = _EXPECTED.of(lab, f"data {kind}", read)
    path = random_.choice(sorted(folder.glob(pattern)))
    return _read(lab, folder, path, damage(path.read_bytes(), how, random_), read, expected, f"{how} in {path.name}")


def _in_checkpoint(lab: Lab, random_: random.Random, how: str, pattern: str, kind: str) -> Verdict:
    run = _case_folder(lab, "run", CaseFiles(lab.case_files).run)
    folder = max((run / "checkpoints").glob("step-*"))
    body = json.loads((max((lab.case_files / "run" / "checkpoints").glob("step-*")) / "state.json").read_text())["body"]
    read = partial(readers.checkpoint, folder, body["tensors"])
    expected = _EXPECTED.of(lab, "checkpoint", read)
    path = random_.choice(sorted(folder.glob(pattern)))
    return _read(lab, folder, path, damage(path.read_bytes(), how, random_), read, expected, f"{how} in {path.name}")


def _in_config(lab: Lab, random_: random.Random, how: str, pattern: str, kind: str) -> Verdict:
    """Reading is enough where it refuses or finds the same settings; other settings must not go on with the run."""
    case_files = CaseFiles(lab.case_files)
    folder = _case_folder(lab, "run", case_files.run)
    path = folder / "config.toml"
    content = damage(path.read_bytes(), how, random_)
    expected = _EXPECTED.of(lab, "config", partial(readers.config, path))
    verdict = _read(lab, folder, path, content, partial(readers.config, path), expected, f"{how} in config.toml")
    if verdict.outcome != WRONG:
        return verdict
    copy = lab.fresh() / "run"
    copy_tree(case_files.cut, copy)
    (copy / "config.toml").write_bytes(content)
    done = lab.command("train", "--run-dir", copy, "--resume", "auto")
    good = done.status == 0 and case_files.result("train", copy.parent) == case_files.expected("train")
    resumed = verdict_of(f"{verdict.what}, train --resume auto", done, good)
    if resumed.outcome == WRONG and "settings are not those of" in done.err:
        return resumed._replace(outcome=ACCEPTED)  # it said what is different and who told it to
    if resumed.outcome == WRONG or resumed.outcome not in (SAME, "refused"):
        return resumed
    return _evaluated(lab, folder, path, content, f"{verdict.what}, evaluate")


def _evaluated(lab: Lab, run: Path, path: Path, content: bytes, what: str) -> Verdict:
    """`evaluate` with a damaged file gives the metrics that it gives with the whole one, or refuses."""

    def metrics(done: Done) -> object:
        return [(k, v) for k, v in json.loads(done.out).items() if k != "checkpoint"] if done.status == 0 else None

    arguments = ["evaluate", "--run-dir", run, "--json"]
    whole = path.read_bytes()
    expected = metrics(lab.command(*arguments))
    try:
        path.write_bytes(content)
        done = lab.command(*arguments)
    finally:
        path.write_bytes(whole)
    return verdict_of(what, done, metrics(done) == expected)


def _in_metrics(lab: Lab, random_: random.Random, how: str, pattern: str, kind: str) -> Verdict:
    """A run goes on whatever its log has lost; rows may be missing or another if that is said."""
    case_files = CaseFiles(lab.case_files)
    folder = lab.fresh() / "run"
    copy_tree(case_files.cut, folder)
    path = folder / "metrics.jsonl"
    content = damage(path.read_bytes(), how, random_)
    path.write_bytes(content)
    what = f"{how} in metrics.jsonl, train --resume auto"
    done = lab.command("train", "--run-dir", folder, "--resume", "auto")
    if done.status != 0:
        return verdict_of(what, done)
    found, expected = case_files.result("train", folder.parent), case_files.expected("train")
    rows, all_rows = found[2], expected[2]
    is_reported = "metrics.jsonl" in done.err
    good = [*found[:2], *found[3:]] == [*expected[:2], *expected[3:]]
    verdict = verdict_of(what, done, good and (is_reported or rows == all_rows))
    if verdict.outcome == SAME and rows != all_rows:
        return verdict._replace(outcome=ACCEPTED)
    if verdict.outcome == WRONG:
        lost, others = ([row for row in a if row not in b] for a, b in ((all_rows, rows), (rows, all_rows)))
        return verdict._replace(detail=f"lost {lost}, others {others}\n{done.err[-1500:]}")
    return verdict


def _in_packed(lab: Lab, random_: random.Random, how: str, pattern: str, kind: str) -> Verdict:
    run = _case_folder(lab, "run", CaseFiles(lab.case_files).run)
    path = random_.choice(sorted((run / "packed").glob(pattern)))
    read = partial(readers.packed, path, run / "config.toml")
    expected = _EXPECTED.of(lab, path.name, read)
    return _read(lab, run, path, damage(path.read_bytes(), how, random_), read, expected, f"{how} in {path.name}")


def _in_report(lab: Lab, random_: random.Random, how: str, pattern: str, kind: str) -> Verdict:
    run = _case_folder(lab, "run", CaseFiles(lab.case_files).run)
    read = partial(readers.report, run, lab.root / f"{lab.fresh_folder.name}.html")
    expected = _EXPECTED.of(lab, "report", read)
    path = random_.choice(sorted(run.glob(pattern)))
    what = f"{how} in {path.relative_to(run)}, report"
    return _read(lab, run, path, damage(path.read_bytes(), how, random_), read, expected, what)


_KINDS = {
    "shard": (_in_data, "*.shard*"),
    "manifest": (_in_data, "manifest.json"),
    "vocabulary": (_in_data, "vocabulary/*"),
    "checkpoint shard": (_in_checkpoint, "*.safetensors"),
    "state.json": (_in_checkpoint, "state.json"),
    "config.toml": (_in_config, "config.toml"),
    "metrics.jsonl": (_in_metrics, "metrics.jsonl"),
    "packed file": (_in_packed, "*.safetensors"),
    "result.json": (_in_report, "result.json"),
    "spans": (_in_report, "spans/*.json"),
}
"""Every kind of file but the kernel cache, with how it is read and which files they are."""


def _flip(lab: Lab, random_: random.Random, number: int) -> Verdict:
    kind = tuple(_KINDS)[number % len(_KINDS)]
    how = ("flip", "truncation")[number // len(_KINDS) % 2]
    tried, pattern = _KINDS[kind]
    return tried(lab, random_, how, pattern, kind)._replace(group=f"{kind}, {how}")


_ALL = 2 * _PLACES * len(_KINDS)

ROWS = (
    Row(
        "flips",
        "Bit flips and truncations",
        f"a bit flipped at {_PLACES:,} places and the end cut off at {_PLACES:,} places of every kind of file: "
        f"{', '.join(_KINDS)}; then whatever reads the file",
        _ALL,
        _flip,
        nominal(_ALL),
        sample=len(_KINDS),
    ),
)
