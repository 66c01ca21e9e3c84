"""Variance parameters and shares of the variance of a batch: each is that of the fit of one response."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError

ERRORS = 1e-6
"""Standard errors follow theta, which both searches leave at 1e-8 standard errors of the optimum."""
EDGE = 1e-5
"""Where a variance is near zero its logarithm changes fast."""


def batches():
    rng = np.random.default_rng(8)
    g = np.repeat(np.arange(25), 6)
    x, arm = rng.normal(size=150), np.array(["a", "b", "c"])[g % 3]
    table = {"y": rng.normal(size=150), "x": x, "arm": arm, "g": g, "h": np.tile(np.arange(6), 25)}
    w = rng.uniform(0.5, 2.0, 150)
    u = rng.normal(size=(8, 25, 2)) @ np.array([[1.0, 0.3], [0.0, 0.7]])
    Y = u[:, g, 0] + u[:, g, 1] * x + rng.normal(size=(8, 150)) / np.sqrt(w) + x
    Y[6:] = rng.normal(size=(2, 150))
    yield "slopes", flc.lmm("y ~ x + arm + (x | g)", table, weights=w).fit_many(Y)
    yield "independent", flc.lmm("y ~ x + arm + (x || g)", table).fit_many(Y, reml=False)
    yield "crossed", flc.lmm("y ~ x + (1 | g) + (1 | h)", table).fit_many(Y + rng.normal(size=(8, 6))[:, table["h"]])


BATCHES = dict(batches())


@pytest.fixture(params=BATCHES)
def batch(request):
    return BATCHES[request.param]


def test_components(batch):
    found = batch.variance_components()
    limits = found.conf_int(0.9)
    for i in range(len(batch)):
        wanted = batch[i].variance_components(0.9, method="wald")
        names = list(wanted["term"])
        places = [names.index(name) for name in found.names]
        column = {name: np.asarray(wanted[name])[places] for name in ("kind", "estimate", "std_error", "conf_low")}
        assert tuple(column["kind"]) == found.kinds
        tolerance = ERRORS if batch.status[i] == 1 else EDGE
        np.testing.assert_allclose(found.estimate[i], column["estimate"].astype(float), rtol=tolerance, atol=1e-6)
        np.testing.assert_allclose(found.std_error[i], column["std_error"].astype(float), rtol=tolerance)
        np.testing.assert_allclose(limits[i, :, 0], column["conf_low"].astype(float), rtol=10 * tolerance, atol=1e-6)
    assert np.isfinite(found.std_error).any()
    assert len(found.to_frame()["term"]) == found.estimate.size
    assert "median" in str(found)


@pytest.mark.parametrize("formula", ["(1 | g)", "(x | g)", "(x || g)", "(x + z | g)", "(1 | g) + (1 | h)"])
@pytest.mark.parametrize("reml", [True, False])
def test_components_at_the_boundary(formula, reml):
    """Along the matrices of the rank found, as single fits have them by the curvature in G."""
    rng = np.random.default_rng(11)
    g = np.repeat(np.arange(15), 6)
    table = {"y": rng.normal(size=90), "x": np.tile(np.arange(6.0), 15), "z": rng.normal(size=90), "g": g}
    model = flc.lmm(f"y ~ x + {formula}", table | {"h": np.tile(np.arange(6), 15)})
    batch = model.fit_many(rng.normal(size=(40, 90)) + 0.3 * rng.normal(size=(40, 15))[:, g], reml=reml)
    edge = np.flatnonzero(batch.singular & ~batch.alone)
    assert len(edge) > 5
    found = batch.variance_components()
    unlike = 0
    for i in edge.tolist():
        table = batch[i].variance_components(method="wald")
        errors = dict(zip(list(table["term"]), np.asarray(table["std_error"], dtype=float), strict=True))
        wanted = np.array([errors[name] for name in found.names])
        unlike += not np.array_equal(np.isnan(found.std_error[i]), np.isnan(wanted))
        both = np.isfinite(found.std_error[i]) & np.isfinite(wanted)
        np.testing.assert_allclose(found.std_error[i][both], wanted[both], rtol=EDGE)
    # a variance of rounding error is zero for one and not for the other
    assert unlike <= 1


def test_shares(batch):
    icc, r2 = batch.icc(), batch.r2()
    for i in range(len(batch)):
        one = batch[i]
        wanted = one.icc()
        if isinstance(wanted, dict):
            for name, value in wanted.items():
                np.testing.assert_allclose(icc[name][i], value, rtol=1e-6, atol=1e-9)
        else:
            np.testing.assert_allclose(icc[i], wanted, rtol=1e-6, atol=1e-9)
        for name, value in one.r2().items():
            np.testing.assert_allclose(r2[name][i], value, rtol=1e-6)


def test_fractions_of_terms():
    batch = BATCHES["slopes"]
    found = batch.variance_fractions()
    assert found.names == ("x", "arm", "g", "Residual")
    np.testing.assert_allclose(found.fractions.sum(axis=1), 1.0, rtol=1e-14)
    X, Z = batch.model.exog, batch.model.exog_re
    for i in (0, 7):
        beta = batch.params[i]
        own = [np.var(X[:, [1]] @ beta[[1]], ddof=1), np.var(X[:, 2:] @ beta[2:], ddof=1)]
        fixed = np.var(X @ beta, ddof=1)
        random = np.mean([z @ batch.covariance[i] @ z for z in Z])
        residual = np.mean(batch.sigma2[i] / batch.model.weights)
        parts = np.array([own[0] / sum(own) * fixed, own[1] / sum(own) * fixed, random, residual])
        np.testing.assert_allclose(found.fractions[i], parts / parts.sum(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(1.0 - found.fractions[:, -1], batch.r2()["conditional"], rtol=1e-12)
    assert list(found.to_frame())[-1] == "Residual" and "50 %" in str(found)


def test_simulated_fits_and_streams_have_them():
    fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    drawn = fit.simulate_fit(12, 3)
    given = fit.model.fit_many(fit.simulate(12, 3))
    np.testing.assert_allclose(
        drawn.variance_components().std_error, given.variance_components().std_error, rtol=1e-5, equal_nan=True
    )
    stream = fit.model.fit_many(iter([fit.simulate(12, 3)]))
    np.testing.assert_array_equal(stream.variance_components().std_error, given.variance_components().std_error)
    with pytest.raises(LMMError, match="not part of a pickle"):
        pickle.loads(pickle.dumps(given)).variance_components()
    np.testing.assert_allclose(stream.icc(), given.icc(), rtol=1e-9)
