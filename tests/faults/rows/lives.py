"""What happens to a run in its life: stopped anywhere and gone on with, signalled, shared, moved, shaped oddly."""

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from case_files import CaseFiles, copy_tree, run_result
from forked_commands import Lab
from outcomes import DEFECTS, LOST, REFUSED, SAME, STOPPED, WRONG, Verdict, verdict_of
from row import Row, nominal

_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

_TWO_EPOCHS = (
    *("--train.epochs", "2", "--train.max-steps", "0", "--train.batch-size", "100", "--data.reshuffle", "true"),
    *("--train.checkpoint-every", "7", "--train.evaluate-every", "5"),
)
_STEPS = 14
"""A multiple of the steps between checkpoints: the newest one, whose weights are compared, is that of the last step."""

_COLD_S = 300.0
"""Processes of their own may have to compile kernels first, on cores that others use."""

_VARIANTS: dict[str, Sequence[str]] = {
    "plain": (),
    "fp32": ("--quant.method", "none"),
    "adagrad": ("--train.optimizer", "rowwise-adagrad", "--train.learning-rate", "0.02"),
    "lsq": ("--quant.method", "lsq"),
    "stochastic": ("--quant.rounding", "stochastic"),
    "two ranks": ("--comm.simulated-ranks", "2", "--comm.wire", "int8", "--comm.mlp-gradients", "int8"),
    "three ranks": ("--comm.simulated-ranks", "3", "--comm.wire", "sparse"),
}


def _at_step(step: int, number: signal.Signals) -> Callable[[], None]:
    """Sends the process a signal as step `step`, counted from 1, begins."""

    def install() -> None:
        from dqrm_cpu.train.step import TrainingStep

        original = TrainingStep.__call__

        def call(self: TrainingStep, iteration: int, *arguments: object, **named: object) -> object:
            if iteration == step - 1:
                os.kill(os.getpid(), number)
            return original(self, iteration, *arguments, **named)  # type: ignore[arg-type]

        TrainingStep.__call__ = call  # type: ignore[method-assign, assignment]

    return install


def _train_arguments(lab: Lab, run: Path, variant: str) -> list[object]:
    return [*CaseFiles(lab.case_files).train_arguments(run), *_TWO_EPOCHS, *_VARIANTS[variant]]


def _undisturbed(lab: Lab, variant: str) -> object:
    """The result of a variant's run from beginning to end, trained once by each worker."""
    run = lab.root / f"{lab.fresh_folder.name}-whole" / variant
    if not (run / "result.json").exists():
        done = lab.command(*_train_arguments(lab, run, variant))
        if done.status != 0:
            raise RuntimeError(f"{variant}: {done.err}")
    return run_result(run)


def _resume(lab: Lab, random_: random.Random, number: int) -> Verdict:
    """Stopped one to three times at any steps, by signals and kills; a third of the cases change the rank count."""
    variant = list(_VARIANTS)[number % len(_VARIANTS)]
    expected = _undisturbed(lab, variant)
    run = lab.fresh() / "run"
    ranks = random_.choice(("1", "2", "3", "4")) if random_.random() < 0.33 else None
    changed = ["--comm.simulated-ranks", ranks] if ranks and variant.endswith("ranks") else []
    arguments, case = _train_arguments(lab, run, variant), [variant]
    for step in sorted(random_.sample(range(1, _STEPS + 1), random_.randrange(1, 4))):
        end = random_.choice((*_ENDS, signal.SIGKILL))
        case.append(f"{end.name} at step {step}")
        done = lab.command(*arguments, before=_at_step(step, end))
        if done.outcome not in (None, STOPPED):
            return verdict_of(", ".join(case), done, good=False)
        # A signal is seen as the next step begins: the stop before may have gone beyond this one, and the run ends.
        arguments = [*_train_arguments(lab, run, variant), *changed, "--resume", "auto"]
    if changed:
        case.append(f"then {ranks} ranks")
    done = lab.command(*arguments)
    what = ", ".join(case)
    if done.status != 0:
        return Verdict(LOST, what, done.err[-3000:]) if done.outcome not in DEFECTS else verdict_of(what, done)
    result = run_result(run)
    return verdict_of(what, done, _close(result, expected) if changed else result == expected)


def _close(result: object, expected: object) -> bool:
    """Sums of another number of ranks are rounded otherwise: the same steps, and metrics that agree to a thousandth."""
    mine, theirs = (json.loads(json.dumps(one))[3] for one in (result, expected))
    losses = [one["test"]["last"]["log_loss"] for one in (mine, theirs)]
    return bool(mine["steps"] == theirs["steps"] and abs(losses[0] - losses[1]) < 1e-3 * losses[1])


_LIVELY = ("train", "resume", "prepare", "export")


def _signals(lab: Lab, random_: random.Random, number: int) -> Verdict:
    """One signal at a random time, or two in short order; then the same command again."""
    case_files, folder = CaseFiles(lab.case_files), lab.fresh()
    name = random_.choice(_LIVELY)
    case_files.before(name, folder)
    sent = [random_.choice(_ENDS[:3] if name in ("prepare", "export") else _ENDS)]
    sent += [random_.choice(_ENDS[:3])] if random_.random() < 0.3 else []
    delay_s, pause_s = random_.uniform(0, 0.5), random_.uniform(0, 0.05)
    case = f"{name}: {' and '.join(one.name for one in sent)} after {delay_s * 1e3:.0f} ms"

    def send() -> None:
        for place, one in enumerate(sent):
            threading.Timer(delay_s + place * pause_s, os.kill, [os.getpid(), one]).start()

    done = lab.command(*case_files.commands(folder)[name], before=send)
    if done.status == 0:
        return verdict_of(case, done, case_files.result(name, folder) == case_files.expected(name))
    # Before a command takes signals over, their own meaning holds: an end without a word is as orderly.
    expected_statuses = {128 + one for one in sent}
    if done.status not in expected_statuses:
        return verdict_of(case, done, good=False)
    again = "resume" if name == "train" else name
    second = lab.command(*case_files.commands(folder)[again])
    if second.status != 0:
        return Verdict(LOST, case, f"again: status {second.status}\n{second.err[-2000:]}")
    back = verdict_of(case, second, case_files.result(name, folder) == case_files.expected(name))
    return Verdict(STOPPED, case) if back.outcome == SAME else back


def _concurrent(lab: Lab, random_: random.Random, number: int) -> Verdict:
    """Two commands on the same folder at once: one works, the other waits its turn, finds it done or is refused."""
    case_files, folder = CaseFiles(lab.case_files), lab.fresh()
    first = ("train", "resume", "prepare", "export")[number % 4]
    case_files.before(first, folder)
    commands = case_files.commands(folder)
    second = {
        "train": random_.choice((commands["train"], commands["resume"])),
        "resume": random_.choice((commands["resume"], ["evaluate", "--run-dir", folder / "run"])),
    }.get(first, commands[first])
    case = f"{first} beside {second[0]}"
    started = [lab.start(*commands[first]), lab.start(*second)]
    ended = [lab.finish(process, _COLD_S) for process in started]
    for done in ended:
        if done.outcome in DEFECTS:
            return verdict_of(case, done)
    if all(done.status != 0 for done in ended):
        return Verdict(LOST, case, "\n".join(done.err[-1500:] for done in ended))
    good = case_files.result(first, folder) == case_files.expected(first)
    if not good:
        return Verdict(WRONG, case, "\n".join(f"status {done.status}\n{done.err[-1500:]}" for done in ended))
    return Verdict(REFUSED if any(done.status for done in ended) else SAME, case)


def _moved(lab: Lab, random_: random.Random, number: int) -> Verdict:
    """A run and its data set go elsewhere, together or alone, and are used from some other working directory."""
    case_files, folder = CaseFiles(lab.case_files), lab.fresh()
    home, away = folder / "home", folder / "away"
    home.mkdir()
    copy_tree(case_files.data, home / "data")
    relative = random_.random() < 0.5
    source = Path("data") if relative else home / "data"
    made = lab.command(*case_files.train_arguments(Path("runs/a"), source), cwd=home)
    if made.status != 0:
        raise RuntimeError(made.err)
    how = random_.choice(("both", "run alone", "data alone", "other data in its place"))
    run, data = _move(how, home, away, lab)
    task = random_.choice(("evaluate", "resume", "evaluate --data"))
    here = random_.choice((folder, home, Path("/"), run))
    case = f"{how}, trained with a {'relative' if relative else 'full'} path; {task} in {here.name or '/'}"
    if task == "resume":
        arguments: list[object] = ["train", "--run-dir", run, "--resume", "auto", "--train.max-steps", "14"]
    else:
        arguments = ["evaluate", "--run-dir", run, "--checkpoint", "best", "--json"]
        arguments += ["--data", data] if task.endswith("--data") else []
    done = lab.command(*arguments, cwd=here)
    if done.status != 0:
        return verdict_of(case, done)
    if how == "other data in its place" and task != "resume":
        return Verdict(WRONG, case, f"rows of another vocabulary were scored\n{done.out}{done.err}")
    if task == "resume":
        return verdict_of(case, done, json.loads((run / "result.json").read_text())["steps"] == 14)
    scored, trained = json.loads(done.out), json.loads((case_files.run / "result.json").read_text())
    return verdict_of(case, done, abs(scored["auc"] - trained["test"]["best"]["auc"]) < 1e-12)


def _move(how: str, home: Path, away: Path, lab: Lab) -> tuple[Path, Path]:
    """Where run and data set lie afterwards."""
    if how == "both":
        home.rename(away)
        home.mkdir()
        return away / "runs" / "a", away / "data"
    away.mkdir()
    run, data = home / "runs" / "a", home / "data"
    if how == "run alone":
        return Path(shutil.move(run, away / "a")), data
    if how == "data alone":
        return run, Path(shutil.move(data, away / "data"))
    shutil.rmtree(data)
    copy_tree(_other_data(lab), data)
    return run, data


def _other_data(lab: Lab) -> Path:
    """A data set with a vocabulary of its own, prepared once by each worker."""
    out = lab.root / f"{lab.fresh_folder.name}-other"
    if not (out / "manifest.json").exists():
        done = lab.command(
            "prepare", CaseFiles(lab.case_files).raw_later, "--format", "kaggle", "--bad-rows", "skip", "--out", out
        )
        if done.status != 0:
            raise RuntimeError(done.err)
    return out


def _odd(lab: Lab, random_: random.Random, number: int) -> Verdict:
    """A model and batches of unusual shape, trained on generated rows and scored again by another command."""
    draw = random_.choice
    rows = [str(draw((1, 2, 3, 17, 300))) for _ in range(draw((1, 2, 3, 26)))]
    dim = draw((1, 2, 3, 4, 7, 8, 16, 17, 31, 64))
    train_rows, batch = draw((1, 2, 31, 200)), draw((1, 2, 3, 7, 64, 500))
    shape = {
        "model.table-rows": ",".join(rows),
        "model.embedding-dim": dim,
        "model.bottom-mlp": draw((f"{dim}", f"5,{dim}", f"1,{dim}")),
        "model.top-mlp": draw(("1", "3,1", "1,1")),
        "model.num-dense": draw((1, 2, 13)),
        "data.train-rows": train_rows,
        "data.validation-rows": draw((1, 50)),
        "data.test-rows": draw((1, 2, 60)),
        "data.max-bag-size": draw((1, 1, 1, 4)),
        "train.batch-size": batch,
        "train.test-batch-size": draw((1, 13, 400)),
        "train.epochs": 1 if train_rows > 50 and batch == 1 else 2,
        "train.max-steps": 40,
        "quant.method": draw(("dqrm", "dqrm", "none", "lsq", "ptq")),
        "quant.embedding-bits": draw((2, 4, 4, 5, 8, 16)),
        "comm.simulated-ranks": draw((1, 1, 2, 5)),
        "train.threads": 1,
    }
    run = lab.fresh() / "run"
    options = [text for name, value in shape.items() for text in (f"--{name}", str(value))]
    case = ", ".join(f"{name.partition('.')[2]} {value}" for name, value in shape.items())
    done = lab.command("train", "--preset", "demo", *options, "--run-dir", run)
    if done.status != 0:
        return verdict_of(case, done)
    scored = lab.command("evaluate", "--run-dir", run, "--json")
    if scored.status != 0:
        return verdict_of(f"evaluate: {case}", scored, good=False)
    trained, evaluated = json.loads((run / "result.json").read_text())["test"]["best"], json.loads(scored.out)
    return verdict_of(case, scored, all(trained[key] == evaluated[key] for key in ("auc", "log_loss", "examples")))


ROWS = (
    Row(
        "resume",
        "Resume at any step",
        "stopped one to three times at drawn steps of two epochs, their edge among them, by signals and SIGKILL, with "
        "seven kinds of training; now and then resumed on another number of ranks",
        500,
        _resume,
        nominal(500),
    ),
    Row(
        "signals",
        "Signals",
        "INT, TERM, HUP or USR1 at a drawn time of train, resume, prepare or export, at times a second one behind it; "
        "then the same command again",
        500,
        _signals,
        nominal(500),
    ),
    Row(
        "concurrent",
        "Concurrent commands",
        "two processes on one folder at once: train, resume, evaluate, prepare, export",
        60,
        _concurrent,
        nominal(60),
        sample=1,
    ),
    Row(
        "moved",
        "Moved folders",
        "run and data set moved, together or alone, or another data set in its place; evaluated and resumed from "
        "several working directories",
        240,
        _moved,
        nominal(240),
    ),
    Row(
        "odd",
        "Odd shapes",
        "tables of one row, one dimension, batches of one, more ranks than rows, bags, one test row, 2 to 16 bits; "
        "trained, then scored by another command",
        400,
        _odd,
        nominal(400),
    ),
)
