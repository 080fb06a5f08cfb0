"""Pieces of HTML, in which every text from outside is escaped."""

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape

_LONG_NAME = 34  # characters


def paragraph(text: str, kind: str = "") -> str:
    """Makes a paragraph; `kind` is its class."""
    return f'<p class="{kind}">{_with_options(text)}</p>' if kind else f"<p>{_with_options(text)}</p>"


def warning(text: str) -> str:
    """Makes a paragraph that stands out."""
    return f'<p class="warning">{_with_options(text)}</p>'


def heading(text: str) -> str:
    """Makes a heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Makes a table of numbers behind names; it scrolls by itself where a page is narrow."""
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{_name(row[0])}{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def words(rows: Iterable[tuple[str, str]]) -> str:
    """Makes a table of a name and a text in each row."""
    body = "".join(f"<tr><th>{escape(name)}</th><td>{_with_options(text)}</td></tr>" for name, text in rows)
    return f'<table class="words"><tbody>{body}</tbody></table>'


def folded(title: str, text: str) -> str:
    """Makes a text that is seen once its title is clicked."""
    return folded_parts(title, [f"<pre>{escape(text)}</pre>"])


def folded_parts(title: str, parts: Iterable[str]) -> str:
    """Makes parts that are seen once their title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def first_and_others(parts: Sequence[Iterable[str]], others: str) -> Iterator[str]:
    """Shows the first and folds the rest, which would hide what comes behind it."""
    yield from parts[0]
    if parts[1:]:
        yield folded_parts(others, (part for folded in parts[1:] for part in folded))


def _with_options(text: str) -> str:
    """Options stay on one line."""
    return re.sub(r"--[a-z][a-z0-9.-]*[a-z0-9]", r"<code>\g<0></code>", escape(text))


def _name(text: str) -> str:
    """Formats a name; long ones may be broken, so that the numbers stay in sight."""
    kind = ' class="long"' if len(text) > _LONG_NAME else ""
    return f"<td{kind}>{escape(text)}</td>"
