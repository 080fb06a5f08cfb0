"""Quick fuzzing by hypothesis: changed bytes of every kind of file are refused or read, and nothing else happens."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzz

_EXAMPLES = 30


@pytest.fixture(scope="module", params=["shard", "manifest", "checkpoint", "packed", "toml"])
def target(request: pytest.FixtureRequest) -> Iterator[fuzz.Fuzzed]:
    with fuzz.opened(request.param) as found:
        yield found


_EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8) | st.sampled_from([b"[" * 9000, b"9" * 6000])),
    min_size=1,
    max_size=4,
)
"""Where, relative to the size; how many bytes go; what comes instead."""


def test_whole_files_are_read(target: fuzz.Fuzzed) -> None:
    for seed in target.seeds:
        target._try_one(seed)


@settings(max_examples=_EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(edits=_EDITS, cut=st.none() | st.floats(0, 1))
def test_changed_bytes_are_refused_or_read(
    target: fuzz.Fuzzed, edits: list[tuple[float, int, bytes]], cut: float | None
) -> None:
    content = target.seeds[0]
    for place, gone, put in edits:
        at = round(place * len(content))
        content = content[:at] + put + content[at + gone :]
    target(content if cut is None else content[: round(cut * len(content))])


@settings(max_examples=_EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_refused_or_read(target: fuzz.Fuzzed, content: bytes) -> None:
    target(content)
