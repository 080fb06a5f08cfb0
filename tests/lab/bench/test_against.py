"""Benchmarks beside earlier ones: a change counts beyond noise only, and a slower machine is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from dqrm_cpu.cli.bench_table import format_changes
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.lab.bench.data.data_benchmark import GROUPS, group_result
from dqrm_cpu.lab.bench.data.data_process import Contents, ProcessFigures
from dqrm_cpu.lab.bench.exchange.exchange_benchmark import baseline
from dqrm_cpu.lab.bench.harness.against import Change, Earlier, changes_since, read_earlier
from dqrm_cpu.lab.bench.harness.result import CaseResult, ContestantResult, GroupResult, Timing

THEN = {"base": 10.0, "ours": 5.0, "other": 8.0}


def earlier(spread: float = 0.0) -> Earlier:
    contestants = {
        name: {"median_s": s, "lower_quartile_s": s * (1 - spread), "upper_quartile_s": s * (1 + spread)}
        for name, s in THEN.items()
    }
    return Earlier(Path("old.json"), {"cases": {"demo_128": {"groups": {"g": {"contestants": contestants}}}}})


def changes(now: dict[str, float], spread: float = 0.0) -> dict[str, Change]:
    entries = tuple(ContestantResult(name, "", Timing((seconds,), 1)) for name, seconds in now.items())
    result = CaseResult("demo_128", "", {}, (GroupResult("g", "base", entries, {}),))
    return {change.name: change for change in changes_since(earlier(spread), [result])}


def test_a_slower_day_of_the_machine_is_no_change() -> None:
    found = changes({name: 3 * seconds for name, seconds in THEN.items()})
    assert {name: change.ratio for name, change in found.items()} == {"ours": 1.0, "other": 1.0}
    assert not any(change.slower or change.quicker for change in found.values())


def test_what_got_slower_and_quicker_is_told() -> None:
    found = changes({**THEN, "ours": 6.0, "other": 4.0})
    assert found["ours"].slower
    assert found["ours"].ratio == pytest.approx(1.2)
    assert found["other"].quicker
    text = format_changes(earlier(), list(found.values()), ["threads are 2, were 4"])
    assert "demo_128 ours" in text
    assert "1.20 times  slower" in text
    assert "1 of 2 got slower beyond noise" in text
    assert "threads are 2, were 4" in text


def test_within_noise_nothing_is_told() -> None:
    found = changes({**THEN, "ours": 6.0}, spread=0.15)
    assert not found["ours"].slower
    assert "0 of 2 got slower" in format_changes(earlier(), list(found.values()), [])


def test_what_was_not_timed_before_is_passed_over() -> None:
    assert set(changes({**THEN, "new": 1.0})) == {"ours", "other"}


def test_without_a_baseline_times_themselves_are_compared_and_marked() -> None:
    found = changes({"ours": 10.0})
    assert (found["ours"].ratio, found["ours"].alone, found["ours"].slower) == (2.0, True, True)
    text = format_changes(earlier(), list(found.values()), [])
    assert "demo_128 ours*" in text
    assert "a slow day of the machine looks the same" in text
    both = changes({**THEN, "ours": 10.0})
    assert not both["ours"].alone
    assert "*" not in format_changes(earlier(), list(both.values()), [])


def test_preparation_is_compared_too() -> None:
    figures = [ProcessFigures(seconds, 1, Contents()) for seconds in (9.0, 2.0, 2.0)]  # the first warms up
    everyone = {contestant.name: figures for group in GROUPS for contestant in group.contestants}
    groups = [group_result(group, 9, everyone, {}) for group in GROUPS]
    assert (groups[0].name, groups[0].baseline) == ("plain", "polars_plain")
    timings = {entry.name: entry.timing for entry in groups[0].entries}
    assert timings == dict.fromkeys(("ours_plain", "polars_plain", "read_floor"), Timing((2.0, 2.0), 1))
    then = {
        "polars_plain": {"median_s": 2.0, "lower_quartile_s": 2.0, "upper_quartile_s": 2.0},
        "ours_plain": {"median_s": 1.0, "lower_quartile_s": 1.0, "upper_quartile_s": 1.0},
    }
    before = Earlier(Path("old.json"), {"cases": {"rows_1m": {"groups": {"plain": {"contestants": then}}}}})
    (change,) = changes_since(before, [CaseResult("rows_1m", "", {}, tuple(groups))])
    assert (change.name, change.ratio, change.slower) == ("ours_plain", 2.0, True)


def test_exchanges_are_compared_too() -> None:
    assert [baseline(group, ("mpi", "gloo")) for group in ("tables", "mlp", "step")] == [
        "torch_gloo_per_table",
        "mpi_mlp_fp32",
        "step_alone",
    ]
    entries = [
        ContestantResult(name, "", Timing((s,), 1)) for name, s in (("mpi_mlp_fp32", 4.0), ("mpi_mlp_int8", 3.0))
    ]
    group = GroupResult("mlp", baseline("mlp", ("mpi",)), tuple(entries), {})
    then = {
        "mpi_mlp_fp32": {"median_s": 2.0, "lower_quartile_s": 2.0, "upper_quartile_s": 2.0},
        "mpi_mlp_int8": {"median_s": 3.0, "lower_quartile_s": 3.0, "upper_quartile_s": 3.0},
    }
    before = Earlier(Path("old.json"), {"cases": {"terabyte_d64": {"groups": {"mlp": {"contestants": then}}}}})
    (change,) = changes_since(before, [CaseResult("terabyte_d64", "", {}, (group,))])
    assert (change.name, change.ratio, change.quicker) == ("mpi_mlp_int8", 0.5, True)


@pytest.mark.parametrize(
    "document", [{}, [], {"format": 1, "benchmark": "kernels"}, {"format": 1, "benchmark": "step"}]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="no result of bench step"):
        read_earlier(path, "step")
