"""Pages as Chromium shows them: on a desk and on a phone, light and dark, whole, legible, and silent."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from dqrm_cpu.cli.main import main
from dqrm_cpu.report.chart import Axis, Curve, CurveChart, Panel, color
from dqrm_cpu.report.page import PageSection, write_page
from launching import run_mpi
from report_runs import QUICKLY, SMALL, train_small

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

REPORT = ["summary", "warnings", "learning", "reliability", "phases", "ranks", "bytes"]
MORE_OF_REPORT = ["weights", "scales", "memory", "sizes"]
PROFILE = ["summary", "warnings", "phases", "ranks", "bytes", "bandwidth"]
LEAST_CONTRAST = 4.5  # of text on its ground, by the accessibility guidelines

# Every plot of a page: where it is, whether something is drawn on it, and what its legend says.
_PLOTS = """() => [...document.querySelectorAll('.plot')].map(plot => {
  const canvas = plot.querySelector('canvas'), box = plot.getBoundingClientRect();
  const drawn = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(value => value);
  const legend = [...plot.querySelectorAll('.u-series')].filter(row => row.checkVisibility())
    .map(row => [row.querySelector('.u-label').textContent, row.querySelector('.u-value').textContent]);
  return {figure: plot.closest('figure').id, left: box.left, right: box.right, drawn, legend};
})"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of a run on two ranks beside one in FP32, and a profile of two ranks."""
    folder = tmp_path_factory.mktemp("pages")
    small = [*SMALL, "--kernels", "torch"]
    run_mpi(["-m", "dqrm_cpu", "train", "--run-dir", folder / "two", *small, *QUICKLY], 2, timeout_s=200).check()
    train_small(folder / "fp32", "--quant.method", "none")
    profile = ["-m", "dqrm_cpu", "profile", "--compare", "--steps", "4", "--warmup", "1", "--out", folder / "profile"]
    run_mpi([*profile, *small], 2, timeout_s=200).check()
    out = folder / "report.html"
    assert main(["report", str(folder / "two"), str(folder / "fp32"), "--out", str(out)]) == 0
    return {"report": out, "profile": folder / "profile" / "report.html"}


SCREENS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module", params=SCREENS, ids=lambda screen: f"{screen[0]}-{screen[1]}")
def screen(request: pytest.FixtureRequest, browser: Browser) -> Iterator["Screen"]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 1000)
    yield Screen(context, width, scheme)
    context.close()


@pytest.fixture
def look(screen: "Screen") -> Iterator["Look"]:
    page = screen.context.new_page()
    yield Look(page, screen.width, screen.scheme)
    page.close()


class Screen(NamedTuple):
    """A browser context of one width and colour scheme, in which several tests open pages."""

    context: BrowserContext
    width: int
    scheme: str


class Look:
    """A browser's window, and all that it hears from the page that it opens."""

    def __init__(self, page: Page, width: int, scheme: str) -> None:
        self.page, self.width, self.scheme = page, width, scheme
        self.heard: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.heard.append(message.text))
        page.on("pageerror", lambda error: self.heard.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path) -> None:
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("networkidle")


@pytest.mark.parametrize(("name", "sections"), [("report", [*REPORT, *MORE_OF_REPORT]), ("profile", PROFILE)])
def test_a_page_is_whole_on_every_screen(look: Look, pages: dict[str, Path], name: str, sections: list[str]) -> None:
    look.open(pages[name])
    assert look.heard == []
    assert look.requests == [pages[name].as_uri()], "the page asked for something"
    found = look.page.eval_on_selector_all("section", "all => all.map(one => one.id)")
    assert found == [*sections, "environment"]
    look.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert look.page.evaluate("document.documentElement.scrollWidth") <= look.width, "the page scrolls sideways"
    if look.width > 1000:
        cut = "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.innerText)"
        assert look.page.eval_on_selector_all(".table", cut) == [], "a table is cut off"
    for plot in look.page.evaluate(_PLOTS):
        assert plot["drawn"], f"{plot['figure']} is empty"
        assert plot["right"] - plot["left"] > 300
        assert 0 <= plot["left"] < plot["right"] <= look.width
    beyond = "all => all.filter(one => one.getBoundingClientRect().right > innerWidth).map(one => one.textContent)"
    assert look.page.eval_on_selector_all(".bars .total, .bars .name", beyond) == []


def test_logarithms_begin_anywhere(browser: Browser, tmp_path: Path) -> None:
    """Just below a power of ten too, or between two of the values that are named: each plot is drawn and has labels."""
    panels = [
        Panel(
            f"{least}",
            "",
            [Curve("a", [[least * 1.15, least * 1.25]], [least * 1.3, least * 1.5], color(0))],
            True,
            True,
        )
        for least in (0.0951, 0.0962, 0.0999, 0.1, 0.2616, 9.7, 960.0)
    ]
    write_page(
        "log", "", [PageSection("log", "Log", (CurveChart("log", "", [Axis("x")], panels),))], tmp_path / "p.html", None
    )
    look = Look(browser.new_page(viewport={"width": 1280, "height": 900}), 1280, "light")
    look.open(tmp_path / "p.html")
    assert look.heard == []
    assert [plot["drawn"] for plot in look.page.evaluate(_PLOTS)] == [True] * len(panels)
    look.page.close()


def test_the_values_under_the_pointer_are_told(look: Look, pages: dict[str, Path]) -> None:
    """With a finger too: a page on a phone has no other pointer."""
    look.open(pages["report"])
    chart = json.loads(look.page.inner_text("#figure-learning-curves script"))
    curves = chart["panels"][1]["curves"]
    plot = look.page.locator("#figure-learning-curves .plot").nth(1)
    over = plot.locator(".u-over")
    box = over.bounding_box()
    assert box is not None
    told = {}
    for share in (0.02, 0.98):
        if look.width < 1000:
            place = {"x": share * box["width"], "y": 50.0}
            over.tap(position=place)  # type: ignore[arg-type]
        else:
            over.hover(position={"x": share * box["width"], "y": 50.0})
        look.page.wait_for_timeout(50)
        told[share] = look.page.evaluate(_PLOTS)[1]["legend"]
    for share, at in ((0.02, 0), (0.98, -1)):
        step = chart["xs"][curves[0]["x"][0]][at]
        assert told[share][0] == ["step", str(step)]
        assert [[label, float(value)] for label, value in told[share][1:]] == [
            [curve["label"], pytest.approx(curve["y"][at], rel=1e-3)] for curve in curves
        ]


def test_time_can_be_chosen_instead_of_steps(look: Look, pages: dict[str, Path]) -> None:
    look.open(pages["report"])
    look.page.click("#figure-learning-curves .axes button:has-text('training time')")
    assert look.page.evaluate(_PLOTS)[0]["legend"][0][0] == "training time"
    pressed = "all => all.map(one => one.getAttribute('aria-pressed'))"
    assert look.page.eval_on_selector_all("#figure-memory .axes button", pressed)[1] == "true", "of all charts"
    assert look.heard == []


def test_a_bar_tells_its_figures(look: Look, pages: dict[str, Path]) -> None:
    look.open(pages["report"])
    bar = look.page.locator("#figure-phases .bar").nth(1)
    bar.click()
    assert look.page.inner_text("#figure-phases .key .of") == bar.locator(".name").inner_text()
    assert look.page.locator("#figure-phases .key b").all_inner_texts() == json.loads(
        bar.get_attribute("data-texts") or ""
    )


def test_without_scripts_the_tables_are_there(browser: Browser, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["report"].as_uri())
    assert not page.locator(".panels").first.is_visible()
    page.locator("#figure-learning-curves summary").click()
    assert "Validation AUC, two" in page.inner_text("#figure-learning-curves details")
    context.close()


@pytest.mark.parametrize("name", ["report", "profile"])
def test_texts_stand_out_from_their_ground(look: Look, pages: dict[str, Path], name: str) -> None:
    look.open(pages[name])
    ground = luminance(color_of(look.page, "body", "backgroundColor"))
    assert (ground < 0.5) == (look.scheme == "dark")
    for selector in ("h1", "figcaption", "td", ".total", *([".u-label"] if name == "report" else [])):
        letters = luminance(color_of(look.page, selector, "color"))
        high, low = max(ground, letters), min(ground, letters)
        assert (high + 0.05) / (low + 0.05) >= LEAST_CONTRAST, selector


def color_of(page: Page, selector: str, style: str) -> list[float]:
    text: str = page.eval_on_selector(selector, f"one => getComputedStyle(one).{style}")
    return [float(part) for part in text[text.index("(") + 1 : text.index(")")].split(",")[:3]]


def luminance(color: list[float]) -> float:
    """Relative luminance of sRGB."""
    parts = [value / 255 for value in color]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
