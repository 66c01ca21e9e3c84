"""Diagnostics of fits with structured residuals against dense algebra."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle_residual as dense

EXACT = 1e-7
"""Relative: BLUPs and their covariances are differences of matrices of a few dozen rows."""


def visits(seed=0, sites=5, n=30, m=5):
    """Subjects in sites, with visits missing at random, a covariate and weights."""
    rng = np.random.default_rng(seed)
    rows = []
    level = rng.normal(size=(sites, 2))
    for i in range(n):
        e = np.zeros(m)
        for v in range(m):
            e[v] = 0.7 * e[v - 1] * (v > 0) + rng.normal()
        for v in np.flatnonzero(rng.random(m) < 0.85):
            x = rng.normal()
            y = 1.0 + 0.5 * x + level[i % sites, 0] + level[i % sites, 1] * x + e[v] * (1.0 + 0.2 * v)
            rows.append((f"s{i}", f"c{i % sites}", int(v), x, y, rng.uniform(0.5, 2.0)))
    return pd.DataFrame(rows, columns=["id", "site", "visit", "x", "y", "w"]).sample(frac=1.0, random_state=seed)


MODELS = {
    "site": ("y ~ x + (x | site)", "ar1h(visit | id)", None),
    "weights": ("y ~ x + (1 | site)", "cs(visit | id)", "w"),
    "subject": ("y ~ x + (x || id)", "ar1(visit | id)", None),
    "both": ("y ~ x + (1 | site) + (1 | id)", "ar1(visit | id)", "w"),
    "none": ("y ~ x", "us(visit | id)", "w"),
}


@pytest.fixture(scope="module", params=MODELS)
def fit(request):
    formula, residual, weights = MODELS[request.param]
    return flc.lmm(formula, visits(), residual=residual, weights=weights).fit()


def covariance(fit):
    G = fit.relative_covariance if fit.model.structure.q else None
    return fit.sigma2 * dense.covariance(fit.model, fit.phi, G)


def by_dense(fit):
    """V, and P = V^-1 - V^-1 X Phi X'V^-1."""
    V = covariance(fit)
    W, X = np.linalg.inv(V), fit.model.exog
    return V, W - W @ X @ np.linalg.inv(X.T @ W @ X) @ X.T @ W


def test_mahalanobis_distances(fit):
    if not fit.model.structure.q:
        return
    _, P = by_dense(fit)
    for f in fit.model.factors:
        found = fit.mahalanobis(f.grouping.name)
        G = fit.covariance[f.columns, f.columns]
        blups = fit.blups[fit.model.factors.index(f)]
        for level in range(f.grouping.m):
            Z = fit.model.exog_re[:, f.columns] * (f.grouping.index == level)[:, None]
            variance = G @ Z.T @ P @ Z @ G
            distance = blups[level] @ np.linalg.pinv(variance, hermitian=True) @ blups[level]
            np.testing.assert_allclose(found["distance"][level], distance, rtol=1e-5, atol=1e-8)
            assert found["df"][level] == np.linalg.matrix_rank(variance, hermitian=True, tol=1e-9)


def test_lags_count_visits(fit):
    # whitened residuals of the oracle, subject by subject in the order of visits
    part = fit.model.residual
    clusters = fit.model.grouping.index if fit.model.structure.q else np.asarray(part.subject.codes)
    if fit.model.structure.q and "site" in fit.n_groups:
        clusters = fit.model.factor("site").grouping.index
    subject = np.asarray(part.subject.codes)
    V, w = covariance(fit), np.empty(fit.nobs)
    order = np.lexsort((part.where, subject))
    for c in np.unique(clusters):
        rows = order[clusters[order] == c]
        w[rows] = np.linalg.solve(np.linalg.cholesky(V[np.ix_(rows, rows)]), fit.marginal_rest[rows])
    found = fit.autocorrelation(3)
    for lag in (1, 2, 3):
        pairs = [(i, j) for i in range(fit.nobs) for j in range(fit.nobs)
                 if subject[i] == subject[j] and part.where[j] - part.where[i] == lag]  # fmt: skip
        assert found["pairs"][lag - 1] == len(pairs)
        expected = np.mean([w[i] * w[j] for i, j in pairs]) / np.mean(w**2)
        np.testing.assert_allclose(found["autocorrelation"][lag - 1], expected, rtol=1e-8, atol=1e-10)


def test_tests_of_the_assumptions(fit):
    table = fit.residual_tests()
    assert {"normality", "equal variance", "independence"} <= set(table["assumption"])
    told = table["p_value"][np.isfinite(table["p_value"])]
    assert ((told >= 0.0) & (told <= 1.0)).all()


def test_wrong_correlation_is_seen():
    data = visits(3, n=200)
    wrong = flc.lmm("y ~ x + (x | site)", data, residual="diag(visit | id)").fit()
    right = flc.lmm("y ~ x + (x | site)", data, residual="ar1h(visit | id)").fit()
    p = [fit.residual_tests().set_index("test").loc["Box-Pierce", "p_value"] for fit in (wrong, right)]
    assert p[0] < 1e-6 and p[1] > 0.01


def test_pooling(fit):
    model = fit.model
    if not model.structure.q:
        with pytest.raises(flc.LMMError, match="this model has none"):
            fit.pooling()
        return
    for term, block in zip(model.term_names, model.structure.blocks, strict=True):
        f = model.factor_of(block)
        found = fit.pooling(term)
        R = fit.sigma2 * dense.covariance(model, fit.phi)
        at = model.factors.index(f)
        others = fit.rest + np.sum(model.exog_re[:, f.columns] * fit.blups[at][f.grouping.index], axis=1)
        for level in range(f.grouping.m):
            rows = np.flatnonzero(f.grouping.index == level)
            Z, W = model.exog_re[rows][:, f.columns], np.linalg.inv(R[np.ix_(rows, rows)])
            gram = Z.T @ W @ Z
            if len(rows) < Z.shape[1] or np.linalg.cond(gram) > 1e8:
                continue
            own = np.linalg.solve(gram, Z.T @ W @ others[rows])
            G = fit.covariance[f.columns, f.columns]
            S = G @ np.linalg.inv(G + np.linalg.inv(gram))
            chosen = np.arange(block.start, block.stop) - f.start
            np.testing.assert_allclose(found.no_pooling[level] - found.population, own[chosen], rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(found.shrinkage[level], S[np.ix_(chosen, chosen)], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found.partial_pooling - found.population, fit.blups[at][:, chosen], rtol=EXACT)


def test_subjects_across_groups_have_no_estimates_of_their_own():
    data = visits().assign(half=lambda d: d.visit % 2)
    fit = flc.lmm("y ~ x + (1 | half)", data, residual="ar1(visit | id)").fit()
    with pytest.raises(flc.LMMError, match="lies in several levels of 'half'"):
        fit.pooling()


def test_design_effect(fit):
    V = covariance(fit)
    found = fit.design_effect()
    np.testing.assert_allclose(found.mean, V.sum() / np.trace(V), rtol=1e-10)
    sd = np.sqrt(np.diag(V))
    np.testing.assert_allclose(found.effective_sample_size, np.linalg.inv(V / np.outer(sd, sd)).sum(), rtol=1e-8)
    X = fit.model.exog
    apart = np.linalg.inv(X.T @ (X / np.diag(V)[:, None]))
    np.testing.assert_allclose(found.fixed_effects, np.diag(fit.cov) / np.diag(apart), rtol=1e-8)
