"""What the data do not determine is NaN with a warning that names the column, whatever is asked of it.

A row is estimable if it lies in the row space of X: adding it to X does not raise the rank.  Where it does lie there,
every solution of the normal equations predicts the same, that of the pseudoinverse among them.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError

# A pseudoinverse of a matrix of some ten columns, conditioned like 10 to 100.
EXACT = 1e-8


def data() -> pd.DataFrame:
    """Two arms in four sites and three weeks, without anybody of the arm "high" in site A."""
    rng = np.random.default_rng(4)
    n = 180
    frame = pd.DataFrame(
        {
            "arm": np.array(["low", "high"])[rng.integers(0, 2, n)],
            "site": np.array(list("ABCD"))[rng.integers(0, 4, n)],
            "week": rng.integers(0, 3, n).astype(float),
            "who": np.repeat(np.arange(30), 6),
            "rater": np.tile(np.arange(6), 30),
        }
    )
    frame["twice"] = 2.0 * frame["week"]
    frame["y"] = (
        frame["week"] + (frame["arm"] == "high") + rng.standard_normal(30)[frame["who"]] + rng.standard_normal(n)
    )
    return frame[~((frame["arm"] == "high") & (frame["site"] == "A"))].reset_index(drop=True)


FORMULAS = {
    "empty cell": ("y ~ arm*site + (1 | who)", "'arm[T.low]:site[T.D]'"),
    "empty cell, crossed": ("y ~ arm*site + week + (1 | who) + (1 | rater)", "'arm[T.low]:site[T.D]'"),
    "aliased": ("y ~ week + twice + arm + (1 | who)", "'twice'"),
    "aliased, slopes": ("y ~ week + twice + arm + (week | who)", "'twice'"),
    "both": ("y ~ arm*site + week + twice + (1 | who)", "'twice', 'arm[T.low]:site[T.D]'"),
}


def grid() -> pd.DataFrame:
    rows = [
        (arm, site, week, twice)
        for arm in ("low", "high")
        for site in "ABCD"
        for week in (0.0, 1.0)
        for twice in (2.0 * week, 9.0)
    ]
    frame = pd.DataFrame(rows, columns=["arm", "site", "week", "twice"])
    return frame.assign(who=3, rater=2)


def by_rank(X, rows):
    """Whether each row is in the row space of X."""
    rank = np.linalg.matrix_rank(X)
    return np.array([np.linalg.matrix_rank(np.vstack([X, row])) == rank for row in rows])


def generalised(fit):
    """Solution of the normal equations by the pseudoinverse, and its covariance, from V in full."""
    model = fit.model
    V = fit.sigma2 * np.eye(model.nobs)
    for factor in model.factors:
        Z = model.exog_re[:, factor.columns]
        G = fit.covariance[factor.columns, factor.columns]
        same = factor.grouping.index[:, None] == factor.grouping.index[None, :]
        V += same * (Z @ G @ Z.T)
    inverse = np.linalg.inv(V)
    normal = np.linalg.pinv(model.exog.T @ inverse @ model.exog, rcond=1e-10)
    return normal @ model.exog.T @ inverse @ model.endog, normal


@pytest.mark.parametrize("case", FORMULAS)
@pytest.mark.parametrize("interval", [None, "confidence", "prediction"])
@pytest.mark.parametrize("effects", ["population", "all"])
def test_predictions_that_the_data_do_not_determine(case, interval, effects):
    formula, named = FORMULAS[case]
    fit = flc.lmm(formula, data()).fit()
    new = grid()
    rows = fit.model.spec.fixed(new)
    estimable = by_rank(fit.model.exog, rows)
    assert 0 < estimable.sum() < len(estimable)
    with pytest.warns(UserWarning) as said:
        found = fit.predict(new, effects, interval=interval)
    (one,) = said
    assert Path(one.filename).name == "test_estimability.py"
    assert f"depends on {named}, which w" in str(one.message)
    first = np.flatnonzero(~estimable)[:5]
    assert f"rows {', '.join(map(str, first))}" in str(one.message)
    mean = found if interval is None else found["mean"].to_numpy()
    np.testing.assert_array_equal(np.isnan(mean), ~estimable)
    if interval is not None:
        for column in ("std_error", "df", "conf_low", "conf_high"):
            np.testing.assert_array_equal(np.isnan(found[column]), ~estimable)
    if effects == "population":
        beta, covariance = generalised(fit)
        np.testing.assert_allclose(mean[estimable], rows[estimable] @ beta, rtol=EXACT)
        if interval == "confidence":
            wanted = np.sqrt(np.einsum("ij,jk,ik->i", rows[estimable], covariance, rows[estimable]))
            np.testing.assert_allclose(found["std_error"][estimable], wanted, rtol=EXACT)


@pytest.mark.parametrize("case", FORMULAS)
def test_rows_of_the_data_are_always_determined(case):
    frame = data()
    fit = flc.lmm(FORMULAS[case][0], frame).fit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (None, frame):
            np.testing.assert_allclose(fit.predict(rows), fit.marginal_mean, rtol=1e-10)
            assert not np.isnan(fit.predict(rows, "all", interval="prediction").to_numpy()).any()


def test_arrays():
    frame = data()
    X = np.column_stack([np.ones(len(frame)), frame["week"], frame["twice"]])
    fit = flc.LinearMixedModel(frame["y"], X, groups=frame["who"], exog_names=["one", "week", "twice"]).fit()
    with pytest.warns(UserWarning, match=r"predict\(\): row 1 \(counting from 0\) of data .* is NaN: .*'twice', which"):
        found = fit.predict({"X": [[1.0, 1.0, 2.0], [1.0, 1.0, 50.0]]})
    np.testing.assert_array_equal(np.isnan(found), [False, True])
    # each row is judged by its own size
    with pytest.warns(UserWarning, match=r"row 0 \(counting from 0\)"):
        found = fit.predict({"X": [[0.0, 1e-8, 3e-8], [0.0, 1e6, 2e6]]})
    np.testing.assert_array_equal(np.isnan(found), [True, False])


@pytest.mark.parametrize("formula", ["y ~ arm*site + (1 | who)", "y ~ arm*site + (1 | who) + (1 | rater)"])
def test_observations_of_new_subjects_must_be_determined(formula):
    fit = flc.lmm(formula, data()).fit()
    seen = pd.DataFrame({"arm": ["low", "high"], "site": ["B", "A"], "who": [99, 99], "rater": [1, 2], "y": [1.0, 2.0]})
    new = seen.drop(columns="y").head(1)
    with pytest.raises(
        LMMError, match=r"observed: row 1 \(counting from 0\) cannot be used: .*'arm\[T.low\]:site\[T.D\]'"
    ):
        fit.predict(new, "all", observed=seen)
    assert np.isfinite(fit.predict(new, "all", observed=seen.head(1))).all()


def test_means_and_slopes_say_which_column():
    fit = flc.lmm("y ~ arm*site + (1 | who)", data()).fit()
    with pytest.warns(
        UserWarning, match=r"1 of 2 estimates cannot be estimated and are NaN: .*'arm\[T.low\]:site\[T.D\]'"
    ):
        means = fit.emmeans("arm")
    np.testing.assert_array_equal(np.isnan(means.estimate), [lv == "high" for lv in means.labels["arm"]])
    assert "'arm[T.low]:site[T.D]'" in str(means)
    fit = flc.lmm("y ~ week + twice + (1 | who)", data()).fit()
    with pytest.warns(UserWarning, match=r"1 of 1 estimates cannot be estimated and are NaN: .*'twice'"):
        assert np.isnan(fit.slopes("week").estimate).all()


def test_many_columns_are_counted():
    frame = data()
    for j in range(6):
        frame[f"copy{j}"] = (j + 1.0) * frame["week"]
    formula = "y ~ week + " + " + ".join(f"copy{j}" for j in range(6)) + " + (1 | who)"
    fit = flc.lmm(formula, frame).fit()
    with pytest.warns(UserWarning, match=r"'copy0', 'copy1', 'copy2', 'copy3' and 2 more, which were dropped"):
        fit.predict(frame.head(2).assign(**{f"copy{j}": 7.0 + j**3 for j in range(6)}))
