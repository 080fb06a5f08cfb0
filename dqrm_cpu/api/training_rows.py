"""The rows of a classifier as one table that `prepare` reads: labels, parts, weights and features."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.api.columns import CATEGORY, NUMBER, TAGS, Feature, InputError, RowTable, feature_columns

_TRAIN, _VALIDATION, _TEST = 0, 1, 2
_IS_OF = {"categories": (CATEGORY, TAGS), "decimals": (NUMBER,)}
_TRANSFORM_OF_ALL = "log"  # of a number that nothing is said of


class TrainingRows:
    """Rows with labels, of which some are held out for validation.

    Whoever trains scores a test part in the end; the validation rows stand in for it.
    """

    def __init__(self, rows: RowTable, y: Any, weights: Any, features: Sequence[Feature]) -> None:
        self._features = tuple(features)
        self._labels = _labels(y, len(rows.table), "y", "X")
        self.classes = _two_classes(self._labels)
        self._weights = _weights(weights, len(rows.table))
        self._columns = feature_columns(rows.table, features)
        self._parts = np.zeros(len(rows.table), np.int64)
        self._validation: tuple[NDArray[Any], NDArray[np.float64] | None, dict[str, Any]] | None = None

    @staticmethod
    def to_score(columns: Mapping[str, Any], features: Sequence[Feature]) -> Any:
        """Returns a pyarrow.Table of rows without labels."""
        num_rows = len(next(iter(columns.values())))
        return importlib.import_module("pyarrow").table({**columns, **_fillers(features, num_rows)})

    def hold_out(self, share: float, seed: int) -> None:
        """Makes a share of the rows of each class validation rows, chosen by chance."""
        if not isinstance(share, float) or not 0 < share < 1:
            raise InputError(f"validation_fraction is {share!r}; want a share between 0 and 1, such as 0.1")
        chance = np.random.default_rng(seed)
        for label in self.classes:
            mine = np.flatnonzero(self._labels == label)
            count = min(max(round(share * mine.size), 1), mine.size - 1)
            self._parts[chance.permutation(mine)[:count]] = _VALIDATION
        if not (self._parts == _VALIDATION).any():
            raise InputError(
                f"n_samples={self._parts.size}: there is one row of each class, and none to validate with; give more "
                "rows, or validation_data"
            )

    def add_validation(self, given: tuple[Any, ...], align: Callable[[Any], Any]) -> None:
        """Takes rows to validate with: (X, y) or (X, y, weights); `align` reads X."""
        if not isinstance(given, tuple | list) or len(given) not in (2, 3):
            raise InputError("validation_data is (X, y) or (X, y, sample_weight) of other rows")
        table = align(given[0])
        labels = _labels(given[1], len(table), "the y of validation_data", "its X")
        unknown = np.setdiff1d(labels, self.classes)
        if unknown.size:
            raise InputError(f"validation_data has the label {unknown.tolist()[0]!r}, which y has not")
        weights = _weights(given[2] if len(given) == 3 else None, len(table))
        if (weights is None) != (self._weights is None):
            raise InputError("give weights of both the rows and the validation_data, or of neither")
        self._validation = labels, weights, feature_columns(table, self._features)

    def table(self) -> Any:
        """Returns all rows as a pyarrow.Table: those to train on, those to validate with, and the latter as test."""
        arrow = importlib.import_module("pyarrow")
        own = self._part_table(arrow, self._labels, self._parts, self._weights, self._columns)
        held_out = own.filter(arrow.array(self._parts == _VALIDATION))
        if self._validation is not None:
            labels, weights, columns = self._validation
            held_out = self._part_table(arrow, labels, np.full(len(labels), _VALIDATION), weights, columns)
            own = arrow.concat_tables([own, held_out])
        place = held_out.column_names.index(self._part)
        test = held_out.set_column(place, self._part, arrow.array(np.full(len(held_out), _TEST)))
        return arrow.concat_tables([own, test])

    def schema(self) -> dict[str, Any]:
        """Returns the schema of that table."""
        fillers = _fillers(self._features, 0)
        document: dict[str, Any] = {"label": self._label}
        if self._weights is not None:
            document["weight"] = self._weight
        for key, kinds in _IS_OF.items():
            mine = [feature.name for feature in self._features if feature.kind in kinds]
            document[key] = mine or [name for name in fillers if name == _filler(self._features, kinds[0])]
        tags = [feature.name for feature in self._features if feature.kind == TAGS]
        if tags:
            document["multi"] = {name: {} for name in tags}
        transforms = {
            f.name: f.transform for f in self._features if f.kind == NUMBER and f.transform != _TRANSFORM_OF_ALL
        }
        if transforms:
            document["transforms"] = transforms
        document["split"] = {"by": "time", "column": self._part, "validation": _VALIDATION, "test": _TEST}
        return document

    @property
    def _label(self) -> str:
        return _free_name("label", self._features)

    @property
    def _part(self) -> str:
        return _free_name("part", self._features)

    @property
    def _weight(self) -> str:
        return _free_name("weight", self._features)

    def _part_table(
        self,
        arrow: Any,
        labels: NDArray[Any],
        parts: NDArray[Any],
        weights: NDArray[np.float64] | None,
        columns: Mapping[str, Any],
    ) -> Any:
        clicks = (labels == self.classes[1]).astype(np.int64)
        beside = {self._label: clicks, self._part: parts}
        if weights is not None:
            beside[self._weight] = weights
        return arrow.table({**beside, **columns, **_fillers(self._features, len(labels))})


def _fillers(features: Sequence[Feature], num_rows: int) -> dict[str, Any]:
    """Returns a column that says nothing for each kind that no feature is of: a model has both."""
    kinds = {feature.kind for feature in features}
    arrow = importlib.import_module("pyarrow")
    fillers = {}
    if NUMBER not in kinds:
        fillers[_filler(features, NUMBER)] = arrow.array(np.zeros(num_rows))
    if not kinds & {CATEGORY, TAGS}:
        fillers[_filler(features, CATEGORY)] = arrow.array(["all"] * num_rows, arrow.string())
    return fillers


def _filler(features: Sequence[Feature], kind: str) -> str:
    return _free_name(f"no_{kind}", features)


def _free_name(name: str, features: Sequence[Feature]) -> str:
    taken = {feature.name for feature in features}
    while name in taken:
        name += "_"
    return name


def _labels(y: Any, num_rows: int, name: str, rows_name: str) -> NDArray[Any]:
    if y is None:
        raise InputError("requires y to be passed, but the target y is None")
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"y should be a 1d array, got an array of shape {labels.shape} instead")
    if labels.size != num_rows:
        raise InputError(
            f"Found input variables with inconsistent numbers of samples: {rows_name} has {num_rows:,} rows and {name} "
            f"{labels.size:,} labels"
        )
    missing = [label for label in labels.tolist() if label is None or label != label]
    if missing or (labels.dtype.kind == "f" and not np.isfinite(labels).all()):
        raise InputError(f"Input {name} contains NaN, infinity or nothing: a row without a label teaches nothing")
    return labels


def _two_classes(labels: NDArray[Any]) -> NDArray[Any]:
    try:
        classes = np.unique(labels)
    except TypeError:
        raise InputError("y holds labels of several types, which have no order; give numbers, or texts") from None
    if classes.size > 2 and labels.dtype.kind == "f" and (classes != np.rint(classes)).any():
        raise InputError("Unknown label type: continuous; y holds numbers with fractions, and two classes are wanted")
    if classes.size > 2:
        raise InputError(
            f"Only binary classification is supported. The type of the target is multiclass: y has {classes.size:,} "
            "different labels, and a click model tells two apart"
        )
    if classes.size < 2:
        raise InputError(f"y has one class only, {classes.tolist()[0]!r}; there is nothing to tell apart")
    return classes


def _weights(weights: Any, num_rows: int) -> NDArray[np.float64] | None:
    if weights is None:
        return None
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (num_rows,):
        raise InputError(f"sample_weight has the shape {values.shape}, and there are {num_rows:,} rows")
    if not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise InputError("sample_weight wants numbers from 0 on, one above 0 at least")
    return values
