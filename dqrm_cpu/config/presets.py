"""The presets: a demo of minutes, a recipe for data of one's own, the paper's models (section 4, A), MLPerf's."""

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

# MLPerf Training's DLRM-DCNv2: 24 days of Criteo Terabyte, ids folded by 40,000,000.
MLPERF_TABLE_ROWS = (
    *(40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10),
    *(2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36),
)
# Its bags have 3, 2, 1, 2, 6, ... ids, up to 100, and 214 in all: generated ones of 0 to 15 ids have 195 on average.
_MLPERF_BAG_SIZE = 15


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


def _mlperf_dcnv2() -> Config:
    """Returns the settings of MLPerf Training's DLRM-DCNv2: 204 million rows of 128 values, which ask to be sharded.

    INT4 tables instead of its FP32 ones, and Adagrad by row instead of by value.
    """
    return Config(
        preset="mlperf-dcnv2",
        data=DataConfig(
            train_rows=4_195_197_692,
            validation_rows=89_137_318,
            test_rows=89_137_319,
            max_bag_size=_MLPERF_BAG_SIZE,
        ),
        model=ModelConfig(
            table_rows=MLPERF_TABLE_ROWS,
            embedding_dim=128,
            bottom_mlp=(512, 256, 128),
            top_mlp=(1024, 1024, 512, 256, 1),
            interaction="cross",
            cross_layers=3,
            cross_rank=512,
        ),
        quant=QuantConfig(scale_period=1000),
        train=TrainConfig(
            epochs=1,
            batch_size=65_536,
            optimizer="rowwise-adagrad",
            learning_rate=0.005,
            log_every=100,
            evaluate_every=3200,
            checkpoint_every=3200,
        ),
    )


PRESETS: Mapping[str, Callable[[], Config]] = MappingProxyType(
    {"demo": _demo, "production": _production, "kaggle": _kaggle, "terabyte": _terabyte, "mlperf-dcnv2": _mlperf_dcnv2}
)
"""Makers of the presets, by name."""


def preset_config(name: str) -> Config:
    """Makes the preset of that name; one of PRESETS."""
    return PRESETS[name]()
