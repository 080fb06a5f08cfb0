"""docs/api.md and the notebook beside it say what is so."""

import contextlib
import inspect
import io
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import dqrm_cpu
from api_page import PAGE, ROOT, with_tables
from dqrm_cpu.api import functions, scoring
from dqrm_cpu.api.evaluation import EvaluationOrder
from dqrm_cpu.api.prepare_order import PrepareOrder
from dqrm_cpu.api.training import TrainingOrder
from dqrm_cpu.predict.prediction import PredictRequest

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def test_the_page_has_every_parameter_as_the_docstrings_have_it() -> None:
    page = PAGE.read_text()
    assert page == with_tables(page), "python tests/api/api_page.py writes the tables anew"


def test_the_page_has_every_public_name() -> None:
    page = PAGE.read_text()
    assert [name for name in dqrm_cpu.__all__ if name not in page] == []


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(NOTEBOOK.read_text())
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    shown = io.StringIO()
    for number, cell in enumerate(document["cells"]):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
                exec(compile("".join(cell["source"]), f"cell {number}", "exec"), scope)
    assert os.listdir(tmp_path / "runs") == ["first"]  # noqa: PTH208
    assert float(scope["auc"]) > 0.75  # type: ignore[arg-type]


def test_every_option_is_a_parameter() -> None:
    """An option of the command line that a call does not take would be forgotten in silence."""
    orders: list[tuple[Any, Any, set[str]]] = [
        (PrepareOrder, functions.prepare, {"raw"}),
        (TrainingOrder, functions.train, {"given", "stream", "show_search", "open_progress"}),
        (EvaluationOrder, scoring.evaluate, {"given", "run_dir"}),
        (PredictRequest, scoring.predict, {"stdin", "advance", "note", "show_work"}),
    ]
    for order, function, others in orders:
        options = {field.name for field in fields(order)} - others
        assert options <= set(inspect.signature(function).parameters), function
