"""Pages: sections of HTML and charts, and the one file that they become, which needs nothing else."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import TypeAlias

from dqrm_cpu import __version__
from dqrm_cpu.base.files import remove_abandoned, replacing, unwritable
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.report.browser import chart_html
from dqrm_cpu.report.chart import Chart
from dqrm_cpu.report.markup import paragraph
from dqrm_cpu.report.paper import png

PagePart: TypeAlias = str | Chart
"""HTML, or a chart."""

_STYLES, _SCRIPTS = ("uplot/uPlot.min.css", "report.css"), ("uplot/uPlot.iife.min.js", "charts.js")


@dataclass(frozen=True)
class PageSection:
    """HTML and charts in their order."""

    key: str
    title: str
    parts: tuple[PagePart, ...]


def page(title: str, subtitle: str, sections: Sequence[PageSection]) -> str:
    """Makes the whole document: one HTML file that needs no network, light and dark; without scripts it has tables."""
    links = "".join(f'<a href="#{made.key}">{escape(made.title)}</a>' for made in sections)
    body = "".join(
        f'<section id="{made.key}"><h2>{escape(made.title)}</h2>'
        f"{''.join(part if isinstance(part, str) else chart_html(part) for part in made.parts)}</section>"
        for made in sections
    )
    scripts = [_asset(name) for name in _SCRIPTS]
    # Whatever a later change brings in, or a name of a run: a browser asks nobody for anything, and runs only ours.
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_source, scripts))}; style-src 'unsafe-inline'; img-src data:"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title>{''.join(f'<style>{_asset(name)}</style>' for name in _STYLES)}"
        "<noscript><style>.panels, .axes { display: none; }</style></noscript></head><body>"
        f"<header><h1>{escape(title)}</h1>{paragraph(subtitle, 'faint')}<nav>{links}</nav></header><main>{body}</main>"
        f'<footer><p class="faint">dqrm-cpu {escape(__version__)}</p></footer>'
        f"{''.join(f'<script>{script}</script>' for script in scripts)}</body></html>\n"
    )


def write_page(
    title: str, subtitle: str, sections: Sequence[PageSection], out: Path, png_folder: Path | None
) -> list[Path]:
    """Writes the page of these sections, and each of their charts if there is a folder for them."""
    charts = [part for made in sections for part in made.parts if not isinstance(part, str)]
    images = {png_folder / f"{chart.key}.png": chart for chart in charts} if png_folder else {}
    advice = "give another --out"
    try:
        for path in (out, *images):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path)
    except OSError as error:
        place = Path(error.filename or out)
        other = "give another --png" if png_folder and place != out.parent else advice
        raise unwritable(place, error, ConfigError, other) from error
    # A name of other bytes than UTF-8, or read under LANG=C, is in Python's text as surrogates.
    with replacing(out, ConfigError, advice=advice) as file:
        file.write(page(title, subtitle, sections).encode(errors="surrogateescape"))
    for path, chart in images.items():
        with replacing(path, ConfigError, advice=advice) as file:
            file.write(png(chart))
    return [out, *images]


@cache
def _asset(name: str) -> str:
    return resources.files("dqrm_cpu.report").joinpath(name).read_text(encoding="utf-8").strip()


def _source(script: str) -> str:
    """Names a script for the policy by its digest."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
