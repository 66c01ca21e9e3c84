"""The estimator of scikit-learn: its predictions are those of fits, with scikit-learn and without it."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

import fastlmm_core as flc
from fastlmm_core.bridges import regressor

FORMULA = "Reaction ~ Days + (Days | Subject)"


@pytest.fixture(scope="module")
def sleep():
    return flc.datasets.load("sleepstudy", "pandas")


def test_fit_and_predict(sleep):
    fit = flc.lmm(FORMULA, sleep).fit()
    for formula in (FORMULA, "~ Days + (Days | Subject)"):
        model = flc.MixedLMRegressor(formula)
        assert model.fit(sleep[["Days", "Subject"]], sleep["Reaction"].to_numpy()) is model
        np.testing.assert_allclose(model.predict(sleep), fit.fittedvalues, rtol=1e-10)
        assert model.n_features_in_ == 2 and model.feature_names_in_.tolist() == ["Days", "Subject"]
    population = flc.MixedLMRegressor(FORMULA, reml=False, effects="population").fit(sleep)
    new = sleep[["Days"]].assign(Subject="nobody")
    expected = flc.lmm(FORMULA, sleep).fit(reml=False).predict(new)
    np.testing.assert_allclose(population.predict(new), expected)
    np.testing.assert_allclose(flc.MixedLMRegressor(FORMULA, reml=False).fit(sleep).predict(new), expected)


def test_weights_logs_and_other_tables(sleep):
    w = np.linspace(0.5, 2.0, 180)
    fit = flc.lmm("np.log(Reaction) ~ Days + (1 | Subject)", sleep, weights=w).fit()
    model = flc.MixedLMRegressor("np.log(Reaction) ~ Days + (1 | Subject)")
    frame = pl.DataFrame({"Days": sleep["Days"].to_numpy(), "Subject": sleep["Subject"].to_list()})
    model.fit(frame, sleep["Reaction"], sample_weight=w)
    # what is predicted is y, as scores compare it
    expected = np.exp(fit.fittedvalues)
    np.testing.assert_allclose(model.predict(frame), expected, rtol=1e-9)
    y = sleep["Reaction"].to_numpy()
    assert model.score(frame, y) == pytest.approx(1.0 - np.mean((y - expected) ** 2) / np.var(y), rel=1e-9)
    odd = flc.MixedLMRegressor("I(Reaction ** 3) ~ Days + (1 | Subject)").fit(frame, y)
    with pytest.raises(flc.LMMError, match="TransformedTargetRegressor"):
        odd.predict(frame)
    blank = flc.MixedLMRegressor("`my y` ~ Days + (1 | Subject)").fit(frame, y)
    np.testing.assert_allclose(
        blank.predict(frame), flc.lmm("Reaction ~ Days + (1 | Subject)", sleep).fit().fittedvalues
    )
    arrays = np.column_stack([sleep["Days"], sleep["Subject"].astype(int)])
    of_arrays = flc.MixedLMRegressor("~ x0 + (x0 | x1)").fit(arrays, sleep["Reaction"])
    np.testing.assert_allclose(of_arrays.predict(arrays), flc.lmm(FORMULA, sleep).fit().fittedvalues, rtol=1e-9)
    assert not hasattr(of_arrays, "feature_names_in_") and of_arrays.n_features_in_ == 2


def test_the_contract(sleep):
    base = pytest.importorskip("sklearn.base")
    from sklearn.compose import make_column_transformer
    from sklearn.exceptions import NotFittedError
    from sklearn.model_selection import GroupKFold, cross_val_predict, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    model = flc.MixedLMRegressor(FORMULA, reml=False)
    twin = base.clone(model)
    assert twin is not model and twin.get_params() == model.get_params() and base.is_regressor(model)
    with pytest.raises(NotFittedError, match="not fitted"):
        model.predict(sleep)
    assert set(vars(model.set_params(reml=True))) == {"formula", "reml", "effects", "residual", "variance"}
    X, y, groups = sleep[["Days", "Subject"]], sleep["Reaction"], sleep["Subject"]
    folds = GroupKFold(6)
    found = cross_val_predict(model, X, y, groups=groups, cv=folds)
    for train, test in folds.split(X, y, groups):
        fit = flc.lmm(FORMULA, sleep.iloc[train]).fit()
        np.testing.assert_allclose(found[test], fit.predict(sleep.iloc[test]), rtol=1e-9)
    assert cross_val_score(model, X, y, groups=groups, cv=folds).shape == (6,)
    scaled = make_column_transformer((StandardScaler(), ["Days"]), remainder="passthrough",
                                     verbose_feature_names_out=False).set_output(transform="pandas")  # fmt: skip
    piped = make_pipeline(scaled, FunctionTransformer(), model).fit(X, y)
    np.testing.assert_allclose(piped.predict(X), model.fit(X, y).predict(X), rtol=1e-6)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert model.score(X, y) == pytest.approx(1.0 - np.var(y - model.predict(X)) / np.var(y), rel=1e-3)


NOT_APPLICABLE = {
    # y is x0, or the rows are few: the model reproduces it, which is refused
    "check_regressors_no_decision_function", "check_sample_weights_shape", "check_sample_weights_not_overwritten",
    # weights are precisions, and not numbers of copies
    "check_sample_weight_equivalence_on_dense_data",
    # rows with missing values are left out of a fit
    "check_estimators_nan_inf",
    # tables without the columns of the formula
    "check_sample_weights_pandas_series", "check_regressor_data_not_an_array",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_checks_of_scikit_learn(monkeypatch):
    # all that scikit-learn asks of an estimator, on its arrays, which are given a column of groups
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    table_of = regressor._table

    def with_groups(X):
        table, names = table_of(X)
        first = np.asarray(table[names[0]], dtype=float)
        return regressor.with_columns(table, {"g": np.floor(np.abs(first) * 7.0) % 5.0}), names

    monkeypatch.setattr(regressor, "_table", with_groups)
    found = checks.check_estimator(flc.MixedLMRegressor("y ~ x0 + (1 | g)"), on_fail=None)
    failed = {one["check_name"] for one in found if one["status"] == "failed"} - {"check_regressors_train"}
    assert failed <= NOT_APPLICABLE
    assert sum(one["status"] == "passed" for one in found) > 40
    # what asks for a good fit takes all columns
    everything = flc.MixedLMRegressor(f"y ~ {' + '.join(f'x{j}' for j in range(10))} + (1 | g)")
    for options in ({}, {"readonly_memmap": True}):
        checks.check_regressors_train("MixedLMRegressor", everything, **options)


def test_rows_of_weight_zero_are_left_out(sleep):
    w = np.where(np.arange(180) % 3 == 0, 0.0, np.linspace(0.5, 2.0, 180))
    model = flc.MixedLMRegressor(FORMULA).fit(sleep, sample_weight=w)
    alone = flc.lmm(FORMULA, sleep[w > 0], weights=w[w > 0]).fit()
    np.testing.assert_allclose(model.predict(sleep), alone.predict(sleep, effects="all"), rtol=1e-10)


def test_refused(sleep):
    for formula, y, words in (
        ("~ Days + (1 | Subject)", None, "y is missing"),
        ("Days + (1 | Subject)", sleep["Reaction"], "has no '~'"),
        (3, sleep["Reaction"], "formula=3 must be text"),
        ("Reaction + Days ~ (1 | Subject)", sleep["Reaction"], "is made of 2 columns"),
        ("y ~ Days + (1 | Subject)", None, "requires y to be passed, but the target y is None, and X has no column y"),
    ):
        with pytest.raises(flc.LMMError, match=words):
            flc.MixedLMRegressor(formula).fit(sleep, y)
    with pytest.raises(flc.LMMError, match="1 dimensions"):
        flc.MixedLMRegressor("~ x0 + (1 | x1)").fit(np.arange(5.0), np.arange(5.0))
    arrays = np.column_stack([sleep["Days"], sleep["Subject"].astype(int)])
    model = flc.MixedLMRegressor("~ x0 + (1 | x1)").fit(arrays, sleep["Reaction"])
    with pytest.raises(flc.LMMError, match="X has 3 features, but MixedLMRegressor is expecting 2"):
        model.predict(np.column_stack([arrays, arrays[:, 0]]))
    with pytest.raises(flc.LMMError, match="sample_weight is zero for all rows"):
        model.fit(arrays, sleep["Reaction"], np.zeros(180))


def test_without_scikit_learn():
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['sklearn.base'] = sys.modules['sklearn.exceptions'] = None\n"
        "import fastlmm_core as flc\n"
        "d = flc.datasets.load('sleepstudy', 'pandas')\n"
        f"m = flc.MixedLMRegressor({FORMULA!r})\n"
        "try: m.predict(d)\n"
        "except flc.LMMError as error: print('not fitted' in str(error))\n"
        "m.set_params(reml=False).fit(d, d['Reaction'])\n"
        "print(m.get_params()['reml'], m.score(d, d['Reaction']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *words, score = done.stdout.split()
    data = flc.datasets.load("sleepstudy", "pandas")
    rest = flc.lmm(FORMULA, data).fit(reml=False).resid
    assert words == ["True", "False"] and float(score) == pytest.approx(
        1.0 - np.mean(rest**2) / np.var(data["Reaction"])
    )
