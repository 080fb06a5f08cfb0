"""`bench serve` on a small model: a real server, every form of a request, no failure, figures that are kept."""

import json
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.lab.bench.serve.request_forms import FORMS


def test_a_quick_run_answers_every_request_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "serve.json"
    assert main(["bench", "serve", "--quick", "--rounds", "2", "--cases", "rows_64", "--json", str(path)]) == 0
    output = capsys.readouterr().out
    case = json.loads(path.read_text())["cases"]["rows_64"]
    entries = case["groups"]["requests"]["contestants"]
    assert set(entries) == {form.name for form in FORMS}
    for name, entry in entries.items():
        load = entry["load"]
        assert (load["requests"], load["failed"], load["per_s"]) == (120, 0, 200), name
        assert len(entry["samples_s"]) == 2
        assert 0 < entry["median_s"] <= load["p99_s"] <= load["p999_s"] <= load["largest_s"]
        assert load["cpu_s"] >= 0
    assert "requests of 64 rows, 200 a second" in output
    assert "99.9%" in output
