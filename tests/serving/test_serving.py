"""An exported file and NumPy give a raw row the probability that the trainer's own forward gives it."""

import csv
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtimes import RUNTIMES

from commands import dqrm_cpu
from dqrm_cpu.data.store.manifest import read_manifest
from dqrm_cpu.errors import CheckpointError
from dqrm_cpu.export.packed_model import verify_packed
from dqrm_cpu.predict.packed_scorer import slots_of
from dqrm_cpu.predict.scorer import prepared_rows
from dqrm_cpu.serving import Model, UnusableRowError
from dqrm_cpu.serving.model import calibrated
from scoring import NAMES, SMALL, scored_run, succeed
from test_predict_rows import predicted

LOG_SCHEMA = """
header = true
quotes = true
delimiter = ","
label = "bought"
categories = ["shop", "item"]
hashes = ["device"]
integers = ["hour", "clicks"]
decimals = ["price", "age", "visits"]
[transforms]
hour = "buckets:6"
price = "standard"
age = "quantile"
visits = "identity"
"""
LOG_NAMES = ["bought", "shop", "item", "device", "hour", "clicks", "price", "age", "visits"]
WORDS = [
    "",
    "NaN",
    "null",
    "\\N",
    "47",
    "47.0",
    "047",
    "True",
    "true",
    "x,y",
    'a "b"',
    "naïve café, 8 rue",
    "-3.00",
    "N",
]


def log_rows(count: int, seed: int) -> list[list[str]]:
    """Cells as programs write them: missing in several ways, quoted, numbers with points and exponents."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        item = WORDS[rng.integers(len(WORDS))] + (" " * 3 + "long" * int(rng.integers(9)) if rng.random() < 0.3 else "")
        price = ["", "nan", "1e-3", f"{rng.normal() * 9:.4f}", "-0", "7."][rng.integers(6)]
        hour = ["", "3", "3.0", "-7", str(rng.integers(24))][rng.integers(5)]
        device = ["", f"{rng.integers(40) * 7919:x}", f"{rng.integers(40) * 7919:08X}"][rng.integers(3)]
        bought = int(rng.random() < 0.2 + 0.5 * (item[:1] == "4"))
        rest = [f"{rng.normal():.3f}", str(rng.integers(-3, 99)), hour, f"{rng.integers(3)}"]
        rows.append([str(bought), f"shop {rng.integers(30)}", item, device, hour, rest[1], price, rest[0], rest[3]])
    return rows


def as_csv(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([LOG_NAMES, *rows])
    return text.getvalue()


@pytest.fixture(scope="module")
def log_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    (folder / "rows.csv").write_text(as_csv(log_rows(1500, seed=1)))
    (folder / "schema.toml").write_text(LOG_SCHEMA)
    succeed("prepare", folder / "rows.csv", "--schema", folder / "schema.toml", "--out", folder / "data")
    succeed("train", "--data", folder / "data", "--run-dir", folder / "run", *SMALL)
    return folder


def dicts(rows: list[list[str]]) -> list[dict[str, Any]]:
    return [dict(zip(LOG_NAMES[1:], row[1:], strict=True)) for row in rows]


@pytest.mark.parametrize("options", [(), ("--layout", "sparse"), ("--calibrate", "platt"), ("--calibrate", "isotonic")])
def test_raw_rows_score_as_by_predict(log_run: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Among them categories that training did not know, and a column that nobody needs."""
    rows, raw, out = log_rows(400, seed=2), tmp_path / "new.csv", tmp_path / "model.safetensors"
    raw.write_text(as_csv(rows))
    said = succeed("export", log_run / "run", "--out", out, *options)
    assert "every byte" in said or "--calibrate" in options
    calibrate = options if "--calibrate" in options else ()
    expected = predicted(log_run / "run", raw, *calibrate, out=tmp_path / "out.csv")
    found = Model.open(out).predict([{**row, "unknown": 1} for row in dicts(rows)])
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)
    assert np.ptp(found) > 0.01
    if "sparse" not in options:
        require_onnx_alike(log_run / "run", log_run / "data", Model.open(out), tmp_path / "model.onnx", *options)


def widened(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lets logits be as far apart as the runtimes' rounding."""
    lower, upper = np.minimum(low, high), np.maximum(low, high)
    return lower - 1e-5 * np.abs(lower) - np.float32(2e-5), upper + 1e-5 * np.abs(upper) + np.float32(2e-5)


def require_onnx_alike(run: Path, data: Path, model: Model, out: Path, *options: str) -> None:
    """Compares the model's logits of the validation rows with those that other runtimes compute from an ONNX file."""
    succeed("export", run, "--format", "onnx", "--out", out, *options)
    (batch,) = prepared_rows(data, read_manifest(data), "validation").batches(0)
    dense, ids = batch.dense.numpy(), slots_of(batch, model.description)
    description = model.description
    plain = Model(model._file, replace(description, calibration=None), fused=None, threads=1)
    expected = plain.logits_of_ids(dense, ids)
    low, high = widened(expected, expected)
    if description.calibration is not None:  # an isotonic one may be as good as vertical, or flat; Platt's may fall
        low, high = widened(*(calibrated(description.calibration, limit) for limit in (low, high)))
    for runtime in RUNTIMES:
        for count in (1, 17, len(ids)):
            found = runtime(out, dense[:count], ids[:count])
            assert (low[:count] <= found).all(), (low[:count] - found).max()
            assert (found <= high[:count]).all(), (found - high[:count]).max()


@pytest.mark.parametrize(
    "options",
    [
        ("--quant.activation-bits", "8", "--quant.mlp-bias-bits", "8", "--quant.embedding-bits", "2"),
        ("--quant.embedding-bits", "3", "--quant.mlp-bits", "8"),
        ("--model.interaction", "cross", "--model.cross-rank", "4", "--quant.embedding-bits", "8"),
        ("--model.interaction", "cat", "--quant.method", "dorefa", "--quant.mlp-granularity", "matrix"),
        ("--model.table-dims", "C3=4,C7=5,C26=4", "--model.interaction", "cat"),
        ("--quant.mlp-bits", "32"),
        ("--quant.method", "none", "--model.embedding-dim", "9", "--model.bottom-mlp", "9"),
    ],
)
def test_every_kind_of_network_scores_as_its_forward(tmp_path: Path, options: tuple[str, ...]) -> None:
    run = scored_run(tmp_path, *options)
    output = dqrm_cpu("export", run.run_dir)
    assert output.returncode == 0, output.stderr
    assert "logits differ by" in output.stdout
    rows = [dict(zip(NAMES, line.split("\t"), strict=True)) for line in run.lines]
    model = Model.open(run.run_dir / "model.safetensors", verify=True)
    if "none" not in options:  # else the file is quantized, the run is not
        np.testing.assert_allclose(model.predict(rows), run.probabilities, rtol=1e-5, atol=1e-7)
    assert verify_packed(run.run_dir / "model.safetensors").layout == "dense"
    if "3" in options:
        output = dqrm_cpu("export", run.run_dir, "--format", "onnx")
        assert (output.returncode, "has 3 bits; ONNX files have 2, 4, 8 or 32" in output.stderr) == (2, True)
    else:
        require_onnx_alike(run.run_dir, run.data, model, tmp_path / "model.onnx")
    metrics = model.description.metrics
    assert metrics is not None
    assert 0 < metrics["auc"] < 1


BAG_SCHEMA = """
header = true
quotes = true
delimiter = ","
label = "bought"
categories = ["shop", "tags", "topics"]
decimals = ["price"]
[multi]
tags = "|"
topics = { separator = ",", limit = 2 }
"""
BAG_NAMES = ["bought", "shop", "tags", "topics", "price"]


def bag_rows(count: int, seed: int) -> list[list[str]]:
    """Cells with no value, with missing ones, with values that come again, and with more than the limit."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        words = ["a", "b", " a", "c ", "47", "47.0", "", "NaN", "True", f"t{rng.integers(40)}"]
        tags = rng.choice(words, rng.integers(6))
        topics = rng.choice(["x", "y", "z", "null"], rng.integers(5))
        bought = int(rng.random() < 0.2 + 0.5 * ("a" in tags))
        rows.append([str(bought), f"s{rng.integers(9)}", "|".join(tags), ",".join(topics), f"{rng.normal():.3f}"])
    return rows


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--model.pooling", "mean", "--model.interaction", "cat"),
        ("--model.table-dims", "C1=4,C2=12"),
        ("--model.table-dims", "C3=3", "--quant.activation-bits", "8", "--model.pooling", "mean"),
    ],
)
def test_cells_with_several_values_score_as_by_predict(tmp_path: Path, options: tuple[str, ...]) -> None:
    def written(rows: list[list[str]], name: str) -> Path:
        with (tmp_path / name).open("w") as file:
            csv.writer(file, lineterminator="\n").writerows([BAG_NAMES, *rows])
        return tmp_path / name

    data, run, model = tmp_path / "data", tmp_path / "run", tmp_path / "model.safetensors"
    (tmp_path / "schema.toml").write_text(BAG_SCHEMA)
    succeed("prepare", written(bag_rows(900, 1), "rows.csv"), "--schema", tmp_path / "schema.toml", "--out", data)
    succeed("train", "--data", data, "--run-dir", run, *SMALL, *options)
    rows = bag_rows(300, 2)
    expected = predicted(run, written(rows, "new.csv"), out=tmp_path / "out.csv")
    raw = [dict(zip(BAG_NAMES[1:], row[1:], strict=True)) for row in rows]
    for layout in ("sparse", "dense"):
        succeed("export", run, "--out", model, "--layout", layout, "--overwrite")
        np.testing.assert_allclose(Model.open(model, verify=True).predict(raw), expected, rtol=2e-6, atol=1e-7)
    lists = [{**row, "tags": row["tags"].split("|"), "topics": row["topics"].split(",")} for row in raw]
    np.testing.assert_allclose(Model.open(model).predict(lists), expected, rtol=2e-6, atol=1e-7)
    verify_packed(model)
    require_onnx_alike(run, data, Model.open(model), tmp_path / "model.onnx")


def test_rows_come_as_tables_too(log_run: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    out = tmp_path / "model.safetensors"
    succeed("export", log_run / "run", "--out", out)
    model, rows = Model.open(out), dicts(log_rows(60, seed=3))
    expected = model.predict(rows)
    columns = {name: [row[name] for row in rows] for name in LOG_NAMES[1:]}
    np.testing.assert_array_equal(model.predict(columns), expected)
    np.testing.assert_array_equal(model.predict(pa.table(columns)), expected)
    arrays: dict[str, Any] = {name: np.array(cells) for name, cells in columns.items()}
    arrays["visits"] = arrays["visits"].astype(np.int16)
    np.testing.assert_array_equal(model.predict(arrays), expected)
    typed = [{**row, "visits": int(row["visits"]), "age": float(row["age"])} for row in rows]
    np.testing.assert_array_equal(model.predict(typed), expected)
    singly = np.concatenate([model.predict([row]) for row in rows])
    np.testing.assert_allclose(singly, expected, rtol=1e-5)
    assert model.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"price": "cheap"}, "row 1, column price: 'cheap' is not a number"),
        ({"price": " 3"}, "is not a number"),
        ({"price": float("inf")}, "'inf' is not a finite number"),
        ({"clicks": 3.5}, "'3.5' is not a whole number of 32 bits"),
        ({"clicks": 2**31}, "is not a whole number of 32 bits"),
        ({"clicks": 10**400}, "is not a finite number|is not a whole number"),
        ({"device": "xyz"}, "row 1, column device: 'xyz' is not a hash"),
        ({"device": "123456789"}, "is not a hash"),
        ({"shop": ["a"]}, "a value of the type list is no category"),
    ],
)
def test_values_that_cannot_be_are_named(log_run: Path, change: dict[str, Any], words: str) -> None:
    model = exported(log_run)
    good = dicts(log_rows(1, seed=4))[0]
    with pytest.raises(UnusableRowError, match=words):
        model.predict([good, {**good, **change}])


def exported(log_run: Path) -> Model:
    path = log_run / "model.safetensors"
    if not path.exists():
        succeed("export", log_run / "run", "--out", path)
    return Model.open(path)


def test_rows_that_are_none_are_named(log_run: Path) -> None:
    model = exported(log_run)
    row = dicts(log_rows(1, seed=4))[0]
    with pytest.raises(UnusableRowError, match=r"put it into a list, \[row\]"):
        model.predict(row)
    with pytest.raises(UnusableRowError, match="there is no column 'age'; nearest is 'ages'"):
        model.predict([{"ages" if name == "age" else name: cell for name, cell in row.items()}])
    with pytest.raises(UnusableRowError, match="int are no rows"):
        model.predict(3)
    with pytest.raises(UnusableRowError, match="different lengths"):
        model.predict({name: ["1"] * (2 if name == "age" else 3) for name in row})
    dense, ids = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.int64)
    assert model.logits_of_ids(dense, ids).shape == (2,)
    for bad in (-1, 1 << 20):
        with pytest.raises(UnusableRowError, match="an id is no row of its table"):
            model.logits_of_ids(dense, np.array([[0, 0, 0, 0], [0, bad, 0, 0]]))
    with pytest.raises(UnusableRowError, match="not finite"):
        model.logits_of_ids(np.full((2, 4), np.nan, np.float32), ids)
    with pytest.raises(UnusableRowError, match="the model reads"):
        model.logits_of_ids(dense[:, :3], ids)


def test_damage_is_noticed(log_run: Path, tmp_path: Path) -> None:
    """Everywhere with `verify`; without it where it is not in tables and vocabulary, whose bytes are read on demand."""
    exported(log_run)
    good, path = (log_run / "model.safetensors").read_bytes(), tmp_path / "file"
    for place in range(0, len(good), len(good) // 60):
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            Model.open(path, verify=True)
    for size in (*range(0, len(good), len(good) // 40), len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(CheckpointError):
            Model.open(path)
    succeed("compress", log_run / "run", "--out", path)
    with pytest.raises(CheckpointError, match="format 2, not 3"):
        Model.open(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Model.open(tmp_path / "none")


def test_an_onnx_file_never_stands_beside_the_tables_of_another(log_run: Path, tmp_path: Path) -> None:
    """The name of its tables follows from what is in them; those of the file that it replaces go."""
    out = tmp_path / "model.onnx"
    succeed("export", log_run / "run", "--format", "onnx", "--out", out)
    (tmp_path / "model.onnx-01234567.data").touch()
    (tmp_path / "another.onnx-01234567.data").touch()
    before = {path.name for path in tmp_path.iterdir()}
    succeed("export", log_run / "run", "--format", "onnx", "--out", out, "--overwrite")
    assert {path.name for path in tmp_path.iterdir()} == before - {"model.onnx-01234567.data"}
    output = dqrm_cpu("export", log_run / "run", "--format", "onnx", "--layout", "sparse", "--out", tmp_path / "o.onnx")
    assert "export it with --layout dense" in output.stderr


def test_nothing_but_numpy_is_needed(log_run: Path) -> None:
    exported(log_run)
    program = (
        "import sys; from dqrm_cpu.serving import Model; "
        f"m = Model.open({str(log_run / 'model.safetensors')!r}, fused=False); "
        f"m.predict([{dicts(log_rows(1, seed=4))[0]!r}]); "
        "print(sorted({name.partition('.')[0] for name, module in sys.modules.items() "
        "if 'site-packages' in (getattr(module, '__file__', None) or '') and 'dqrm' not in name and name[0] != '_'}))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "['numpy']"


def test_an_export_never_replaces_unasked(log_run: Path, tmp_path: Path) -> None:
    exported(log_run)
    output = dqrm_cpu("export", log_run / "run", "--out", log_run / "model.safetensors")
    assert output.returncode == 2
    assert "exists; give another name, or --overwrite" in output.stderr
    assert dqrm_cpu("export", log_run / "data").returncode == 2
    assert "give the folder of the run" in dqrm_cpu("export", log_run / "model.safetensors", "--out", "x").stderr
