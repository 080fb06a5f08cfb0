"""Traces: turns, steps and phases nested on a track per rank and thread, in the form that viewers open."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dqrm_cpu.cli.main import main
from dqrm_cpu.lab.profiler.observers import TorchMarks
from dqrm_cpu.lab.profiler.profile_files import chrome_trace
from dqrm_cpu.lab.profiler.timeline import Event, Recorder, Timeline
from dqrm_cpu.timing.spans import Spans
from report_runs import profile_prepared

STEPS, ROUNDS = 6, 3
Json = dict[str, Any]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """Of prepared rows, which a thread reads ahead, with two threads that compute."""
    folder = tmp_path_factory.mktemp("trace")
    options = profile_prepared(folder, STEPS, ROUNDS)
    assert main([*options, "--train.threads", "2"]) == 0
    found: Json = json.loads((folder / "profile" / "trace.json").read_text())
    return found


@pytest.mark.slow
def test_a_trace_nests_turns_steps_and_phases(trace: Json) -> None:
    check_trace(trace)
    of_main = [event for event in complete(trace) if names_of_threads(trace)[event["pid"], event["tid"]] == "main"]
    kinds = {kind: [event for event in of_main if event["cat"] == kind] for kind in ("turn", "step", "phase")}
    assert len(kinds["turn"]) == ROUNDS
    assert len(kinds["step"]) == STEPS
    assert {"data", "MLP forward", "embedding update"} <= {event["name"] for event in kinds["phase"]}


@pytest.mark.slow
def test_reading_ahead_is_on_a_track_of_its_own(trace: Json) -> None:
    reads = [event for event in complete(trace) if event["name"] == "read ahead"]
    assert reads
    assert {names_of_threads(trace)[event["pid"], event["tid"]] for event in reads} == {"read-ahead_0"}


@pytest.mark.slow
def test_threads_of_libraries_say_how_busy_they_were(trace: Json) -> None:
    names = names_of_threads(trace)
    busy = [event for event in complete(trace) if " busy: " in event["name"]]
    assert busy
    assert {event["cat"] for event in busy} == {"turn"}
    assert "library thread" in {names[event["pid"], event["tid"]] for event in busy}


def test_a_trace_has_a_track_per_rank_and_thread() -> None:
    ranks = [
        Timeline((Event("step", 7, 1000, 5000), Event("data", 7, 1000, 2000)), {7: "main"}),
        Timeline((Event("data", 9, 1500, 2500), Event("read ahead", 8, 0, 1)), {8: "reader", 9: "main"}),
    ]
    trace = chrome_trace(ranks, ["one", "two"])
    check_trace(trace)
    assert {(event["pid"], event["tid"]) for event in complete(trace)} == {(0, 7), (1, 8), (1, 9)}
    assert names_of_threads(trace) == {(0, 7): "main", (1, 8): "reader", (1, 9): "main"}
    named = {event["pid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"}
    assert named == {0: "rank 0 on one", 1: "rank 1 on two"}


def test_spans_of_threads_do_not_mix() -> None:
    recorder = Recorder()
    spans = Spans(recorder)
    start = recorder.turn_begins()

    def read() -> None:
        with spans.aside("read ahead"):
            pass

    reader = threading.Thread(target=read, name="reader")
    with spans.data:
        reader.start()
        reader.join()
    recorder.turn_ended("turn", start)
    timeline = recorder.timeline(0)
    threads = {event.label: event.thread for event in timeline.events}
    assert threads["data"] == threading.get_native_id() != threads["read ahead"]
    assert timeline.thread_names[threads["data"]] == "main"


def test_marks_of_torch_are_closed_on_the_thread_that_opened_them() -> None:
    marks, failed = TorchMarks(), []

    def mark() -> None:
        try:
            marks.begin("of the thread")
            marks.end("of the thread", 0, 0)
        except IndexError as error:
            failed.append(error)

    marks.begin("outer")
    other = threading.Thread(target=mark)
    other.start()
    other.join()
    marks.end("outer", 0, 0)
    assert failed == []


def complete(trace: Json) -> list[Json]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def names_of_threads(trace: Json) -> dict[tuple[int, int], str]:
    named = (event for event in trace["traceEvents"] if event["name"] == "thread_name")
    return {(event["pid"], event["tid"]): event["args"]["name"] for event in named}


def check_trace(trace: Json) -> None:
    """The Trace Event Format's complete and metadata events; on each track they nest or follow, as viewers require."""
    assert set(trace) == {"displayTimeUnit", "traceEvents"}
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["args"]
        else:
            assert event["ph"] == "X"
            assert min(event["ts"], event["dur"]) >= 0
    for events in tracks(trace):
        check_nesting(events)


def tracks(trace: Json) -> Iterator[list[Json]]:
    for track in {(event["pid"], event["tid"]) for event in complete(trace)}:
        yield [event for event in complete(trace) if (event["pid"], event["tid"]) == track]


def check_nesting(events: list[Json]) -> None:
    open_ends: list[float] = []
    for event in events:
        end = event["ts"] + event["dur"]
        while open_ends and open_ends[-1] <= event["ts"] + 1e-3:
            open_ends.pop()
        assert not open_ends or end <= open_ends[-1] + 1e-3, f"{event['name']} is cut by what it lies in"
        open_ends.append(end)
