"""Weights that were given as a column are those of new rows, too, where these have the column."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(14), 5)
    x, w = rng.standard_normal(70), rng.uniform(0.1, 9.0, 70)
    y = 1.0 + x + rng.standard_normal(14)[g] + rng.standard_normal(70) / np.sqrt(w)
    return pd.DataFrame({"y": y, "x": x, "g": g, "v": np.tile(np.arange(5), 14), "w": w})


def arrays(table):
    X = np.column_stack([np.ones(len(table)), table.x])
    return {"y": table.y.to_numpy(), "X": X, "Z": np.ones((len(table), 1)), "groups": table.g.to_numpy()}


@pytest.fixture(scope="module")
def fit(data):
    return flc.lmm("y ~ x + (1 | g)", data[data.g < 11], weights="w").fit()


@pytest.mark.parametrize("saved", [False, True])
def test_new_rows_and_observed_ones(data, fit, saved, tmp_path):
    if saved:
        fit.save(tmp_path / "fit.flmm")
        fit = flc.load(tmp_path / "fit.flmm")
    old, later = data[data.g < 11], data[data.g >= 11]
    seen, new = later[later.v < 3], later[later.v >= 3]
    held = arrays(old)
    plain = flc.LinearMixedModel(held["y"], held["X"], held["Z"], held["groups"], weights=old.w.to_numpy()).fit()
    expected = plain.predict(
        arrays(new), "all", interval="prediction", observed=arrays(seen) | {"weights": seen.w.to_numpy()},
        weights=new.w.to_numpy(),
    )  # fmt: skip
    found = fit.predict(new, "all", interval="prediction", observed=seen)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-7)
    # the BLUP in closed form: weights count
    tau2, s2 = fit.G["g"][0, 0], fit.sigma2
    for g, rows in seen.groupby("g"):
        rest = (rows.y - fit.params["Intercept"] - fit.params["x"] * rows.x).to_numpy()
        b = tau2 * (rows.w * rest).sum() / (s2 + tau2 * rows.w.sum())
        own = new[new.g == g]
        np.testing.assert_allclose(
            found["mean"][own.index], fit.params["Intercept"] + fit.params["x"] * own.x + b, rtol=1e-6
        )


def test_those_given_are_taken_before_the_column_and_none_are_ones(data, fit):
    new = data[data.g == 3]
    ones = fit.predict(new, interval="prediction", weights=np.ones(len(new)))
    pd.testing.assert_frame_equal(ones, fit.predict(new.drop(columns="w"), interval="prediction"))
    assert (fit.predict(new, interval="prediction")["std_error"] != ones["std_error"]).all()
    # means do not need them
    hole = new.assign(w=[np.nan, 1.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(fit.predict(hole, "all"), fit.predict(new, "all"))
    with pytest.raises(flc.LMMError, match="'w'"):
        fit.predict(hole, interval="prediction")
    gap = new.assign(w=[np.nan, 1.0, 1.0, 1.0, 1.0])
    assert fit.predict(gap, interval="prediction", missing="nan")["std_error"].isna().tolist() == [True] + 4 * [False]
    assert fit.predict(gap, "all", missing="nan").notna().all()
    with pytest.raises(flc.LMMError, match="in column 'w' of observed"):
        fit.predict(data[data.g == 12], "all", observed=data[data.g == 12].drop(columns="w"))


def test_draws_and_likelihoods_of_other_rows(data, fit):
    later = data[data.g >= 11]
    w = later.w.to_numpy()
    np.testing.assert_array_equal(fit.simulate(3, 1, data=later), fit.simulate(3, 1, data=later, weights=w))
    assert fit.at(data=later).llf == fit.at(data=later, weights=w).llf
    with pytest.raises(flc.LMMError, match="the model has weights"):
        fit.simulate(3, 1, data=later.drop(columns="w"))


def test_missed_visits(data):
    seen = (np.arange(len(data)) * 7) % 10 > 2
    fit = flc.lmm("y ~ x", data[seen], residual="ar1(v | g)", weights="w").fit()
    new = data[~seen]
    told = fit.predict(new, "all", interval="prediction")
    pd.testing.assert_frame_equal(told, fit.predict(new, "all", interval="prediction", weights=new.w.to_numpy()))
    pd.testing.assert_series_equal(fit.predict(new, "all"), told["mean"])
    # by the covariance matrix of all rows
    rho, s2 = (fit.residual_parameters().set_index("term").estimate[name] for name in ("rho|g", "sigma2|g"))
    V = s2 * rho ** np.abs(np.subtract.outer(data.v.to_numpy(), data.v.to_numpy())) * np.equal.outer(
        data.g.to_numpy(), data.g.to_numpy()
    ) / np.sqrt(np.outer(data.w, data.w))  # fmt: skip
    mean = (fit.params["Intercept"] + fit.params["x"] * data.x).to_numpy()
    rest = np.linalg.solve(V[np.ix_(seen, seen)], data.y.to_numpy()[seen] - mean[seen])
    np.testing.assert_allclose(told["mean"], mean[~seen] + V[np.ix_(~seen, seen)] @ rest, rtol=1e-7)
