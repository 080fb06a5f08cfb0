"""From run folders to report.html, and to PNG files where they are asked for."""

from pathlib import Path

from dqrm_cpu.errors import ConfigError
from dqrm_cpu.report.page import page
from dqrm_cpu.report.run_files import log_warnings, read_runs
from dqrm_cpu.report.sections import Section, sections_of
from dqrm_cpu.report.style import Figure, load_matplotlib, png


def build_report(run_dirs: list[Path], out: Path, png_folder: Path | None = None) -> tuple[list[Path], list[str]]:
    """Writes the page, and each figure if there is a folder for them; returns what was written, and warnings."""
    load_matplotlib()
    runs = read_runs(run_dirs)
    warnings = [text for run in runs for text in log_warnings(run)]
    sections = sections_of(runs)
    title = f"{runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    taken = [run.environment.get("machine", {}).get("cpu_model", "") for run in runs]
    return write_page(title, ", ".join(sorted({name for name in taken if name})), sections, out, png_folder), warnings


def write_page(title: str, subtitle: str, sections: list[Section], out: Path, png_folder: Path | None) -> list[Path]:
    """The page of these sections, and each of their figures."""
    written = [out]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(title, subtitle, sections), encoding="utf-8")
        for figure in _figures(sections) if png_folder else ():
            assert png_folder is not None
            png_folder.mkdir(parents=True, exist_ok=True)
            written.append(png_folder / f"{figure.key}.png")
            written[-1].write_bytes(png(figure))
    except OSError as error:
        raise ConfigError(f"{error.filename or out} cannot be written: {error.strerror}; give another --out") from error
    return written


def _figures(sections: list[Section]) -> list[Figure]:
    return [part for section in sections for part in section.parts if isinstance(part, Figure)]
