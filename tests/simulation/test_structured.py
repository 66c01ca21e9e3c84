"""Bootstraps of fits with structured residuals, against fits of the data copied or drawn by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.simulation import structured
from fastlmm_core.simulation.bootstrap import _resamples
from fastlmm_core.simulation.draws import draws
from fastlmm_core.support.seeds import key_of

REFIT = 1e-5
"""Relative: two certified searches of one maximum from different starts."""


def trial(seed=0, n=30, m=4, sites=6):
    rng = np.random.default_rng(seed)
    i, v = (part.ravel() for part in np.indices((n, m)))
    e = (rng.normal(size=(n, m)) @ np.linalg.cholesky(0.5 ** np.abs(np.subtract.outer(range(m), range(m)))).T).ravel()
    x = rng.normal(size=n * m)
    y = 1.0 + 0.5 * x + rng.normal(size=sites)[i % sites] + e
    data = pd.DataFrame({"y": y, "x": x, "id": i, "site": i % sites, "visit": v, "w": rng.uniform(0.5, 2.0, n * m)})
    return data[rng.random(n * m) > 0.1].reset_index(drop=True)


MODELS = {
    "visits": ("y ~ x", "ar1(visit | id)", "id", None),
    "us": ("y ~ x", "us(visit | id)", "id", "w"),
    "sites": ("y ~ x + (1 | site)", "ar1(visit | id)", "site", "w"),
    "slopes": ("y ~ x + (x | id)", "ar1(visit | id)", "id", None),
}


def fitted(name, data):
    formula, residual, unit, weights = MODELS[name]
    return flc.lmm(formula, data, residual=residual, weights=weights).fit(), unit


@pytest.mark.parametrize("name", MODELS)
def test_cases_are_fits_of_copied_clusters(name):
    data = trial()
    fit, unit = fitted(name, data)
    units = sorted(data[unit].unique())
    boot = fit.bootstrap(3, "cases", seed=4)
    for i, counts in enumerate(_resamples(len(units), 3, 4, 0)):
        copies = []
        for g, count in zip(units, counts, strict=True):
            own = data[data[unit] == g]
            copies += [own.assign(id=own.id.astype(str) + f".{c}", site=f"{g}.{c}") for c in range(count)]
        again, _ = fitted(name, pd.concat(copies, ignore_index=True))
        expected = structured.Parameters(again).values(again)
        np.testing.assert_allclose(boot.replicates[i], expected, rtol=REFIT, atol=REFIT)
        np.testing.assert_allclose(boot.replicate_std_error[i, :2], again.bse, rtol=REFIT)
        assert boot.converged[i] == again.converged


@pytest.mark.parametrize("kind", ["parametric", "conditional", "residual"])
@pytest.mark.parametrize("name", ["us", "sites"])
def test_draws_have_the_moments_of_the_fit(name, kind):
    fit, _ = fitted(name, trial(1))
    makers = {"parametric": None, "conditional": structured.conditional, "residual": structured.residual}
    n = 6000
    if kind == "parametric":
        Y = np.asarray(fit.simulate(n, seed=1))
    else:
        Y = np.concatenate([block() for block in draws(makers[kind](fit), n, key_of(1))])
    model = fit.model
    V = fit.sigma2 * model.residual.covariance(fit.phi, np.arange(fit.nobs))
    V /= np.sqrt(np.outer(model.weights, model.weights))
    mean = fit.fittedvalues
    if kind != "conditional":
        mean = fit.marginal_mean
        if model.structure.q:
            V += fit.covariance[0, 0] * np.equal.outer(model.grouping.index, model.grouping.index)
    spread = np.sqrt(np.diag(V))
    assert np.abs((Y.mean(axis=0) - mean) / spread).max() < 5.0 / np.sqrt(n)
    found = np.cov(Y.T) / np.outer(spread, spread)
    # heavy-tailed residuals have products with more spread than normal ones
    assert np.abs(found - V / np.outer(spread, spread)).max() < 7.0 / np.sqrt(n)


def test_intervals_of_the_kinds_that_are_best(recwarn):
    fit, _ = fitted("sites", trial(2, n=40, sites=10))
    boot = fit.bootstrap(40, seed=1)
    assert boot.kinds == ("fixed", "fixed", "sd", "residual", "residual")
    methods = boot.interval_methods
    assert methods["x"] == "studentized" and methods["sd_Intercept|site"] == "bca"
    assert methods["rho|id"] == "percentile"
    limits = boot.conf_int(0.9)
    assert (limits["conf_low"] < limits["conf_high"]).all()
    deleted = structured.without_clusters(fit)
    data = trial(2, n=40, sites=10)
    for i, site in enumerate(sorted(data.site.unique())):
        again, _ = fitted("sites", data[data.site != site].reset_index(drop=True))
        np.testing.assert_allclose(deleted[i], structured.Parameters(again).values(again), rtol=REFIT, atol=REFIT)
    with pytest.raises(flc.LMMError, match="statistic= needs responses"):
        fit.bootstrap(5, "cases", lambda r: r.sigma2)
    with pytest.raises(flc.LMMError, match="kind='wild'"):
        fit.bootstrap(5, "wild")
