"""Predictions for known groups by Kenward and Roger's method against dense algebra: the error that estimation adds."""

from __future__ import annotations

import numpy as np
import pytest

import dense_inference
import fastlmm_core as flc
import oracle
from fastlmm_core.prediction.one_factor import LEAST_DF, least_stratum

RTOL = 1e-6


def weights_of(x, z, level, X, Z, g, noise, G, sigma2, n_fit):
    """The vector lambda with lambda'y the prediction; beta from the first n_fit rows only."""
    V = np.where(g[:, None] == g, Z @ G @ Z.T, 0.0) + sigma2 * np.diag(noise)
    first = slice(0, n_fit)
    W = np.linalg.inv(V[first, first])
    to_beta = np.zeros((X.shape[1], len(X)))
    to_beta[:, first] = np.linalg.solve(X[first].T @ W @ X[first], X[first].T @ W)
    own = g == level
    to_effect = np.zeros((Z.shape[1], len(X)))
    to_effect[:, own] = G @ Z[own].T @ np.linalg.inv(V[np.ix_(own, own)])
    return x @ to_beta + z @ (to_effect - to_effect @ X @ to_beta), V


def added(result, x, z, level, more=None):
    """g: the variance of the derivative of the prediction, weighted by the covariance of (G, sigma2)."""
    dense = dense_inference.at_optimum(result)
    model = result.model
    X, Z, g = model.exog, model.exog_re, np.asarray(model.grouping.index)
    noise = np.ones(len(g)) if model.weights is None else 1.0 / model.weights
    if more is not None:
        X, Z = np.vstack([X, more[0]]), np.vstack([Z, more[1]])
        g, noise = np.append(g, np.full(len(more[0]), level)), np.append(noise, np.ones(len(more[0])))
    G, sigma2 = oracle.covariance_blocks(result), result.sigma2

    def at(change):
        moved = G + sum(c * D for c, D in zip(change[:-1], dense.units, strict=True))
        return weights_of(x, z, level, X, Z, g, noise, moved, sigma2 + change[-1], model.nobs)

    K = len(dense.units) + 1
    slopes = []
    for e in np.eye(K):
        h = 1e-4 * sigma2
        far, near = (at(t * h * e)[0] - at(-t * h * e)[0] for t in (2.0, 1.0))
        slopes.append((8.0 * near - far) / (12.0 * h))
    _, V = at(np.zeros(K))
    T = np.array([[a @ V @ b for b in slopes] for a in slopes])
    return float(np.sum(dense.covariance("expected") * T))


def grouped(rng, q, m=9, weights=False, structure="full"):
    g = np.repeat(np.arange(m), rng.integers(q + 2, 8, m))
    n = len(g)
    Z = np.column_stack([np.ones(n), rng.standard_normal((n, q - 1)) + 0.3])
    X = np.column_stack([Z, rng.standard_normal(m)[g], rng.standard_normal(n)])
    w = rng.uniform(0.5, 2.0, n) if weights else None
    y = X.sum(axis=1) + np.sum(2.0 * Z * rng.standard_normal((m, q))[g], axis=1) + rng.standard_normal(n)
    return flc.LinearMixedModel(y, X, Z, g, weights=w, structure=structure)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(("q", "structure"), [(1, "full"), (2, "full"), (2, "diagonal")])
def test_known_groups(rng, q, structure, weights):
    result = grouped(rng, q, weights=weights, structure=structure).fit()
    assert not result.singular
    new = {
        "X": rng.standard_normal((4, q + 2)), "Z": rng.standard_normal((4, q)), "groups": np.array([0, 3, 8, 3]),
    }  # fmt: skip
    new["X"][3] = 0.0  # the effect alone
    plain = result.predict(new, effects="all", interval="confidence")
    found = result.predict(new, effects="all", interval="confidence", ddf="kenward-roger")
    np.testing.assert_array_equal(found["mean"], plain["mean"])
    extra = np.asarray(found["std_error"]) ** 2 - np.asarray(plain["std_error"]) ** 2
    wanted = [2.0 * added(result, *row) for row in zip(new["X"], new["Z"], new["groups"], strict=True)]
    np.testing.assert_allclose(extra, wanted, rtol=RTOL)
    assert (found["df"] >= least_stratum(result)).all()


def test_groups_observed_later(rng):
    result = grouped(rng, 2).fit()
    X, Z = rng.standard_normal((3, 4)), np.column_stack([np.ones(3), rng.standard_normal(3)])
    observed = {"y": rng.standard_normal(3), "X": X, "Z": Z, "groups": np.full(3, 77)}
    new = {"X": rng.standard_normal((2, 4)), "Z": rng.standard_normal((2, 2)), "groups": np.full(2, 77)}
    errors = [
        np.asarray(result.predict(new, effects="all", interval="confidence", observed=observed, ddf=ddf)["std_error"])
        for ddf in ("satterthwaite", "kenward-roger")
    ]
    wanted = [2.0 * added(result, x, z, 77, (X, Z)) for x, z in zip(new["X"], new["Z"], strict=True)]
    np.testing.assert_allclose(errors[1] ** 2 - errors[0] ** 2, wanted, rtol=RTOL)


def test_the_population_is_as_ever(rng):
    result = grouped(rng, 2, 20).fit()
    assert not result.singular
    new = {"X": rng.standard_normal((3, 4)), "Z": rng.standard_normal((3, 2)), "groups": np.array([70, 1, 71])}
    mixed = result.predict(new, effects="all", interval="confidence", ddf="kenward-roger", new_levels="population")
    plain = result.predict(new, interval="confidence", ddf="kenward-roger")
    for name in ("mean", "std_error", "df"):
        np.testing.assert_allclose(np.asarray(mixed[name])[[0, 2]], np.asarray(plain[name])[[0, 2]], rtol=1e-10)


def test_a_variance_of_zero_is_not_known_to_be_zero():
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(10), [2, 4, 5, 6, 7, 8, 9, 10, 12, 14])
    while True:
        result = flc.LinearMixedModel(rng.standard_normal(len(g)), groups=g).fit()
        if result.singular:
            break
    effect = {"X": np.zeros((10, 1)), "Z": np.ones((10, 1)), "groups": np.arange(10)}
    plain = result.predict(effect, effects="all", interval="confidence")
    found = result.predict(effect, effects="all", interval="confidence", ddf="kenward-roger")
    assert (np.asarray(plain["std_error"]) == 0.0).all()
    wanted = [2.0 * added(result, np.zeros(1), np.ones(1), level) for level in range(10)]
    np.testing.assert_allclose(np.asarray(found["std_error"]) ** 2, wanted, rtol=RTOL)
    # the smallest stratum: ten groups and the mean
    assert least_stratum(result) == 9.0
    assert (np.asarray(found["df"]) >= 9.0).all() and np.isfinite(found["df"]).all()


def test_least_strata(rng):
    for q, m in ((1, 9), (2, 12)):
        model = grouped(rng, q, m)
        Z, g, X = model.exog_re, np.asarray(model.grouping.index), model.exog
        _, wide = oracle.random_design(Z, g)
        rank = np.linalg.matrix_rank
        wanted = (rank(np.column_stack([X, wide])) - rank(X)) / q
        assert least_stratum(model.fit()) == wanted > LEAST_DF
    # two groups and a coefficient between them: no stratum is left, and 1 is the least
    g = np.repeat(np.arange(3), 6)
    X = np.column_stack([np.ones(18), g == 1, rng.standard_normal(18)])
    result = flc.LinearMixedModel(rng.standard_normal(18), X, None, g).fit()
    assert least_stratum(result) == LEAST_DF
