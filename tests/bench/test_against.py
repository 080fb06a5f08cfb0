"""Benchmarks beside earlier ones: a change counts beyond noise only, and a slower machine is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from dqrm_cpu.bench.against import Change, Earlier, TimedGroup, changes_since, read_earlier, timed_groups
from dqrm_cpu.bench.cases import CASES
from dqrm_cpu.bench.data import CASES as DATA_CASES
from dqrm_cpu.bench.data import GROUPS
from dqrm_cpu.bench.data_run import DataEntry, DataGroupResult, DataResult
from dqrm_cpu.bench.data_run import timed_groups as groups_of_data
from dqrm_cpu.bench.exchange_document import timed_groups as groups_of_exchange
from dqrm_cpu.bench.exchange_run import ExchangeEntry, ExchangeGroup, ExchangeResult
from dqrm_cpu.bench.result import CaseResult, Entry, GroupResult
from dqrm_cpu.bench.timing import Timing
from dqrm_cpu.cli.bench_against import format_changes
from dqrm_cpu.errors import ConfigError

THEN = {"base": 10.0, "ours": 5.0, "other": 8.0}


def earlier(spread: float = 0.0) -> Earlier:
    contestants = {
        name: {"median_s": s, "lower_quartile_s": s * (1 - spread), "upper_quartile_s": s * (1 + spread)}
        for name, s in THEN.items()
    }
    return Earlier(Path("old.json"), {"cases": {"demo_128": {"groups": {"g": {"contestants": contestants}}}}})


def changes(now: dict[str, float], spread: float = 0.0) -> dict[str, Change]:
    entries = tuple(Entry(name, "", Timing((seconds,), 1)) for name, seconds in now.items())
    result = CaseResult(CASES["demo_128"](), 1, (GroupResult("g", "base", entries, {}),), ())
    return {change.name: change for change in changes_since(earlier(spread), timed_groups([result]))}


def test_a_slower_day_of_the_machine_is_no_change() -> None:
    found = changes({name: 3 * seconds for name, seconds in THEN.items()})
    assert {name: change.ratio for name, change in found.items()} == {"ours": 1.0, "other": 1.0}
    assert not any(change.slower or change.quicker for change in found.values())


def test_what_got_slower_and_quicker_is_told() -> None:
    found = changes({**THEN, "ours": 6.0, "other": 4.0})
    assert (found["ours"].slower, found["ours"].ratio) == (True, pytest.approx(1.2))
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
    timing = Timing((2.0, 2.0), 1)
    groups = [DataGroupResult(g, tuple(DataEntry(c, 9, timing, 1) for c in g.contestants), {}) for g in GROUPS]
    found = groups_of_data([DataResult(DATA_CASES["rows_1m"], 1, 1, tuple(groups))])
    plain = {"ours_plain", "polars_plain", "read_floor"}
    assert found[0] == TimedGroup("rows_1m", "plain", "polars_plain", dict.fromkeys(plain, timing))
    then = {
        "polars_plain": {"median_s": 2.0, "lower_quartile_s": 2.0, "upper_quartile_s": 2.0},
        "ours_plain": {"median_s": 1.0, "lower_quartile_s": 1.0, "upper_quartile_s": 1.0},
    }
    before = Earlier(Path("old.json"), {"cases": {"rows_1m": {"groups": {"plain": {"contestants": then}}}}})
    (change,) = changes_since(before, found)
    assert (change.name, change.ratio, change.slower) == ("ours_plain", 2.0, True)


def test_exchanges_are_compared_too() -> None:
    def entry(name: str, seconds: float) -> ExchangeEntry:
        return ExchangeEntry(name, "", Timing((seconds,), 1), {}, {})

    groups = [ExchangeGroup("mlp", (entry("mpi_mlp_fp32", 4.0), entry("mpi_mlp_int8", 3.0)), {})]
    found = groups_of_exchange([ExchangeResult("terabyte_d64", "", 2, {"mpi": "asked for"}, tuple(groups))])
    timings = {"mpi_mlp_fp32": Timing((4.0,), 1), "mpi_mlp_int8": Timing((3.0,), 1)}
    assert found == [TimedGroup("terabyte_d64", "mlp", "mpi_mlp_fp32", timings)]


@pytest.mark.parametrize(
    "document", [{}, [], {"format": 1, "benchmark": "kernels"}, {"format": 1, "benchmark": "step"}]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="no result of bench step"):
        read_earlier(path, "step")
