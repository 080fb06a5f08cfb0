"""Rows in bands: the budget holds to the byte, more bytes never lose more, every reader has the rows that lie there."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banded_models import (
    banded_model,
    config_of,
    counts_of,
    keys_of,
    plain_tables,
    rows_by_key,
    write_banded,
)
from dqrm_cpu.errors import CheckpointError, ConfigError
from dqrm_cpu.export.bands.choice import LEFT_OUT, Choice, Plan, TableOptions, Width
from dqrm_cpu.export.bands.classes import ranked_rows
from dqrm_cpu.export.bands.errors import SUBSTITUTES
from dqrm_cpu.export.bands.write import BandedModel
from dqrm_cpu.export.packed_model import read_packed, verify_packed
from dqrm_cpu.export.safetensors_writer import whole, write_tensors
from dqrm_cpu.predict.packed_scorer import renumbered
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.model import BANDED, Model

RANKED = ranked_rows(np.array([7, 100, 90, 5, 5, 4, 1, 1, 0]), False)
HUGE = 1 << 40


@settings(max_examples=25)
@given(st.lists(st.integers(0, 9000), min_size=1, max_size=60), st.booleans())
def test_rows_are_ranked_by_count(numbers: list[int], is_pinned: bool) -> None:
    counts = np.array(numbers)
    ranked = ranked_rows(counts, is_pinned)
    assert sorted(ranked.order.tolist()) == list(range(len(numbers)))
    assert ranked.bounds[0] == 0
    assert ranked.bounds[-1] == len(numbers)
    assert np.diff(ranked.bounds).min() > 0
    if is_pinned:
        assert ranked.num_classes == 1
        return
    assert ranked.order[0] == 0
    assert (np.diff(counts[ranked.order[1:]]) <= 0).all()
    classes = ranked.class_of_rows()
    for a, b in product(range(1, len(numbers)), repeat=2):
        assert counts[a] != counts[b] or classes[a] == classes[b]


def options_of(draws: list[list[float]]) -> list[TableOptions]:
    """Tables whose classes have errors as drawn, of no row, of 2 bytes and of 4."""
    tables = []
    for errors in draws:
        widths: list[tuple[Width, ...]] = [(Width(0, 1, 0.0),)]
        for k in range(RANKED.num_classes - 1):
            its = (errors[(k + j) % len(errors)] for j in range(3))
            widths.append(tuple(Width(*one) for one in zip((LEFT_OUT, 0, 1), (0, 2, 4), its, strict=True)))
        tables.append(TableOptions(RANKED, tuple(widths)))
    return tables


def bytes_of(plan: Plan) -> int:
    return sum(band.rows * (2 * band.meaning + 2) for bands in plan.bands for band in bands)


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.floats(0, 50), min_size=3, max_size=7), min_size=1, max_size=3),
    st.integers(2, 80),
    st.integers(0, 20),
)
def test_more_bytes_never_lose_more(draws: list[list[float]], budget: int, more: int) -> None:
    choice = Choice(options_of(draws))
    if bytes_of(choice.plan(0)) > budget:
        with pytest.raises(ConfigError, match=f"has {bytes_of(choice.plan(0)):,}, with nothing"):
            choice.largest_within(budget, bytes_of)
        return
    small, large = (choice.largest_within(size, bytes_of) for size in (budget, budget + more))
    assert bytes_of(small) <= budget
    assert bytes_of(large) <= budget + more
    assert large.error <= small.error + 1e-9
    assert Choice(options_of(draws)).largest_within(budget, bytes_of) == small


@settings(max_examples=15)
@given(st.lists(st.floats(0, 50), min_size=3, max_size=7))
def test_no_choice_of_whole_classes_loses_less_in_the_bytes_of_whole_steps(errors: list[float]) -> None:
    (table,) = options_of([errors])
    choice = Choice([table])
    sizes = [end - first for first, end in zip(RANKED.bounds, RANKED.bounds[1:], strict=False)]
    for end in choice._ends.tolist():
        plan = choice.plan(end)
        used = sum(band.rows * table.widths[band.of_class][band.meaning + 1].row_bytes for band in plan.bands[0][1:])
        best = min(
            sum(width.error for width in ways)
            for ways in product(*table.widths[1:])
            if sum(width.row_bytes * rows for width, rows in zip(ways, sizes[1:], strict=True)) <= used
        )
        assert plan.error == pytest.approx(best, abs=1e-6)


@pytest.fixture(scope="module")
def model() -> BandedModel:
    return banded_model(config_of())


@settings(max_examples=12, deadline=None)
@given(share=st.floats(0, 1))
def test_a_file_has_no_byte_more_than_its_budget(
    model: BandedModel, tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    choice, path = Choice(model.options), tmp_path_factory.mktemp("one") / "model.safetensors"
    smallest, largest = (model.size_of(choice.plan(widened)) for widened in (0, choice.length))
    budget = round(smallest + share * (largest - smallest))
    size = write_banded(path, model, budget)
    assert path.stat().st_size == size <= budget
    assert size > budget - 64 or budget == largest
    about = verify_packed(path)
    assert (about.layout, about.is_exported) == ("bands", True)
    content = path.read_bytes()
    assert write_banded(path, model, budget) == size
    assert path.read_bytes() == content
    with pytest.raises(ConfigError, match=f"the smallest file of this model has {smallest:,},"):
        write_banded(path, model, smallest - 1)


@pytest.mark.parametrize("substitute", SUBSTITUTES)
def test_every_id_has_its_own_row_or_the_common_one(substitute: str, tmp_path: Path) -> None:
    """And a row is what the model computes with, but for half a scale of its band."""
    model, path = banded_model(config_of(), substitute), tmp_path / "model.safetensors"
    whole_size = write_banded(path, model, HUGE)
    all_rows = plain_tables(path)
    exact = [list(table.blocks()) for table in model._members[0].tables]
    for t, (found, by_key) in enumerate(zip(all_rows, rows_by_key(path), strict=True)):
        (expected,) = exact[t]
        assert sorted(by_key.values()) == list(range(1, len(found)))
        for key, count, row in zip(keys_of()[t].tolist(), counts_of()[t][1:], expected[1:], strict=True):
            assert (key in by_key) == (count > 0)
            if count:
                np.testing.assert_allclose(found[by_key[key]], row, rtol=1e-6, atol=1e-7)
        common = model._members[0].errors[t].substitutes[SUBSTITUTES.index(substitute)]
        np.testing.assert_allclose(found[0], common, rtol=0, atol=np.abs(common).max() / 127 * 0.51 + 1e-8)
    write_banded(path, model, whole_size * 6 // 7)
    tensors = [key for by_key in rows_by_key(path) for key in by_key]
    assert 0 < len(tensors) < sum(len(rows) - 1 for rows in all_rows)


MODELS = [
    ({}, (), 1),
    ({"embedding_bits": 3}, (2, 3), 1),
    ({"method": "dorefa", "embedding_bits": 8}, (4,), 1),
    ({"method": "ptq"}, (), 2),
]


@pytest.mark.parametrize(("quant", "limits", "members"), MODELS)
@pytest.mark.parametrize("dim", [6, 16])
def test_readers_agree_with_plain_rows(
    quant: dict[str, object], limits: tuple[int, ...], members: int, dim: int, tmp_path: Path
) -> None:
    config, path = config_of(dim, **quant), tmp_path / "model.safetensors"
    model = banded_model(config, "mean", limits, members, is_float=quant.get("method") == "ptq")
    size = write_banded(path, model, HUGE)
    write_banded(path, model, size * 6 // 7)
    assert read_packed(path).members == members
    plain, fused = Model.open(path, fused=False), Model.open(path, fused=True, threads=2)
    rng, description = np.random.default_rng(2), plain.description
    dense = rng.normal(size=(701, len(description.dense))).astype(np.float32)
    sizes = np.array([description.categories[t].rows for t in description.slots])
    ids = rng.integers(0, sizes, (701, sizes.size))
    if limits:
        ids[:, -limits[-1] :][rng.random((701, limits[-1])) < 0.5] = -1
    for m, network in enumerate(plain._networks, 1):
        tables, slots = plain_tables(path, m), np.array(description.slots)
        for t, found in enumerate(network.tables.pooled(ids).swapaxes(0, 1)):
            its = ids[:, slots == t]
            expected = (tables[t][its] * (its >= 0)[..., None]).sum(1)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    expected = plain.logits_of_ids(dense, ids)
    found = fused.logits_of_ids(dense, ids)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_array_equal(fused.logits_of_ids(dense[5:6], ids[5:6]), found[5:6])


def with_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """The file with other tensors, its checksums right: as somebody would make it who means harm."""
    file = MappedFile(path)
    names = {"I32": "<i4", "F32": "<f4", "U8": "u1", "U64": "<u8"}
    tensors = {
        name: file.bytes(*one.data_offsets).view(names[one.dtype]).reshape(one.shape).copy()
        for name, one in file.entries.items()
    }
    change(tensors)
    bad = path.with_name("bad.safetensors")
    metadata = {key: file.metadata[key] for key in ("config", "layout", "identity", "format", "model")}
    write_tensors(bad, [whole(name, array) for name, array in tensors.items()], metadata)
    return bad


def set_first(name: str, value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].reshape(-1)[0] = value

    return change


def cut(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name][:-1]

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_first("tables.bands", 0),
        set_first("tables.bands", 2),
        set_first("tables.bands", -(2**31)),
        cut("tables.bands"),
        cut("C3.codes"),
        cut("tables.step"),
        cut("tables.offset"),
        lambda tensors: tensors["tables.bands"].__setitem__((0, 1), 17),
        lambda tensors: tensors["tables.bands"].__setitem__((1, 1), 1),
        lambda tensors: tensors.pop("tables.offset"),
        set_first("tables.offset", np.nan),
    ],
)
def test_bands_that_cannot_be_are_refused(
    model: BandedModel, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None]
) -> None:
    write_banded(tmp_path / "good.safetensors", model, HUGE)
    bad = with_tensors(tmp_path / "good.safetensors", change)
    for reader in (Model.open, verify_packed):
        with pytest.raises(CheckpointError):
            reader(bad)


def test_damage_and_other_formats_are_refused(model: BandedModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_banded(path, model, HUGE)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    assert header["__metadata__"]["format"] == BANDED
    content = bytearray(path.read_bytes())
    at = MappedFile(path).entries["C3.codes"].data_offsets[0] - MappedFile(path).entries["C1.keys"].data_offsets[1]
    content[at] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        Model.open(tmp_path / "bad.safetensors", verify=True)
    with pytest.raises(CheckpointError, match=r"damaged|checksum"):
        verify_packed(tmp_path / "bad.safetensors")


def test_ids_of_a_data_set_are_renumbered_by_slot() -> None:
    ids = np.array([[0, 2, -1], [1, 5, 3], [2, -7, 1]])
    rows = [np.array([0, 9, 8]), np.array([0, 1, 2]), np.array([0, 4])]
    none = np.iinfo(np.int64).max
    assert renumbered(ids, rows).tolist() == [[0, 2, -1], [9, none, none], [8, -7, 4]]
