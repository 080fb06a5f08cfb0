"""Mistakes in calls from Python: each is a DqrmError that says what was wrong, before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import dqrm_cpu
from clicks import QUICK, SCHEMA, click_columns

FEW = click_columns(3)
PREPARED = {"schema": SCHEMA}

MISTAKES: dict[str, tuple[Callable[[Any, Path, Any], object], str]] = {
    "no data set": (lambda dqrm, shop, run: dqrm.train(shop / "nothing"), "there is no such folder"),
    "no name": (lambda dqrm, shop, run: dqrm.train(3), "data is 3, which names no file or folder"),
    "a run there": (lambda dqrm, shop, run: dqrm.train(shop / "data", run_dir=run), "holds a run already"),
    "a setting": (lambda dqrm, shop, run: dqrm.train(lr=1), "lr: unknown key"),
    "a value": (lambda dqrm, shop, run: dqrm.train(quant={"method": "dqmr"}), "nearest is dqrm"),
    "a type": (lambda dqrm, shop, run: dqrm.train(**{"train.epochs": 2.5}), "wrong type"),
    "an object": (lambda dqrm, shop, run: dqrm.train(**{"train.epochs": object()}), "wrong type"),
    "a section": (lambda dqrm, shop, run: dqrm.train(quant="dqrm"), "quant is a section"),
    "a preset": (lambda dqrm, shop, run: dqrm.settings(preset="demmo"), "nearest is demo"),
    "two presets": (lambda dqrm, shop, run: dqrm.settings(config=run.settings, preset="demo"), "leave out preset"),
    "no file": (lambda dqrm, shop, run: dqrm.settings(config="nowhere.toml"), "no such file"),
    "trials": (lambda dqrm, shop, run: dqrm.train(tune=True), "no whole number from 2 on"),
    "resume": (lambda dqrm, shop, run: dqrm.train(resume="auto"), "resume is 'auto'"),
    "no run": (lambda dqrm, shop, run: dqrm.Run(shop), "holds no run"),
    "a part": (lambda dqrm, shop, run: run.evaluate(part="tests"), "there is no part 'tests'"),
    "a column": (lambda dqrm, shop, run: run.evaluate(group_by="price"), "there is no category 'price'"),
    "a calibration": (lambda dqrm, shop, run: run.evaluate(calibrate="plat"), "no such way"),
    "slices": (lambda dqrm, shop, run: run.evaluate(slices=0), "no whole number from 1 on"),
    "no rows": (lambda dqrm, shop, run: run.predict(7), "a int holds no rows"),
    "no row": (lambda dqrm, shop, run: run.predict({"item": []}), "has no column|not a single row"),
    "a mixed column": (lambda dqrm, shop, run: run.predict({"item": [1, "a"]}), "a column holds values of one kind"),
    "columns": (lambda dqrm, shop, run: run.predict({"item": [1]}), "the given table has no column 'device'"),
    "keys": (lambda dqrm, shop, run: run.predict(FEW, keys="item"), r"give a list of names, such as \['item'\]"),
    "skipping": (lambda dqrm, shop, run: run.predict(shop / "rows.parquet", bad_rows="skip"), "give keys, or out"),
    "no quarantine": (lambda dqrm, shop, run: run.predict(FEW, bad_rows="quarantine"), "give out"),
    "a policy": (lambda dqrm, shop, run: run.predict(FEW, bad_rows="drop"), "bad_rows is 'drop'"),
    "workers": (lambda dqrm, shop, run: run.predict(FEW, workers=0), "no whole number from 1 on"),
    "a layout": (lambda dqrm, shop, run: run.export(layout="thin"), "layout is 'thin'"),
    "a suffix": (lambda dqrm, shop, run: run.predict(FEW, shop / "out.txt"), "one of these suffixes"),
    "a format": (
        lambda dqrm, shop, run: dqrm.prepare("x", shop / "x", format="kagle"),
        "no such choice",
    ),
    "no schema": (lambda dqrm, shop, run: dqrm.prepare(FEW, shop / "x"), "give either --format"),
    "a schema": (
        lambda dqrm, shop, run: dqrm.prepare(FEW, shop / "x", schema={"lable": "x"}),
        "nearest is label",
    ),
    "no TOML": (
        lambda dqrm, shop, run: dqrm.prepare(FEW, shop / "x", schema={"label": None}),
        "what TOML cannot",
    ),
    "a seed": (lambda dqrm, shop, run: dqrm.prepare(FEW, shop / "x", seed=-1, **PREPARED), "out of range"),
    "a number": (
        lambda dqrm, shop, run: dqrm.prepare(FEW, shop / "x", min_count=1.5, **PREPARED),
        "whole number",
    ),
    "a suggestion": (
        lambda dqrm, shop, run: dqrm.suggest_schema(FEW, shop / "schema.toml"),
        "is there already",
    ),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with raw rows and a schema, and `data` and `run` that are made of them."""
    folder = tmp_path_factory.mktemp("shop")
    pyarrow.parquet.write_table(pyarrow.table(click_columns()), folder / "rows.parquet")
    (folder / "schema.toml").write_text("")
    dqrm_cpu.prepare(folder / "rows.parquet", folder / "data", schema=SCHEMA)
    dqrm_cpu.train(folder / "data", run_dir=folder / "run", **{**QUICK, "train.max_steps": 2})
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_with_a_sentence(shop: Path, mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises(dqrm_cpu.DqrmError, match=message):
        call(dqrm_cpu, shop, dqrm_cpu.Run(shop / "run"))
    assert not (shop / "x").exists()
