"""How a disagreement reads; that it is raised on real ranks is in test_failures."""

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dqrm_cpu.base.decode import Json
from dqrm_cpu.comm import coordination
from dqrm_cpu.comm.coordination import (
    format_ranks,
    on_first_rank_at_length,
    require_agreement,
    require_one_folder,
)
from dqrm_cpu.comm.transport import SingleTransport
from dqrm_cpu.errors import CheckpointError, CommError


class Gathering(SingleTransport):
    """Answers an allgatherv with documents written down beforehand."""

    def __init__(self, documents: list[Any]) -> None:
        super().__init__()
        self._documents = documents

    def allgatherv(self, payload: NDArray[np.uint8], lengths: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        return [np.frombuffer(json.dumps(d, sort_keys=True).encode(), np.uint8) for d in self._documents]


def refusal(*documents: object) -> list[str]:
    with pytest.raises(CommError) as refused:
        require_agreement(Gathering(list(documents)), {})
    return str(refused.value).splitlines()[1:]


def test_equal_documents_pass_whatever_the_order_of_keys() -> None:
    require_agreement(Gathering([{"a": 1, "b": [2]}, {"b": [2], "a": 1}]), {})


def test_the_differing_key_its_values_and_ranks_are_named() -> None:
    one, two = {"train": {"lr": 0.1, "steps": 5}}, {"train": {"lr": 0.2, "steps": 5}}
    assert refusal(one, one, two) == ["  train.lr: 0.1 on ranks 0-1, 0.2 on rank 2"]


def test_a_missing_key_and_a_list_item() -> None:
    assert refusal({"rows": [1, 2]}, {"rows": [1, 3], "seed": 7}) == [
        "  rows[1]: 2 on rank 0, 3 on rank 1",
        "  seed: absent on rank 0, 7 on rank 1",
    ]


def test_number_and_text_differ() -> None:
    assert refusal({"bits": 4}, {"bits": "4"}) == ['  bits: 4 on rank 0, "4" on rank 1']


def test_a_flood_is_cut() -> None:
    lines = refusal({"rows": list(range(25))}, {"rows": list(range(1, 26))})
    assert len(lines) == 21
    assert lines[-1] == "  and 5 more"


@pytest.mark.parametrize(
    ("ranks", "words"), [([3], "rank 3"), ([0, 1], "ranks 0-1"), ([0, 1, 2, 5, 7, 8], "ranks 0-2, 5, 7-8")]
)
def test_ranks_in_words(ranks: list[int], words: str) -> None:
    assert format_ranks(ranks) == words


def test_folders_that_differ_by_rank_are_named() -> None:
    with pytest.raises(CommError, match=r"/a on ranks 0, 2, /b on rank 1: .* same --run-dir") as caught:
        require_one_folder("--run-dir", ["/a", "/b", "/a"], ["/a", "/b", "/a"])
    assert caught.value.unanimous


@pytest.mark.parametrize(
    ("names", "resolved"), [(["/a", "/a"], ["/host1/a", "/host2/a"]), (["/a", "/link/a"], ["/a", "/a"])]
)
def test_one_folder_may_be_reached_in_two_ways(names: list[str], resolved: list[str]) -> None:
    require_one_folder("--run-dir", names, resolved)


class Broadcasting(SingleTransport):
    """Rank 0 of two, which notes what it tells the other."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2
        self.told: list[Json] = []
        self.often = threading.Event()

    def broadcast_json(self, value: Json, root: int = 0) -> Json:
        self.told.append(value)
        if len(self.told) == 3:
            self.often.set()
        return value


class Listening(SingleTransport):
    """Rank 1 of two, which is told what was written down beforehand."""

    def __init__(self, *told: Json) -> None:
        super().__init__()
        self.rank, self.size = 1, 2
        self._told = list(told)

    def broadcast_json(self, value: Json, root: int = 0) -> Json:
        return self._told.pop(0)


def test_a_long_action_is_told_of_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordination, "_TOLD_EVERY_S", 0.01)
    transport = Broadcasting()
    assert on_first_rank_at_length(transport, lambda: transport.often.wait(30)) is True
    assert transport.told[:3] == [True] * 3
    assert transport.told[-2:] == [False, None]


def test_a_long_action_that_fails_does_so_on_every_rank() -> None:
    def fail() -> None:
        raise CheckpointError("no room")

    transport = Broadcasting()
    with pytest.raises(CheckpointError, match="no room"):
        on_first_rank_at_length(transport, fail)
    assert transport.told[-1] == ["CheckpointError", "no room"]
    with pytest.raises(CheckpointError, match="no room"):
        on_first_rank_at_length(Listening(True, True, False, ["CheckpointError", "no room"]), fail)


def test_the_others_have_no_value_of_a_long_action() -> None:
    assert on_first_rank_at_length(Listening(True, False, None), lambda: 7) is None
