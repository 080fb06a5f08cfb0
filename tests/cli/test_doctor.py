"""The doctor's report: table, JSON and exit status."""

import json

import pytest

from dqrm_cpu.cli.doctor import format_findings
from dqrm_cpu.cli.main import main
from dqrm_cpu.config import Config
from dqrm_cpu.doctor import machine
from dqrm_cpu.doctor.finding import Finding, Verdict

OK = Finding("isa", Verdict.OK, "avx2")
WARNING = Finding("huge pages", Verdict.WARNING, "off", "echo madvise | sudo tee FILE")
FAIL = Finding("gpu", Verdict.FAIL, "none", "--device cpu")


def test_real_machine_is_examined(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert [finding["check"] for finding in findings] == [
        *("cpu", "isa", "cores", "threads", "load", "numa", "memory", "huge pages"),
        *("openmp", "mpi library", "mpi launcher", "oneccl", "ipex", "gpu"),
    ]
    assert status == int(any(finding["verdict"] == "fail" for finding in findings))
    assert all(finding["mend"] for finding in findings if finding["verdict"] in ("warning", "fail"))


@pytest.mark.parametrize(("findings", "status"), [([OK, WARNING], 0), ([OK, FAIL, WARNING], 1)])
def test_only_a_failed_check_sets_the_status(
    findings: list[Finding], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "examine", lambda _: findings)
    assert main(["doctor"]) == status


def test_json_is_a_list_of_findings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "examine", lambda _: [WARNING])
    main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out) == [
        {"check": "huge pages", "verdict": "warning", "found": "off", "mend": "echo madvise | sudo tee FILE"}
    ]


def test_options_of_the_run_reach_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    def looked_at(config: Config) -> list[Finding]:
        seen.append(config)
        return [OK]

    monkeypatch.setattr(machine, "examine", looked_at)
    main(["doctor", "--preset", "kaggle", "--train.threads", "3"])
    assert [(config.preset, config.train.threads) for config in seen] == [("kaggle", 3)]


def test_table_is_aligned() -> None:
    assert format_findings([OK, WARNING], 100).splitlines() == [
        "isa         ok       avx2",
        "huge pages  warning  off",
        "                     mend: echo madvise | sudo tee FILE",
        "",
        "This run will work here; what the warnings say costs time or safety.",
    ]


def test_long_findings_wrap_below_themselves() -> None:
    lines = format_findings([Finding("isa", Verdict.OK, "word " * 30)], 60).splitlines()[:-2]
    assert len(lines) > 1
    assert all(len(line) <= 60 for line in lines)
    assert all(line.startswith(" " * len("isa  ok  ") + "word") for line in lines[1:])


def test_a_path_is_never_broken() -> None:
    path = "/opt/" + "long-name-" * 12
    assert path in format_findings([Finding("mpi library", Verdict.OK, path)], 60)


@pytest.mark.parametrize(
    ("findings", "summary"),
    [
        ([OK], "This machine is fit for this run."),
        ([OK, FAIL], "This run cannot work here as it is: mend what fails."),
    ],
)
def test_summary(findings: list[Finding], summary: str) -> None:
    assert format_findings(findings, 100).splitlines()[-1] == summary
