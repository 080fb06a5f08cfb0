"""DqrmClassifier: what the command line makes of the same rows, over DataFrames of both kinds, kept without pickle."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow
import pyarrow.parquet
import pytest

import dqrm_cpu
from clicks import QUICK, click_columns
from days import checked
from dqrm_cpu.api.classifier import DqrmClassifier
from dqrm_cpu.api.columns import choose_features, row_table

SMALL = {"model": QUICK["model"]}


def columns_and_labels(rows: int = 1500, seed: int = 1) -> tuple[dict[str, Any], Any]:
    columns = click_columns(rows, seed)
    labels = columns.pop("click")
    return columns, labels


def classifier(**params: Any) -> DqrmClassifier:
    return DqrmClassifier(**{"epochs": 2, "batch_size": 50, "settings": SMALL, **params})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> DqrmClassifier:
    X, y = columns_and_labels()
    return classifier(folder=tmp_path_factory.mktemp("fitted") / "folder").fit(pandas.DataFrame(X), y)


def test_it_is_the_model_that_the_command_line_trains_on_the_same_rows(fitted: DqrmClassifier, tmp_path: Path) -> None:
    X, y = columns_and_labels()
    part = np.zeros(len(y), np.int64)
    chance = np.random.default_rng(1)  # as validation_fraction draws them
    for label in (0, 1):
        mine = np.flatnonzero(y == label)
        part[chance.permutation(mine)[: round(0.1 * len(mine))]] = 1
    texts = {**X, "item": X["item"].astype(str)}
    rows = pandas.DataFrame({"label": y, "part": part, **texts})
    pandas.concat([rows, rows[part == 1].assign(part=2)]).to_parquet(tmp_path / "rows.parquet", index=False)
    (tmp_path / "schema.toml").write_text(
        'label = "label"\ncategories = ["item", "device"]\ndecimals = ["price", "balance"]\n'
        '[transforms]\nbalance = "standard"\n[split]\nby = "time"\ncolumn = "part"\nvalidation = 1\ntest = 2\n'
    )
    data, run = tmp_path / "data", tmp_path / "run"
    checked("prepare", tmp_path / "rows.parquet", "--schema", tmp_path / "schema.toml", "--out", data)
    options = ["--train.epochs", 2, "--train.batch-size", 50, "--train.optimizer", "rowwise-adagrad"]
    shape = ["--model.embedding-dim", 6, "--model.bottom-mlp", "9,6", "--model.top-mlp", "11,1"]
    checked("train", "--data", data, "--run-dir", run, *options, *shape)
    assert dqrm_cpu.Run(run).result.validation == fitted.run_.result.validation  # type: ignore[union-attr]
    theirs = dqrm_cpu.predict(run / "packed" / "dense.safetensors", pandas.DataFrame(texts), data=data)
    mine_now = fitted.predict_proba(pandas.DataFrame(X))
    assert mine_now[:, 1].astype(np.float32).tolist() == theirs.tolist()  # type: ignore[union-attr]
    assert dqrm_cpu.Run(run).result.test.best.auc > 0.8  # type: ignore[union-attr]


def test_pandas_and_polars_and_lists_of_rows_are_alike(fitted: DqrmClassifier) -> None:
    X, y = columns_and_labels()
    frame = pandas.DataFrame(X).astype({"device": "category"})
    mine = fitted.predict_proba(frame)
    assert mine.shape == (1500, 2)
    assert np.allclose(mine.sum(axis=1), 1)
    for other in (polars.DataFrame(X), pyarrow.table(X), X, frame.to_dict("records"), frame[sorted(frame.columns)]):
        assert fitted.predict_proba(other).tolist() == mine.tolist()
    again = classifier().fit(polars.DataFrame(X), polars.Series(y))
    assert again.predict_proba(frame).tolist() == mine.tolist()
    assert fitted.score(frame, y) == np.mean(fitted.predict(frame) == y) > 0.7


def test_what_fit_did_not_see_is_no_obstacle(fitted: DqrmClassifier) -> None:
    rows: list[dict[str, Any]] = [
        {"item": 3, "device": "phone", "price": 1.0, "balance": 0.5},
        {"item": None, "device": "fridge", "price": None, "balance": float("nan")},
        {"item": 99, "device": None, "price": float("nan"), "balance": None},
    ]
    probabilities = fitted.predict_proba(rows)[:, 1]
    assert np.isfinite(probabilities).all()
    assert probabilities[1] == probabilities[2] != probabilities[0]


def test_attributes_are_those_of_scikit_learn(fitted: DqrmClassifier) -> None:
    assert (fitted.classes_.tolist(), fitted.n_features_in_) == ([0, 1], 4)
    assert fitted.feature_names_in_.tolist() == ["item", "device", "price", "balance"]
    X, y = columns_and_labels(200)
    unnamed = classifier(epochs=1).fit(np.column_stack([X["price"], X["balance"]]), np.where(y, "yes", "no"))
    assert not hasattr(unnamed, "feature_names_in_")
    assert set(unnamed.predict([[1.0, 2.0], [np.nan, -3.0]])) <= {"yes", "no"}
    params = classifier(min_count=3).get_params()
    assert params["min_count"] == 3
    assert DqrmClassifier(**params).get_params() == params
    assert repr(DqrmClassifier(epochs=3)) == "DqrmClassifier(epochs=3)"


def test_saved_and_loaded_it_predicts_the_same_and_holds_no_rows(fitted: DqrmClassifier, tmp_path: Path) -> None:
    X, y = columns_and_labels()
    fitted.save(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "moved")
    loaded = DqrmClassifier.load(tmp_path / "moved")
    assert loaded.predict_proba(X).tolist() == fitted.predict_proba(X).tolist()
    assert loaded.classes_.dtype == fitted.classes_.dtype
    assert not list((tmp_path / "moved").rglob("*.shard"))
    assert sum(path.stat().st_size for path in (tmp_path / "moved").rglob("*")) < 60_000
    whole = classifier(quantization="none", epochs=1).fit(X, y)
    whole.save(tmp_path / "fp32")
    assert DqrmClassifier.load(tmp_path / "fp32").predict_proba(X).tolist() == whole.predict_proba(X).tolist()


def test_rows_to_validate_with_may_be_given(tmp_path: Path) -> None:
    X, y = columns_and_labels(400)
    others = columns_and_labels(100, seed=2)
    fitted = classifier(epochs=1).fit(X, y, validation_data=others)
    result = fitted.run_.result
    assert result is not None
    assert (result.validation.best.examples, result.test.best.examples) == (100, 100)
    assert fitted.run_.settings.data.train_rows == 400


@pytest.mark.parametrize(
    ("column", "integers", "kind", "transform"),
    [
        ([1, 2] * 50, "auto", "category", "log"),
        (list(range(100)), "auto", "number", "log"),
        ([*range(99), -1], "auto", "number", "standard"),
        ([1, 2] * 50, "numbers", "number", "log"),
        (list(range(100)), "categories", "category", "log"),
        ([0.5, None] * 50, "categories", "number", "log"),
        ([True, False] * 50, "numbers", "category", "log"),
        (["a", None] * 50, "numbers", "category", "log"),
    ],
)
def test_kinds_of_columns(column: list[Any], integers: str, kind: str, transform: str) -> None:
    (feature,) = choose_features(row_table({"amount": column}).table, None, None, integers, "auto")
    assert (feature.kind, feature.transform) == (kind, transform)


def test_a_column_is_what_it_is_called_where_that_is_said() -> None:
    rows = row_table({"amount": list(range(100)), "user_id": list(range(100)), "size": ["1", "2"] * 50}).table
    features = choose_features(rows, ["amount"], ["size"], "auto", "quantile")
    assert [(one.name, one.kind) for one in features] == [
        ("amount", "category"), ("user_id", "category"), ("size", "number"),
    ]  # fmt: skip
    assert features[2].transform == "quantile"


MISTAKES: dict[str, tuple[dict[str, Any], Any, Any, str]] = {
    "one class": ({}, {"a": [1.0, 2.0]}, [1, 1], "one class only"),
    "three classes": ({}, {"a": [1.0, 2.0, 3.0]}, [0, 1, 2], "3 different labels"),
    "fractions": ({}, {"a": [1.0, 2.0, 3.0]}, [0.1, 0.2, 0.3], "continuous"),
    "missing labels": ({}, {"a": [1.0, 2.0]}, [1, np.nan], "teaches nothing"),
    "too few labels": ({}, {"a": [1.0, 2.0]}, [1], "inconsistent numbers of samples"),
    "a row of numbers": ({}, np.arange(3.0), [0, 1, 0], "Reshape your data"),
    "no columns": ({}, np.zeros((3, 0)), [0, 1, 0], "a minimum of 1 is required"),
    "complex numbers": ({}, np.ones((3, 2), complex), [0, 1, 0], "Complex data not supported"),
    "infinity": ({}, {"a": [1.0, np.inf]}, [0, 1], "column a holds infinity"),
    "dates": ({}, {"a": np.array(["2024-01-01", "2024-01-02"], "datetime64[s]")}, [0, 1], "column a holds timestamp"),
    "texts for numbers": ({"numbers": ["a"]}, {"a": ["1", "x"]}, [0, 1], "column a is to hold numbers"),
    "an unknown column": ({"categories": ["b"]}, {"a": [1.0, 2.0]}, [0, 1], "no column 'b'"),
    "two kinds": ({"categories": ["a"], "numbers": ["a"]}, {"a": [1.0, 2.0]}, [0, 1], "leave it in one"),
    "a text for a list": ({"categories": "a"}, {"a": [1.0, 2.0]}, [0, 1], "give a list of names"),
    "a share": ({"validation_fraction": 1.0}, {"a": [1.0, 2.0]}, [0, 1], "want a share between 0 and 1"),
    "one row each": ({}, {"a": [1.0, 2.0]}, [0, 1], "none to validate with"),
    "a choice": ({"integers": "number"}, {"a": [1.0, 2.0]}, [0, 1], "there are auto, numbers, categories"),
    "a seed": ({"random_state": -1}, {"a": [1.0, 2.0]}, [0, 1], "no whole number from 0 on"),
    "a setting": ({"epochs": 0}, {"a": [1.0, 2.0, 3.0, 4.0]}, [0, 1, 0, 1], "--train.epochs 0: out of range"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_with_a_sentence(mistake: str) -> None:
    params, X, y, message = MISTAKES[mistake]
    with pytest.raises(dqrm_cpu.DqrmError, match=message):
        DqrmClassifier(**params).fit(X, y)


def test_mistakes_with_a_fitted_classifier(fitted: DqrmClassifier, tmp_path: Path) -> None:
    X, y = columns_and_labels(20)
    with pytest.raises(AttributeError, match="not fitted yet"):
        DqrmClassifier().predict(X)
    with pytest.raises(ValueError, match="lacks 'price'"):
        fitted.predict_proba({name: X[name] for name in ("item", "device", "balance")})
    with pytest.raises(ValueError, match=r"has also \['more'\]"):
        fitted.predict_proba({**X, "more": y})
    with pytest.raises(ValueError, match="X has 2 features, but DqrmClassifier is expecting 4"):
        fitted.predict_proba(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="no parameter 'epoch'"):
        fitted.set_params(epoch=3)
    with pytest.raises(dqrm_cpu.DqrmError, match="has the label 7"):
        classifier().fit(X, y, validation_data=(X, y * 7))
    with pytest.raises(dqrm_cpu.DqrmError, match="lives in files"):
        pickle.dumps(fitted)
    with pytest.raises(dqrm_cpu.DqrmError, match="is not empty"):
        copy.copy(DqrmClassifier(**fitted.get_params())).fit(X, y)
    with pytest.raises(dqrm_cpu.DqrmError, match="is there already"):
        fitted.save(tmp_path)
    with pytest.raises(dqrm_cpu.DqrmError, match="holds no classifier"):
        DqrmClassifier.load(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(dqrm_cpu.DqrmError, match="has format 99"):
        DqrmClassifier.load(tmp_path)


def test_rows_count_as_often_as_their_weights_say() -> None:
    X, y = columns_and_labels(600)
    others, labels = columns_and_labels(200, seed=2)
    chance = np.random.default_rng(4)
    weights, validating = chance.integers(0, 4, 600), chance.integers(0, 3, 200)
    fitted = classifier(epochs=1).fit(X, y, weights, validation_data=(others, labels, validating))
    clicks = fitted.predict_proba(others)[:, 1]
    losses = -np.log(np.where(labels == 1, clicks, 1 - clicks))
    result = fitted.run_.result
    assert result is not None
    assert result.validation.best.log_loss == pytest.approx(np.average(losses, weights=validating), abs=1e-5)
    unweighted = classifier(epochs=1).fit(X, y, validation_data=(others, labels))
    assert fitted.predict_proba(others).tolist() != unweighted.predict_proba(others).tolist()
    with pytest.raises(dqrm_cpu.DqrmError, match="give weights of both"):
        classifier().fit(X, y, weights, validation_data=(others, labels))
    with pytest.raises(dqrm_cpu.DqrmError, match="numbers from 0 on"):
        classifier().fit(X, y, -weights)


def test_lists_are_tags() -> None:
    chance = np.random.default_rng(5)
    tags = [sorted({f"t{k}" for k in chance.integers(0, 12, chance.integers(0, 4))}) for _ in range(1200)]
    logits = np.array([sum(2.0 if tag in ("t1", "t2", "t3") else -1.0 for tag in row) for row in tags])
    y = chance.random(1200) < 1 / (1 + np.exp(-logits))
    frame = pandas.DataFrame({"tags": tags, "price": chance.random(1200)})
    fitted = classifier(epochs=6).fit(frame, y)
    assert fitted.run_.result.validation.best.auc > 0.75  # type: ignore[union-attr]
    rows = [{"tags": ["t1", "t5"], "price": 0.5}, {"tags": ["t5", "t1"], "price": 0.5}, {"tags": [], "price": 0.5}]
    first, again, none = fitted.predict_proba(polars.DataFrame(rows))[:, 1]
    assert first == pytest.approx(again, abs=1e-6)
    assert none != first
    with pytest.raises(dqrm_cpu.DqrmError, match="is to hold lists of categories"):
        fitted.predict_proba({"tags": ["t1"], "price": [0.5]})


def test_scikit_learn_works_with_it() -> None:
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.utils.validation import check_is_fitted

    X, y = columns_and_labels(600)
    frame = pandas.DataFrame(X)
    original = classifier(epochs=1)
    assert clone(original).get_params() == original.get_params()
    assert is_classifier(original)
    search = GridSearchCV(original, {"optimizer": ["sgd", "rowwise-adagrad"]}, scoring="roc_auc", cv=2)
    search.fit(frame, y)
    assert search.best_params_["optimizer"] == "rowwise-adagrad"
    check_is_fitted(search.best_estimator_)
    pipeline = make_pipeline(FunctionTransformer(lambda rows: rows.assign(price=rows.price * 2)), clone(original))
    assert cross_val_score(pipeline, frame, y, scoring="neg_log_loss", cv=2).shape == (2,)
    assert pipeline.set_params(dqrmclassifier__epochs=2).get_params()["dqrmclassifier__epochs"] == 2


@pytest.mark.parametrize(
    "check",
    [
        *("estimator_cloneable", "no_attributes_set_in_init", "parameters_default_constructible", "set_params"),
        *("get_params_invariance", "fit1d", "complex_data", "supervised_y_no_nan", "classifiers_one_label"),
        *("requires_y_none", "classifiers_regression_target", "n_features_in", "dict_unchanged", "fit2d_predict1d"),
    ],
)
def test_scikit_learn_finds_nothing_wrong(check: str) -> None:
    """Those of its checks that hold without its base classes; columns in another order are no mistake here."""
    from sklearn.utils import estimator_checks

    getattr(estimator_checks, f"check_{check}")("DqrmClassifier", DqrmClassifier(epochs=1, settings=SMALL))
