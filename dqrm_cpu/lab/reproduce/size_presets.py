"""How large an experiment is: the paper's models and epochs, or ones that two cores finish while you wait."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dqrm_cpu.config.presets import preset_config
from dqrm_cpu.lab.reproduce.experiments.definition import Family, Settings

_SMALL_TERABYTE_LARGEST = 20_000
_SMOKE_LARGEST = 300


@dataclass(frozen=True)
class SizePreset:
    """Presets and settings by family; `epochs` says how many stand for the paper's where they differ."""

    name: str
    about: str
    presets: Mapping[Family, str]
    settings: Mapping[Family, Settings]
    epochs: Mapping[int, int]
    caps_rows: bool  # whether a prepared data set is cut to the rows of the settings

    def epochs_for(self, paper_epochs: int) -> int:
        """Returns how many epochs stand for that many of the paper's."""
        return self.epochs.get(paper_epochs, paper_epochs)


def _capped(preset: str, largest: int) -> tuple[int, ...]:
    return tuple(min(rows, largest) for rows in preset_config(preset).model.table_rows)


_DEMO = MappingProxyType({Family.KAGGLE: "demo", Family.TERABYTE: "demo"})
_ROWS: Settings = {"data.train_rows": 60_000, "data.validation_rows": 20_000, "data.test_rows": 20_000}
_SMOKE_ROWS: Settings = {
    "data.train_rows": 1280,
    "data.validation_rows": 500,
    "data.test_rows": 500,
    "train.log_every": 5,
}
_WIDE_ROWS: Settings = {"model.embedding_dim": 64, "model.bottom_mlp": (128, 64)}

SMALL = SizePreset(
    "small",
    "60,000 generated rows to train on and tables of the ids that they hold; 12 epochs for the paper's 5",
    _DEMO,
    MappingProxyType(
        {
            Family.KAGGLE: _ROWS,
            Family.TERABYTE: {
                **_ROWS,
                **_WIDE_ROWS,
                "model.table_rows": _capped("terabyte", _SMALL_TERABYTE_LARGEST),
                "train.batch_size": 256,
            },
        }
    ),
    # The small models begin to overfit in epoch 6 or 7, the paper's in its second or third.
    MappingProxyType({1: 2, 5: 12}),
    caps_rows=True,
)

PAPER = SizePreset(
    "paper",
    "the paper's tables, rows and epochs: days of CPU time, and made for the real Criteo files (--data)",
    MappingProxyType({Family.KAGGLE: "kaggle", Family.TERABYTE: "terabyte"}),
    MappingProxyType({Family.KAGGLE: {}, Family.TERABYTE: {}}),
    MappingProxyType({}),
    caps_rows=False,
)

SMOKE = SizePreset(
    "smoke",
    "seconds a run: shows that everything works, its figures mean nothing",
    _DEMO,
    MappingProxyType(
        {
            Family.KAGGLE: {**_SMOKE_ROWS, "model.table_rows": _capped("kaggle", _SMOKE_LARGEST)},
            Family.TERABYTE: {**_SMOKE_ROWS, **_WIDE_ROWS, "model.table_rows": _capped("terabyte", _SMOKE_LARGEST)},
        }
    ),
    MappingProxyType({1: 1, 5: 2, 20: 3}),
    caps_rows=True,
)

SIZE_PRESETS: Mapping[str, SizePreset] = MappingProxyType({preset.name: preset for preset in (SMALL, PAPER, SMOKE)})
