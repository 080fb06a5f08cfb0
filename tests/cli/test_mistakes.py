"""What users get wrong: each command as it is typed, the status that it ends with, and what it says.

A mistake in the command line or in settings ends with 2, one in data, files or the machine with 1; none with a
traceback, which `commands.dqrm_cpu` would raise here. What is taken, but should be looked at, ends with 0 and says so.

A word in brackets before a command is the place where it is typed (`PLACES`); NAME=VALUE is part of its environment.
"""

import gzip
import io
import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import CommandOutput, dqrm_cpu
from dqrm_cpu.cli.main import main
from dqrm_cpu.kernels.sealed import is_whole

SMALL = "--model.embedding-dim 4 --model.bottom-mlp 8,4 --model.top-mlp 8,1 --train.batch-size 32 --train.epochs 1"
HEAD = "click,hour,site,user"
SCHEMA = 'delimiter = ","\nheader = true\nlabel = "click"\nintegers = ["hour"]\ncategories = ["site", "user"]\n'
DiskUsage = namedtuple("DiskUsage", "total used free")

LATIN_NAME = os.fsdecode("größe.csv".encode("latin-1"))
TWO_PROCESSES = "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT={port} TORCHELASTIC_RUN_ID=x "

MISTAKES = [
    # The command itself.
    ("", 0, "dqrm-cpu train                                     a small INT4 model"),
    ("tran", 2, "unknown command tran; nearest is train; there are train, evaluate,"),
    ("--verbose", 2, "--verbose stands before a command"),
    ("--seed 5", 2, "--seed stands before a command; first name one of train, evaluate,"),
    # train
    ("train --lr 0.1", 2, "--lr 0.1: unknown option; nearest is --train.learning-rate (number, above 0)"),
    ("train --batch-size 64", 2, "nearest is --train.batch-size (integer, 1 or more)"),
    ("train --label click", 2, "--label click: unknown option; --help lists what there is"),
    ("train data/clicks", 2, "data/clicks: not expected here; a data set is given as --data data/clicks"),
    ("train --data clicks.csv", 1, "clicks.csv is a file, and no data set: dqrm-cpu prepare makes one of raw rows"),
    ("train --data nothere", 1, "nothere: there is no such folder; give the folder that dqrm-cpu prepare"),
    ("train --data runs/a", 1, "runs/a is the folder of a run, and no data set"),
    ("train --data data/no-split", 1, "data/no-split has no validation rows; prepare it with a split that leaves some"),
    ("train --data data/clicks --model.num-dense 5", 1, "model.num_dense is 5, and"),
    ("train --data data/clicks --data.train-rows 1000000", 1, "has 600 train rows; leave the setting out"),
    (
        "train --preset kagle",
        2,
        "--preset kagle: no such choice; nearest is kaggle; "
        "allowed: demo | production | kaggle | terabyte | mlperf-dcnv2",
    ),
    ("train --config nothere.toml", 2, "nothere.toml: no such file; give the path of a TOML file to --config"),
    ("train --config run.toml", 2, "run.toml:2: train.learning_rat: unknown key; nearest is train.learning_rate"),
    ("train --config clicks.csv", 2, "clicks.csv:1: not valid TOML"),
    ("train --config data", 2, "data: cannot be read (it is no regular file); --config takes a TOML file"),
    ("train --train.treads 2", 2, "--train.treads 2: unknown option; nearest is --train.threads (integer, 0 to 4,096)"),
    ("train --train.epochs 1e3", 2, "--train.epochs 1e3: wrong type; allowed: integer, 1 or more"),
    ("train --train.learning-rate 1e400", 2, "--train.learning-rate 1e400: out of range; allowed: number, above 0"),
    (
        "train --run-dir schema.toml/run",
        2,
        "schema.toml/run cannot be made: schema.toml is a file; give another folder",
    ),
    ("train --init-from schema.toml", 2, "--init-from schema.toml is a file; give a run, or one of its checkpoints"),
    ("train --train.learning-rate nan", 2, "--train.learning-rate nan: out of range; allowed: number, above 0"),
    ("train --train.learning-rate 0,1", 2, "--train.learning-rate 0,1: wrong type; allowed: number, above 0"),
    ("train --train.batch-size -5", 2, "--train.batch-size -5: out of range; allowed: integer, 1 or more"),
    ("train --quant.method dqmr", 2, "--quant.method dqmr: no such choice; nearest is dqrm;"),
    ("train --quant.embedding-bits int4", 2, "--quant.embedding-bits int4: wrong type; allowed: integer, 2 to 16"),
    ("train --quant.step-width 3 --quant.method none", 2, "--quant.step-width 3 and --quant.method none: "),
    ("train --model.bottom-mlp 8,4 --model.embedding-dim 5", 2, "the last layer of model.bottom_mlp is 4"),
    ("train --device cuda", 1, "--device cuda needs an NVIDIA GPU"),
    ("train --tune many", 2, "argument --tune: 'many' is no whole number from 2 on"),
    ("train --tune 4 --init-from runs/a", 2, "leave out one"),
    ("train --init-from nothere", 2, "--init-from nothere: there is no such folder; give a run"),
    ("train --init-from data/clicks", 1, "--init-from data/clicks: there is no checkpoint in it"),
    ("train --resume", 2, "argument --resume: expected one argument"),
    ("train --resume yes", 2, "--resume yes: no such choice; allowed: auto | never"),
    ("train --resume auto", 2, "--resume auto goes on with the run in --run-dir DIR; give that too"),
    ("train --run-dir runs/a", 2, "runs/a holds a run already; go on with it by --resume auto, or give another"),
    ("train --run-dir clicks.csv", 2, "--run-dir clicks.csv is a file; give a folder"),
    ("train --run-dir runs/a --resume auto --data data/other", 1, "was trained on other data (another vocabulary)"),
    ("train --run-dir runs/a --resume auto --comm.simulated-ranks 64", 2, "train.batch_size 32 leaves ranks without"),
    ("train --run-dir runs/no-clicks", 2, "runs/no-clicks holds a run already"),
    ("PMI_RANK=0 PMI_SIZE=2 train", 1, "pip install 'dqrm-cpu[mpi]'"),  # mpirun, where mpi4py is missing
    (
        "[tiny-disk] train --data data/clicks --run-dir runs/tiny --train.epochs 1",
        1,
        "needs 16.2 MiB in runs/tiny/checkpoints but 3.0 KiB are free (the one before goes only after the new one",
    ),
    (f"{TWO_PROCESSES} train", 1, "MASTER_ADDR and MASTER_PORT must be rank 0's host and a port that is free there"),
    # prepare
    ("prepare", 2, "the following arguments are required: RAW"),
    ("prepare clicks.csv --schema schema.toml", 2, "give --out DIR, where the data set goes"),
    ("prepare clicks.csv --out x", 2, "give either --format (kaggle, terabyte, tsv) or --schema FILE"),
    ("prepare clicks.csv --out x --format criteo", 2, "--format criteo: no such choice; allowed: kaggle | terabyte"),
    ("prepare clicks.csv --out x1 --format kaggle", 1, "clicks.csv, line 1, field 1: the label is neither 0 nor 1"),
    ("prepare nothere.csv --out x --schema schema.toml", 1, "nothere.csv cannot be read: No such file"),
    ("prepare clicks.csv --out x --schema nothere.toml", 2, "nothere.toml cannot be read: No such file"),
    ("prepare empty.csv --out x --schema schema.toml", 1, "empty.csv is empty; is it the right file?"),
    ("prepare header.csv --out x2 --schema schema.toml", 1, "there is not a single row in the sources"),
    ("prepare semicolon.csv --out x --schema schema.toml", 2, "is it ';' that stands between fields, rather than ','?"),
    ("prepare headerless.csv --out x --schema schema.toml", 2, "rows without a header need header = false"),
    (
        "prepare clicks.csv --out x --schema latin.toml",
        2,
        "latin.toml is no text in UTF-8, in line 5; save it as UTF-8",
    ),
    ("prepare latin.csv --out data/latin --schema schema.toml", 0, "latin.csv is no text in UTF-8"),
    ("prepare twice.csv --out x --schema schema.toml", 2, "two fields are called 'site'"),
    (
        "prepare no_user.csv --out x --schema schema.toml",
        2,
        "column 'user' that is no field; there are 'click', 'hour'",
    ),
    ("prepare unlabelled.csv --out x8 --schema schema.toml", 1, "true nor false, yes nor no, but empty (',"),
    ("prepare ratings.csv --out x3 --schema schema.toml", 1, "a line `positive = 4` in the schema"),
    (
        "prepare no_clicks.csv --out data/2 --schema schema.toml",
        0,
        "the 600 train rows have no clicks: AUC is undefined",
    ),
    ("prepare clicks.csv --out x --schema no_label.toml", 2, 'names no label; add a line such as label = "click"'),
    ("prepare clicks.csv --out x --schema typo.toml", 2, "unknown key 'catgories'; nearest is categories"),
    ("prepare clicks.csv --out x --schema column.toml", 2, "a column 'sites' that is no field; nearest is 'site'"),
    ("prepare clicks.csv --out x --schema clicks.csv", 2, "clicks.csv is not TOML"),
    ("prepare nothing --out x --schema schema.toml", 1, "nothing: the folder holds no raw files"),
    ("prepare log_*.csv --out x --schema schema.toml", 1, "log_*.csv: the pattern matches no file"),
    ("prepare log.xlsx --out x --schema schema.toml", 1, "log.xlsx is the workbook of a spreadsheet; save its sheet"),
    ("prepare half.parquet --out x --schema schema.toml", 1, "half.parquet cannot be read as Parquet"),
    ("prepare day.parquet --out x --schema schema.toml", 2, "a column 'user' that is no field"),
    ("prepare cut.csv.gz --out x --schema schema.toml", 1, "cut.csv.gz cannot be read: Compressed file ended before"),
    ("prepare data/clicks --out x --schema schema.toml", 2, "data/clicks is a prepared data set; name the raw files"),
    ("prepare runs/a --out x --schema schema.toml", 2, "runs/a is the folder of a run, which has no raw rows"),
    ("prepare clicks.csv --out x --shema schema.toml", 2, "--shema schema.toml: unknown option; nearest is --schema"),
    ("prepare clicks.csv --out x --schema two_roles.toml", 2, "column 'hour' stands in two places; leave it in one"),
    ("prepare clicks.csv --out x --schema schema.toml --grow-from runs/a", 1, "runs/a holds no vocabulary: give a"),
    ("prepare utf16.csv --out x --schema schema.toml", 1, "utf16.csv is UTF-16 text: convert it first (iconv -f"),
    ("prepare bom.csv --out data/bom --schema schema.toml", 0, "700 rows"),
    ("prepare huge.csv --out x5 --schema schema.toml", 1, "line 2, field 2: a number that does not fit into 32 bits"),
    ("prepare wide.csv --out x6 --schema schema.toml", 1, "line 2, field 4: the line goes on behind its last field"),
    ("prepare structs.parquet --out x7 --schema schema.toml", 1, "column hour holds struct<h: int64>, where numbers"),
    ("prepare link.csv clicks.csv --out x --schema schema.toml", 2, "named twice: link.csv, once by a link or another"),
    ("prepare clicks.csv clicks.csv --out x --schema schema.toml", 2, "a raw file is named twice"),
    (
        "[tiny-disk] prepare clicks.csv --schema schema.toml --out x4",
        1,
        "takes up to 13.4 kB on the disk of x4, and 3.1 kB are free; make room",
    ),
    (
        "[truncated-kernel-cache] prepare clicks.csv --schema schema.toml --out data/3",
        0,
        ".nbc is damaged, and is thrown away",
    ),
    (f"prepare {LATIN_NAME} --schema schema.toml --out x", 2, "no name in UTF-8, in which names are recorded; rename"),
    (
        "prepare clicks.csv --schema schema.toml --out x --vocabulary läden",
        1,
        "läden holds no vocabulary: give a prepared data set",
    ),
    ("prepare clicks.csv --out clicks.csv --schema schema.toml", 2, "--out clicks.csv is a file; give a folder"),
    (
        "prepare other.csv --out data/clicks --schema schema.toml",
        2,
        "prepared from other sources or with other settings",
    ),
    ("prepare clicks.csv --out runs/a --schema schema.toml", 2, "runs/a is not empty (it holds"),
    ("prepare clicks.csv --out x --schema schema.toml --vocabulary nothere", 1, "nothere holds no vocabulary"),
    ("prepare clicks.csv --out x --schema schema.toml --workers 0", 2, "'0' is no whole number from 1 to 256"),
    ("prepare clicks.csv --suggest schema.toml", 2, "schema.toml is there already, and not as suggested"),
    ("data shwo data/clicks", 2, "COMMAND shwo: no such choice; nearest is show; allowed: show | verify"),
    ("data show clicks.csv", 1, "clicks.csv is a file, and no data set"),
    # evaluate
    ("evaluate", 2, "which run? give its folder: dqrm-cpu evaluate RUN"),
    ("evaluate --run-dir nothere", 2, "nothere holds no run, it is not there; give a folder that dqrm-cpu train wrote"),
    ("evaluate data/clicks", 2, "data/clicks holds no run, it is a data set"),
    ("evaluate runs/a --part valid", 2, "--part valid: no such choice; nearest is validation"),
    ("evaluate runs/a --checkpoint newest", 1, "no checkpoint 'newest' in runs/a/checkpoints; there: step-000000019"),
    ("evaluate runs/a --data data/other", 1, "data/other has another vocabulary than the model in runs/a"),
    ("evaluate runs/a --group-by hour", 2, "there is no category 'hour'; there are site, user"),
    ("evaluate runs/a --slices 0", 2, "'0' is no whole number from 1 on"),
    ("evaluate runs/no-clicks", 0, "undefined (the rows have no clicks)"),
    ("evaluate runs/damaged", 1, "shard-00000.safetensors is damaged: it has"),
    (
        "evaluate runs/newer",
        2,
        "model.experts: unknown key; nearest is model.interaction (dot | cat | cross) (dqrm-cpu 9",
    ),
    ("evaluate runs/moved", 1, "there is no data set there, nor at that path beside the run; give the one with"),
    # predict
    ("predict runs/a clicks.csv", 2, "the following arguments are required: --out"),
    ("predict clicks.csv runs/a --out s.csv", 2, "clicks.csv is no model; first name the model: the folder of a run"),
    ("predict runs/a nothere.csv --out s.csv", 1, "nothere.csv cannot be read: No such file"),
    ("predict runs/a clicks.csv --out nothere/s.csv", 2, "nothere/s.csv: there is no folder nothere; make it"),
    ("predict runs/a clicks.csv --out scores", 2, "as .csv or .parquet; give it one of these suffixes"),
    ("predict runs/a clicks.csv --out other.csv", 2, "other.csv exists; give another name, or --overwrite"),
    ("predict runs/a runs/headerless --out s.csv", 2, "runs/headerless is the folder of a run, which has no raw rows"),
    ("predict runs/a headerless.csv --out s.csv", 1, "; is its first line a header?"),
    ("predict runs/a clicks.csv --key user --out s.csv", 2, "--key user: unknown option; nearest is --keys"),
    ("predict runs/a clicks.csv --checkpoint step-000000019 --out named.csv", 0, "step-000000019"),
    ("predict runs/a clicks.csv --out nothing", 2, "as .csv or .parquet"),
    ("export runs/a --out clicks.csv", 2, "clicks.csv exists; give another name, or --overwrite"),
    ("export runs/a --out m.onnx", 2, "m.onnx is the name of another format; give --format onnx, or another name"),
    ("export runs/a --format onxx", 2, "--format onxx: no such choice; nearest is onnx"),
    ("serve clicks.csv", 1, "clicks.csv is no exported model"),
    ("serve runs/a --port 99999", 2, "'99999' is no whole number from 1 to 65,535"),
    ("serve runs/a --host 203.0.113.7", 2, "--host 203.0.113.7 --port 8000: Cannot assign requested address; give an"),
    ("export runs/a --out nothere/m.safetensors", 2, "there is no folder nothere"),
    ("export runs/a --out nothing --overwrite", 2, "nothing is a folder; give the name of a file"),
    ("data generate days --rows 1e6", 2, "'1e6' is no whole number from 1 on"),
    ("data generate days --format log --rows 5 --days 99999", 2, "'99999' is no whole number from 1 to 3,650"),
    ("data generate clicks.csv --rows 5", 2, "clicks.csv is there already, perhaps with clicks that are real"),
    ("data generate clicks.csv --rows 5 --format log", 2, "clicks.csv is a file; days of a log go into a folder"),
    ("predict runs/a clicks.csv --out clicks.csv --overwrite", 2, "clicks.csv is an input too"),
    ("predict runs/a clicks.csv --out s.csv --keys request", 1, "has no column 'request'; there are click, hour"),
    ("predict runs/a no_user.csv --out s.csv", 1, "no_user.csv has no column 'user'; there are click, hour, site"),
    ("predict runs/a semicolon.csv --out s.csv", 1, "there are click;hour;site;user"),
    ("predict runs/headerless no_hour.csv --out s.csv", 1, "it is not clear whether the label is missing"),
    ("predict runs/a clicks.csv --data data/other --out s.csv", 1, "data/other has another vocabulary than the model"),
    ("predict runs/a clicks.csv --part test --out s.csv", 2, "raw rows have no parts"),
    ("predict runs/a clicks.csv --bad-rows keep --out s.csv", 2, "--bad-rows keep: no such choice"),
    ("predict runs/a clicks.csv --quant.method none --out s.csv", 2, "no option of dqrm-cpu predict, which takes no"),
    ("predict runs/edited clicks.csv --out s.csv", 1, "correct runs/edited/config.toml: a model is scored as it was"),
    ("predict cut.safetensors clicks.csv --out s.csv", 1, "cut.safetensors is no packed model: its tensors have"),
    # The others.
    ("[LANG=C] report runs/läufe", 0, "runs/l\\udcc3\\udca4ufe/report.html"),
    ("[ASCII-terminal] report runs/läufe --out läufe.html", 0, "l\\xe4ufe.html"),
    ("compress --run-dir runs/a", 2, "unknown option; the run is given without one: dqrm-cpu compress [RUN]"),
    ("compress runs/a --out clicks.csv", 2, "--out clicks.csv is there already, and no packed model"),
    ("compress --verify nothere", 1, "nothere cannot be read: there is no such file"),
    ("report clicks.csv", 2, "clicks.csv holds no run, it is a file"),
    ("report runs/a --out clicks.csv", 2, "--out clicks.csv is there already, and no page"),
    ("report runs/a --out nothing", 2, "--out nothing is a folder; give another name"),
    ("report runs/a --png clicks.csv", 2, "clicks.csv cannot be written (File exists); give another --png"),
    ("report runs/a runs/a", 2, "runs/a is named twice"),
    ("doctor runs/a", 2, "runs/a: not expected here"),
    ("doctor --preset kagle", 2, "nearest is kaggle"),
    (
        "bench train",
        2,
        "WHAT train: no such choice; allowed: step | kernels | data | exchange | serve | score | lookup | spans",
    ),
    ("bench step --cases kagle_128", 2, "--cases kagle_128: no such case of bench step; there are demo_128"),
    ("bench step --rounds 0", 2, "'0' is no whole number from 1 on"),
    ("bench step --against nothere.json", 2, "nothere.json is no result of bench step (no such file or directory)"),
    ("bench step --json clicks.csv", 2, "--json clicks.csv is there already, and no result of a benchmark"),
    ("plan --nodes 1", 2, "--nodes 1: whole numbers from 2 to 4096"),
    ("plan --latency-us nan", 2, "--latency-us nan: a number from 0 to 1,000,000"),
    ("reproduce table3", 2, "no experiment table3; nearest is table3b"),
    ("reproduce table3a --scale tiny", 2, "--scale tiny: no such scale; there are small, paper, smoke"),
    ("reproduce table3a --data clicks.csv", 1, "clicks.csv is a file, and no data set"),
    ("reproduce table3a --out clicks.csv", 2, "--out clicks.csv is a file; give a folder"),
    ("profile --steps 0", 2, "'0' is no whole number from 1 on"),
    ("profile --data nothere", 1, "nothere: there is no such folder"),
]


def rows(seed: int = 1, clicks: float = 0.3) -> list[str]:
    chance = random.Random(seed)
    return [
        f"{int(chance.random() < clicks)},{chance.randrange(24)},{chance.choice('abcd')},u{chance.randrange(30)}"
        for _ in range(700)
    ]


def write_raw_files() -> None:
    """Writes logs and schemas into the working directory, one for each way in which they go wrong."""
    lines = rows()
    texts = {
        "clicks.csv": [HEAD, *lines],
        "other.csv": [HEAD, *rows(2)],
        "no_clicks.csv": [HEAD, *rows(clicks=0)],
        "empty.csv": [],
        "header.csv": [HEAD],
        "headerless.csv": lines,
        "semicolon.csv": [line.replace(",", ";") for line in [HEAD, *lines]],
        "twice.csv": [HEAD.replace("user", "site"), *lines],
        "no_user.csv": [line.rpartition(",")[0] for line in [HEAD, *lines]],
        "no_hour.csv": [",".join(line.split(",")[:1] + line.split(",")[2:]) for line in lines],
        "ratings.csv": [HEAD, *(f"3{line[1:]}" for line in lines)],
        "schema.toml": [SCHEMA],
        "unlabelled.csv": [HEAD, f",{lines[0].partition(',')[2]}", *lines],
        "no_label.toml": [SCHEMA.replace('label = "click"', "")],
        "two_roles.toml": [SCHEMA.replace('"user"', '"user", "hour"')],
        "huge.csv": [HEAD, f"1,{'9' * 25},a,u1", *lines],
        "wide.csv": [HEAD, f"{lines[0]},1,2", *lines],
        "typo.toml": [SCHEMA.replace("categories", "catgories")],
        "column.toml": [SCHEMA.replace('"site"', '"sites"')],
        "headerless.toml": [
            SCHEMA.replace("header = true", f"header = false\nfields = {HEAD.split(',')}").replace("user", "usér")
        ],
        "run.toml": ["[train]\nlearning_rat = 0.1"],
    }
    for name, content in texts.items():
        Path(name).write_text("".join(f"{line}\n" for line in content))
    Path("latin.csv").write_bytes("\n".join([HEAD, *(f"{line}é" for line in lines)]).encode("latin-1"))
    Path("latin.toml").write_bytes(SCHEMA.replace('"user"', '"usér"').encode("latin-1"))
    Path("cut.csv.gz").write_bytes(gzip.compress("\n".join([HEAD, *lines]).encode())[:-300])
    Path("log.xlsx").write_bytes(b"PK\x03\x04workbook")
    Path("half.parquet").write_bytes(b"PAR1half")
    pq.write_table(pa.table({"click": [0, 1], "hour": [1, 2], "site": ["a", "b"]}), "day.parquet")
    pq.write_table(pa.table({"click": [0], "hour": [{"h": 1}], "site": ["a"], "user": ["u"]}), "structs.parquet")
    Path("utf16.csv").write_text("\n".join([HEAD, *lines]), encoding="utf-16")
    Path("bom.csv").write_text("\n".join([HEAD, *lines]), encoding="utf-8-sig")
    Path("link.csv").symlink_to("clicks.csv")
    shutil.copy("clicks.csv", LATIN_NAME)
    Path("nothing").mkdir()
    Path("läden").mkdir()


def succeed(command: str) -> CommandOutput:
    output = dqrm_cpu(*shlex.split(command))
    assert output.returncode == 0, output.stderr
    return output


def change_text(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def make_runs() -> None:
    """Prepares and trains, and makes the runs that something happened to."""
    for name in ("clicks", "other", "no_clicks", "headerless"):
        schema = "headerless" if name == "headerless" else "schema"
        succeed(f"prepare {name}.csv --schema {schema}.toml --out data/{name}")
    succeed("prepare clicks.csv --schema schema.toml --out data/no-split --split none")
    for run, data in (("a", "clicks"), ("no-clicks", "no_clicks"), ("headerless", "headerless")):
        succeed(f"train --data data/{data} --run-dir runs/{run} {SMALL}")
    for name in ("damaged", "newer", "edited", "moved"):
        shutil.copytree("runs/a", f"runs/{name}")
    shard = next(Path("runs/damaged/checkpoints").glob("*/*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-50])
    change_text("runs/newer/config.toml", "[model]", "[model]\nexperts = 4")
    environment = json.loads(Path("runs/newer/environment.json").read_text())
    Path("runs/newer/environment.json").write_text(json.dumps({**environment, "dqrm_cpu": "9.1.0"}))
    change_text("runs/edited/config.toml", "embedding_bits = 4", "embedding_bits = 8")
    change_text("runs/moved/config.toml", "data/clicks", "data/gone")
    shutil.copytree("runs/headerless", "runs/läufe")
    Path("cut.safetensors").write_bytes(Path("runs/a/packed/dense.safetensors").read_bytes()[:-9])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("mistakes"))
        write_raw_files()
        make_runs()
        return Path.cwd()


def listed(place: Path) -> set[Path]:
    return set(place.rglob("*"))


def on_a_tiny_disk(words: list[str], patch: pytest.MonkeyPatch) -> CommandOutput:
    patch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**6, 10**6, 3 << 10))
    return dqrm_cpu(*words)


def on_an_ascii_terminal(words: list[str], patch: pytest.MonkeyPatch) -> CommandOutput:
    shown = io.BytesIO()
    patch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    status = main(words)
    sys.stdout.flush()
    return CommandOutput(status, shown.getvalue().decode(), "")


def in_a_process(words: list[str], **environ: str) -> CommandOutput:
    """Runs the command where nothing is imported yet; a traceback fails here too."""
    command = [sys.executable, "-m", "dqrm_cpu", *words]
    done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return CommandOutput(done.returncode, done.stdout, done.stderr)


def with_names_in_ascii(words: list[str], patch: pytest.MonkeyPatch) -> CommandOutput:
    """Runs a command in a process with LANG=C, in which Python does not turn to UTF-8 by itself."""
    return in_a_process(words, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")


def with_a_truncated_kernel(words: list[str], patch: pytest.MonkeyPatch) -> CommandOutput:
    """Runs with a copy of the compiled kernels of which one is cut, and looks whether it was compiled again."""
    kernels = Path("kernels")
    shutil.copytree(os.environ["NUMBA_CACHE_DIR"], kernels, ignore=shutil.ignore_patterns("*.writing"))
    [cut] = kernels.rglob("parser.count_lines*.nbc")
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    output = in_a_process(words, NUMBA_CACHE_DIR="kernels")
    assert is_whole(cut)
    return output


PLACES: dict[str, Callable[[list[str], pytest.MonkeyPatch], CommandOutput]] = {
    "[tiny-disk]": on_a_tiny_disk,
    "[ASCII-terminal]": on_an_ascii_terminal,
    "[LANG=C]": with_names_in_ascii,
    "[truncated-kernel-cache]": with_a_truncated_kernel,
}


def _marks(command: str) -> list[pytest.MarkDecorator]:
    """Marks what imports torch in a process of its own, which takes seconds."""
    return [pytest.mark.long] if command.startswith("[LANG=C]") else []


@pytest.mark.parametrize(
    ("command", "status", "message"), [pytest.param(*row, id=row[0], marks=_marks(row[0])) for row in MISTAKES]
)
def test_mistake(place: Path, command: str, status: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    before = listed(place)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = shlex.split(command.format(port=taken.getsockname()[1]))
        run_there = PLACES[words.pop(0)] if words[:1] and words[0] in PLACES else lambda words, _: dqrm_cpu(*words)
        while words and "=" in words[0].partition(" ")[0]:
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        output = run_there(words, monkeypatch)
    said = output.stderr if status else output.stdout + output.stderr
    assert (output.returncode, message in said) == (status, True), said
    if status == 2:
        assert output.stdout == ""
        assert listed(place) == before  # a mistake of the command line leaves nothing behind
    if status:
        assert output.stderr.splitlines()[-1].startswith(("dqrm-cpu: error: ", "  "))


def test_after_a_mistake_the_same_folder_takes_what_is_right(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    out = ("--out", "mended", "--split", "none")
    assert dqrm_cpu("prepare", "ratings.csv", "--schema", "schema.toml", *out).returncode == 1
    assert dqrm_cpu("prepare", "clicks.csv", "--schema", "schema.toml", *out).returncode == 0
