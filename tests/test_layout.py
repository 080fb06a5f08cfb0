"""What other files rely on: the kernels' symlink, the direction of imports, who may print."""

import ast
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

import dqrm_cpu

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dqrm_cpu"

LAYERS = {
    "base": set(),
    "kernels": set(),
    "config": set(),
    "profile": set(),
    "data": {"config", "kernels"},
    "quant": {"config", "kernels"},
    "model": {"config", "data", "kernels", "profile", "quant"},
    "comm": {"config", "kernels", "profile"},
    "export": {"config", "kernels", "model", "quant"},
    "train": {"comm", "config", "data", "export", "kernels", "model", "profile", "quant"},
    "bench": {"comm", "config", "data", "kernels", "model", "profile", "quant", "train"},
    "report": {"config", "data", "kernels", "model", "profile", "quant", "train"},
    "profiler": {"bench", "comm", "config", "data", "kernels", "model", "profile", "quant", "report", "train"},
    "experiments": {"comm", "config", "data", "export", "kernels", "model", "profile", "quant", "report", "train"},
    "doctor": {"comm", "config", "data", "kernels", "model", "profile"},
}
"""What each part may import beside base, errors, kernel_cache and the version; cli may import everything."""


def imported_parts(path: Path) -> set[str]:
    """The parts of the package that a module names in absolute imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("dqrm_cpu.")}


def test_kernels_ship_inside_the_package_through_a_relative_link() -> None:
    link = PACKAGE / "kernels"
    assert link.is_symlink()
    assert str(link.readlink()) == "../kernels"
    assert (link / "reference.py").samefile(ROOT / "kernels" / "reference.py")


def test_imports_point_down() -> None:
    wrong = []
    for part, allowed in LAYERS.items():
        for path in (PACKAGE / part).rglob("*.py"):
            upward = imported_parts(path) - allowed - {part, "base", "errors", "kernel_cache"}
            wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(upward)]
    assert wrong == []


def test_every_part_has_its_layer() -> None:
    parts = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert parts == {*LAYERS, "cli"}


def test_the_page_of_the_architecture_shows_the_layers() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text().partition("<!-- layers -->")[2].partition("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert {row[0].strip("`"): row[2] for row in rows} == {
        part: ", ".join(sorted(allowed)) or "nothing" for part, allowed in LAYERS.items()
    }


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    """By their path from the root, from the package, or behind a folder that the page named."""
    named = re.findall(r"`([\w./]+(?:\.py|\.md|/))`", (ROOT / page).read_text())
    folders = {ROOT, PACKAGE, *(PACKAGE / name for name in ("data/prepare", "comm/exchange"))}
    assert len(named) > 10
    assert [name for name in named if not any((folder / name).exists() for folder in folders)] == []


def test_kernels_know_nothing_of_the_package() -> None:
    assert [path.name for path in (ROOT / "kernels").rglob("*.py") if "dqrm_cpu" in path.read_text()] == []


def test_nothing_reads_pickles() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "pickle" not in text, path
        assert "torch.load(" not in text, path
        assert "torch.save(" not in text, path


def test_the_version_stands_in_one_place() -> None:
    """The package says it; setuptools reads it there, and the changelog has a section for it."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: dqrm_cpu.__version__"
    assert f"\n## [{dqrm_cpu.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
