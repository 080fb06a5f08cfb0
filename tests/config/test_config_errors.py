"""What a user is told about each mistake."""

import dataclasses
from pathlib import Path

import pytest

from dqrm_cpu.config import Config, ModelConfig, QuantConfig, check_config, load_config
from dqrm_cpu.config.schema import SETTINGS
from dqrm_cpu.config.setting import BadValueError, Setting
from dqrm_cpu.errors import ConfigError


def refusal(preset: str | None = None, path: Path | None = None, overrides: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(preset, path, overrides or {})
    return str(error.value)


FILE_MISTAKES = [
    # unknown
    (
        "[quant]\nscale_perod = 2",
        ":2: quant.scale_perod: unknown key; nearest is quant.scale_period (integer, 1 or more)",
    ),
    ("sed = 2", ":1: sed: unknown key; nearest is seed (integer, 0 to 4,294,967,295)"),
    ("[quantt]\nscale_period = 2", ":2: quantt.scale_period: misplaced key; scale_period belongs in [quant]"),
    ("[trian]\n", ":1: trian: unknown section; nearest is [train]"),
    ("[zzz]\nyyy = 2", ":2: zzz.yyy: unknown key; sections are data, model, quant, train, comm"),
    (
        "\n[comm]\nxxxxxxxx = 2",
        ":3: comm.xxxxxxxx: unknown key; [comm] has transport, tables, wire, scale_reduce, rounding, "
        "mlp_gradients, error_feedback, overlap, simulated_ranks, simulated_scale, timeout",
    ),
    # misplaced
    ("scale_period = 2", ":1: scale_period: misplaced key; scale_period belongs in [quant]"),
    (
        "[train]\nepochs = 2\nscale_period = 2",
        ":3: train.scale_period: misplaced key; scale_period belongs in [quant]",
    ),
    ("[train]\nseed = 2", ":2: train.seed: misplaced key; seed belongs at top level, above the first [section]"),
    ("quant = 2", ":1: quant: is a section, not a key; write [quant] above its keys"),
    # wrong type
    ("seed = '1'", ':1: seed = "1": wrong type; allowed: integer, 0 to 4,294,967,295'),
    ("seed = true", ":1: seed = true: wrong type; allowed: integer, 0 to 4,294,967,295"),
    ("[train]\nthreads = 1.5", ":2: train.threads = 1.5: wrong type; allowed: integer, 0 to 4,096"),
    ("[train]\ntensorboard = 1", ":2: train.tensorboard = 1: wrong type; allowed: true or false"),
    ("[train]\nlearning_rate = '0.1'", ':2: train.learning_rate = "0.1": wrong type; allowed: number, above 0'),
    ("[model]\ntop_mlp = 1", ":2: model.top_mlp = 1: wrong type; allowed: integers, each 1 or more"),
    ("[model]\ntop_mlp = []", ":2: model.top_mlp = []: wrong type; allowed: integers, each 1 or more"),
    (
        "[model]\ntop_mlp = [\n 2.5,\n 1]",
        ":2: model.top_mlp = [ 2.5, 1, ]: wrong type; allowed: integers, each 1 or more",
    ),
    ("[data]\nsource = 3", ":2: data.source = 3: wrong type; allowed: text"),
    # out of range
    ("[quant]\nembedding_bits = 1", ":2: quant.embedding_bits = 1: out of range; allowed: integer, 2 to 16"),
    ("[quant]\nembedding_bits = 17", ":2: quant.embedding_bits = 17: out of range; allowed: integer, 2 to 16"),
    ("[quant]\nmlp_bits = 5", ":2: quant.mlp_bits = 5: no such choice; allowed: 4 | 8 | 32"),
    (
        "[quant]\nmethod = 'dqmr'",
        ':2: quant.method = "dqmr": no such choice; nearest is dqrm; '
        "allowed: none | ptq | dqrm | hawq | lsq | pact | dorefa",
    ),
    ("[train]\nlearning_rate = 0.0", ":2: train.learning_rate = 0.0: out of range; allowed: number, above 0"),
    ("[train]\nlearning_rate = nan", ":2: train.learning_rate = nan: out of range; allowed: number, above 0"),
    ("[train]\nlearning_rate = inf", ":2: train.learning_rate = inf: out of range; allowed: number, above 0"),
    ("[model]\ntop_mlp = [0, 1]", ":2: model.top_mlp = [ 0, 1, ]: out of range; allowed: integers, each 1 or more"),
    (
        "preset = 'kagle'",
        ':1: preset = "kagle": no such choice; nearest is kaggle; '
        "allowed: demo | production | kaggle | terabyte | mlperf-dcnv2",
    ),
    # no TOML
    (
        "[train]\nepochs 3",
        ":2: not valid TOML: expected '=' after a key in a key/value pair; a line reads `key = value` or `[section]`",
    ),
    ("seed = 1\nseed = 2", ":2: not valid TOML: cannot overwrite a value; a line reads `key = value` or `[section]`"),
    ("seed =", ":1: not valid TOML: invalid value; a line reads `key = value` or `[section]`"),
]


@pytest.mark.parametrize(("text", "message"), FILE_MISTAKES)
def test_mistake_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    assert refusal(path=path) == f"{path}{message}"


OPTION_MISTAKES = [
    ("quant.scale_period", "0", "--quant.scale-period 0: out of range; allowed: integer, 1 or more"),
    ("quant.scale_period", "2.0", "--quant.scale-period 2.0: wrong type; allowed: integer, 1 or more"),
    ("quant.scale_period", "", "--quant.scale-period : wrong type; allowed: integer, 1 or more"),
    ("train.learning_rate", "-1", "--train.learning-rate -1: out of range; allowed: number, above 0"),
    ("train.learning_rate", "fast", "--train.learning-rate fast: wrong type; allowed: number, above 0"),
    ("train.early_stop_auc", "80", "--train.early-stop-auc 80: out of range; allowed: number, 0 to 1"),
    ("train.tensorboard", "yes", "--train.tensorboard yes: wrong type; allowed: true or false"),
    ("model.top_mlp", "5,,1", "--model.top-mlp 5,,1: wrong type; allowed: integers, each 1 or more"),
    (
        "train.optimizer",
        "adagrad",
        "--train.optimizer adagrad: no such choice; nearest is rowwise-adagrad; allowed: sgd | rowwise-adagrad",
    ),
    (
        "quant.scale_perod",
        "200",
        "--quant.scale-perod 200: unknown option; nearest is --quant.scale-period (integer, 1 or more)",
    ),
]


@pytest.mark.parametrize(("key", "text", "message"), OPTION_MISTAKES)
def test_mistake_in_an_option(key: str, text: str, message: str) -> None:
    assert refusal(overrides={key: text}) == message


def test_unknown_preset_option() -> None:
    names = "demo | production | kaggle | terabyte | mlperf-dcnv2"
    expected = f"--preset kagle: no such choice; nearest is kaggle; allowed: {names}"
    assert refusal(preset="kagle") == expected


CONFLICTS = [
    (
        {"model.embedding_dim": "32"},
        "--model.embedding-dim 32: the last layer of model.bottom_mlp is 16, it must equal model.embedding_dim 32",
    ),
    ({"model.top_mlp": "8,2"}, "--model.top-mlp 8,2: the last layer of model.top_mlp is 2, it must be 1 (the click)"),
    (
        {"model.cross_rank": "8"},
        "--model.cross-rank 8: model.cross_rank is about model.interaction cross, that is dot, set it to cross",
    ),
    (
        {"model.interaction": "cat", "model.cross_layers": "2"},
        "--model.cross-layers 2 and --model.interaction cat: model.cross_layers is about model.interaction cross, that "
        "is cat, set it to cross",
    ),
    (
        {"model.interaction": "cross", "model.cross_rank": "432"},
        "--model.cross-rank 432: model.cross_rank 432 is not below 432, the values of all features together, set it to "
        "0 for whole matrices, or to less than half of that for smaller ones",
    ),
    (
        {"model.table_dims": "3=4"},
        "--model.table-dims 3=4: model.table_dims has '3=4', write C3=4,C7=32 for 4 values in the third table, 32 in "
        "C7, or auto",
    ),
    (
        {"model.table_dims": "C1=2,C1=2"},
        "--model.table-dims C1=2,C1=2: model.table_dims names C1 twice, leave one of them",
    ),
    (
        {"model.table_dims": "C1=4097"},
        "--model.table-dims C1=4097: model.table_dims gives C1 4097 values, 4,096 are the most",
    ),
    (
        {"model.table_dims": "C27=4"},
        "--model.table-dims C27=4: model.table_dims C27=4 names C27, and there are 26 tables: leave it out, or correct "
        "its number",
    ),
    (
        {"train.batch_size": "4", "comm.simulated_ranks": "8"},
        "--train.batch-size 4 and --comm.simulated-ranks 8: "
        "train.batch_size 4 leaves ranks without a row, comm.simulated_ranks is 8",
    ),
    (
        {"train.decay_start_step": "9"},
        "--train.decay-start-step 9: train.decay_start_step 9 does nothing, set train.decay_steps above 0 as well",
    ),
    (
        {"train.warmup_steps": "10", "train.decay_start_step": "9", "train.decay_steps": "1"},
        "--train.decay-start-step 9 and --train.warmup-steps 10: "
        "train.decay_start_step 9 lies within the warm-up, it must be train.warmup_steps 10 or more",
    ),
    (
        {"device": "cuda", "kernels": "numba"},
        "--kernels numba and --device cuda: "
        "kernels numba run on a CPU only, set kernels auto or torch with device cuda",
    ),
    (
        {"comm.transport": "nccl"},
        "--comm.transport nccl: comm.transport nccl is for models on GPUs, device is cpu, set that to cuda, "
        "or comm.transport to auto",
    ),
    (
        {"quant.method": "none", "quant.activation_bits": "8"},
        "--quant.activation-bits 8 and --quant.method none: "
        "quant.activation_bits 8 is about a quantized model, quant.method is none, choose one",
    ),
    (
        {"quant.method": "none", "quant.mlp_bias_bits": "8"},
        "--quant.mlp-bias-bits 8 and --quant.method none: "
        "quant.mlp_bias_bits 8 is about a quantized model, quant.method is none, choose one",
    ),
    (
        {"quant.method": "ptq", "quant.rounding": "stochastic"},
        "--quant.rounding stochastic and --quant.method ptq: "
        "quant.rounding stochastic is about training with dqrm or hawq, quant.method is ptq",
    ),
    (
        {"comm.tables": "shard", "quant.method": "lsq"},
        "--quant.method lsq and --comm.tables shard: "
        "quant.method lsq is not possible with comm.tables shard, set it to dqrm, or comm.tables to replicate",
    ),
    (
        {"comm.tables": "shard", "comm.wire": "dense"},
        "--comm.wire dense and --comm.tables shard: "
        "comm.wire dense is not possible with comm.tables shard, set it to sparse or int8, or comm.tables to replicate",
    ),
    (
        {"comm.tables": "shard", "quant.rounding": "stochastic"},
        "--quant.rounding stochastic and --comm.tables shard: "
        "quant.rounding stochastic is not possible with comm.tables shard, set it to nearest, or comm.tables to "
        "replicate",
    ),
    (
        {"comm.tables": "shard", "model.table_dims": "C3=4"},
        "--model.table-dims C3=4 and --comm.tables shard: "
        "model.table_dims C3=4 is not possible with comm.tables shard, set it to nothing, or comm.tables to replicate",
    ),
    (
        {"train.master_rows": "bf16", "quant.method": "lsq"},
        "--quant.method lsq and --train.master-rows bf16: "
        "quant.method lsq is not possible with train.master_rows bf16, set it to dqrm, or train.master_rows to fp32",
    ),
    (
        {"train.master_rows": "int8", "kernels": "torch"},
        "--kernels torch and --train.master-rows int8: "
        "kernels torch is not possible with train.master_rows int8, set it to auto, or train.master_rows to fp32",
    ),
    (
        {"train.precision": "int8", "kernels": "torch"},
        "--kernels torch and --train.precision int8: "
        "kernels torch is not possible with train.precision int8, set it to auto, or train.precision to fp32",
    ),
    (
        {"train.precision": "int8", "device": "cuda"},
        "--device cuda and --train.precision int8: "
        "device cuda is not possible with train.precision int8, set it to cpu, or train.precision to fp32",
    ),
    (
        {"train.precision": "int8", "quant.activation_bits": "8"},
        "--quant.activation-bits 8 and --train.precision int8: "
        "quant.activation_bits 8 is not possible with train.precision int8, set it to 32, or train.precision to fp32",
    ),
    (
        {"train.precision": "int8", "train.batch_size": "200000", "comm.simulated_ranks": "3"},
        "--train.batch-size 200000 and --train.precision int8: "
        "train.batch_size 200000 is not possible with train.precision int8, set it to 196608 or less, or "
        "train.precision to fp32",
    ),
    (
        {"train.master_rows": "int8", "device": "cuda"},
        "--device cuda and --train.master-rows int8: "
        "device cuda is not possible with train.master_rows int8, set it to cpu, or train.master_rows to fp32",
    ),
    (
        {"quant.mlp_rounding": "stochastic", "quant.mlp_bits": "32"},
        "--quant.mlp-rounding stochastic and --quant.mlp-bits 32: "
        "quant.mlp_rounding stochastic has nothing to round, quant.mlp_bits is 32, set that to 4 or 8",
    ),
    (
        {"quant.start_at": "0.9", "quant.method": "ptq"},
        "--quant.start-at 0.9 and --quant.method ptq: "
        "quant.start_at is where quantization-aware training begins, quant.method ptq has none, set it to dqrm",
    ),
    (
        {"quant.start_at": "0.9", "quant.pretrain_epochs": "1"},
        "--quant.start-at 0.9 and --quant.pretrain-epochs 1: "
        "quant.start_at 0.9 and quant.pretrain_epochs 1 both say when training becomes quantized, leave out one of "
        "them",
    ),
    (
        {"train.reset_tables": "each-epoch", "train.epochs": "1"},
        "--train.epochs 1 and --train.reset-tables each-epoch: train.epochs 1 is not possible with train.reset_tables "
        "each-epoch, set it to 2 or more, or train.reset_tables to never",
    ),
    (
        {"train.reset_tables": "each-epoch", "quant.method": "lsq"},
        "--quant.method lsq and --train.reset-tables each-epoch: quant.method lsq is not possible with "
        "train.reset_tables each-epoch, set it to dqrm, or train.reset_tables to never",
    ),
    (
        {"train.average_snapshots": "5", "train.master_rows": "int8"},
        "--train.master-rows int8 and --train.average-snapshots 5: train.master_rows int8 is not possible with "
        "train.average_snapshots 5, set it to fp32, or train.average_snapshots to 0",
    ),
    (
        {"train.average_snapshots": "5", "train.reset_tables": "each-epoch", "train.epochs": "4"},
        "--train.average-snapshots 5: train.average_from 0.5 is not possible with train.average_snapshots 5, set it to "
        "0.75, the last epoch, or more, or train.average_snapshots to 0",
    ),
    (
        {"quant.start_at": "1"},
        "--quant.start-at 1: quant.start_at 1 leaves nothing to train quantized, set it below 1, such as 0.9",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), CONFLICTS)
def test_settings_that_do_not_go_together(overrides: dict[str, str], message: str) -> None:
    assert refusal(overrides=overrides) == message


@pytest.mark.parametrize(
    "overrides",
    [
        {"train.batch_size": "8", "comm.simulated_ranks": "8"},
        {"train.warmup_steps": "10", "train.decay_start_step": "10", "train.decay_steps": "1"},
        {"train.warmup_steps": "10"},
        {"device": "cuda", "kernels": "torch"},
        {"device": "cuda", "comm.transport": "nccl"},
        {"model.table_dims": "C26=4096, C1=1"},
        {"model.table_dims": "C33=4", "data.source": "days/one"},
    ],
)
def test_limits_of_the_rules_are_allowed(overrides: dict[str, str]) -> None:
    load_config(None, None, overrides)


def test_conflict_names_line_and_option(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[model]\n\nbottom_mlp = [8, 4]\n")
    message = "the last layer of model.bottom_mlp is 4, it must equal model.embedding_dim 8"
    given = {"model.embedding_dim": "8"}
    assert refusal(path=path, overrides=given) == f"{path}:3 and --model.embedding-dim 8: {message}"


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("sed = 1\n[quant]\nmlp_bits = 3\n")
    lines = refusal(path=path, overrides={"train.epochs": "0", "train.epoch": "1"}).splitlines()
    assert lines[0] == "4 mistakes:"
    assert [line.strip().partition(": ")[0] for line in lines[1:]] == [
        f"{path}:1",
        f"{path}:3",
        "--train.epochs 0",
        "--train.epoch 1",
    ]


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert refusal(path=path) == f"{path}: no such file; give the path of a TOML file to --config"


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    assert refusal(path=tmp_path) == f"{tmp_path}: cannot be read (it is no regular file); --config takes a TOML file"


def test_file_of_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"# caf\xe9\n")
    assert refusal(path=path) == f"{path}: byte 5 is not UTF-8; TOML files are UTF-8 text"


def test_lines_count_with_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"seed = 1\r\n\r\n[quant]\r\nmlp_bits = 3\r\n")
    assert refusal(path=path).startswith(f"{path}:4: quant.mlp_bits = 3: ")


def test_configuration_built_in_python_is_checked_too() -> None:
    config = dataclasses.replace(Config(), quant=QuantConfig(mlp_bits=3), model=ModelConfig(top_mlp=(0, 1)))
    with pytest.raises(ConfigError) as error:
        check_config(config)
    assert str(error.value).splitlines()[1:] == [
        "  model.top_mlp = (0, 1): out of range; allowed: integers, each 1 or more",
        "  quant.mlp_bits = 3: no such choice; allowed: 4 | 8 | 32",
    ]


def test_rules_hold_for_a_configuration_built_in_python() -> None:
    with pytest.raises(ConfigError, match=r"it must equal model\.embedding_dim 8"):
        check_config(Config(model=ModelConfig(embedding_dim=8)))


@pytest.mark.parametrize("entry", [e for e in SETTINGS.values() if e.range.minimum is not None], ids=lambda e: e.key)
def test_minimum_is_the_smallest_allowed(entry: Setting) -> None:
    minimum = entry.range.minimum
    assert minimum is not None
    entry.from_text(str(minimum))
    with pytest.raises(BadValueError):
        entry.from_text(str(minimum - 1))


@pytest.mark.parametrize("entry", [e for e in SETTINGS.values() if e.range.maximum is not None], ids=lambda e: e.key)
def test_maximum_is_the_largest_allowed(entry: Setting) -> None:
    maximum = entry.range.maximum
    assert maximum is not None
    entry.from_text(str(maximum))
    with pytest.raises(BadValueError):
        entry.from_text(str(maximum + 1))


@pytest.mark.parametrize("entry", SETTINGS.values(), ids=lambda entry: entry.key)
def test_every_setting_explains_itself(entry: Setting) -> None:
    assert entry.help
    assert "\n" not in entry.help
