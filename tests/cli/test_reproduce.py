"""`dqrm-cpu reproduce`: what it lists, refuses, runs and leaves."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.lab.reproduce.experiments.catalogue import EXPERIMENTS


def test_the_list_names_every_experiment_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*EXPERIMENTS, "all"]
    assert all(" min  " in line or " h  " in line for line in lines[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel3a"], "nearest is table3a"),
        ([], "which experiment?"),
        (["table3a", "--scale", "huge"], "there are small, paper, smoke"),
        (["table3a", "--seeds", "0"], "--seeds"),
        (["table3a", "--data", "nowhere"], "nowhere: there is no such folder"),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *arguments]) != 0
    assert message in capsys.readouterr().err


def test_help_teaches_by_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--help"]) == 0
    out = capsys.readouterr().out
    assert "dqrm-cpu reproduce all" in out
    assert "chosen on" in out


class Tags(HTMLParser):
    """Counts what stands in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1


@pytest.mark.slow
def test_a_table_leaves_markdown_numbers_plots_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["reproduce", "table8", "--scale", "smoke", "--seeds", "2", "--out", str(out)]
    assert main(command) == 0
    assert "| INT4 from scratch |" in capsys.readouterr().out
    left = {path.name for path in out.iterdir()}
    assert left >= {"table8.md", "table8.csv", "table8-auc.png", "results.md", "index.html", "runs"}
    assert "0.8040" in (out / "results.md").read_text()
    tags = Tags()
    tags.feed((out / "index.html").read_text())
    assert tags.count["figure"] == 3
    assert tags.count["table"] == 1 + 3, "one, and each chart's in figures"
    assert tags.count["script"] == 2 + 3, "the library and ours, and each chart's data"

    capsys.readouterr()
    assert main(command) == 0
    assert "[1/" not in capsys.readouterr().err
