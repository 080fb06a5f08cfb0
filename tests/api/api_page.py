"""The tables of docs/api.md, made of the signatures and docstrings that they describe.

python tests/api/api_page.py    # writes them anew
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "api.md"
_BLOCK = re.compile(r"<!-- parameters of ([\w.]+) -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(page: str) -> str:
    """Returns a page with the tables as they should be."""
    return _BLOCK.sub(lambda match: f"<!-- parameters of {match[1]} -->\n{_table(match[1])}\n<!-- end -->", page)


def _table(name: str) -> str:
    import dqrm_cpu

    found: Any = dqrm_cpu
    for part in name.split("."):
        found = getattr(found, part)
    signature = inspect.signature(found)
    texts = dict(_descriptions(found, name))
    lines = ["| parameter | default | |", "|---|---|---|"]
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        shown = f"{'**' if parameter.kind is parameter.VAR_KEYWORD else ''}{parameter.name}"
        default = "" if parameter.default is parameter.empty else f"`{_default(parameter.default)}`"
        lines.append(f"| `{shown}` | {default} | {texts.pop(parameter.name)} |")
    assert not texts, f"{name} describes {', '.join(texts)}, which it does not take"
    return "\n".join(lines)


def _default(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _descriptions(found: Any, name: str) -> list[tuple[str, str]]:
    """Reads the :param lines of a docstring; those of train and predict stand in the functions behind the packages."""
    from dqrm_cpu.api import functions, scoring

    behind = {"train": functions.train, "predict": scoring.predict}.get(name, found)
    docs = [behind.__doc__, behind.__init__.__doc__] if inspect.isclass(behind) else [behind.__doc__]
    doc = "\n".join(inspect.cleandoc(text) for text in docs if text)
    entries = re.findall(r"^:param (\w+): (.*?)(?=^:param |\Z)", doc, re.DOTALL | re.MULTILINE)
    return [(parameter, " ".join(text.split()).replace("|", "\\|")) for parameter, text in entries]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(with_tables(PAGE.read_text()))
