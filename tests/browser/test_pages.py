"""Pages as Chromium shows them: on a desk and on a phone, light and dark, whole, legible, and silent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from dqrm_cpu.cli.main import main
from launching import run_mpi
from report_runs import QUICKLY, SMALL, train_small

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

REPORT = ["summary", "warnings", "learning", "phases", "ranks", "bytes", "weights", "scales", "memory", "sizes"]
PROFILE = ["summary", "warnings", "phases", "ranks", "bytes", "bandwidth"]
LEAST_CONTRAST = 4.5  # of text on its ground, by the accessibility guidelines

# Texts of the drawing that is shown, with what they overlap and where they leave it.
_TEXTS = """() => [...document.querySelectorAll('figure svg')].filter(svg => svg.checkVisibility()).map(svg => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].filter(text => text.textContent.trim()).map(text => {
    const box = text.getBoundingClientRect();
    return {text: text.textContent.trim(), left: box.left, top: box.top, right: box.right, bottom: box.bottom};
  });
  const {left, top, right, bottom} = frame;
  return {figure: svg.closest('figure').id, left, top, right, bottom, texts};
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


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def look(request: pytest.FixtureRequest, browser: Browser) -> Iterator["Look"]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    yield Look(context.new_page(), width, scheme)
    context.close()


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


@pytest.mark.parametrize(("name", "sections"), [("report", REPORT), ("profile", PROFILE)])
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
    figures = look.page.evaluate(_TEXTS)
    assert len(figures) == look.page.locator("figure").count() > 0, "each figure shows one of its drawings"
    for figure in figures:
        check_figure(figure, look.width)


def check_figure(figure: dict[str, Any], width: int) -> None:
    name = figure["figure"]
    assert figure["right"] - figure["left"] > 300, f"{name} is not to be seen"
    assert figure["bottom"] - figure["top"] > 80, f"{name} is not to be seen"
    assert figure["left"] >= 0
    assert figure["right"] <= width
    assert figure["texts"], f"{name} has no text"
    for text in figure["texts"]:
        inside = text["left"] >= figure["left"] - 1 and text["right"] <= figure["right"] + 1
        assert inside and text["top"] >= figure["top"] - 2 and text["bottom"] <= figure["bottom"] + 2, (
            f"{name} clips {text['text']!r}"
        )
    for number, text in enumerate(figure["texts"]):
        for other in figure["texts"][number + 1 :]:
            assert not overlap(text, other), f"{name}: {text['text']!r} lies over {other['text']!r}"


def overlap(one: dict[str, float], other: dict[str, float], allowed_px: float = 3) -> bool:
    """Boxes of texts are taller than their letters: a little is none."""
    across = min(one["right"], other["right"]) - max(one["left"], other["left"])
    down = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return across > 1 and down > allowed_px


@pytest.mark.parametrize("name", ["report", "profile"])
def test_texts_stand_out_from_their_ground(look: Look, pages: dict[str, Path], name: str) -> None:
    look.open(pages[name])
    ground = luminance(color_of(look.page, "body", "backgroundColor"))
    assert (ground < 0.5) == (look.scheme == "dark")
    for selector, style in (("h1", "color"), ("figcaption", "color"), ("td", "color"), ("figure svg text", "fill")):
        letters = luminance(color_of(look.page, selector, style))
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
