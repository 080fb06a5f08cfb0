"""Presets, layers of settings, and the TOML round trip."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqrm_cpu.config import PRESETS, Config, check_config, load_config, preset_config
from dqrm_cpu.config.schema import (
    AUTO_COUNT,
    DEMO_LARGEST_TABLE,
    KAGGLE_TABLE_ROWS,
    OPTIMIZER_RATES,
    SETTINGS,
    flatten,
    unflatten,
)
from dqrm_cpu.config.setting import Setting, Value, value_text
from dqrm_cpu.config.toml_source import lines_of
from dqrm_cpu.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
OF_SGD = [name for name in PRESETS if name not in ("production", "mlperf-dcnv2")]


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def fp32_bytes(config: Config) -> int:
    """Tables and MLPs with biases; the interaction gives embedding_dim values and one per pair of features."""
    model = config.model
    features = 1 + len(model.table_rows)
    interaction = model.embedding_dim + features * (features - 1) // 2
    layers = [(model.num_dense, *model.bottom_mlp), (interaction, *model.top_mlp)]
    mlp = sum((n + 1) * m for sizes in layers for n, m in itertools.pairwise(sizes))
    return 4 * (sum(model.table_rows) * model.embedding_dim + mlp)


@pytest.mark.parametrize(("preset", "gigabytes"), [("kaggle", 2.161), ("terabyte", 12.575)])
def test_paper_presets_have_the_paper_sizes(preset: str, gigabytes: float) -> None:
    # The paper rounds, and does not say whether it counts the MLPs: they are 0.1% of Kaggle's model.
    assert fp32_bytes(preset_config(preset)) / 1e9 == pytest.approx(gigabytes, rel=1e-3)


def test_the_mlperf_preset_has_the_tables_and_layers_of_its_rules() -> None:
    model = preset_config("mlperf-dcnv2").model
    assert (len(model.table_rows), sum(model.table_rows), max(model.table_rows)) == (26, 204_184_588, 40_000_000)
    assert (model.embedding_dim, model.interaction, model.cross_layers, model.cross_rank) == (128, "cross", 3, 512)
    assert (model.bottom_mlp, model.top_mlp) == ((512, 256, 128), (1024, 1024, 512, 256, 1))


def test_kaggle_epoch_has_the_paper_number_of_iterations() -> None:
    config = preset_config("kaggle")
    assert -(-config.data.train_rows // config.train.batch_size) == 306_969


@pytest.mark.parametrize("preset", ["kaggle", "terabyte"])
def test_held_out_day_is_halved(preset: str) -> None:
    data = preset_config(preset).data
    assert data.test_rows - data.validation_rows in (0, 1)


def test_demo_tables_are_capped_kaggle_tables() -> None:
    assert Config().model.table_rows == tuple(min(rows, DEMO_LARGEST_TABLE) for rows in KAGGLE_TABLE_ROWS)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_named(preset: str) -> None:
    config = preset_config(preset)
    check_config(config)
    assert config.preset == preset


def test_without_anything_it_is_the_demo() -> None:
    assert load_config(None, None, {}) == preset_config("demo")


def test_the_demo_differs_from_the_defaults_in_its_tables_alone() -> None:
    demo = preset_config("demo")
    assert dataclasses.replace(demo, data=dataclasses.replace(demo.data, min_count=0)) == Config()
    assert demo.data.min_count == 1


def test_sizes_that_are_given_are_not_found_from_the_rows() -> None:
    sizes = {"model.table_rows": "40,3,500"}
    assert load_config(None, None, sizes).data.min_count == 0
    assert load_config(None, None, {**sizes, "data.min_count": "2"}).data.min_count == 2


def test_file_overrules_preset_and_option_overrules_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[quant]\nscale_period = 7\nembedding_bits = 8\n")
    quant = load_config("kaggle", path, {"quant.embedding_bits": "2"}).quant
    assert (quant.scale_period, quant.embedding_bits) == (7, 2)


def test_file_names_its_preset(tmp_path: Path) -> None:
    assert load_config(None, write(tmp_path, 'preset = "kaggle"'), {}) == preset_config("kaggle")


def test_preset_option_overrules_that_of_the_file(tmp_path: Path) -> None:
    config = load_config("terabyte", write(tmp_path, 'preset = "kaggle"\nseed = 5'), {})
    assert config == dataclasses.replace(preset_config("terabyte"), seed=5)


def test_preset_may_be_an_override(tmp_path: Path) -> None:
    assert load_config(None, write(tmp_path, "seed = 5"), {"preset": "kaggle"}).model == preset_config("kaggle").model


def test_an_optimizer_brings_its_learning_rate_unless_one_is_given(tmp_path: Path) -> None:
    adagrad = {"train.optimizer": "rowwise-adagrad"}
    assert {load_config(name, None, adagrad).train.learning_rate for name in OF_SGD} == {0.02}
    assert load_config(None, write(tmp_path, 'train.optimizer = "rowwise-adagrad"'), {}).train.learning_rate == 0.02
    assert load_config(None, None, {**adagrad, "train.learning_rate": "0.3"}).train.learning_rate == 0.3
    assert load_config(None, write(tmp_path, "train.learning_rate = 0.1"), adagrad).train.learning_rate == 0.1
    assert {load_config(name, None, {"train.optimizer": "sgd"}) for name in OF_SGD} == set(map(preset_config, OF_SGD))
    assert load_config("production", None, {"train.optimizer": "sgd"}).train.learning_rate == 0.1


def test_production_is_one_epoch_of_adagrad_in_int4_throughout() -> None:
    config = load_config("production", None, {})
    train, quant = config.train, config.quant
    assert (train.optimizer, train.learning_rate, train.epochs) == ("rowwise-adagrad", 0.01, 1)
    assert (quant.method, quant.embedding_bits, quant.mlp_bits, quant.step_width) == ("dqrm", 4, 4, (1.0,))


def test_a_count_that_is_still_to_be_chosen_has_a_word(tmp_path: Path) -> None:
    config = load_config("production", None, {})
    assert config.data.min_count == AUTO_COUNT
    assert config.data.known_from == 1
    assert 'min_count = "auto"' in config.to_toml()
    assert load_config(None, write(tmp_path, config.to_toml()), {}) == config
    assert load_config(None, None, {"data.min_count": "auto"}).data.min_count == AUTO_COUNT
    for word in ("none", "-2"):
        with pytest.raises(ConfigError, match="integer, 0 or more, or auto"):
            load_config(None, None, {"data.min_count": word})
    with pytest.raises(ConfigError):
        load_config(None, None, {"data.train_rows": "auto"})


def test_every_optimizer_has_a_learning_rate() -> None:
    assert set(OPTIMIZER_RATES) == set(SETTINGS["train.optimizer"].choices)


def test_integer_is_a_number(tmp_path: Path) -> None:
    rate = load_config(None, write(tmp_path, "[train]\nlearning_rate = 1"), {}).train.learning_rate
    assert type(rate) is float
    assert rate == 1


def test_example_file_loads() -> None:
    config = load_config(None, REPOSITORY / "configs/example.toml", {})
    assert config.quant.scale_period == 200


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 2  # type: ignore[misc]


def values_of(entry: Setting) -> st.SearchStrategy[Value]:
    """Returns every value that a setting allows."""
    if entry.choices:
        return st.sampled_from(entry.choices)
    low, high, above = entry.range.minimum, entry.range.maximum, entry.range.above
    integers = st.integers(int(low or 0), int(2**62 if high is None else high))
    numbers = st.floats(low if above is None else above, high, exclude_min=above is not None, allow_infinity=False)
    items: dict[type, st.SearchStrategy[Any]] = {bool: st.booleans(), int: integers, float: numbers, str: st.text()}
    item = items[entry.item]
    return st.lists(item, min_size=1, max_size=5).map(tuple) if entry.is_list else item


any_values = st.fixed_dictionaries({key: values_of(entry) for key, entry in SETTINGS.items()})


@pytest.fixture(scope="module")
def toml_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "run.toml"


@settings(deadline=None)
@given(values=any_values)
def test_toml_round_trip(values: dict[str, Value], toml_path: Path) -> None:
    rules: dict[str, Value] = {
        "model.bottom_mlp": (5, int(str(values["model.embedding_dim"]))),
        "model.top_mlp": (1,),
        "ensemble": 1,
        "model.table_dims": "",
        "model.interaction": "cross",
        "model.cross_rank": 1,
        "quant.method": "dqrm",
        "quant.step_width": (0.25,),
        "quant.target_alive": 0.0,
        "quant.pretrain_epochs": 0,
        "quant.start_at": 0.0,
        "quant.mlp_rounding": "nearest",
        "train.batch_size": values["comm.simulated_ranks"],
        "train.master_rows": "fp32",
        "train.reset_tables": "never",
        "train.average_snapshots": 0,
        "train.precision": "bf16",
        "train.decay_start_step": values["train.warmup_steps"],
        "train.decay_steps": 1,
        "comm.transport": "nccl" if values["device"] == "cuda" else "gloo",
        "comm.wire": "int8",
        "comm.mlp_gradients": "int8",
        "comm.simulated_scale": "all",
        "comm.tables": "replicate",
        "kernels": "auto",
    }
    config = unflatten({**values, **rules})
    toml_path.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(None, toml_path, {}) == config


@settings(deadline=None)
@given(values=any_values)
def test_option_text_round_trip(values: dict[str, Value]) -> None:
    for key, value in values.items():
        typed = value.strip() if isinstance(value, str) else value
        assert SETTINGS[key].from_text(value_text(value)) == typed


@settings(deadline=None)
@given(values=any_values)
def test_flatten_round_trip(values: dict[str, Value]) -> None:
    assert flatten(unflatten(values)) == values


@settings(deadline=None, max_examples=20)
@given(noise=st.lists(st.sampled_from(["", "# seed = 3", "   ", "# ["]), max_size=60), seed=st.integers(0, 2**32))
def test_lines_are_found_among_comments(noise: list[str], seed: int) -> None:
    lines = Config().to_toml().split("\n")
    for number, line in enumerate(noise):
        lines.insert((seed * 31 + number * 17) % len(lines), line)
    text = "\n".join(lines)
    found = lines_of(text)
    for key, entry in SETTINGS.items():
        assert lines[found[key] - 1].startswith(f"{entry.name} = ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nquant.scale_period = 2", 2),
        ("\nquant = { mlp_bits = 4, scale_period = 2 }", 2),
        ("[quant]\nmlp_bits = 4\n\n[quant.scale_period]\nx = 1", 5),
        ('a = """\n[quant]\nscale_period = 9\n"""\n[quant]\nscale_period = 2', 6),
        ("a = [\n 1, # scale_period = 3\n]\n[quant]\nscale_period = [\n 2,\n]\nb = 3", 5),
        ('[quant]\n"scale_period" = 2', 2),
        ("a = '''\n\"\"\"\n'''\n[ quant ] # [x]\nscale_period = 2", 5),
        ('a = "]\\"["\n[[b]]\nquant = 1\n[quant]\nscale_period = 2', 5),
    ],
)
def test_lines_are_found_in_every_way_of_writing(text: str, line: int) -> None:
    key = "quant.scale_period.x" if "x = 1" in text else "quant.scale_period"
    assert lines_of(text)[key] == line
