"""INT4 quantization-aware training of DLRM click models on Intel CPUs (DQRM, arXiv 2410.20046).

    data = dqrm_cpu.prepare("clicks.csv", "data/mine", schema="schema.toml")
    run = dqrm_cpu.train(data, run_dir="runs/a")
    run.evaluate().metrics.auc
    run.predict(rows)

docs/api.md describes every name below. Importing the package is quick: torch is imported by the first call.
"""

import importlib
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dqrm_cpu.base.kernel_cache import choose_cache_folder

if TYPE_CHECKING:
    from dqrm_cpu.api.classifier import DqrmClassifier as DqrmClassifier
    from dqrm_cpu.api.evaluation import Evaluation as Evaluation
    from dqrm_cpu.api.functions import PreparedData as PreparedData
    from dqrm_cpu.api.functions import prepare as prepare
    from dqrm_cpu.api.functions import settings as settings
    from dqrm_cpu.api.functions import suggest_schema as suggest_schema
    from dqrm_cpu.api.functions import train as train
    from dqrm_cpu.api.run import Run as Run
    from dqrm_cpu.api.scoring import evaluate as evaluate
    from dqrm_cpu.api.scoring import predict as predict
    from dqrm_cpu.config import CommConfig as CommConfig
    from dqrm_cpu.config import Config as Config
    from dqrm_cpu.config import DataConfig as DataConfig
    from dqrm_cpu.config import ModelConfig as ModelConfig
    from dqrm_cpu.config import QuantConfig as QuantConfig
    from dqrm_cpu.config import TrainConfig as TrainConfig
    from dqrm_cpu.errors import DqrmError as DqrmError
    from dqrm_cpu.predict.prediction import PredictionSummary as PredictionSummary

__version__ = "0.1.0"

_PUBLIC = {
    "prepare": "api.functions",
    "suggest_schema": "api.functions",
    "settings": "api.functions",
    "train": "api.functions",
    "evaluate": "api.scoring",
    "predict": "api.scoring",
    "Run": "api.run",
    "DqrmClassifier": "api.classifier",
    "PreparedData": "api.functions",
    "Evaluation": "api.evaluation",
    "PredictionSummary": "predict.prediction",
    "Config": "config",
    "DataConfig": "config",
    "ModelConfig": "config",
    "QuantConfig": "config",
    "TrainConfig": "config",
    "CommConfig": "config",
    "DqrmError": "errors",
}
"""The module of each public name."""

_CALLABLE_PACKAGES = ("train", "predict")
"""Public functions that share their name with a package beneath, which importing it puts in their place."""

__all__ = sorted(_PUBLIC)

# Whoever uses this as a library decides what becomes of its log; the command line prints by itself.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# Before anything imports numba.
choose_cache_folder()


class _CallablePackage(ModuleType):
    """A package that can be called like the public function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _public(self.__name__.rpartition(".")[2])(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        return importlib.import_module("inspect").signature(_public(self.__name__.rpartition(".")[2]))


class _Package(ModuleType):
    """This package, in which `train` and `predict` stay callable once the packages of these names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _CALLABLE_PACKAGES and isinstance(value, ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


def _public(name: str) -> Any:
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # An import of the package puts it here by itself.
    return importlib.import_module(f"{__name__}.{name}") if name in _CALLABLE_PACKAGES else _public(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


sys.modules[__name__].__class__ = _Package
