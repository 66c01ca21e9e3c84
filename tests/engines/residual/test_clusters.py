"""The criterion of clusters in full against dense algebra, with random effects, and against that over visits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle_residual as dense
from fastlmm_core.engines.residual.clusters import ClusterCriterion

VALUE = 1e-11  # relative, rounding of sums over a few dozen rows
GRADIENT = 2e-8  # relative to the criterion's curvature: fourth-order differences of steps of 1e-4
HESSIAN = 1e-7  # the same, of analytic gradients
SAME = 1e-9  # relative: two criteria of one model


def problem(rng: np.random.Generator, *, sites: int = 6, n: int = 30, m: int = 4) -> pd.DataFrame:
    """Subjects in sites, with visits missing at random and times of their own."""
    rows = []
    level = rng.normal(size=sites)
    for i in range(n):
        own = rng.normal(size=2)
        time = 0.0
        for v in np.flatnonzero(rng.random(m) < 0.8):
            time += rng.uniform(0.2, 1.5)
            y = level[i % sites] + own[0] + 0.5 * own[1] * time + 0.4 * v + rng.normal() * (1 + 0.2 * v)
            rows.append((f"s{i}", f"c{i % sites}", int(v), time, "AB"[(i // sites) % 2], y))
    frame = pd.DataFrame(rows, columns=["id", "site", "visit", "time", "arm", "y"])
    frame["w"] = rng.uniform(0.5, 2.0, len(frame))
    return frame.sample(frac=1.0, random_state=int(rng.integers(1000))).reset_index(drop=True)


MODELS = [
    ("y ~ arm + time + (1 | site)", "us(visit | id)"),
    ("y ~ arm + time + (time | site)", "ar1h(visit | id, by=arm)"),
    ("y ~ arm + time + (time | id)", "ar1(visit | id)"),
    ("y ~ arm + time + (time || id)", "diag(visit | id)"),
    ("y ~ arm + time + (1 | site) + (time | id)", "ar1(visit | id)"),
]


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("formula", "residual"), MODELS)
def test_value_and_derivatives(formula, residual, reml, weights, rng):
    model = flc.lmm(formula, problem(rng), residual=residual, weights=weights)
    k = model.structure.n_parameters
    x = np.concatenate([rng.normal(0.6, 0.3, k), 0.2 * rng.normal(size=model.design.residual.n_parameters)])

    def value(x):
        factor = model.structure.factor(x[:k])
        return dense.criterion(model, x[k:], reml, factor @ factor.T)

    found = model.evaluate(x, reml=reml, order=2)
    assert found.value == pytest.approx(value(x), rel=VALUE)
    size = np.sqrt(np.abs(np.diag(found.hessian))) + 1.0
    assert np.abs((found.gradient - dense.gradient(value, x)) / size).max() < GRADIENT * abs(found.value)
    for i in range(len(x)):
        step = 1e-4 * np.eye(len(x))[i]
        near = model.evaluate(x + step, reml, 1).gradient - model.evaluate(x - step, reml, 1).gradient
        far = model.evaluate(x + 2 * step, reml, 1).gradient - model.evaluate(x - 2 * step, reml, 1).gradient
        change = (8.0 * near - far) / 12e-4
        assert np.abs((found.hessian[i] - change) / size / size[i]).max() < HESSIAN


@pytest.mark.parametrize("residual", ["us(visit | id)", "toeph(visit | id, by=arm)", "cs(visit | id)"])
def test_without_random_effects_it_is_the_criterion_over_visits(residual, rng):
    model = flc.lmm("y ~ arm + time", problem(rng), residual=residual)
    p = model.problem
    other = ClusterCriterion(p.clusters, p.xy, p.Z, p.structure, list(p.spans), p.residual)
    own = p.criterion()
    x = p.start(own) + 0.1 * rng.normal(size=own.n_par)
    for one, two in zip(own.evaluate(x, 2), other.evaluate(x, 2), strict=True):
        np.testing.assert_allclose(one, two, rtol=SAME, atol=SAME * 100)
    weight = rng.normal(size=(own.n_par, own.n_par))
    weight = weight + weight.T
    np.testing.assert_allclose(own.cross_products(), other.cross_products(), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(own.sandwich_along(weight), other.sandwich_along(weight), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(own.expected(), other.expected(), rtol=1e-8, atol=1e-8)
    tables = [rng.normal(size=(len(w), len(w))) for _, w in own.places]
    tables = [T + T.T for T in tables]
    np.testing.assert_allclose(own.within(tables), other.within(tables), rtol=1e-8, atol=1e-8)


def test_effects_are_those_of_dense_algebra(rng):
    fit = flc.lmm("y ~ arm + time + (1 | site) + (time | id)", problem(rng), residual="ar1(visit | id)").fit()
    V = fit.sigma2 * dense.covariance(fit.model, fit.phi, fit.relative_covariance)
    rest = fit.marginal_rest
    for f, b, C in zip(fit.model.factors, fit.blups, fit.blup_covariances, strict=True):
        G = fit.covariance[f.columns, f.columns]
        for level in range(f.grouping.m):
            Z = fit.model.exog_re[:, f.columns] * (f.grouping.index == level)[:, None]
            np.testing.assert_allclose(b[level], G @ Z.T @ np.linalg.solve(V, rest), rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(C[level], G - G @ Z.T @ np.linalg.solve(V, Z) @ G, rtol=1e-6, atol=1e-9)
