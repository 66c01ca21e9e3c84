"""Rows beside what the fit says of them, and one row about a fit, against dense algebra at the estimates."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import fastlmm_core as flc

DENSE = 1e-8  # inverses of n by n matrices

FORMULAS = ["y ~ t + x + (t | g)", "y ~ t + x + (1 | g) + (1 | item)"]


@pytest.fixture
def data(rng):
    m, k = 9, 6
    frame = pd.DataFrame(
        {
            "g": [f"g{i}" for i in np.repeat(np.arange(m), k)], "item": np.tile(np.arange(k), m) % 4,
            "t": np.tile(np.arange(float(k)), m), "x": rng.standard_normal(m * k), "w": rng.uniform(0.5, 3.0, m * k),
            "note": [f"row {i}" for i in range(m * k)],
        }
    )  # fmt: skip
    b = rng.standard_normal((m, 2))[np.repeat(np.arange(m), k)]
    frame["y"] = 1.0 + b[:, 0] + b[:, 1] * frame.t + rng.standard_normal(4)[frame["item"]] + rng.standard_normal(m * k)
    frame = frame.sample(frac=1.0, random_state=4)
    frame.loc[frame.index[[2, 11]], "x"] = np.nan
    return frame


def dense(result, weights):
    """V, Z G Z' and R of the rows used."""
    model = result.model
    ZGZ = np.zeros((model.nobs, model.nobs))
    for block, name in zip(model.structure.blocks, model.term_names, strict=True):
        z = model.exog_re[:, block.start : block.stop]
        index = model.factor_of(block).grouping.index
        ZGZ += (z @ result.G[name] @ z.T) * (index[:, None] == index)
    R = result.sigma2 * np.diag(1.0 / weights)
    return ZGZ + R, ZGZ, R


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("reml", [True, False])
def test_against_dense_algebra(data, formula, reml):
    result = flc.lmm(formula, data, weights="w").fit(reml=reml)
    rows = result.augment()
    used = data.dropna()
    assert rows.index.equals(used.index)
    X, y, w = result.model.exog, used.y.to_numpy(), used.w.to_numpy()
    V, ZGZ, R = dense(result, w)
    W = np.linalg.inv(V)
    Phi = np.linalg.inv(X.T @ W @ X)
    P = W - W @ X @ Phi @ X.T @ W
    beta = Phi @ X.T @ W @ y

    def close(name, expected):
        np.testing.assert_allclose(rows[name], expected, rtol=DENSE, atol=DENSE)

    close("fitted_population", X @ beta)
    close("fitted", X @ beta + ZGZ @ P @ y)
    close("resid", R @ P @ y)
    close("resid_marginal", y - X @ beta)
    close("resid_pearson", R @ P @ y * np.sqrt(w / result.sigma2))
    close("resid_studentized", R @ P @ y / np.sqrt(np.diag(R @ P @ R)))
    close("leverage_fixed", np.diag(X @ Phi @ X.T @ W))
    close("leverage", np.diag(X @ Phi @ X.T @ W + ZGZ @ P))
    # without each row, at the same V
    for i in (0, 7, 30, len(y) - 1):
        others = np.arange(len(y)) != i
        Wi = np.linalg.inv(V[np.ix_(others, others)])
        without = np.linalg.solve(X[others].T @ Wi @ X[others], X[others].T @ Wi @ y[others])
        change = beta - without
        expected = change @ np.linalg.solve(Phi, change) / X.shape[1]
        np.testing.assert_allclose(rows["cooks_distance"].iloc[i], expected, rtol=1e-7)
    for factor, blups in zip(result.model.factors, result.blups, strict=True):
        name = factor.grouping.name
        close(f"Intercept|{name}", blups[np.searchsorted(factor.grouping.labels, used[name]), 0])


def test_dropped_columns_and_rows_without_variance(data):
    """Of a row that the coefficients reproduce exactly nothing is known; dependent columns do not count."""
    data = data.dropna().assign(one=lambda d: (np.arange(len(d)) == 3) * 1.0, twice=lambda d: 2.0 * d.t)
    result = flc.lmm("y ~ t + twice + one + (1 | g)", data).fit()
    distance = result.augment()["cooks_distance"]
    assert np.flatnonzero(distance.isna()).tolist() == [3]
    slim = flc.lmm("y ~ t + one + (1 | g)", data).fit().augment()
    np.testing.assert_allclose(distance, slim["cooks_distance"], rtol=1e-6)


def test_the_columns_of_the_data(data):
    result = flc.lmm(FORMULAS[0], data, weights="w").fit()
    used = data.dropna()
    own = result.augment()
    for given in (data, used, data.sort_index(), data.assign(more=1.0)):
        rows = result.augment(given)
        assert rows.index.equals(used.index)
        pd.testing.assert_frame_equal(rows[list(data)], used)
        np.testing.assert_array_equal(rows["Intercept|g"], own["Intercept|g"])
    assert list(own)[:6] == ["y", "t", "x", "g", "weights", "fitted"]
    np.testing.assert_array_equal(own["weights"], used["w"])
    with pytest.raises(flc.LMMError, match=r"the data have a column 'resid' already; give prefix=, e\.g\. prefix='\.'"):
        result.augment(data.assign(resid=0.0))
    dotted = result.augment(data.assign(resid=0.0), prefix=".")
    assert (dotted["resid"] == 0.0).all() and dotted[".resid"].equals(own["resid"].rename(".resid"))
    with pytest.raises(
        flc.LMMError, match="data are not those of the fit: columns of the fixed part have other values"
    ):
        result.augment(data.assign(x=data.x + 1.0))
    other = result.model.refit(data["w"])
    np.testing.assert_allclose(other.augment(data).eval("fitted + resid"), used["w"], rtol=1e-12)
    with pytest.raises(flc.LMMError, match="data has another index than the data, and no value for 1 of its 52"):
        result.augment(used.iloc[1:])


@pytest.mark.parametrize(
    "make",
    [pl.from_pandas, pa.Table.from_pandas, lambda frame: {name: frame[name].to_numpy() for name in frame}],
    ids=["polars", "pyarrow", "dict"],
)
def test_other_libraries(data, make):
    expected = flc.lmm(FORMULAS[0], data).fit().augment(data)
    table = make(data.reset_index(drop=True))
    result = flc.lmm(FORMULAS[0], table).fit()
    whole, own = result.augment(table), result.augment()
    used = make(data.dropna().reset_index(drop=True))
    for rows in (whole, own, result.augment(used)):
        assert type(rows) is type(table)
        np.testing.assert_allclose(np.asarray(rows["cooks_distance"]), expected["cooks_distance"], rtol=1e-8)
        assert list(np.asarray(rows["g"])) == list(expected["g"])
    assert list(np.asarray(whole["note"])) == list(expected["note"])
    for rows in (whole, own):
        assert np.asarray(rows["row"]).tolist() == np.flatnonzero(data.x.notna()).tolist()
    with pytest.raises(flc.LMMError, match="data are not those of the fit: the response 'y' has other values"):
        result.augment(make(data.assign(y=1.0).reset_index(drop=True)))
    short = make(data.iloc[:5].reset_index(drop=True))
    with pytest.raises(flc.LMMError, match="data has 5 rows, but the model was made from 54; give the same table"):
        result.augment(short)


def test_models_from_arrays(data):
    used = data.dropna()
    X = np.column_stack([np.ones(len(used)), used.t, used.x])
    result = flc.LinearMixedModel(used.y.to_numpy(), X, X[:, :2], used.g.to_numpy(), offset=np.ones(len(used))).fit()
    rows = result.augment()
    assert isinstance(rows, dict)
    assert list(rows)[:8] == ["y", "x0", "x1", "x2", "z0", "z1", "group", "offset"]
    np.testing.assert_array_equal(rows["fitted"], result.fittedvalues)


def test_structured_residuals():
    data = flc.datasets.load("fev", "pandas").sample(frac=1.0, random_state=2)
    result = flc.mmrm("FEV1 ~ RACE + ARMCD * AVISIT + us(AVISIT | USUBJID)", data).fit()
    rows = result.augment(data)
    np.testing.assert_allclose(rows["fitted"] + rows["resid"], data.FEV1.loc[rows.index], rtol=1e-12)
    np.testing.assert_array_equal(rows["resid_whitened"], result.residuals("whitened"))
    assert "leverage" not in rows and "cooks_distance" not in rows
    assert result.glance()["nobs"].item() == len(rows) == data.FEV1.notna().sum()


def test_glance(data):
    fits = [flc.lmm(formula, data).fit(reml=reml) for formula in FORMULAS for reml in (True, False)]
    table = pd.concat([fit.glance() for fit in fits], ignore_index=True)
    assert len(table) == 4 and table.n_groups_item.isna().tolist() == [True, True, False, False]
    for i, fit in enumerate(fits):
        row = table.iloc[i]
        assert row.nobs == 52 and row.df_resid == 49 and row.n_groups_g == 9
        assert (row.sigma, row.llf, row.aic, row.bic) == (fit.sigma, fit.llf, fit.aic, fit.bic)
        assert row.aic == pytest.approx(-2.0 * row.llf + 2.0 * row.n_parameters)
        assert row.r2_marginal == fit.r2()["marginal"] and row.r2_conditional == fit.r2()["conditional"]
        assert (row.reml, row.converged, row.singular) == (fit.reml, fit.converged, fit.singular)
    assert isinstance(flc.lmm(FORMULAS[0], pl.from_pandas(data)).fit().glance(), pl.DataFrame)
