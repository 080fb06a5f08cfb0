"""How figures look: matplotlib's drawings as SVG that follows the page's colours, or as PNG in print colours.

Matplotlib, because its SVG needs no script and no network: a page of a few hundred kB that cannot fail to draw. Colours
that it cannot know, those of a light or dark page, are written as stand-ins and become CSS variables afterwards.
"""

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dqrm_cpu.errors import DeviceError
from dqrm_cpu.report.svg import fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

WIDE_PX, NARROW_PX = 880, 340
"""Widths of the two drawings of each figure; a page shows the one that fits, at its own size."""

_PX_PER_INCH = 72  # an SVG of matplotlib has 72 units an inch, whatever its dpi
_PNG_DPI = 200
_FONT_PX = 11.5


@dataclass(frozen=True)
class Palette:
    """Names of roles to colours."""

    ink: str
    faint: str
    grid: str
    paper: str
    series: tuple[str, ...]


# Tableau's twenty in another order: neighbours differ in lightness too, for those who see fewer colours.
_SERIES = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#9c755f"),
    *("#a0cbe8", "#ffbe7d", "#8cd17d", "#ff9d9a", "#b6992d", "#d4a6c8", "#79706e", "#d7b5a6"),
)
PRINT = Palette("#1c2024", "#60646c", "#d9dbe0", "#ffffff", _SERIES)
_PAGE = Palette("#010a01", "#010a02", "#010a03", "#010a04", _SERIES)
_VARIABLES = {
    _PAGE.ink: "var(--ink)",
    _PAGE.faint: "var(--faint)",
    _PAGE.grid: "var(--grid)",
    _PAGE.paper: "var(--paper)",
}


@dataclass(frozen=True)
class Canvas:
    """What a figure is drawn for."""

    width_px: int
    palette: Palette

    @property
    def narrow(self) -> bool:
        return self.width_px < WIDE_PX

    def axes(self, count: int, height_px: int, columns: int | None = None) -> "tuple[Drawing, list[Axes]]":
        """Panels side by side on a wide page and one above the other on a narrow one, unless `columns` says."""
        from matplotlib.figure import Figure as Drawing

        across = (1 if self.narrow else count) if columns is None else min(columns, count)
        down = -(-count // across)
        size = (self.width_px / _PX_PER_INCH, height_px * down / _PX_PER_INCH)
        drawing = Drawing(figsize=size, dpi=_PX_PER_INCH, layout="constrained")
        return drawing, list(drawing.subplots(down, across, squeeze=False).flat)

    def color(self, number: int) -> str:
        return self.palette.series[number % len(self.palette.series)]


@dataclass(frozen=True)
class Figure:
    """`caption` says in words what is to be seen, for everyone and for those who do not see it."""

    key: str
    caption: str
    draw: "Callable[[Canvas], Drawing]"


def beside_bar(axes: "Axes", x: float, y: float, text: str, *, bold: bool = False) -> None:
    """A figure behind the end of a horizontal bar."""
    weight = "bold" if bold else "normal"
    axes.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", fontweight=weight)


def over_steps(*panels: "Axes") -> None:
    """Their x-axes count steps, as 500, 20k or 1.5M."""
    from matplotlib.ticker import EngFormatter

    for axes in panels:
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def row_names(names: Sequence[str], canvas: Canvas) -> list[str]:
    """In two lines at most: on a phone a long name would leave no room for its bar."""
    width = 13 if canvas.narrow else 24
    return ["\n".join(textwrap.wrap(name, width, max_lines=2, placeholder="…")) for name in names]


def svg_pair(figure: Figure) -> tuple[str, str]:
    """The figure for a wide page and for a narrow one."""
    return _svg(figure, WIDE_PX), _svg(figure, NARROW_PX)


def png(figure: Figure) -> bytes:
    """For papers and slides."""
    out = io.BytesIO()
    with _styled(PRINT):
        figure.draw(Canvas(WIDE_PX, PRINT)).savefig(out, format="png", dpi=_PNG_DPI, facecolor=PRINT.paper)
    return out.getvalue()


def _svg(figure: Figure, width_px: int) -> str:
    out = io.StringIO()
    with _styled(_PAGE):
        drawing = figure.draw(Canvas(width_px, _PAGE))
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return fitted(text, f"{figure.key}-{width_px}-")


@contextmanager
def _styled(palette: Palette) -> Iterator[None]:
    matplotlib = load_matplotlib()
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "dqrm",
        "font.family": "sans-serif",
        "font.size": _FONT_PX,
        "axes.titlesize": _FONT_PX,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": _FONT_PX,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.edgecolor": palette.grid,
        "axes.labelcolor": palette.ink,
        "axes.titlecolor": palette.ink,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "text.color": palette.ink,
        "xtick.color": palette.faint,
        "ytick.color": palette.faint,
        "grid.color": palette.grid,
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "legend.fontsize": _FONT_PX,
    }
    with matplotlib.rc_context(settings):
        yield


def load_matplotlib() -> Any:
    """Matplotlib, or an error that says how to get it."""
    try:
        import matplotlib
    except ImportError as error:
        raise DeviceError(
            "reports are drawn by matplotlib, which is missing; run pip install 'dqrm-cpu[report]'"
        ) from error
    return matplotlib
