"""Matplotlib's SVG made fit for a page of many: names of its own, and a third of the bytes."""

import re

_DECIMALS = re.compile(r"(\.\d)\d+")  # tenths of a pixel


def fitted(svg: str, prefix: str) -> str:
    """`prefix` tells its names from those of other drawings: without it one would be clipped by another's path."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to groups
    svg = re.sub(r"font-family: [^;\"]*(; )?", "", svg)  # a page has its own
    svg = re.sub(r' (d|x|y|points|transform)="([^"]*)"', _shortened, svg)
    svg = re.sub(r">\s+<", "><", svg)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
    return re.sub(r'href="#', f'href="#{prefix}', svg)


def _shortened(found: re.Match[str]) -> str:
    name, value = found.groups()
    if not value.startswith("matrix"):
        value = _DECIMALS.sub(r"\1", value)
    return f' {name}="{" ".join(value.split())}"'
