"""`dqrm_cpu.DqrmClassifier`: fit and predict_proba over a DataFrame, in scikit-learn's style and without needing it."""

import inspect
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.api.arguments import PathLike, path_of, require_choice, whole_number
from dqrm_cpu.api.classifier_files import FittedState, load_state, model_of, save_fitted, write_state
from dqrm_cpu.api.columns import InputError, RowTable, choose_features, feature_columns, row_table
from dqrm_cpu.api.functions import prepare, train
from dqrm_cpu.api.scoring import predict
from dqrm_cpu.api.training_rows import TrainingRows
from dqrm_cpu.errors import ConfigError

_TRANSFORMS = ("auto", "log", "identity", "standard", "quantile")
_INTEGERS = ("auto", "numbers", "categories")
_LARGEST_SEED = 2**32 - 1


class NotFittedError(ConfigError, ValueError, AttributeError):
    """A classifier was asked for what only fitting gives."""


class DqrmClassifier:
    """A click model for rows with two labels, which `fit` prepares, trains and keeps as the command line does.

    Columns of floating-point numbers become numbers of the model, texts, booleans and pandas' categories become
    embedding tables, and so do lists of texts or numbers, as tags. A missing number is 0 behind its transform, a
    missing category and one that `fit` did not see take row 0 of their table.

    :param epochs: passes over the training rows; the best one on the validation rows is kept
    :param batch_size: rows per step
    :param learning_rate: None: that of the optimizer
    :param optimizer: rowwise-adagrad or sgd
    :param quantization: the method with which weights are quantized while they are trained; none: FP32
    :param embedding_bits: bits per value of the embedding tables
    :param categories: names of columns that are categories whatever they hold
    :param numbers: names of columns that are numbers
    :param integers: what other columns of whole numbers are: numbers, categories, or auto: codes by their name or
        because they are few are categories, as `dqrm-cpu prepare --suggest` decides
    :param number_transform: log, identity, standard, quantile, or auto: log(x + 1), and standard for a column with
        negative numbers
    :param min_count: categories in fewer rows share row 0
    :param validation_fraction: the share of the rows of each class that chooses the best epoch, where `fit` is given no
        validation_data
    :param tune: so many short trials first, to choose settings that are not given; None: none
    :param settings: more settings of `dqrm_cpu.train`, by dotted keys or sections, which win over the others
    :param folder: an empty folder to keep the data set and the run in; None: one that goes with the classifier
    :param random_state: a whole number, from which all chance follows; None: always the same
    :param progress: show how far it is
    """

    _estimator_type = "classifier"  # as scikit-learn up to 1.5 asks

    def __init__(
        self,
        *,
        epochs: int = 5,
        batch_size: int = 128,
        learning_rate: float | None = None,
        optimizer: str = "rowwise-adagrad",
        quantization: str = "dqrm",
        embedding_bits: int = 4,
        categories: Sequence[str] | None = None,
        numbers: Sequence[str] | None = None,
        integers: str = "auto",
        number_transform: str = "auto",
        min_count: int = 1,
        validation_fraction: float = 0.1,
        tune: int | None = None,
        settings: Mapping[str, Any] | None = None,
        folder: PathLike | None = None,
        random_state: int | None = None,
        progress: bool = False,
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.quantization = quantization
        self.embedding_bits = embedding_bits
        self.categories = categories
        self.numbers = numbers
        self.integers = integers
        self.number_transform = number_transform
        self.min_count = min_count
        self.validation_fraction = validation_fraction
        self.tune = tune
        self.settings = settings
        self.folder = folder
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any, sample_weight: Any = None, validation_data: tuple[Any, ...] | None = None) -> Self:
        """Trains the model.

        :param X: a DataFrame of pandas or polars, a pyarrow.Table, a dict of columns, a list of dicts, or an array
        :param y: a label for each row, of two kinds
        :param sample_weight: how often each row counts; None: once
        :param validation_data: (X, y) or (X, y, sample_weight) of the rows that choose the best epoch; None: a share of
            the rows, by validation_fraction
        """
        self._check_params()
        rows = row_table(X)
        features = choose_features(rows.table, self.categories, self.numbers, self.integers, self.number_transform)
        told = TrainingRows(rows, y, sample_weight, features)
        if validation_data is None:
            told.hold_out(self.validation_fraction, self._seed)
        else:
            told.add_validation(validation_data, lambda X: _aligned(row_table(X), rows.is_named, rows.names))
        folder, keeper = self._new_folder()
        data = prepare(
            told.table(),
            folder / "data",
            schema=told.schema(),
            min_count=self.min_count,
            seed=self._seed,
            progress=self.progress,
        )
        run = train(data, run_dir=folder / "run", tune=self.tune, progress=self.progress, **self._run_settings())
        state = FittedState.of(features, told.classes, rows.is_named, self.get_params())
        write_state(folder, state)
        self._adopt(folder, state, keeper)
        self.run_ = run
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Returns the probability of each class for each row: float64[N, 2], in the order of `classes_`.

        :param X: rows with the columns that `fit` saw
        """
        folder, state = self._fitted()
        columns = feature_columns(self._aligned(row_table(X)), state.features)
        rows = TrainingRows.to_score(columns, state.features)
        clicks = predict(model_of(folder), rows, data=folder / "data")
        assert isinstance(clicks, np.ndarray)
        probabilities = clicks.astype(np.float64)
        return np.column_stack([1.0 - probabilities, probabilities])

    def predict(self, X: Any) -> NDArray[Any]:
        """Returns the more probable class of each row.

        :param X: rows with the columns that `fit` saw
        """
        probabilities = self.predict_proba(X)
        chosen: NDArray[Any] = self.classes_[(probabilities[:, 1] > 0.5).astype(np.int64)]
        return chosen

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Returns the share of rows whose class is predicted.

        :param X: rows with the columns that `fit` saw
        :param y: the classes that they have
        :param sample_weight: how often each row counts; None: once
        """
        right = self.predict(X) == np.asarray(y)
        return float(np.average(right, weights=sample_weight))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the parameters of the constructor by name.

        :param deep: for scikit-learn; there is nothing deeper
        """
        return {name: getattr(self, name) for name in _param_names()}

    def set_params(self, **params: Any) -> Self:
        """Sets parameters of the constructor.

        :param params: by their names
        """
        for name, value in params.items():
            if name not in _param_names():
                raise InputError(f"DqrmClassifier has no parameter {name!r}; there are {', '.join(_param_names())}")
            setattr(self, name, value)
        return self

    def save(self, folder: PathLike) -> None:
        """Keeps what is needed to predict in a new folder: the packed model, the vocabulary, and no rows.

        :param folder: the folder to make
        """
        save_fitted(self._fitted()[0], path_of(folder, "folder"))

    @classmethod
    def load(cls, folder: PathLike) -> "DqrmClassifier":
        """Opens what `save` kept, or the `folder` that a classifier was fitted in.

        :param folder: that folder
        """
        path = path_of(folder, "folder")
        state = load_state(path)
        loaded = cls(**{name: value for name, value in state.params.items() if name in _param_names()})
        loaded._adopt(path, state, None)
        return loaded

    def __repr__(self) -> str:
        usual = inspect.signature(DqrmClassifier).parameters
        changed = {k: v for k, v in self.get_params().items() if v is not usual[k].default and v != usual[k].default}
        return f"DqrmClassifier({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is copied; a fitted classifier is refused, whose files would be left behind."""
        if hasattr(self, "classes_"):
            raise ConfigError("a fitted DqrmClassifier lives in files: keep it by save(folder) and load(folder)")
        return dict(vars(self))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def __sklearn_tags__(self) -> Any:
        """Tells scikit-learn, which alone asks, what kind of estimator this is."""
        from sklearn import utils

        return utils.Tags(
            estimator_type="classifier",
            target_tags=utils.TargetTags(required=True),
            classifier_tags=utils.ClassifierTags(multi_class=False),
            input_tags=utils.InputTags(allow_nan=True, string=True, categorical=True),
        )

    @property
    def _seed(self) -> int:
        return 1 if self.random_state is None else int(self.random_state)

    def _check_params(self) -> None:
        require_choice(self.integers, "integers", _INTEGERS)
        require_choice(self.number_transform, "number_transform", _TRANSFORMS)
        for name in ("categories", "numbers"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give a list of names")
        if self.random_state is not None:
            whole_number(self.random_state, "random_state", 0)
            if self.random_state > _LARGEST_SEED:
                raise ConfigError(f"random_state is {self.random_state}, which is above {_LARGEST_SEED}")

    def _run_settings(self) -> dict[str, Any]:
        own = {
            "seed": self._seed,
            "data.min_count": 1,  # of rows that were prepared by the classifier's own
            "train.epochs": self.epochs,
            "train.batch_size": self.batch_size,
            "train.optimizer": self.optimizer,
            "train.learning_rate": self.learning_rate,
            "quant.method": self.quantization,
        }
        if self.quantization != "none":
            own["quant.embedding_bits"] = self.embedding_bits
        return {**own, **(self.settings or {})}

    def _new_folder(self) -> tuple[Path, "tempfile.TemporaryDirectory[str] | None"]:
        """Returns an empty folder, and what keeps it as long as somebody holds it."""
        if self.folder is None:
            keeper = tempfile.TemporaryDirectory(prefix="dqrm-classifier-")
            return Path(keeper.name), keeper
        folder = path_of(self.folder, "folder")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is not empty; give a folder of its own to each fit, or none")
        folder.mkdir(parents=True, exist_ok=True)
        return folder, None

    def _adopt(self, folder: Path, state: FittedState, keeper: "tempfile.TemporaryDirectory[str] | None") -> None:
        self._folder, self._state, self._keeper = folder, state, keeper
        self.classes_ = state.class_array()
        self.n_features_in_ = len(state.features)
        if state.is_named:
            self.feature_names_in_ = np.array([feature.name for feature in state.features], dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _fitted(self) -> tuple[Path, FittedState]:
        if not hasattr(self, "classes_"):
            raise NotFittedError("this DqrmClassifier is not fitted yet; call fit first, or DqrmClassifier.load")
        return self._folder, self._state

    def _aligned(self, rows: RowTable) -> Any:
        """Returns the columns in the order in which `fit` saw them; InputError where they are others."""
        return _aligned(rows, self._state.is_named, [feature.name for feature in self._state.features])


def _aligned(rows: RowTable, is_named: bool, names: list[str]) -> Any:
    if rows.is_named and is_named:
        for name in names:
            if name not in rows.names:
                raise InputError(f"The feature names should match those that were passed during fit: X lacks {name!r}")
        unseen = [name for name in rows.names if name not in names]
        if unseen:
            raise InputError(f"The feature names should match those that were passed during fit: X has also {unseen}")
        return rows.table.select(names)
    if len(rows.names) != len(names):
        raise InputError(
            f"X has {len(rows.names)} features, but DqrmClassifier is expecting {len(names)} features as input"
        )
    return rows.table.rename_columns(names)


def _param_names() -> list[str]:
    return [name for name in inspect.signature(DqrmClassifier).parameters if name != "self"]
