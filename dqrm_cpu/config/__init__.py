"""The settings of a run: dataclasses, presets, TOML files and option texts, checked before anything is allocated."""

from dqrm_cpu.config.load import check_config, load_config
from dqrm_cpu.config.presets import PRESETS, preset_config
from dqrm_cpu.config.schema import CommConfig, Config, DataConfig, ModelConfig, QuantConfig, TrainConfig

__all__ = [
    "PRESETS",
    "CommConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "QuantConfig",
    "TrainConfig",
    "check_config",
    "load_config",
    "preset_config",
]
