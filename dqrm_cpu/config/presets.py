"""The presets: a demo of minutes, a recipe for data of one's own, the paper's two models (section 4, appendix A)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from dqrm_cpu.config.schema import (
    AUTO_COUNT,
    KAGGLE_TABLE_ROWS,
    Config,
    DataConfig,
    ModelConfig,
    QuantConfig,
    TrainConfig,
)

# Ids folded by max-ind-range 10,000,000.
TERABYTE_TABLE_ROWS = (
    *(9980333, 36084, 17217, 7378, 20134, 3, 7112, 1442, 61, 9758201, 1333352, 313829, 10),
    *(2208, 11156, 122, 4, 970, 14, 9994101, 7267859, 9946608, 415421, 12420, 101, 36),
)


def _demo() -> Config:
    """Returns the settings of the demo: generated clicks, whose tables hold the ids that its training rows have."""
    return Config(data=DataConfig(min_count=1))


def _production() -> Config:
    """Returns the settings for a log of one's own: one epoch of row-wise Adagrad, INT4 throughout.

    How often a category must come back to have a row is tried out before training.
    """
    return Config(
        preset="production",
        data=DataConfig(min_count=AUTO_COUNT),
        train=TrainConfig(epochs=1, optimizer="rowwise-adagrad", learning_rate=0.01),
    )


def _kaggle() -> Config:
    """Returns the settings for Criteo Kaggle: six days to train on, the seventh halved."""
    return Config(
        preset="kaggle",
        data=DataConfig(train_rows=39_291_958, validation_rows=3_274_329, test_rows=3_274_330),
        model=ModelConfig(
            table_rows=KAGGLE_TABLE_ROWS,
            embedding_dim=16,
            bottom_mlp=(512, 256, 64, 16),
            top_mlp=(512, 256, 1),
        ),
        quant=QuantConfig(scale_period=200),
        train=TrainConfig(epochs=5, batch_size=128, log_every=1000, checkpoint_every=50_000),
    )


def _terabyte() -> Config:
    """Returns the settings for Criteo Terabyte: 23 days to train on, the last halved."""
    return Config(
        preset="terabyte",
        data=DataConfig(train_rows=4_195_197_692, validation_rows=89_137_318, test_rows=89_137_319),
        model=ModelConfig(
            table_rows=TERABYTE_TABLE_ROWS,
            embedding_dim=64,
            bottom_mlp=(512, 256, 64),
            top_mlp=(512, 512, 256, 1),
        ),
        quant=QuantConfig(scale_period=1000),
        train=TrainConfig(epochs=5, batch_size=2048, log_every=1000, evaluate_every=200_000, checkpoint_every=50_000),
    )


PRESETS: Mapping[str, Callable[[], Config]] = MappingProxyType(
    {"demo": _demo, "production": _production, "kaggle": _kaggle, "terabyte": _terabyte}
)
"""Makers of the presets, by name."""


def preset_config(name: str) -> Config:
    """Makes the preset of that name; one of PRESETS."""
    return PRESETS[name]()
