"""`dqrm-cpu bench data` from the command line to its JSON."""

import json
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main


@pytest.mark.usefixtures("forked_processes")
def test_figures_of_a_run_say_who_read_what_in_how_much_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    assert main(["bench", "data", "--quick", "--rounds", "1", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    case = document["cases"]["rows_1m"]
    ours = case["groups"]["plain"]["contestants"]["ours_plain"]
    assert (document["benchmark"], document["quick"], case["rows"], ours["rows"]) == ("data", True, 20_000, 20_000)
    assert case["gzip_bytes"] < case["text_bytes"]
    assert ours["peak_bytes"] > 50_000_000
    assert case["groups"]["loader"]["contestants"]["loader"]["rows"] == 20_000 - 20_000 // 7
    floor = document["ratios"]["prepare_over_floor"]["rows_1m"]["gzip"]
    assert floor["ratio"] == pytest.approx(floor["numerator"]["median_s"] / floor["denominator"]["median_s"])
    output = capsys.readouterr().out
    assert "ours_gzip " in output
    assert "polars_gzip " in output


def test_a_case_of_another_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "data", "--cases", "kaggle_128"]) == 2
    assert "there are rows_1m, rows_8m, predict_1m" in capsys.readouterr().err
