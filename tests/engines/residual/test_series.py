"""Series whitened row by row, against the covariance matrices of clusters in full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError
from fastlmm_core.engines.residual import series as series_module
from fastlmm_core.engines.residual.clusters import ClusterCriterion
from fastlmm_core.engines.residual.series import SeriesCriterion
from fastlmm_core.kernels.records.rows import ConditionedRows

EXACT = 1e-9
"""Relative: both are exact, and sums of a few hundred products."""


def series(seed=0, sizes=(230, 40, 90, 1, 60), step=1.0):
    rng = np.random.default_rng(seed)
    parts = []
    for g, n in enumerate(sizes):
        t = np.cumsum(rng.integers(1, 4, n)) if step == 1.0 else np.cumsum(rng.uniform(0.2, 2.0, n))
        e = np.empty(n)
        for k in range(n):
            rho = 0.0 if k == 0 else 0.7 ** (t[k] - t[k - 1])
            e[k] = rho * (e[k - 1] if k else 0.0) + np.sqrt(1.0 - rho**2) * rng.standard_normal()
        x = rng.standard_normal(n)
        y = 1.0 + 0.5 * x + 0.8 * rng.standard_normal() + 0.4 * rng.standard_normal() * x + e * (1.0 + g % 2)
        frame = {"y": y, "x": x, "t": t, "g": g, "arm": g % 2, "v": rng.uniform(0.5, 3.0, n), "w": rng.uniform(1, 2, n)}
        parts.append(pd.DataFrame(frame))
    return pd.concat(parts).sample(frac=1.0, random_state=1).reset_index(drop=True)


CASES = {
    "ar1": ("y ~ x", {"residual": "ar1(t | g)"}, 1.0),
    "car1": ("y ~ x", {"residual": "car1(t | g)"}, 0.5),
    "slope": ("y ~ x + (x | g)", {"residual": "ar1(t | g)"}, 1.0),
    "diagonal": ("y ~ x + (x || g)", {"residual": "car1(t | g)"}, 0.5),
    "by": ("y ~ x + (1 | g)", {"residual": "car1(t | g, by=arm)"}, 0.5),
    "weights": ("y ~ x + (x | g)", {"residual": "car1(t | g)", "weights": "w"}, 0.5),
    "variance": ("y ~ x + (1 | g)", {"residual": "car1(t | g)", "variance": "power(v)"}, 0.5),
}


def both(name, seed=0):
    formula, options, step = CASES[name]
    model = flc.lmm(formula, series(seed, step=step), **options)
    problem = model.problem
    found = problem.criterion()
    assert isinstance(found, SeriesCriterion)
    dense = ClusterCriterion(
        problem.clusters, problem.xy, problem.Z, problem.structure, list(problem.spans), problem.residual
    )
    return model, found, dense


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reml", [True, False])
def test_every_quantity(name, reml):
    model, found, dense = both(name)
    rng = np.random.default_rng(1)
    k = model.structure.n_parameters
    x = np.concatenate((rng.uniform(0.2, 1.0, k), rng.uniform(0.1, 0.7, model.problem.residual.n_parameters)))
    found.reml = dense.reml = reml
    for one, other in zip(found.evaluate(x, 2), dense.evaluate(x, 2), strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=EXACT, atol=EXACT * scale)
    for one, other in zip(found.solution(), dense.solution(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=EXACT)
    one, other = found.cross_products(), dense.cross_products()
    np.testing.assert_allclose(one, other, rtol=EXACT, atol=EXACT * np.abs(other).max())
    v = rng.standard_normal((model.problem.n, 2))
    rows = ConditionedRows((), (), model.weights)
    np.testing.assert_allclose(found.solve(v, rows), dense.solve(v, rows), rtol=1e-8, atol=1e-9)


def test_large_effects_do_not_cancel():
    # an intercept for each of five subjects, free: ten times their standard deviation adds 5 log 100 to log|V|
    model, found, _ = both("by")
    found.reml = False
    phi = np.full(model.problem.residual.n_parameters, 0.3)
    values = [found.evaluate(np.append(size, phi), 0)[0] for size in (1e7, 1e8)]
    np.testing.assert_allclose(values[1] - values[0], 5.0 * np.log(100.0), rtol=1e-10)


def test_fit():
    data = series(3, (400, 350, 420, 380, 390, 410), 0.5)
    fit = flc.lmm("y ~ x + (x | g)", data, residual="car1(t | g)").fit()
    assert fit.converged
    problem = fit.model.problem
    dense = ClusterCriterion(
        problem.clusters, problem.xy, problem.Z, problem.structure, list(problem.spans), problem.residual
    )
    value, gradient, hessian = dense.evaluate(fit.optimum.theta, 2)
    np.testing.assert_allclose(value, fit.optimum.value, rtol=1e-11)
    assert np.sqrt(gradient @ np.linalg.solve(hessian, gradient)) < 1e-5
    assert 1.0 < fit.test("x = 0").df_denom < 7.0


@pytest.mark.parametrize("phi", [-40.0, -0.3, 2.0, 40.0, 4e3])
def test_gaps_and_rows_are_one_criterion(phi):
    # subjects' means are far apart, and one subject has one row
    data = series(3, (50, 1, 40, 60))
    data["y"] += 100.0 * data["g"]
    problem = flc.lmm("y ~ x + (x | g)", data, residual="ar1(t | g)").problem
    found, by_rows = problem.criterion(), problem.criterion()
    assert found.series[0].sums is not None
    by_rows.series = [replace(own, sums=None) for own in by_rows.series]
    x = np.array([30.0, 0.4, 0.9, phi])
    for one, other in zip(found.evaluate(x, 2), by_rows.evaluate(x, 2), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.abs(other).max())


def test_what_a_difference_has_lost_is_taken_from_rows():
    # a column of X differs from one of Z by 1e-7 within subjects, so that a difference would keep two digits
    data = series(3, (50, 30, 40, 60))
    data["z"] = 1e7 * np.sqrt(data["t"]) + data["x"]
    problem = flc.lmm("y ~ x + z + (z | g)", data, residual="ar1(t | g)").problem
    found, by_rows = problem.criterion(), problem.criterion()
    by_rows.series = [replace(own, sums=None) for own in by_rows.series]
    for phi in (1.0, 1e3, 1e5):
        x = np.array([0.4, 0.2, 0.9, phi])
        one, other = found.evaluate(x, 0)[0], by_rows.evaluate(x, 0)[0]
        np.testing.assert_allclose(one, other, rtol=1e-11)
    # steps of a constant between rows are those of t: where these weigh much, an effect of t takes next to all of it
    problem = flc.lmm("y ~ x + (0 + t | g)", data, residual="ar1(t | g)").problem
    found, by_rows = problem.criterion(), problem.criterion()
    by_rows.series = [replace(own, sums=None) for own in by_rows.series]
    for phi in (1e5, 1e7):
        x = np.array([1.0, phi])
        np.testing.assert_allclose(found.evaluate(x, 0)[0], by_rows.evaluate(x, 0)[0], rtol=1e-13)


def test_expected_information_and_kenward_roger(monkeypatch):
    data = series(4, (230, 60, 80, 50, 70, 40, 90), 0.5)
    fit = flc.lmm("y ~ x + (x | g)", data, residual="car1(t | g)").fit()
    short = flc.lmm("y ~ x + (x | g)", data, residual="car1(t | g)")
    monkeypatch.setattr(type(short.problem), "chains", None)
    other = short.fit()
    assert isinstance(fit.engine, SeriesCriterion) and isinstance(other.engine, ClusterCriterion)
    for ddf, information in (("kenward-roger", "observed"), ("kenward-roger-linear", "expected")):
        one, two = (f.test("x = 0", ddf=ddf, information=information) for f in (fit, other))
        np.testing.assert_allclose(one.df_denom, two.df_denom, rtol=1e-5)
        np.testing.assert_allclose(one.statistic, two.statistic, rtol=1e-6)


def test_what_needs_matrices_of_long_series_is_refused(monkeypatch):
    fit = flc.lmm("y ~ x + (1 | g)", series(5, (210, 60, 80, 50)), residual="ar1(t | g)").fit()
    monkeypatch.setattr(series_module, "IN_FULL", 209)
    with pytest.raises(LMMError, match=r"a subject has 210 rows.*take ddf='satterthwaite'"):
        fit.test("x = 0", ddf="kenward-roger")


def test_other_levels_take_the_clusters():
    data = series(0, (230, 40))
    data["other"] = np.arange(len(data)) % 7
    model = flc.lmm("y ~ x + (1 | other)", data, residual="ar1(t | g)")
    assert isinstance(model.problem.criterion(), ClusterCriterion)
    # its levels are in both series: no rows are independent
    assert not model.problem.labels.any()
    nugget = flc.lmm("y ~ x", data, residual="sp_exp(t | g, nugget=True)")
    assert isinstance(nugget.problem.criterion(), ClusterCriterion)
