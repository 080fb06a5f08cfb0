"""What is asked for, and the configuration that a variant comes to there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dqrm_cpu.config import Config
from dqrm_cpu.config.load import load_given_config
from dqrm_cpu.config.setting import value_text
from dqrm_cpu.data.store.follow import SYNTHETIC, follow_data
from dqrm_cpu.data.store.manifest import PART_NAMES, Manifest, read_manifest
from dqrm_cpu.experiments.experiment import Family, Variant
from dqrm_cpu.experiments.scale import Scale

_SMALL_SET_ROWS = 150_000
"""A data set of up to so many rows is never cut: MovieLens-100k, or a sample made for trying things out."""

_OF_THE_DATA = ("model.table_rows", "model.num_dense")


@dataclass(frozen=True)
class Request:
    """How an experiment is to run. `source` is what --data.source takes."""

    scale: Scale
    source: str
    seeds: tuple[int, ...]
    out: Path
    threads: int = 0


class DataIdentity:
    """What decides the rows of a source, read once."""

    def __init__(self, source: str) -> None:
        self.manifest: Manifest | None = None if source == SYNTHETIC else read_manifest(Path(source))

    @property
    def name(self) -> str:
        """Generated rows follow from the settings; prepared ones have a digest, wherever the folder lies."""
        return SYNTHETIC if self.manifest is None else f"prepared {self.manifest.digest()}"


def configuration(request: Request, data: DataIdentity, family: Family, variant: Variant, seed: int) -> Config:
    """The configuration of one run, fully resolved."""
    scale = request.scale
    overrides = {
        **_base(scale.settings[family], data.manifest, caps_rows=scale.caps_rows),
        "data.source": request.source,
        "seed": str(seed),
        "train.epochs": str(scale.epochs_for(variant.epochs)),
        "train.threads": str(request.threads),
        **variant.settings,
    }
    if variant.pretrain_epochs:
        overrides["quant.pretrain_epochs"] = str(scale.epochs_for(variant.pretrain_epochs))
    preset = scale.presets[family]
    if variant.learning_rate_times != 1:
        rate = load_given_config(preset, None, overrides).config.train.learning_rate
        overrides["train.learning_rate"] = value_text(rate * variant.learning_rate_times)
    if variant.tables_divided_by > 1:
        whole = load_given_config(preset, None, overrides).config.model.table_rows
        overrides["model.table_rows"] = value_text(tuple(-(-rows // variant.tables_divided_by) for rows in whole))
    return follow_data(*load_given_config(preset, None, overrides))


def can_run(variant: Variant, request: Request, data: DataIdentity) -> bool:
    """Tables of prepared data cannot be made smaller: their ids need them."""
    if variant.small_tables and not request.scale.caps_rows:
        return False
    return data.manifest is None or variant.tables_divided_by == 1


def _base(settings: Mapping[str, str], manifest: Manifest | None, *, caps_rows: bool) -> dict[str, str]:
    """The scale's settings, less what a prepared data set decides itself."""
    if manifest is None:
        return dict(settings)
    rows = {part: manifest.num_rows(part) for part in PART_NAMES}
    cut = caps_rows and sum(rows.values()) > _SMALL_SET_ROWS
    kept = {key: text for key, text in settings.items() if key not in _OF_THE_DATA}
    for part, there in rows.items():
        wanted = kept.pop(f"data.{part}_rows", None)
        if cut and wanted is not None:
            kept[f"data.{part}_rows"] = str(min(int(wanted), there))
    return kept
