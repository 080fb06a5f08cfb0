"""What other files rely on: the kernels' symlink, the direction of imports, who may print."""

import ast
import re
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest

import dqrm_cpu
from dqrm_cpu.config.schema import SETTINGS
from dqrm_cpu.lab.reproduce.plan import DECIDING

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dqrm_cpu"

LAYERS = {
    "base": set(),
    "kernels": set(),
    "config": set(),
    "metrics": set(),
    "timing": set(),
    "data": {"config", "kernels"},
    "quant": {"config", "kernels"},
    "model": {"config", "data", "kernels", "quant", "timing"},
    "comm": {"config", "kernels", "timing"},
    "serving": {"kernels"},
    "server": {"serving"},
    "export": {"config", "data", "kernels", "model", "quant", "serving"},
    "train": {"comm", "config", "data", "export", "kernels", "metrics", "model", "quant", "timing"},
    "predict": {"config", "data", "export", "kernels", "metrics", "model", "quant", "serving", "train"},
    "report": {"config", "data", "kernels", "metrics", "model", "quant", "timing", "train"},
    "lab/bench": {
        *("comm", "config", "data", "export", "kernels", "model", "predict", "quant", "serving", "timing", "train"),
    },
    "lab/planning": {"comm", "config", "kernels", "lab/bench", "timing"},
    "lab/scaling": {"config", "kernels", "lab/bench", "model", "report"},
    "lab/profiler": {
        *("comm", "config", "data", "kernels", "lab/bench", "model", "quant", "report", "timing", "train"),
    },
    "lab/reproduce": {
        *("comm", "config", "data", "export", "kernels", "metrics", "model", "quant", "report", "timing", "train"),
    },
    "api": {"comm", "config", "data", "export", "kernels", "metrics", "model", "predict", "quant", "train"},
    "doctor": {"comm", "config", "data", "kernels", "model", "timing"},
}
"""What each part may import beside base, errors and the version; cli may import everything."""

FORCES_FILES_TO_THE_DISK = {
    "train/metrics_log.py",  # appends to a file that stays open
}
"""The modules that may sync files themselves instead of using base/files.py."""


@cache
def syntax_of(path: Path) -> ast.Module:
    """The syntax tree of a module, which several tests look at."""
    return ast.parse(path.read_text())


def imported_parts(path: Path) -> set[str]:
    """The parts of the package that a module names in absolute imports."""
    names: list[str] = []
    for node in ast.walk(syntax_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    inside = [name.split(".")[1:] for name in names if name.startswith("dqrm_cpu.")]
    return {"/".join(parts[:2]) if parts[0] == "lab" else parts[0] for parts in inside}


def test_kernels_ship_inside_the_package_through_a_relative_link() -> None:
    link = PACKAGE / "kernels"
    assert link.is_symlink()
    assert str(link.readlink()) == "../kernels"
    assert (link / "reference.py").samefile(ROOT / "kernels" / "reference.py")


def test_imports_point_down() -> None:
    wrong = []
    for part, allowed in LAYERS.items():
        for path in (PACKAGE / part).rglob("*.py"):
            upward = imported_parts(path) - allowed - {part, "base", "errors"}
            wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(upward)]
    assert wrong == []


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    sources = {"dqrm_cpu": PACKAGE, "dqrm_cpu.kernels": ROOT / "kernels"}
    found = {}
    for name, folder in sources.items():
        for path in folder.rglob("*.py"):
            inner = path.relative_to(folder).with_suffix("").parts
            found[".".join([name, *(part for part in inner if part != "__init__")])] = path
    return found


def imports_of(module: str, path: Path) -> Iterator[str]:
    """The dotted names that a module imports when it is loaded, not within a function or for types only."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in syntax_of(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_no_import_goes_in_a_circle() -> None:
    known = modules()
    open_imports = {name: set(imports_of(name, path)) & known.keys() - {name} for name, path in known.items()}
    while free := [name for name, needed in open_imports.items() if not needed & open_imports.keys()]:
        for name in free:
            del open_imports[name]
    assert open_imports == {}


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in syntax_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_every_part_has_its_layer() -> None:
    folders = [path for path in (*PACKAGE.iterdir(), *(PACKAGE / "lab").iterdir()) if any(path.glob("*.py"))]
    assert {str(path.relative_to(PACKAGE)) for path in folders} == {*LAYERS, "cli", "lab"}


def test_all_that_training_imports_decides_which_results_of_experiments_are_known() -> None:
    beside = {"export", "timing"}  # how long it took, and files that are made of the weights
    assert set(DECIDING) == {*LAYERS["train"], "train"} - beside


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


def test_modules_that_a_benchmark_names_exist() -> None:
    """Nothing else looks: the type checker reads the package alone, and CI does not run the benchmarks."""
    named = {
        (path.name, node.module)
        for path in (ROOT / "benchmarks").glob("*.py")
        for node in ast.walk(syntax_of(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dqrm_cpu.")
    }
    assert len(named) > 3
    missing = []
    for script, module in named:
        place = ROOT / str(module).replace(".", "/")
        if not (place.is_dir() or place.with_suffix(".py").exists()):
            missing.append((script, module))
    assert missing == []


def test_files_get_their_names_in_base() -> None:
    """One place knows how a file appears whole or not at all, and what network file systems refuse."""
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        if not name.startswith("base/") and name not in FORCES_FILES_TO_THE_DISK:
            calls = [node for node in ast.walk(syntax_of(path)) if isinstance(node, ast.Call)]
            wrong += [f"{name}:{call.lineno}" for call in calls if renames_or_syncs(call)]
    assert wrong == []


def renames_or_syncs(call: ast.Call) -> bool:
    """Whether it may be os.replace, os.rename, os.fsync, Path.replace or Path.rename; str.replace has two arguments."""
    if not isinstance(call.func, ast.Attribute):
        return False
    of_os = isinstance(call.func.value, ast.Name) and call.func.value.id == "os"
    return call.func.attr in ("rename", "renames", "fsync", "fdatasync") or (
        call.func.attr == "replace" and (of_os or len(call.args) == 1)
    )


def strings_listed_in(path: Path) -> Iterator[frozenset[str]]:
    """The tuples, lists, sets and OneOf of a module that hold three strings or more, and nothing else."""
    for node in ast.walk(syntax_of(path)):
        items: list[ast.expr] = []
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            items = node.elts
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "OneOf":
            items = node.args
        values = [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]
        if len(values) == len(items) >= 3:
            yield frozenset(values)


def test_choices_are_declared_once() -> None:
    """Those of a setting stand in the type of its field: whoever needs them takes them from there."""
    choices = {frozenset(setting.choices): key for key, setting in SETTINGS.items() if setting.item is str}
    found = [
        (choices[strings], str(path.relative_to(ROOT)))
        for path in (*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py"))
        for strings in strings_listed_in(path)
        if strings in choices
    ]
    assert {path for _, path in found} == {"dqrm_cpu/config/schema.py"}
    assert len(dict(found)) == len(found)


def test_kernels_know_nothing_of_the_package() -> None:
    assert [path.name for path in (ROOT / "kernels").rglob("*.py") if "dqrm_cpu" in path.read_text()] == []


def test_only_kernels_import_what_numba_compiled() -> None:
    """What others need is in the interface, in gradient_codes, or in the toolbox kernels/jit."""
    imports = re.compile(r"^\s*(?:from|import) dqrm_cpu\.kernels(?:\.numba\b| import .*\bnumba\b)", re.MULTILINE)
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert [str(path.relative_to(ROOT)) for path in sources if imports.search(path.read_text())] == []


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
