"""The alpha-beta model against sums done by hand."""

import pytest

from dqrm_cpu.lab.planning.network import Network, fitted

NETWORK = Network(latency_s=10e-6, bytes_per_s=1e9)


def test_two_nodes_exchange_one_message() -> None:
    assert NETWORK.gather_s(2, 1e6) == pytest.approx(10e-6 + 1e-3)


def test_a_gather_brings_all_others_messages_in_doubling_rounds() -> None:
    assert NETWORK.gather_s(8, 1e6) == pytest.approx(3 * 10e-6 + 7e-3)


def test_reducing_at_the_destination_moves_the_whole_twice() -> None:
    """4 nodes, 4 MB: three parts of 1 MB out, three sums of 1 MB in."""
    assert NETWORK.reduce_at_destination_s(4, 4e6) == pytest.approx(3 * 10e-6 + 3e-3 + 2 * 10e-6 + 3e-3)


def test_a_line_through_two_measurements_gives_them_back() -> None:
    measured = [(size, NETWORK.gather_s(2, size)) for size in (64.0, 2e6)]
    assert fitted(*measured) == pytest.approx(NETWORK)
