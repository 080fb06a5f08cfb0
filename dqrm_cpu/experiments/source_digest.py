"""Names what the code does that decides a run's figures, so that results of other code are not taken for its own."""

import ast
import hashlib
from functools import cache
from pathlib import Path

_DECIDING = ("comm", "config", "data", "kernels", "model", "quant", "train")
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def source_digest() -> str:
    """16 hexadecimal digits of the packages that a run goes through; comments and docstrings change nothing."""
    package = Path(__file__).parent.parent
    found = hashlib.sha256()
    for part in _DECIDING:
        # Resolved, since `kernels` is a link and globbing does not follow one.
        folder = (package / part).resolve()
        for path in sorted(folder.rglob("*.py")):
            found.update(f"{part}/{path.relative_to(folder)}\n{meaning(path.read_text())}\n".encode())
    return found.hexdigest()[:16]


def meaning(source: str) -> str:
    """The syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
