"""Charts as data: what a page draws in its reader's browser, and what is drawn for papers.

A chart knows its values, their units and its caption, and nothing of pixels: `browser.py` writes it for a page, where
uPlot draws it at any width and tells the values under the pointer, and `paper.py` draws it with matplotlib.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

# Tableau's twenty in another order: neighbours differ in lightness too, for those who see fewer colours.
_COLORS = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#9c755f"),
    *("#a0cbe8", "#ffbe7d", "#8cd17d", "#ff9d9a", "#b6992d", "#d4a6c8", "#79706e", "#d7b5a6"),
)


class Mark(StrEnum):
    """How a curve's values are shown."""

    LINE = "line"
    STEPS = "steps"  # constant from each x to the next
    BARS = "bars"
    POINTS = "points"


class Axis(NamedTuple):
    """The horizontal axis of a chart: its name, and whether it counts seconds."""

    label: str
    is_time: bool = False


@dataclass(frozen=True)
class Curve:
    """One line of a panel; `x` has the values of every axis that a reader may choose, each as long as `y`."""

    label: str
    x: Sequence[Sequence[float]]
    y: Sequence[float]  # NaN: no value
    color: str | None = None  # None: one of many in the background, named only under the pointer
    mark: Mark = Mark.LINE
    low: Sequence[float] = ()  # a band around the line, where it has one
    high: Sequence[float] = ()
    best: int | None = None  # the number of the value that a ring marks
    names: Sequence[str] = ()  # of its values, where each is a thing of its own; shown under the pointer


@dataclass(frozen=True)
class Panel:
    """One plot: its title, the unit of its values, and its curves."""

    title: str
    unit: str
    curves: Sequence[Curve]
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float | None, float | None] = (None, None)  # None: as the values are
    diagonal: bool = False  # a line where y is x


@dataclass(frozen=True)
class CurveChart:
    """Panels over the same x; the first of `axes` is shown until a reader chooses another."""

    key: str
    caption: str
    axes: Sequence[Axis]
    panels: Sequence[Panel]


@dataclass(frozen=True)
class BarSegment:
    """A part of a bar; `text` says its value in words."""

    label: str
    value: float
    color: str
    text: str


@dataclass(frozen=True)
class StackedBar:
    """A named bar of segments end to end, with the text behind it."""

    name: str
    segments: Sequence[BarSegment]
    text: str

    @property
    def length(self) -> float:
        """The sum of its segments."""
        return sum(segment.value for segment in self.segments)


@dataclass(frozen=True)
class BarChart:
    """Bars below each other, on one scale."""

    key: str
    caption: str
    unit: str
    bars: Sequence[StackedBar]


class Estimate(NamedTuple):
    """A mean with its deviation over repetitions, which is 0 where there is one."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class DotChart:
    """Rows of means with their deviations, a dot and a whisker of each kind in every row."""

    key: str
    caption: str
    unit: str
    kinds: Sequence[str]
    rows: Mapping[str, Sequence[Estimate]]  # by the name of the row: one for each kind


Chart: TypeAlias = CurveChart | BarChart | DotChart
"""Any kind of chart that a page can draw."""


def color(number: int) -> str:
    """Returns the colour of a series."""
    return _COLORS[number % len(_COLORS)]
