"""A report as one HTML file that needs nothing else: no script, no network, light and dark."""

from collections.abc import Sequence
from html import escape
from importlib import resources

from dqrm_cpu import __version__
from dqrm_cpu.report.markup import drawn, paragraph, section
from dqrm_cpu.report.sections import Section

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    css = resources.files("dqrm_cpu.report").joinpath("report.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{made.key}">{escape(made.title)}</a>' for made in sections)
    body = "".join(
        section(made.key, made.title, (part if isinstance(part, str) else drawn(part) for part in made.parts))
        for made in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Whatever a later change brings in: a browser that opens the file asks nobody for anything.
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{css}</style></head><body>"
        f"<header><h1>{escape(title)}</h1>{paragraph(subtitle, 'faint')}<nav>{links}</nav></header><main>{body}</main>"
        f'<footer><p class="faint">dqrm-cpu {escape(__version__)}</p></footer></body></html>\n'
    )
