"""Reports: complete, of any run in any state, and in need of nothing from outside."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.errors import ConfigError, DeviceError
from dqrm_cpu.report.build import build_report
from report_runs import train_small

SECTIONS = ("summary", "warnings", "learning", "phases", "ranks", "bytes")
MORE_SECTIONS = ("weights", "scales", "memory", "sizes", "environment")
MOST_BYTES = 2_000_000


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_small(folder / "int4", "--quant.scale-period", "5", "--quant.scale-finder", "scan")
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


def outline(path: Path) -> Outline:
    found = Outline()
    found.feed(path.read_text(encoding="utf-8"))
    return found


def test_a_page_has_every_section_and_asks_nobody_for_anything(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    build_report([runs / "int4", runs / "fp32"], page)
    found = outline(page)
    assert found.sections == [*SECTIONS, *MORE_SECTIONS]
    figures = ["learning-curves", "phases", "weights-0", "scales-0", "memory", "sizes"]
    assert found.figures == [f"figure-{name}" for name in figures]
    assert "script" not in found.tags
    assert [link for link in found.links if not link.startswith(("#", "data:,"))] == []
    assert len(set(found.ids)) == len(found.ids), "drawings share names: one would be clipped by another's path"
    assert page.stat().st_size < MOST_BYTES


def test_colours_follow_the_page(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    build_report([runs / "fp32"], page)
    text = page.read_text(encoding="utf-8")
    assert "#010a0" not in text, "a stand-in for one of the page's colours was left"
    assert text.count("var(--ink)") > 20


def test_what_a_page_shows_is_what_the_run_recorded(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    build_report([runs / "int4"], page)
    text = page.read_text(encoding="utf-8")
    result = json.loads((runs / "int4" / "result.json").read_text())
    spans = json.loads((runs / "int4" / "spans" / "rank0.json").read_text())
    assert f"{result['test']['best']['auc']:.4f}" in text
    assert f"{spans['step']['median_ms']:.2f}" in text
    assert f"rank 0: {spans['step']['count']:,} steps" in text


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


def test_names_are_text_not_markup(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / '<b>"a" & b'
    shutil.copytree(runs / "fp32", folder)
    build_report([folder], tmp_path / "page.html")
    found = outline(tmp_path / "page.html")
    assert "b" not in found.tags
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


def test_matplotlib_that_is_missing_is_named_with_its_mend(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DeviceError, match=r"pip install 'dqrm-cpu\[report\]'"):
        build_report([runs / "fp32"], tmp_path / "page.html")
