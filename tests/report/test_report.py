"""Reports: complete, of any run in any state, and in need of nothing from outside."""

import base64
import hashlib
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.config import load_config
from dqrm_cpu.errors import ConfigError, DeviceError
from dqrm_cpu.metrics.click import ClickMetrics
from dqrm_cpu.report.build import build_report
from dqrm_cpu.train.tuning.candidates import Values
from dqrm_cpu.train.tuning.halving import Round
from dqrm_cpu.train.tuning.record import new_record, write_record
from report_runs import train_small

SECTIONS = ("summary", "warnings", "learning", "reliability", "phases", "ranks", "bytes")
MORE_SECTIONS = ("weights", "scales", "memory", "sizes", "environment")
MOST_BYTES = 2_000_000
LIKE_INT4 = ("--quant.scale-period", "5", "--quant.scale-finder", "scan")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_small(folder / "int4", *LIKE_INT4)
    train_small(folder / "fp32", "--quant.method", "none")
    return folder


class Outline(HTMLParser):
    """Ids of sections, of figures, and every tag's attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.figures: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        if tag == "section":
            self.sections.append(values["id"])
        elif tag == "figure":
            self.figures.append(values["id"])


def charts(path: Path) -> dict[str, Any]:
    """The data of every chart of curves, by its key."""
    text = path.read_text(encoding="utf-8")
    documents = map(json.loads, re.findall(r'<script type="application/json">(.*?)</script>', text))
    return {document["key"]: document for document in documents}


def outline(path: Path) -> Outline:
    found = Outline()
    found.feed(path.read_text(encoding="utf-8"))
    return found


def test_a_page_has_every_section_and_asks_nobody_for_anything(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    build_report([runs / "int4", runs / "fp32"], page)
    found = outline(page)
    assert found.sections == [*SECTIONS, *MORE_SECTIONS]
    figures = ["learning-curves", "reliability", "phases", "weights-0", "scales-0", "memory", "sizes"]
    assert found.figures == [f"figure-{name}" for name in figures]
    assert [link for link in found.links if not link.startswith(("#", "data:,"))] == []
    assert len(set(found.ids)) == len(found.ids)
    assert page.stat().st_size < MOST_BYTES


def test_only_scripts_of_ours_run(runs: Path, tmp_path: Path) -> None:
    """The policy names each by its digest, so that nothing in the name of a run could be one."""
    page = tmp_path / "page.html"
    build_report([runs / "fp32"], page)
    text = page.read_text(encoding="utf-8")
    policy = re.search(r"script-src ([^;]*);", text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy is not None
    assert policy[1].split() == [f"'sha256-{digest}'" for digest in digests]
    assert len(scripts) == 2


def test_the_plotting_library_is_the_one_that_its_note_names() -> None:
    folder = resources.files("dqrm_cpu.report").joinpath("uplot")
    sums = re.findall(r"^    ([0-9a-f]{64})  (\S+)$", folder.joinpath("README.md").read_text(), re.MULTILINE)
    assert {name for _, name in sums} == {"uPlot.iife.min.js", "uPlot.min.css", "LICENSE"}
    for digest, name in sums:
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == digest


def test_curves_are_what_the_run_recorded(runs: Path, tmp_path: Path) -> None:
    build_report([runs / "int4"], tmp_path / "page.html")
    rows = [json.loads(line) for line in (runs / "int4" / "metrics.jsonl").read_text().splitlines()]
    for place, phase, figure in (
        (0, "train", "loss"),
        (1, "validation", "auc"),
        (3, "validation", "normalized_entropy"),
    ):
        (curve,) = charts(tmp_path / "page.html")["learning-curves"]["panels"][place]["curves"]
        recorded = {row["step"]: row[figure] for row in rows if row["phase"] == phase}
        steps = charts(tmp_path / "page.html")["learning-curves"]["xs"][curve["x"][0]]
        assert dict(zip(steps, curve["y"], strict=True)) == pytest.approx(recorded, rel=1e-4)


def test_training_time_adds_up_the_steps(runs: Path, tmp_path: Path) -> None:
    """A row that covers only the first step of a process, which compiles, has no time and takes none."""
    build_report([runs / "int4"], tmp_path / "page.html")
    chart = charts(tmp_path / "page.html")["learning-curves"]
    rows = [json.loads(line) for line in (runs / "int4" / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["phase"] == "train"]
    seconds, before = [], (0, 0.0)
    for row in trained:
        before = (row["step"], before[1] + (row["step"] - before[0]) * row["ms_per_step"] / 1e3)
        seconds.append(before[1])
    assert [axis["label"] for axis in chart["axes"]][:2] == ["step", "training time"]
    assert chart["xs"][chart["panels"][0]["curves"][0]["x"][1]] == pytest.approx(seconds, rel=1e-4)


def test_wall_time_goes_on_while_nothing_is_computed(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "int4", tmp_path / "run"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["logged_at"] = 1000.0 + 10 * number + (500 if row["step"] > 8 else 0)  # it stopped and was resumed
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    build_report([run], tmp_path / "page.html")
    chart = charts(tmp_path / "page.html")["learning-curves"]
    assert [axis["label"] for axis in chart["axes"]] == ["step", "training time", "wall time"]
    trained = [row["logged_at"] for row in rows if row["phase"] == "train"]
    shown = chart["xs"][chart["panels"][0]["curves"][0]["x"][2]]
    assert [later - shown[0] for later in shown] == pytest.approx([later - trained[0] for later in trained], abs=0.01)


def test_a_run_of_an_earlier_version_has_neither_bins_nor_wall_time(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "int4", tmp_path / "run"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("reliability", None)
        del row["logged_at"]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    result = json.loads((run / "result.json").read_text())
    del result["crc32"], result["test"]["best"]["reliability"], result["validation"]["best"]["reliability"]
    (run / "result.json").write_text(json.dumps(result))
    build_report([run], tmp_path / "page.html")
    shown = charts(tmp_path / "page.html")
    assert "reliability" not in shown
    assert [axis["label"] for axis in shown["learning-curves"]["axes"]] == ["step", "training time"]
    assert "No run has recorded its predictions by bins" in (tmp_path / "page.html").read_text()


def test_reliability_is_that_of_the_chosen_checkpoint(runs: Path, tmp_path: Path) -> None:
    build_report([runs / "int4"], tmp_path / "page.html")
    chart = charts(tmp_path / "page.html")["reliability"]
    best = json.loads((runs / "int4" / "result.json").read_text())["test"]["best"]
    (curve,) = chart["panels"][1]["curves"]
    assert len(chart["xs"][curve["x"][0]]) == len(curve["y"]) <= 20
    bins = best["reliability"]
    assert sum(bins["rows"]) == best["examples"] == 400
    assert sum(bins["predicted"]) / sum(bins["clicks"]) == pytest.approx(best["calibration"])


def test_settings_that_differ_are_compared(runs: Path, tmp_path: Path) -> None:
    build_report([runs / "int4", runs / "fp32"], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    compared = text.partition("Settings that differ")[2].partition("</table>")[0]
    assert re.findall(r"<tr><td>(.*?)</td>", compared) == ["quant.method", "quant.scale_period", "quant.scale_finder"]
    assert "<td>quant.method</td><td>dqrm</td><td>none</td>" in compared
    build_report([runs / "int4"], tmp_path / "page.html")
    assert "Settings that differ" not in (tmp_path / "page.html").read_text()


def test_a_name_of_other_bytes_than_utf8_is_no_obstacle(runs: Path, tmp_path: Path) -> None:
    """Under LANG=C every name beyond ASCII is such a one."""
    folder = tmp_path / os.fsdecode(b"l\xe4ufe")
    shutil.copytree(runs / "fp32", folder)
    build_report([folder, runs / "int4"], tmp_path / "page.html")
    assert b">l\xe4ufe<" in (tmp_path / "page.html").read_bytes()


def test_without_scripts_a_page_has_the_figures(runs: Path, tmp_path: Path) -> None:
    build_report([runs / "int4"], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    aucs = [
        row["auc"] for row in map(json.loads, (runs / "int4" / "metrics.jsonl").open()) if row["phase"] == "validation"
    ]
    ends = "".join(f"<td>{value:.5g}</td>" for value in (aucs[0], min(aucs), max(aucs), aucs[-1]))
    assert f"<td>Validation AUC, int4</td>{ends}" in text


def test_what_a_page_shows_is_what_the_run_recorded(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    build_report([runs / "int4"], page)
    text = page.read_text(encoding="utf-8")
    result = json.loads((runs / "int4" / "result.json").read_text())
    spans = json.loads((runs / "int4" / "spans" / "rank0.json").read_text())
    assert f"{result['test']['best']['auc']:.4f}" in text
    assert f"{spans['step']['median_ms']:.2f}" in text
    assert f"rank 0: {spans['step']['count']:,} steps" in text


def test_a_search_before_training_is_shown(runs: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(runs / "int4", tuned)
    values: list[Values] = [{"train.learning_rate": 0.1}, {"train.learning_rate": 0.7}]
    record = new_record(load_config(None, tuned / "config.toml", {}), 2, "rows", (Round(12, 2),), values)
    write_record(tuned, record.with_score(0, ClickMetrics(0.61237, 0.7, 0.5, 0.9, 1.0, 400)).with_score(1, None))
    build_report([tuned], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for shown in ("settings tried before training", "AUC, 12 steps", "0.6124", "chosen", "0.7", "diverged"):
        assert shown in text
    assert outline(tmp_path / "page.html").sections == [*SECTIONS, *MORE_SECTIONS]


def test_figures_for_papers(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ab.html"
    status = main(["report", str(runs / "int4"), str(runs / "fp32"), "--out", str(out), "--png", str(tmp_path / "png")])
    assert status == 0
    written = [Path(line) for line in capsys.readouterr().out.split()]
    assert written[0] == out
    assert sorted(written[1:]) == sorted((tmp_path / "png").iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])


def test_a_run_that_is_still_going_on_has_a_report(runs: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    started.mkdir()
    for name in ("config.toml", "environment.json", "metrics.jsonl"):
        shutil.copy(runs / "int4" / name, started / name)
    text = (started / "metrics.jsonl").read_text().splitlines(keepends=True)
    (started / "metrics.jsonl").write_text(text[0])
    build_report([started], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert outline(tmp_path / "page.html").sections == [*SECTIONS, *MORE_SECTIONS]
    assert "has not finished" in page
    assert "--resume" in page


def test_a_run_that_has_only_begun_has_a_report(runs: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(runs / "int4" / "config.toml", begun)
    build_report([begun], tmp_path / "page.html")
    assert outline(tmp_path / "page.html").sections == [*SECTIONS, *MORE_SECTIONS]


def test_a_run_shorter_than_a_row_of_the_log_shows_its_loss_and_says_why(runs: Path, tmp_path: Path) -> None:
    short = train_small(tmp_path / "short", *LIKE_INT4, "--train.log-every", "100")
    build_report([short], tmp_path / "page.html")
    rows = [json.loads(line) for line in (runs / "int4" / "metrics.jsonl").read_text().splitlines()]
    mean = fmean(row["loss"] for row in rows if row["phase"] == "train")
    chart = charts(tmp_path / "page.html")["learning-curves"]
    (curve,) = chart["panels"][0]["curves"]
    assert (chart["xs"][curve["x"][0]], curve["y"]) == ([12], [pytest.approx(mean, rel=1e-4)])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h4>Training loss" in page and "<h4>Speed" not in page
    assert f"without a curve of training: short, 12 steps with a loss of {mean:.4f} on average." in page
    assert page.count("Every run is shorter than <code>--train.log-every</code>.") == 2


def test_names_are_text_not_markup(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / '<u>"a" & u'
    shutil.copytree(runs / "fp32", folder)
    build_report([folder], tmp_path / "page.html")
    found = outline(tmp_path / "page.html")
    assert "u" not in found.tags
    assert found.sections == [*SECTIONS, *MORE_SECTIONS]


def test_runs_of_one_name_are_told_apart_by_their_folders(runs: Path, tmp_path: Path) -> None:
    for parent in ("one", "two"):
        shutil.copytree(runs / "fp32", tmp_path / parent / "run")
    build_report([tmp_path / "one" / "run", tmp_path / "two" / "run"], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.search(r"<td>one/run</td>", text)
    assert re.search(r"<td>two/run</td>", text)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        build_report([tmp_path], tmp_path / "page.html")


def test_matplotlib_is_needed_for_png_alone(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    build_report([runs / "fp32"], tmp_path / "page.html")
    with pytest.raises(DeviceError, match=r"pip install 'dqrm-cpu\[report\]'"):
        build_report([runs / "fp32"], tmp_path / "page.html", tmp_path / "png")
