"""Batches with structured residuals: variance parameters, shares and permutations against single fits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError
from fastlmm_core.inference.many.rearrangements import rearrangements

# Optima of single fits and of batches differ by their tolerances; what is given by formulas of them follows.
SAME = 1e-5

MODELS = {
    "ar1": ("y ~ x + g + (1 | id)", "ar1(t | id)"),
    "cs": ("y ~ x + g", "cs(t | id)"),
    "us": ("y ~ x + g", "us(t | id)"),
    "diag": ("y ~ x + g + (1 | id)", "diag(t | id)"),
}


def data(rng, m=20, visits=4):
    table = pd.DataFrame({"id": np.repeat(np.arange(m), visits), "t": np.tile(np.arange(visits), m)})
    table["x"] = rng.standard_normal(len(table))
    table["g"] = (table["id"] % 2).astype(float)
    table["y"] = rng.standard_normal(len(table))
    # subjects of several patterns of visits
    return table.drop(index=[1, 6, 10, 11]).reset_index(drop=True)


def fitted(rng, name, count=5, weights=False, **more):
    table = data(rng)
    formula, residual = MODELS[name]
    table["w"] = rng.uniform(0.5, 2.0, len(table))
    model = flc.lmm(formula, table, residual=residual, weights="w" if weights else None)
    n = len(table)
    Y = (
        rng.standard_normal((count, n))
        + 0.8 * rng.standard_normal((count, 20))[:, table["id"]]
        + 0.3 * table["x"].values
    )
    return model, Y, model.fit_many(Y, **more)


@pytest.mark.parametrize("name", MODELS)
def test_variance_components_are_those_of_single_fits(rng, name):
    model, Y, batch = fitted(rng, name)
    found = batch.variance_components()
    limits = found.conf_int(0.9)
    for i, y in enumerate(Y):
        table = model.refit(y).variance_components(0.9, method="wald").set_index("term")
        own = table.loc[list(found.names)]
        assert list(own["kind"]) == list(found.kinds)
        np.testing.assert_allclose(found.estimate[i], own["estimate"], rtol=SAME, atol=SAME)
        np.testing.assert_allclose(found.std_error[i], own["std_error"], rtol=SAME, atol=SAME)
        known = own["std_error"].notna().to_numpy()
        np.testing.assert_allclose(limits[i][known], own[["conf_low", "conf_high"]][known], rtol=1e-4, atol=1e-4)
    assert len(found.to_frame()) == len(Y) * len(found.names)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_shares_are_those_of_single_fits(rng, name, weights):
    model, Y, batch = fitted(rng, name, weights=weights)
    shares, fractions = batch.r2(), batch.variance_fractions()
    for i, y in enumerate(Y):
        one = model.refit(y)
        for kind, value in one.r2().items():
            np.testing.assert_allclose(shares[kind][i], value, rtol=SAME, atol=SAME)
        np.testing.assert_allclose(fractions.fractions[i, -1], 1.0 - one.r2()["conditional"], rtol=SAME)
        if model.structure.q:
            np.testing.assert_allclose(batch.icc()[i], one.icc(), rtol=SAME, atol=SAME)


def test_no_intraclass_correlation_without_random_effects(rng):
    batch = fitted(rng, "cs", 2)[2]
    with pytest.raises(LMMError, match=r"no random effects; batch\[i\]\.marginal_correlation"):
        batch.icc()


def test_masks_have_the_shares_and_parameters_of_their_own_rows(rng):
    model, Y, _ = fitted(rng, "ar1", 4)
    Y[1, 3] = Y[2, 3] = np.nan
    batch = model.fit_many(Y, missing="drop")
    found, r2 = batch.variance_components(), batch.r2()
    for i in range(4):
        one = batch.one(i)
        np.testing.assert_allclose(r2["conditional"][i], flc.LMMResult.r2(one)["conditional"], rtol=SAME)
        table = one.variance_components(method="wald").set_index("term").loc[list(found.names)]
        np.testing.assert_allclose(found.estimate[i], table["estimate"], rtol=SAME, atol=SAME)
        np.testing.assert_allclose(found.std_error[i], table["std_error"], rtol=SAME, atol=SAME)


def test_a_stream_has_no_standard_errors_of_variances(rng):
    model, Y, _ = fitted(rng, "cs", 3)
    with pytest.raises(LMMError, match="fit an array"):
        model.fit_many(iter([Y])).variance_components()


# ---- permutations ------------------------------------------------------------------------------


def dense(model, one):
    """V of the rows, relative to sigma^2, from what the result says of each subject."""
    n = model.nobs
    ids = np.asarray(model.design.residual.subject.codes)
    V = np.zeros((n, n))
    for code in np.unique(ids):
        rows = np.flatnonzero(ids == code)
        V[np.ix_(rows, rows)] = one.marginal_covariance(code)
    return V


def root(V, power):
    values, vectors = np.linalg.eigh(V)
    return (vectors * values**power) @ vectors.T


def statistic(X, V, y, j, nu):
    W = np.linalg.inv(V)
    K = np.linalg.inv(X.T @ W @ X)
    beta = K @ X.T @ W @ y
    e = y - X @ beta
    return beta[j] / np.sqrt(K[j, j] * (e @ W @ e) / nu)


@pytest.mark.parametrize("scheme", ["freedman-lane", "sign-flip", "within"])
@pytest.mark.parametrize("name", MODELS)
def test_permutations_are_those_of_dense_matrices(rng, name, scheme):
    model, Y, batch = fitted(rng, name, 3)
    found = batch.permute("x", 20, scheme=scheme, seed=3, reduce=lambda t: t.copy())
    # the null distribution again, from the single fits without x
    X = model.exog
    j = model.exog_names.index("x")
    formula, residual = MODELS[name]
    rest = [k for k in range(X.shape[1]) if k != j]
    ids = np.unique(np.asarray(model.design.residual.subject.codes), return_inverse=True)[1]
    make = rearrangements(scheme, model.nobs, None if scheme == "freedman-lane" else ids, 3)
    table = model.design.source.table
    null = flc.lmm(formula.replace("x + ", ""), table, residual=residual)
    nu = model.nobs - X.shape[1]
    for i, y in enumerate(Y):
        one = null.refit(y)
        V = dense(null, one) / one.sigma2
        e = y - X[:, rest] @ np.asarray(one.params)
        np.testing.assert_allclose(found.statistic[i], statistic(X, V, e, j, nu), rtol=1e-4, atol=1e-5)
        for k in range(5):
            if scheme == "freedman-lane":
                moved = root(V, 0.5) @ make(k).of((root(V, -0.5) @ e)[None])[0]
            else:
                moved = make(k).of(e[None])[0]
            np.testing.assert_allclose(found.null[k][i], statistic(X, V, moved, j, nu), rtol=1e-4, atol=1e-5)


def test_permutations_with_variances_estimated_again(rng):
    model, Y, batch = fitted(rng, "cs", 2)
    found = batch.permute("x", 6, scheme="sign-flip", refit=True, seed=1)
    for i, y in enumerate(Y):
        np.testing.assert_allclose(found.statistic[i], model.refit(y).tvalues["x"], rtol=1e-3)
    with pytest.raises(LMMError, match="one coefficient by its name"):
        batch.permute(["x", "g"], 3, scheme="sign-flip", refit=True)


def test_permutations_of_weighted_rows_and_several_coefficients(rng):
    batch = fitted(rng, "ar1", 3, weights=True)[2]
    both = batch.permute(["x", "g"], 30, seed=4)
    one = batch.permute("x", 30, seed=4)
    assert both.statistic.shape == one.statistic.shape == (3,)
    assert ((both.pvalues > 0.0) & (both.pvalues <= 1.0)).all()
    again = batch.permute("x", 30, seed=4, n_jobs=2)
    assert np.array_equal(one.null, again.null)
