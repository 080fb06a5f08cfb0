"""`dqrm-cpu bench exchange` from the command line to its JSON: it starts its ranks itself."""

import json
from pathlib import Path

import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.config.schema import WIRES
from dqrm_cpu.lab.bench.exchange.exchange_benchmark import MLP_FORMS, PER_TABLE, STEP_WIRES

TRANSPORTS = ("mpi", "gloo")


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
def test_one_command_measures_every_wire_over_every_transport(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    wanted = ["bench", "exchange", "--quick", "--rounds", "1", "--cases", "terabyte_d16", "--json", str(path)]
    assert main([*wanted, "--transports", ",".join(TRANSPORTS)]) == 0
    document = json.loads(path.read_text())
    case = document["cases"]["terabyte_d16"]
    names = {name: set(group["contestants"]) for name, group in case["groups"].items()}
    assert {f"{transport}_{wire}" for transport in TRANSPORTS for wire in WIRES} < names["tables"]
    assert {f"{transport}_{form}" for transport in TRANSPORTS for form in MLP_FORMS} == names["mlp"]
    assert {f"step_{transport}_{wire}" for transport in TRANSPORTS for wire in STEP_WIRES} < names["step"]
    assert {f"step_{transport}_int8_shard" for transport in TRANSPORTS} < names["step"]
    assert (case["ranks"], set(case["transports"])) == (2, set(TRANSPORTS))
    ratio = document["ratios"]["int8_over_per_table_gloo"]["terabyte_d16"]["mpi"]
    assert ratio["ratio"] == pytest.approx(ratio["numerator"]["median_s"] / ratio["denominator"]["median_s"])
    # 4 + 16 bytes a row against 8 + 64, and 8 bytes a table of counts and scales.
    assert 20 / 72 < document["bytes_over_sparse_int64"]["terabyte_d16"]["gloo_int8"] < 0.30
    entry = case["groups"]["tables"]["contestants"]["mpi_int8"]
    assert set(entry["phases_s"]) == {"coalesce", "quantize_gradients", "wire", "merge"}
    assert PER_TABLE in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "exchange", "--cases", "rows_1m"], "there are terabyte_d64, terabyte_d16"),
        (["bench", "exchange", "--transports", "pigeon"], "there are oneccl, mpi, gloo"),
        (["bench", "step", "--transports", "mpi"], "bench step has no ranks"),
    ],
)
def test_what_is_not_there_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
