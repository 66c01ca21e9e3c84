"""Profiles with structured residuals and restricted covariances, against general optimisers on dense deviances."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

import fastlmm_core as flc
from fastlmm_core.inference.profile.reported import reported
from fastlmm_core.inference.profile.structured import StructuredProfiler, structured_parameters
from structures_cases import difference

RISE = 2e-5
"""Absolute, of a rise of 3.84: limits are solved for to a thousandth of a step, and the optimiser to 1e-6."""

LEVEL = 3.841458820694124


def trial(seed=0, n=25, m=3, sites=5, rho=0.6, between=1.0):
    rng = np.random.default_rng(seed)
    i, v = (part.ravel() for part in np.indices((n, m)))
    C = rho ** np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    e = (rng.normal(size=(n, m)) @ np.linalg.cholesky(C).T * np.linspace(1.0, 1.5, m)).ravel()
    x = rng.normal(size=n * m)
    y = 5.0 + 0.5 * x + between * rng.normal(size=sites)[i % sites] + e
    data = pd.DataFrame({"y": y, "x": x, "id": i, "site": i % sites, "visit": v, "t": v * 1.3})
    return data[rng.random(n * m) > 0.1].reset_index(drop=True)


def replicates(seed=0, n=12):
    """Three rows at each of three visits."""
    data = pd.concat([trial(seed, n, between=0.0)] * 3, ignore_index=True)
    rng = np.random.default_rng(seed)
    return data.assign(y=data.y + rng.normal(size=len(data)), x=rng.normal(size=len(data)))


def sloped():
    """Slopes that vary between sites."""
    data = trial(3, n=36, sites=12)
    return data.assign(y=data.y + np.random.default_rng(9).normal(size=12)[data.site] * data.x)


def test_a_correlation_of_what_does_not_vary_is_no_number():
    """A search passes by where a variance is zero, and must not end there."""
    fit = flc.lmm("y ~ x + (x | site)", sloped(), variance="exp(t)").fit()
    z = np.concatenate([fit.theta, [np.log(fit.sigma2)]])
    correlation = next(value for value in reported(fit) if value.name.startswith("cor"))
    assert np.isfinite(correlation.at(z).c)
    for vanishing in ([0], [1, 2]):
        z[vanishing] = 0.0
        assert np.isnan(correlation.at(z).c)
        assert np.isnan(correlation.natural(z))


def lags(data):
    return np.abs(np.subtract.outer(data.visit.to_numpy(), data.visit.to_numpy()))


def same(data, name):
    return np.equal.outer(data[name].to_numpy(), data[name].to_numpy())


def ar1(data, p):
    return np.exp(p[0]) * np.tanh(p[1]) ** lags(data) * same(data, "id")


def ar1_and_sites(data, p):
    return np.exp(2.0 * p[0]) * same(data, "site") + ar1(data, p[1:])


def us2(data, p):
    S = np.array([[np.exp(p[0]), p[1]], [p[1], np.exp(p[2])]])
    v = data.visit.to_numpy()
    return S[np.ix_(v, v)] * same(data, "id")


def by_visit(data, p):
    return ar1(data, p[:2]) + np.exp(2.0 * p[2]) * np.eye(len(data))


def slopes(data, p):
    r = np.tanh(p[1]) * np.exp(p[0] + p[2])
    G = np.array([[np.exp(2.0 * p[0]), r], [r, np.exp(2.0 * p[2])]])
    Z = np.column_stack([np.ones(len(data)), data.x])
    return (Z @ G @ Z.T) * same(data, "site") + ar1(data, p[3:])


# formula, residual, data, V of transformed parameters, transforms ("v" logarithm, "s" of a deviation, "c" Fisher's z)
MODELS = {
    "ar1": ("y ~ x", "ar1(visit | id)", trial(n=15), ar1, "vc"),
    "us": ("y ~ x", "us(visit | id)", trial(1, n=15, m=2), us2, "vpv"),
    "sites": ("y ~ x + (1 | site)", "ar1(visit | id)", trial(2), ar1_and_sites, "svc"),
    "slopes": ("y ~ x + (x | site)", "ar1(visit | id)", sloped(), slopes, "scsvc"),
    "restricted": ("y ~ x + ar1(0 + factor | id)", None, replicates(), by_visit, "vcs"),
}


def forward(kind, value):
    return {"v": np.log, "s": np.log, "c": np.arctanh, "p": lambda v: v}[kind](value)


def made(name):
    formula, residual, data, V, kinds = MODELS[name]
    data = data.assign(factor=pd.Categorical(data.visit))
    return flc.lmm(formula, data, residual=residual), data, V, kinds


def deviance(model, data, V, p, reml, X=None, y=None):
    X, y = model.exog if X is None else X, model.endog if y is None else y
    try:
        L = np.linalg.cholesky(V(data, p))
    except np.linalg.LinAlgError:
        return 1e10
    A, b = np.linalg.solve(L, X), np.linalg.solve(L, y)
    H = A.T @ A
    rest = b - A @ np.linalg.solve(H, A.T @ b) if X.shape[1] else b
    n = len(y) - X.shape[1] if reml else len(y)
    out = n * np.log(2.0 * np.pi) + 2.0 * np.log(np.diag(L)).sum() + rest @ rest
    return out + np.linalg.slogdet(H)[1] if reml else out


def minimum(function, start):
    """By quasi-Newton steps and simplexes in turn."""
    if not len(start):
        return float(function(start))
    best = optimize.minimize(function, start, method="BFGS", options={"gtol": 1e-7})
    again = optimize.minimize(function, best.x + 0.02, method="Nelder-Mead",
                              options={"xatol": 1e-6, "fatol": 1e-7, "maxiter": 150})  # fmt: skip
    return float(min(best.fun, again.fun))


@pytest.mark.parametrize(
    ("name", "reml"),
    [("ar1", True), ("ar1", False), ("us", True), ("sites", True), ("slopes", False), ("restricted", True)],
)
def test_limits_of_variance_parameters(name, reml):
    model, data, V, kinds = made(name)
    fit = model.fit(reml=reml)
    profiler = StructuredProfiler(fit, reml)
    estimates = np.array([value.estimate(profiler.fit) for value in profiler.values])
    names = [value.name for value in profiler.values]
    assert len(names) == len(kinds)
    start = np.array([forward(k, v) for k, v in zip(kinds, estimates, strict=True)])
    least = deviance(model, data, V, start, reml)
    np.testing.assert_allclose(least, fit.criterion, rtol=1e-9)
    limits = flc_limits(fit, reml)
    for j, label in enumerate(names):
        for side, limit in enumerate(limits[label]):
            if not np.isfinite(limit) or limit == 0.0 or abs(limit) == 1.0:
                continue
            fixed = forward(kinds[j], limit)

            def along(rest, j=j, fixed=fixed):
                return deviance(model, data, V, np.insert(rest, j, fixed), reml)

            # the optimiser may start where the profile says that the minimum is, and looks for a lower one
            parameter = next(p for p in structured_parameters(fit) if p.name == label)
            point = profiler.reach(parameter, 1 if side else -1, LEVEL)
            z = np.append(point.state.M, point.state.s)
            there = np.array([forward(k, v.natural(z)) for k, v in zip(kinds, profiler.values, strict=True)])
            rise = minimum(along, np.delete(there, j)) - least
            assert rise == pytest.approx(LEVEL, abs=RISE), (label, side)


def flc_limits(fit, reml):
    from fastlmm_core.inference.profile.profile import confidence_limits

    return confidence_limits(fit, reml=reml)


@pytest.mark.parametrize("name", MODELS)
def test_steps_from_the_optimum_are_whole(name, monkeypatch):
    """A step from where the deviance is flat raises it by what the constraint costs: that is no reason to halve it."""
    from fastlmm_core.inference.profile import structured

    fit, evaluations, steps = made(name)[0].fit(), [], []
    expand, shortened = structured._Surface.expand, structured.StructuredProfiler._shortened
    monkeypatch.setattr(structured._Surface, "expand", lambda *a: (evaluations.append(1), expand(*a))[1])
    monkeypatch.setattr(structured.StructuredProfiler, "_shortened", lambda *a: (steps.append(1), shortened(*a))[1])
    profiler = StructuredProfiler(fit, True)
    inside = [
        value for value in profiler.values if not value.side(value.at(profiler._best).c, fit.model.problem.scale**2)
    ]
    assert inside
    for value in inside:
        c = value.at(profiler._best).c
        for change in (-0.3, 0.3):
            evaluations.clear(), steps.clear()
            profiler._along(value, profiler._best, c + change)
            assert len(evaluations) <= 2 + len(steps) and len(steps) <= 12


@pytest.mark.parametrize("name", ["ar1", "sites", "restricted"])
def test_limits_of_coefficients(name):
    model, data, V, kinds = made(name)
    fit = model.fit(reml=False)
    profiler = StructuredProfiler(fit, False)
    start = np.array([forward(k, v.estimate(fit)) for k, v in zip(kinds, profiler.values, strict=True)])
    least = deviance(model, data, V, start, False)
    found = flc_limits(model.fit(), None)
    for limit in found["x"]:
        rest = minimum(
            lambda p, limit=limit: deviance(
                model, data, V, p, False, model.exog[:, :1], model.endog - limit * model.exog[:, 1]
            ),
            start,
        )
        assert rest - least == pytest.approx(LEVEL, abs=RISE)


CASES = {
    "us by arm": ("y ~ x + (1 | site)", "us(visit | id, by=arm)"),
    "csh": ("y ~ x", "csh(visit | id)"),
    "toeph": ("y ~ x + (x || site)", "toeph(visit | id)"),
    "car1": ("y ~ x", "car1(t | id)"),
    "restricted": ("y ~ x + cs(0 + factor | site)", "ar1(visit | id)"),
    "loadings": ("y ~ x + fa0(0 + factor | site)", None),
}


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name, rng):
    formula, residual = CASES[name]
    data = sloped().assign(factor=lambda d: pd.Categorical(d.visit), arm=lambda d: (d.id % 2).astype(str))
    fit = flc.lmm(formula, data, residual=residual).fit()
    for reml in (True, False):
        profiler = StructuredProfiler(fit, reml)
        z = np.append(0.3 * rng.normal(size=len(profiler._best) - 1), profiler._best[-1] + 0.1)
        found = profiler.surface.expand(z)
        surface = profiler.surface
        gradient = difference(lambda z, surface=surface: surface.expand(z).value, z)
        hessian = difference(lambda z, surface=surface: surface.expand(z).gradient, z)
        size = 1.0 + np.abs(found.hessian).max()
        np.testing.assert_allclose(found.gradient, gradient, atol=1e-7 * size)
        np.testing.assert_allclose(found.hessian, hessian, atol=1e-7 * size)
        # at the optimum it is the criterion of the fit, and flat
        best = profiler.surface.expand(profiler._best)
        assert best.value == pytest.approx(profiler.minimum, rel=1e-10)
        step = np.linalg.lstsq(best.hessian, best.gradient, rcond=1e-12)[0]
        assert best.gradient @ step < 1e-6
    for value in profiler.values:
        here = value.at(z)
        np.testing.assert_allclose(here.gradient, difference(lambda z, value=value: value.at(z).c, z), atol=2e-6)
        np.testing.assert_allclose(
            here.hessian, difference(lambda z, value=value: value.at(z).gradient, z), rtol=1e-5, atol=2e-5
        )
        assert value.back(here.c) == pytest.approx(value.natural(z), rel=1e-12)
    table = fit.residual_parameters() if residual else None
    if table is not None:
        ours = {value.name: value.estimate(fit) for value in reported(fit)}
        for term, estimate in zip(table["term"], table["estimate"], strict=True):
            assert ours[term] == pytest.approx(estimate, rel=1e-12)


def test_paths_and_tables():
    model, *_ = made("sites")
    fit = model.fit()
    found = fit.profile(["x", "rho|id"])
    for name in found.names:
        values, roots = found.zeta(name)
        assert (np.diff(values) > 0.0).all() and (np.diff(roots) > 0.0).all()
        assert 0.0 in roots
    frame = found.to_frame()
    assert {"x", "sd_Intercept|site", "sigma2|id", "rho|id"} <= set(frame.columns)
    again = pickle.loads(pickle.dumps(found))
    pd.testing.assert_frame_equal(again.conf_int(), found.conf_int())
    limits = fit.conf_int(method="profile")
    np.testing.assert_allclose(limits.loc["rho|id"], found.conf_int().set_index("term").loc["rho|id"].iloc[1:3]
                               .astype(float), rtol=1e-5)  # fmt: skip
    assert "rho|id" in str(found)


def test_units_do_not_matter():
    data = trial(2)
    limits = [
        flc.lmm("y ~ x + (1 | site)", data.assign(y=scale * data.y), residual="ar1(visit | id)")
        .fit()
        .conf_int(method="profile")
        for scale in (1.0, 1e6)
    ]
    powers = np.array([1.0, 1.0, 1.0, 2.0, 0.0])[:, None]
    np.testing.assert_allclose(limits[1].to_numpy() / 1e6**powers, limits[0], rtol=1e-4)


def test_bounds_are_limits():
    # no variance between sites, and hardly any: the deviance does not rise to the level before 0
    fit = flc.lmm("y ~ x + (1 | site)", trial(2), residual="ar1(visit | id)").fit()
    low, high = flc_limits(fit, None)["sd_Intercept|site"]
    without = flc.lmm("y ~ x", trial(2), residual="ar1(visit | id)").fit()
    assert 0.0 < without.criterion - fit.criterion < LEVEL
    assert low == 0.0 and 0.0 < high < 3.0
    none = flc.lmm("y ~ x + (1 | site)", trial(7, between=0.0, n=40), residual="ar1(visit | id)").fit()
    assert none.singular
    low, high = flc_limits(none, None)["sd_Intercept|site"]
    data, model = trial(7, between=0.0, n=40), none.model
    start = np.append(forward("v", none.residual_parameters()["estimate"][0]),
                      forward("c", none.residual_parameters()["estimate"][1]))  # fmt: skip
    rise = minimum(lambda p: deviance(model, data, ar1_and_sites, np.append(np.log(high), p), True), start)
    assert low == 0.0 and rise - none.criterion == pytest.approx(LEVEL, abs=RISE)
    # few subjects at nearly one value: a correlation that may be 1
    near = trial(8, n=4, m=2)
    near["y"] = near.groupby("id").y.transform("mean") + 1e-3 * near.y
    fit = flc.lmm("y ~ 1", near, residual="ar1(visit | id)").fit()
    assert flc_limits(fit, None)["rho|id"][1] > 0.999


def test_what_was_not_moved_by_a_profile():
    model, *_ = made("sites")
    fit = model.fit()
    before = copy.deepcopy(fit.df)
    fit.conf_int(method="profile")
    np.testing.assert_allclose(fit.df, before, rtol=1e-12)
