"""Inputs that are not what they were or not what they should be: settings, data, NaN, raw lines, memory and disk."""

import json
import random
import resource
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

import forge
from case_files import CaseFiles, copy_tree, run_result
from forked_commands import Lab
from outcomes import ACCEPTED, REFUSED, SAME, WRONG, Verdict, verdict_of
from row import Row, nominal

_CHANGES = (
    *(("--train.batch-size", "41"), ("--seed", "7"), ("--quant.scale-period", "4"), ("--model.embedding-dim", "8")),
    *(("--train.learning-rate", "0.2"), ("--train.optimizer", "rowwise-adagrad"), ("--quant.method", "lsq")),
    *(("--quant.embedding-bits", "8"), ("--quant.method", "none"), ("--train.warmup-steps", "5")),
    *(("--model.table-rows", ",".join(["700"] * 26)), ("--model.top-mlp", "6,1"), ("--kernels", "torch")),
    *(("--comm.simulated-ranks", "2"), ("--train.log-every", "3"), ("--train.keep-checkpoints", "1")),
    *(("--data.reshuffle", "true"), ("--data.train-rows", "300"), ("--quant.rounding", "stochastic")),
)


def _resumed(lab: Lab, run: Path, what: str, *options: object) -> Verdict:
    """A resumed run has the result of the undisturbed one, or is refused, or says what is different."""
    case_files = CaseFiles(lab.case_files)
    done = lab.command("train", "--run-dir", run, "--resume", "auto", *options)
    if done.status != 0:
        return verdict_of(what, done)
    if case_files.result("train", run.parent) == case_files.expected("train"):
        return verdict_of(what, done, good=True)
    key = str(options[0]).removeprefix("--") if options else "config.toml"
    is_named = any(name in done.err for name in (key, key.replace("-", "_"), key.rpartition(".")[2].replace("-", "_")))
    # Whoever asks for another setting gets another run, if what is different is told.
    return (
        verdict_of(what, done, good=is_named)._replace(outcome=ACCEPTED)
        if is_named
        else verdict_of(what, done, good=False)
    )


def _other_option(lab: Lab, random_: random.Random, run: Path) -> Verdict:
    option, value = random_.choice(_CHANGES)
    return _resumed(lab, run, f"resume with {option} {value[:20]}", option, value)


def _other_file(lab: Lab, random_: random.Random, run: Path) -> Verdict:
    """config.toml without some of its lines, or cut at the end of one."""
    path = run / "config.toml"
    lines = path.read_text().splitlines(keepends=True)
    at = random_.randrange(len(lines))
    if random_.random() < 0.5:
        path.write_text("".join(lines[:at]))
        return _resumed(lab, run, f"config.toml cut behind line {at}")
    path.write_text("".join(lines[:at] + lines[at + 1 :]))
    return _resumed(lab, run, f"config.toml without {lines[at].strip()!r}")


def _other_data(lab: Lab, random_: random.Random, run: Path) -> Verdict:
    """The same rows in reverse: another vocabulary."""
    case_files, folder = CaseFiles(lab.case_files), run.parent
    raw = folder / "reversed.txt"
    raw.write_text("".join(reversed(case_files.raw.read_text().splitlines(keepends=True))))
    prepared = lab.command(*case_files.prepare_arguments(folder / "other")[:1], raw, *_behind_raw(case_files, folder))
    if prepared.status != 0:
        return verdict_of("prepare the reversed rows", prepared)
    use = random_.choice(("resume", "evaluate", "export"))
    copy_tree(case_files.run, folder / "whole")
    commands = {
        "resume": ["train", "--run-dir", run, "--resume", "auto"],
        "evaluate": ["evaluate", "--run-dir", folder / "whole"],
        "export": ["compress", folder / "whole"],
    }
    done = lab.command(*commands[use], "--data", folder / "other")
    return verdict_of(f"{use} with another vocabulary", done, good=False)


def _behind_raw(case_files: CaseFiles, folder: Path) -> list[object]:
    return case_files.prepare_arguments(folder / "other")[2:]


def _other_code(lab: Lab, random_: random.Random, run: Path) -> Verdict:
    """Changes the recorded code, as if another version had begun the run."""
    path = run / "environment.json"
    document = json.loads(path.read_text())
    document["dqrm_cpu"] = random_.choice(("0.0.1", "99.0", ""))
    path.write_text(json.dumps(document))
    return _resumed(lab, run, f"begun by version {document['dqrm_cpu']!r}")


def _different(lab: Lab, random_: random.Random, number: int) -> Verdict:
    tried = (_other_option, _other_file, _other_data, _other_option, _other_file, _other_code)[number % 6]
    run = lab.fresh() / "run"
    copy_tree(CaseFiles(lab.case_files).cut, run)
    return tried(lab, random_, run)._replace(group=tried.__name__.strip("_").replace("_", " "))


_BAD = tuple(np.float32(value) for value in (np.nan, np.inf, -np.inf))


def _poison_shard(random_: random.Random, data: Path, part: str, section: int, values: tuple[object, ...]) -> str:
    """Puts a value into a section of a shard and makes all checksums anew."""
    from dqrm_cpu.data.store.layout import HEADER, SECTION

    path = random_.choice(sorted(data.glob(f"{part}-*.shard")))
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    fixed = content[: HEADER.itemsize].view(HEADER)
    tables, blocks = int(fixed["num_tables"][0]), int(fixed["num_blocks"][0])
    start = HEADER.itemsize + tables * 8
    sections = content[start : start + blocks * 3 * SECTION.itemsize].view(SECTION).reshape(blocks, 3)
    where = sections[random_.randrange(blocks), section]
    begin, size = int(where["offset"]), int(where["bytes"])
    value = np.asarray(random_.choice(values))
    at = begin + random_.randrange(size // value.itemsize) * value.itemsize
    content[at : at + value.itemsize] = np.frombuffer(value.tobytes(), np.uint8)
    where["crc32"] = zlib.crc32(content[begin : begin + size].tobytes())
    forge._seal(path, content, int(fixed["header_bytes"][0]))
    return f"{value} in section {section} of {path.name}"


def _in_rows(lab: Lab, random_: random.Random, section: int, values: tuple[object, ...]) -> Verdict:
    """Dense values, labels or ids of any part; rows that the run never reads change nothing."""
    case_files, folder = CaseFiles(lab.case_files), lab.fresh()
    copy_tree(case_files.data, folder / "data")
    part = random_.choice(("train", "train", "validation", "test"))
    what = _poison_shard(random_, folder / "data", part, section, values)
    policy = random_.choice((["--train.on-bad-batch", "skip"], []))
    done = lab.command(*case_files.train_arguments(folder / "run", folder / "data"), *policy)
    what = f"{what}, {' '.join(policy) or 'train'}"
    if done.status != 0:
        return verdict_of(what, done)
    ours, whole = case_files.result("train", folder), case_files.expected("train")
    same = [ours[0], ours[3]["validation"], ours[3]["test"]] == [whole[0], whole[3]["validation"], whole[3]["test"]]
    if not same and policy and ("left out" in done.err or "skipped" in done.err):
        return Verdict(ACCEPTED, what)
    return verdict_of(what, done, same)


def _in_dense(lab: Lab, random_: random.Random) -> Verdict:
    return _in_rows(lab, random_, 1, _BAD)


def _in_labels(lab: Lab, random_: random.Random) -> Verdict:
    return _in_rows(lab, random_, 0, tuple(np.uint8(value) for value in (2, 7, 128, 255)))


def _in_ids(lab: Lab, random_: random.Random) -> Verdict:
    return _in_rows(lab, random_, 2, tuple(np.uint16(value) for value in (60_000, 65_535)))


def _in_weights(lab: Lab, random_: random.Random) -> Verdict:
    """Weights or scales in a checkpoint, whose checksums fit."""
    import torch
    from safetensors.torch import load_file, save_file

    run = lab.fresh() / "run"
    copy_tree(CaseFiles(lab.case_files).run, run)
    folder = max((run / "checkpoints").glob("step-*"))
    path = random_.choice(sorted(folder.glob("*.safetensors")))
    tensors = load_file(path)
    name = random_.choice(sorted(tensors))
    flat = tensors[name].view(-1)
    flat[random_.randrange(flat.numel())] = torch.tensor(float(random_.choice(_BAD)))
    save_file(tensors, path)
    forge.adopt_shard(folder, path.name)
    commands = {
        "evaluate": ["evaluate", "--run-dir", run, "--checkpoint", "last", "--json"],
        "export": ["compress", run, "--checkpoint", "last"],
        "resume": ["train", "--run-dir", run, "--resume", "auto", "--train.max-steps", "14"],
    }
    use = random_.choice(tuple(commands))
    what, done = f"a bad value in {name}, {use}", lab.command(*commands[use])
    if done.status != 0:
        return verdict_of(what, done)
    # What is derived anew (scales are found from the weights) may have been anything.
    found = run_result(run) if use == "resume" else done.out
    copy_tree(CaseFiles(lab.case_files).run, run)
    whole = lab.command(*commands[use])
    return verdict_of(what, done, found == (run_result(run) if use == "resume" else whole.out))


def _in_packed(lab: Lab, random_: random.Random) -> Verdict:
    """Floats of a packed file, with checksums made anew by reading nothing else than its header."""
    import readers

    run = lab.fresh() / "run"
    copy_tree(CaseFiles(lab.case_files).run, run)
    path = random_.choice(sorted((run / "packed").glob("*.safetensors")))
    name = forge.poison_packed(path, random_)
    done = lab.call(lambda: readers.packed(path, run / "config.toml"))
    return verdict_of(f"a bad value in {name} of {path.name}", done, good=False)


_POISONS: tuple[Callable[[Lab, random.Random], Verdict], ...] = (
    *(_in_dense, _in_dense, _in_labels, _in_ids),
    *(_in_weights, _in_weights, _in_packed),
)


def _nan(lab: Lab, random_: random.Random, number: int) -> Verdict:
    tried = _POISONS[number % len(_POISONS)]
    return tried(lab, random_)._replace(group=tried.__name__.strip("_").replace("_", " "))


def _raw(lab: Lab, random_: random.Random, number: int) -> Verdict:
    """A nasty file of the generator of tests/data/prepare, against an oracle that knows nothing of the package."""
    tests = Path(__file__).parent.parent.parent / "data" / "prepare"
    if str(tests) not in sys.path:
        sys.path.insert(0, str(tests))
    seed, folder = random_.randrange(1 << 30), lab.fresh()

    def prepared() -> str:
        from nasty_rows import nasty_case, require_case

        return require_case(nasty_case(seed), folder)

    done = lab.call(prepared)
    if "AssertionError" in done.err:
        return Verdict(WRONG, f"nasty_case({seed})", done.err[-3000:])
    verdict = verdict_of(f"nasty_case({seed})", done, good=True)
    return verdict._replace(outcome=REFUSED) if done.out.endswith('"error"\n') else verdict


def _limited(lab: Lab, random_: random.Random, number: int) -> Verdict:
    """A command within a limit of the system, and then without."""
    case_files, folder = CaseFiles(lab.case_files), lab.fresh()
    name = random_.choice(("train", "resume", "prepare", "export"))
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    kind, value = (
        (resource.RLIMIT_AS, virtual + random_.randrange(0, 400 << 20)),
        # Standard output and error are files, too, of a few kilobytes.
        (resource.RLIMIT_FSIZE, random_.randrange(1 << 14, 400_000)),
        (resource.RLIMIT_NOFILE, random_.randrange(3, 40)),
    )[number % 3]
    label = ("address space", "file size", "open files")[number % 3]
    case_files.before(name, folder)
    done = lab.command(*case_files.commands(folder)[name], limits={kind: value})
    what = f"{name}: {label} at most {value:,}"
    verdict = verdict_of(what, done, done.status == 0 and case_files.result(name, folder) == case_files.expected(name))
    if verdict.outcome != REFUSED:
        return verdict._replace(group=label)
    again = lab.command(*case_files.commands(folder)["resume" if name == "train" else name])
    good = again.status == 0 and case_files.result(name, folder) == case_files.expected(name)
    second = verdict_of(f"{what}, then without", again, good)
    return (verdict if second.outcome == SAME else second)._replace(group=label)


ROWS = (
    Row(
        "different",
        "Different configuration, data or code",
        "resume, evaluate and export with another setting on the command line, a config.toml that lost lines or its "
        "end, the same rows with another vocabulary, an environment of another version",
        300,
        _different,
        nominal(300),
        sample=2,
    ),
    Row(
        "nan",
        "NaN, infinity, impossible values",
        "in dense values, labels and ids of every part, in checkpointed weights and scales, in a packed file's scales; "
        "every checksum fits",
        400,
        _nan,
        nominal(400),
        sample=2,
    ),
    Row(
        "raw-rows",
        "Raw rows",
        "files of nasty lines in five packings and three policies, against an oracle of regular expressions and the "
        "csv module",
        400,
        _raw,
        nominal(400),
    ),
    Row(
        "limits",
        "Memory and disk",
        "RLIMIT_AS, RLIMIT_FSIZE and RLIMIT_NOFILE for train, resume, prepare and export; then the same command again",
        300,
        _limited,
        nominal(300),
        sample=2,
    ),
)
