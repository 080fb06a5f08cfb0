"""What a plan makes of a rank's costs: sums by hand. And the command, on a model small enough for a test."""

import pytest
from bench_cases import tiny_case

from dqrm_cpu.cli.main import main
from dqrm_cpu.cli.plan import format_plan, format_sharding
from dqrm_cpu.config.schema import ModelConfig
from dqrm_cpu.lab.bench.harness.batch_pool import make_pool
from dqrm_cpu.lab.planning.network import Network
from dqrm_cpu.lab.planning.prediction import PlanTask, _on_line, plan_case, predict, predict_sharded
from dqrm_cpu.lab.planning.rank_costs import WIRES, RankCosts, WireCosts, measure_costs
from dqrm_cpu.lab.planning.sharded_tables import shard_tables

WIRE = WireCosts(message_bytes=1e6, quantize_s=1e-3, merge_s=(2e-3, 8e-3), update_s=(1e-3, 4e-3))
COSTS = RankCosts(
    2,
    2048,
    tables=26,
    num_parameters=1000,
    compute_s=20e-3,
    coalesce_s=1e-3,
    dense_update_s=0.5e-3,
    wires=dict.fromkeys(WIRES, WIRE),
    dim=64,
    sharded_s=30e-3,
)


def test_local_phases_and_messages_add_up() -> None:
    found = predict(COSTS, "int8", 2, Network(0.0, 1e9))
    assert found.local_s == pytest.approx(20e-3 + 1e-3 + 1e-3 + 0.5e-3 + 2e-3 + 1e-3)
    assert found.table_bytes == 26 * 8 + 1e6
    assert found.wire_s == pytest.approx((26 * 8 + 1e6) / 1e9)
    assert found.mlp_wire_s == pytest.approx(4000 / 1e9)
    assert found.step_s == pytest.approx(found.local_s + found.wire_s + found.mlp_wire_s)


@pytest.mark.parametrize(("nodes", "seconds"), [(2, 2.0), (8, 8.0), (5, 5.0), (64, 64.0)])
def test_other_numbers_of_ranks_lie_on_the_line(nodes: int, seconds: float) -> None:
    assert _on_line((2.0, 8.0), nodes) == pytest.approx(seconds)


def test_a_profile_measures_every_phase_of_every_wire() -> None:
    case = tiny_case()
    costs = measure_costs(case, make_pool(case.config.model, case.batch_size, 4, 1))
    assert min(costs.compute_s, costs.coalesce_s, costs.dense_update_s) > 0
    for wire, found in costs.wires.items():
        assert min(*found.merge_s, *found.update_s, found.quantize_s) > 0, wire
    rows, dim = costs.wires["int8"].message_bytes / (4 + 8), 8
    assert costs.wires["sparse"].message_bytes == rows * (4 + 4 * dim)


def test_the_table_has_a_row_for_each_number_of_nodes_link_and_wire() -> None:
    output = format_plan(COSTS, [2, 64], [10, 100], 20.0).splitlines()
    assert sum(line.split()[:1] in (["2"], ["64"]) for line in output) == 2 * 2 * len(WIRES)


def test_sharded_tables_take_a_share_of_the_memory_and_of_the_traffic() -> None:
    model = ModelConfig(table_rows=(1 << 20, 1 << 20, 10), embedding_dim=64)
    found = shard_tables(model, rows_of_batch=1000, batch=2048, nodes=4)
    assert found.replicated_bytes == 2 * (1 << 28) + 10 * 256
    assert found.held_bytes == 2 * (1 << 26) + 10 * 256
    assert found.received_replicated == 3 * 1000 * (4 + 64)
    assert found.received_sharded == 0.75 * 1000 * (4 + 32 + 64)


def test_the_plan_says_from_when_on_to_shard() -> None:
    """Of 4 + D and 4 + D / 2 + D bytes a row: 136 against 100 at 2 nodes with D = 64, half as much again at 3."""
    output = format_sharding(COSTS, [2, 3, 64], "terabyte_2048")
    assert "from 3 nodes on" in output
    assert "from" not in format_sharding(COSTS, [2], "terabyte_2048").splitlines()[-2]
    assert sum(line.split()[:1] in (["2"], ["3"], ["64"]) for line in output.splitlines()) == 3


def test_a_sharded_step_sends_each_node_its_part_of_the_rows() -> None:
    found = predict_sharded(COSTS, 4, Network(1e-3, 1e9))
    rows = 1e6 / (4 + 64) / 4
    header, parts = 26 * 8, (26 * 4, 4 * rows, 32 * rows, 64 * rows)
    assert found.local_s == 30e-3
    assert found.table_bytes == pytest.approx(header + sum(parts))
    assert found.wire_s == pytest.approx(2e-3 + 3 * header / 1e9 + sum(3e-3 + 3 * part / 1e9 for part in parts))


def test_the_plan_of_a_preset_says_where_its_tables_lie(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "mlperf-dcnv2", "--nodes", "2,8,64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "204,184,588 rows, D 128, FP32: 105.36 GB" in lines[0]
    assert [line.split()[:2] for line in lines[2:5]] == [["2", "61.98"], ["8", "14.48"], ["64", "1.94"]]


def test_ranks_take_the_batch_that_is_planned_for() -> None:
    assert plan_case(PlanTask("terabyte_2048", 512, 1)).batch_size == 512


@pytest.mark.parametrize("arguments", [["--nodes", "1"], ["--nodes", "2,x"], ["--gbps", "0"], ["--batch", "0"]])
def test_impossible_plans_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
def test_the_model_stands_beside_two_real_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--quick", "--nodes", "2", "--gbps", "10", "--threads", "1"]) == 0
    output = capsys.readouterr().out
    assert "predicted / measured" in output
    assert all(output.count(f"  {wire} ") == 3 for wire in WIRES)
    assert output.count("int8, sharded") == 1
