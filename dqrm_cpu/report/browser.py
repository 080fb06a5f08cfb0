"""Charts as HTML: curves as data that charts.js draws, bars and dots as boxes that need no script.

Of curves a folded table says the same in figures, and is all that there is where scripts are not run.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from dqrm_cpu.report.chart import BarChart, BarSegment, Chart, Curve, CurveChart, DotChart, StackedBar, color
from dqrm_cpu.report.markup import folded_parts, table

_DIGITS = 5
_NO_VALUE = "-"
_LONGEST_BAR = 100  # percent of the room beside the names
_LABELLED_SHARE = 0.03  # of its bar, from which a segment shows its share where it has the room


def chart_html(chart: Chart) -> str:
    """Writes a chart with its caption."""
    caption = f"<figcaption>{escape(chart.caption)}</figcaption>"
    match chart:
        case CurveChart():
            head = ("", "first", "least", "greatest", "last")
            figures = folded_parts("in figures", [table(head, _figure_rows(chart))])
            return f'<figure id="figure-{chart.key}" data-chart>{_curves(chart)}{caption}{figures}</figure>'
        case BarChart():
            return f'<figure id="figure-{chart.key}">{_bars(chart)}{caption}</figure>'
        case DotChart():
            return f'<figure id="figure-{chart.key}">{_dots(chart)}{caption}</figure>'


def _curves(chart: CurveChart) -> str:
    choice = "".join(f'<button type="button">{escape(axis.label)}</button>' for axis in chart.axes)
    axes = f'<div class="axes" role="group" aria-label="horizontal axis">{choice}</div>' if chart.axes[1:] else ""
    label = escape(chart.caption, quote=True)
    panels = "".join(
        f'<div class="panel"><h4>{escape(panel.title)}<span>{escape(panel.unit)}</span></h4>'
        f'<div class="plot" role="img" aria-label="{label}"></div></div>'
        for panel in chart.panels
    )
    # Only "<" could end the element that holds it.
    data = json.dumps(_document(chart), separators=(",", ":"), allow_nan=False, ensure_ascii=False).replace(
        "<", "\\u003c"
    )
    return (
        f'{axes}<div class="panels n{len(chart.panels)}">{panels}</div><script type="application/json">{data}</script>'
    )


def _document(chart: CurveChart) -> dict[str, Any]:
    """Makes what charts.js reads; values along the axes stand there once, however many curves share them."""
    places: dict[tuple[float, ...], int] = {}

    def place(values: Sequence[float]) -> int:
        return places.setdefault(tuple(values), len(places))

    panels = [
        {
            "logX": panel.log_x,
            "logY": panel.log_y,
            "range": panel.y_range,
            "diagonal": panel.diagonal,
            "curves": [_curve(curve, [place(values) for values in curve.x]) for curve in panel.curves],
        }
        for panel in chart.panels
    ]
    axes = [{"label": axis.label, "time": axis.is_time} for axis in chart.axes]
    return {"key": chart.key, "axes": axes, "panels": panels, "xs": [_numbers(values, 8) for values in places]}


def _curve(curve: Curve, x: list[int]) -> dict[str, Any]:
    document: dict[str, Any] = {"label": curve.label, "x": x, "y": _numbers(curve.y), "mark": curve.mark}
    if curve.color is not None:
        document["color"] = curve.color
    if curve.low:
        document |= {"low": _numbers(curve.low), "high": _numbers(curve.high)}
    if curve.best is not None:
        document["best"] = curve.best
    if curve.names:
        document["names"] = list(curve.names)
    return document


def _numbers(values: Sequence[float], digits: int = _DIGITS) -> list[float | int | None]:
    """Rounds values to so many digits, which is more than a screen shows; null for what is not finite."""
    rounded = [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]
    return [int(value) if value is not None and value.is_integer() else value for value in rounded]


def _figure_rows(chart: CurveChart) -> Iterator[list[str]]:
    for panel in chart.panels:
        for curve in panel.curves:
            values = [value for value in curve.y if math.isfinite(value)]
            if values:
                shown = (values[0], min(values), max(values), values[-1])
                yield [f"{panel.title}, {curve.label}", *(f"{value:.{_DIGITS}g}" for value in shown)]


def _bars(chart: BarChart) -> str:
    """Writes bars; the key below has the figures of the first until the pointer is at another."""
    longest = max((bar.length for bar in chart.bars), default=0.0) or 1.0
    labels = {segment.label: segment.color for bar in chart.bars for segment in bar.segments}
    alone = all(len(bar.segments) == 1 for bar in chart.bars)  # their names say what they are
    rows = []
    for bar in chart.bars:
        texts = {segment.label: segment.text for segment in bar.segments}
        parts = "".join(_segment(segment, bar.length) for segment in bar.segments if segment.value)
        listed = escape(json.dumps([texts.get(label, _NO_VALUE) for label in labels], ensure_ascii=False), quote=True)
        rows.append(
            f'<div class="bar" data-texts="{listed}"><span class="name">{escape(bar.name)}</span><span class="track">'
            f'<span class="stack" style="width:{bar.length / longest * _LONGEST_BAR:.2f}%">{parts}</span>'
            f'<span class="total">{escape(bar.text)}</span></span></div>'
        )
    key = _key(chart.bars[0], labels) if len(labels) > 1 and not alone else ""
    return f'<div class="bars"><h4>{escape(chart.unit)}</h4>{"".join(rows)}{key}</div>'


def _key(bar: StackedBar, labels: Mapping[str, str]) -> str:
    texts = {segment.label: segment.text for segment in bar.segments}
    entries = "".join(
        f'<span><i style="background:{shade}"></i>{escape(label)} <b>{escape(texts.get(label, _NO_VALUE))}</b></span>'
        for label, shade in labels.items()
    )
    return f'<div class="key"><span class="of">{escape(bar.name)}</span>{entries}</div>'


def _segment(segment: BarSegment, whole: float) -> str:
    share = segment.value / whole
    label = f"<span>{share:.0%}</span>" if _LABELLED_SHARE <= share < 1 else ""
    title = escape(f"{segment.label}: {segment.text}", quote=True)
    return f'<span class="segment" title="{title}" style="width:{share:.3%};background:{segment.color}">{label}</span>'


def _dots(chart: DotChart) -> str:
    every = [estimate for row in chart.rows.values() for estimate in row if math.isfinite(estimate.mean)]
    low = min((one.mean - one.deviation for one in every), default=0.0)
    high = max((one.mean + one.deviation for one in every), default=1.0)
    width = (high - low) or 1.0
    rows = []
    for name, estimates in chart.rows.items():
        dots = []
        for number, one in enumerate(estimates):
            if not math.isfinite(one.mean):
                continue
            left, half = (one.mean - low) / width * 100, one.deviation / width * 100
            title = escape(f"{chart.kinds[number]}: {one.mean:.4f} ± {one.deviation:.4f}", quote=True)
            dots.append(
                f'<span class="dot" title="{title}" style="left:{left - half:.2f}%;width:{2 * half:.2f}%;'
                f'color:{color(number)};top:{(number + 1) / (len(estimates) + 1):.0%}"><i></i></span>'
            )
        rows.append(
            f'<div class="bar"><span class="name">{escape(name)}</span>'
            f'<span class="track"><span class="dots">{"".join(dots)}</span></span></div>'
        )
    ends = f'<span class="dots"><s>{low:.4f}</s><s>{high:.4f}</s></span>'
    rows.append(f'<div class="bar scale"><span></span><span class="track">{ends}</span></div>')
    key = "".join(
        f'<span><i style="background:{color(number)}"></i>{escape(kind)}</span>'
        for number, kind in enumerate(chart.kinds)
    )
    return f'<div class="bars"><h4>{escape(chart.unit)}</h4>{"".join(rows)}<div class="key">{key}</div></div>'
