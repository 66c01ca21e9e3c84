"""The conditional AIC against numerical derivatives of refits."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
import fits

CASES = [
    ("Reaction ~ Days + (Days | Subject)", "sleepstudy"),
    ("distance ~ age * Sex + (age | Subject)", "orthodont"),  # REML: a correlation at its limit
    ("Yield ~ 1 + (1 | Batch)", "dyestuff2"),  # a variance of zero
    ("score ~ Machine + (Machine || Worker)", "machines"),
    ("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin"),
    ("strength ~ 1 + (1 | batch/cask)", "pastes"),
]


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("formula", "dataset"), CASES)
def test_degrees_of_freedom_are_the_trace_of_the_derivative(formula, dataset, reml):
    """d y^_i / dy_i by central differences, each through two refits: exact to 1e-7 or so."""
    data = flc.datasets.load(dataset)
    if dataset == "penicillin":
        data = data[data["plate"].isin(list("abcdef"))]
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(data)) if reml else None
    fit = flc.lmm(formula, data, weights=weights).fit(reml=reml)
    y = fit.model.endog
    h = 1e-3 * y.std()
    slope = 0.0
    for i in range(len(y)):
        step = np.zeros(len(y))
        step[i] = h
        ahead, back = (fit.model.refit(y + sign * step, reml=reml).fitted_mean[i] for sign in (1.0, -1.0))
        slope += (ahead - back) / (2.0 * h)
    found = fit.conditional_aic()
    assert found.df == pytest.approx(slope + 1.0, rel=1e-6)
    assert found.aic == pytest.approx(-2.0 * found.llf + 2.0 * found.df)


def test_likelihood_given_the_effects():
    fit = fits.fitted(fits.SLEEPSTUDY, "sleepstudy")
    found = fit.conditional_aic()
    each = -0.5 * np.log(2.0 * np.pi * fit.sigma2) - 0.5 * fit.rest**2 / fit.sigma2
    assert found.llf == pytest.approx(each.sum(), rel=1e-12)
    X, Z = fit.model.exog, np.zeros((180, 36))
    for i, g in enumerate(fit.model.grouping.index):
        Z[i, 2 * g : 2 * g + 2] = fit.model.exog_re[i]
    V = np.eye(180) + Z @ np.kron(np.eye(18), fit.relative_covariance) @ Z.T
    W = np.linalg.inv(V)
    P = W - W @ X @ np.linalg.solve(X.T @ W @ X, X.T @ W)
    assert found.df_known == pytest.approx(181.0 - np.trace(P), rel=1e-10)
    assert str(found).startswith("Conditional AIC: 1711.52")


def test_refused():
    fit = fits.fitted(fits.SLEEPSTUDY, "sleepstudy")
    with pytest.raises(flc.LMMError, match="stated"):
        fit.at(sigma2=1.0).conditional_aic()
    data = flc.datasets.load("sleepstudy")
    with pytest.raises(flc.LMMError, match="conditional_aic"):
        flc.lmm("Reaction ~ Days + cs(Days | Subject)", data).fit().conditional_aic()
    with pytest.raises(flc.LMMError, match="conditional_aic"):
        flc.lmm("Reaction ~ Days", data, residual="ar1(Days | Subject)").fit().conditional_aic()
