"""Profile likelihood against lme4, dense likelihoods minimised by scipy, closed forms and invariances."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import scipy.optimize

import fastlmm_core as flc
import oracle
from fastlmm_core.engines.scaling import criterion_offset
from fastlmm_core.inference.profile.coefficients import ProfileError
from fastlmm_core.inference.profile.coordinates import Expansion
from fastlmm_core.inference.profile.points import Profiler, _Model, parameters_of
from fastlmm_core.inference.profile.profile import PER_SIDE, confidence_limits

LEVEL_95 = 3.841458820694124


def columns_of(frame):
    return {name: np.asarray(frame[name]) for name in frame}


# ------------------------------------------------------------------------------------------------------------
# a dense oracle: deviance minimised over everything but one parameter


class Dense:
    """The deviance from the n x n covariance matrix in natural units, and its constrained minima."""

    def __init__(self, y, X, Z, groups, weights=None, structure="full", reml=False):
        self.y, self.X, self.structure, self.reml = y, X, structure, reml
        n, self.q = Z.shape
        same = groups[:, None] == groups
        self.kernels = np.einsum("ai,bj->ijab", Z, Z) * same
        self.noise = np.eye(n) if weights is None else np.diag(1.0 / weights)

    def deviance(self, G, sigma2, fixed=None):
        """-2 log-likelihood, beta profiled out (or one of its elements fixed: (column, value))."""
        V = sigma2 * self.noise + np.tensordot(G, self.kernels, 2)
        try:
            L = np.linalg.cholesky(V)
        except np.linalg.LinAlgError:
            return 1e10
        y, X = self.y, self.X
        if fixed is not None:
            y, X = y - X[:, fixed[0]] * fixed[1], np.delete(X, fixed[0], axis=1)
        W = np.linalg.solve(L, np.column_stack([X, y]))
        r = W[:, -1] - W[:, :-1] @ np.linalg.lstsq(W[:, :-1], W[:, -1], rcond=None)[0]
        value = len(y) * np.log(2.0 * np.pi) + 2.0 * np.log(np.diag(L)).sum() + r @ r
        if self.reml:
            value += np.linalg.slogdet(W[:, :-1].T @ W[:, :-1])[1] - X.shape[1] * np.log(2.0 * np.pi)
        return value

    def slopes(self, G, sigma2, fixed=None):
        """The deviance, and its derivatives by the elements of G and by sigma2: traces of (P - u u') dV."""
        value = self.deviance(G, sigma2, fixed)
        if value == 1e10:
            return value, np.zeros_like(G), 0.0
        inverse = np.linalg.inv(sigma2 * self.noise + np.tensordot(G, self.kernels, 2))
        y, X = self.y, self.X
        if fixed is not None:
            y, X = y - X[:, fixed[0]] * fixed[1], np.delete(X, fixed[0], axis=1)
        half = inverse @ X
        P = inverse - half @ np.linalg.solve(X.T @ half, half.T)
        u = P @ y
        W = (P if self.reml else inverse) - np.outer(u, u)
        return value, np.tensordot(self.kernels, W, 2), np.sum(W * self.noise)

    def covariance(self, x, order):
        """F F' from the lower triangle (or diagonal) x of F, for the effects in this order."""
        q = self.q
        F = np.diag(x) if self.structure == "diagonal" else np.zeros((q, q))
        if self.structure == "full":
            F[np.tril_indices(q)] = x
        out = np.empty((q, q))
        out[np.ix_(order, order)] = F @ F.T
        return out

    def profiled(self, parameter, value, fit):
        """The least deviance with this value of a parameter, from several starts."""
        q, kind = self.q, parameter.kind
        order = [*parameter.columns, *(i for i in range(q) if i not in parameter.columns)]
        if kind in ("sigma", "beta"):
            order = list(range(q))
        G = oracle.covariance_blocks(fit)[np.ix_(order, order)]
        size = np.sqrt(np.diag(G)) + 0.05 * fit.sigma

        def full(x):
            """The free values -> (G, sigma2, fixed)"""
            if kind == "sigma":
                return self.covariance(x, order), value**2, None
            sigma2 = np.exp(2.0 * x[0])
            if kind == "beta":
                return self.covariance(x[1:], order), sigma2, (parameter.columns[0], value)
            if kind == "sd":
                return self.covariance(np.insert(x[1:], 0, value), order), sigma2, None
            a, c = np.exp(x[1:3])
            head = [a, c * value, c * np.sqrt(1.0 - value**2)]
            return self.covariance(np.append(head, x[3:]), order), sigma2, None

        def start(factor):
            x = np.diag(factor) if self.structure == "diagonal" else factor[np.tril_indices(q)]
            if kind == "sigma":
                return x
            if kind == "beta":
                return np.append(np.log(fit.sigma), x)
            if kind == "sd":
                return np.append(np.log(fit.sigma), x[1:])
            return np.concatenate([[np.log(fit.sigma)], np.log(size[:2]), x[3:]])

        def value_and_slope(x):
            value, by_G, by_sigma2 = self.slopes(*full(x))
            steps, slope = 1e-6 * np.diag(1.0 + np.abs(x)), np.empty(len(x))
            for i, step in enumerate(steps):
                (G, sigma2, _), (other, less, _) = full(x + step), full(x - step)
                slope[i] = (np.sum(by_G * (G - other)) + by_sigma2 * (sigma2 - less)) / (2.0 * step[i])
            return value, slope

        factors = [oracle.semidefinite_cholesky(G), np.diag(size), np.tril(np.outer(size, np.ones(q)))]
        factors.append(np.tril(np.outer(size, 0.5 * (-1.0) ** np.arange(q))))
        best = np.inf
        for factor in factors:
            found = scipy.optimize.minimize(
                value_and_slope, start(factor) * 1.01, jac=True, method="BFGS", options={"gtol": 1e-5}
            )
            best = min(best, found.fun)
        return best


def unbalanced(rng, q, structure="full", m=9, spread=1.0):
    sizes = rng.integers(3, 8, m)
    groups = np.repeat(np.arange(m), sizes)
    n = len(groups)
    Z = np.column_stack([np.ones(n), *(rng.normal(size=(q - 1, n)) + 0.5)])
    X = np.column_stack([Z[:, : min(q, 2)], rng.normal(size=n)])
    w = rng.uniform(0.5, 2.0, n)
    L = np.eye(q) if structure == "diagonal" else np.tril(rng.normal(size=(q, q)) * 0.5) + np.eye(q)
    b = spread * rng.normal(size=(m, q)) @ L.T
    y = X @ rng.normal(size=X.shape[1]) + np.sum(Z * b[groups], axis=1) + rng.normal(size=n) * 0.7 / np.sqrt(w)
    return y, X, Z, groups, w


@pytest.mark.parametrize(
    ("q", "structure", "m", "spread"),
    [(1, "full", 9, 1.0), (2, "full", 12, 1.0), (2, "diagonal", 8, 0.3), (2, "full", 7, 0.3), (3, "full", 12, 0.8)],
)
@pytest.mark.parametrize("reml", [True, False])
def test_limits_against_dense_minimisation(rng, q, structure, m, spread, reml):
    data = unbalanced(rng, q, structure, m, spread)
    fit = flc.LinearMixedModel(*data[:4], weights=data[4], structure=structure).fit(reml=reml)
    dense = Dense(*data, structure, reml)
    assert dense.deviance(oracle.covariance_blocks(fit), fit.sigma2) == pytest.approx(fit.criterion, abs=1e-8)
    limits = confidence_limits(fit)
    by_ml = confidence_limits(fit, parameters="fixed", reml=False)
    checked = 0
    for parameter in parameters_of(fit):
        if q == 3 and (parameter.kind == "beta" or 0 not in parameter.columns):
            continue
        if reml and parameter.kind == "beta":  # by ML
            assert limits[parameter.name] == by_ml[parameter.name]
            continue
        for side, limit in enumerate(limits[parameter.name]):
            rise = dense.profiled(parameter, limit, fit) - fit.criterion
            if (parameter.kind == "sd" and limit == 0.0) or (parameter.kind == "cor" and abs(limit) == 1.0):
                assert rise <= LEVEL_95 + 1e-6
            else:
                assert rise == pytest.approx(LEVEL_95, abs=2e-6), (parameter.name, side)
                checked += 1
    assert checked >= (2 if reml else 4)


# ------------------------------------------------------------------------------------------------------------
# lme4


# At two limits of the reference the other parameters are not at their minimum: the between-batch variance, zero at the
# estimate, is positive so far from the mean, and the random slope has a small variance.  The dense likelihood decides
# below.
DOUBTFUL = {("dyestuff2", "(Intercept)"), ("orthodont_slope", "sigma")}


@pytest.mark.parametrize(
    ("kind", "structure"),
    [("sigma", "full"), ("sigma", "diagonal"), ("sd", "full"), ("sd", "diagonal"), ("correlation", "full"),
     ("zero", "full"), ("zero", "diagonal")],
)  # fmt: skip
@pytest.mark.parametrize("reml", [True, False])
def test_coordinates_against_differences(rng, kind, structure, reml):
    from fastlmm_core.inference.profile import charts, coordinates

    y, X, Z, groups, w = data = unbalanced(rng, 3, structure, m=12)
    n = len(y)
    problem = flc.LinearMixedModel(y, X, Z, groups, weights=w, structure=structure).problem
    deviance = coordinates.Deviance(problem, reml)
    M = np.diag(rng.uniform(0.3, 1.5, 3)) if structure == "diagonal" else np.tril(rng.normal(0.0, 0.7, (3, 3)))
    if kind == "sigma":
        chart = charts.SigmaChart(problem, M)
    elif kind == "correlation":
        chart = charts.CorrelationChart(problem, M, 0, 2)
    else:
        chart = charts.SdChart(problem, M, 1)
        chart = charts.ZeroChart(chart) if kind == "zero" else chart
    state = chart.start(M, -0.3)
    found = deviance.expand(chart, state)
    k = len(found.gradient)

    def value(*steps):
        return deviance.expand(chart, chart.move(state, np.sum(steps, axis=0))).value

    # the value: sigma^2 and G in the units of the data
    if kind != "zero":
        turned = problem.scale * (problem.z_map @ state.M)
        exact = Dense(*data, structure, reml).deviance(turned @ turned.T, problem.scale**2 * np.exp(state.s))
        assert found.value + criterion_offset(problem, reml) == pytest.approx(exact, rel=1e-10)
    h = 2e-3
    e = h * np.eye(k)
    for i in range(1 if kind == "zero" else 0, k):
        slope = (8.0 * (value(e[i]) - value(-e[i])) - (value(2 * e[i]) - value(-2 * e[i]))) / (12.0 * h)
        assert found.gradient[i] == pytest.approx(slope, rel=1e-6, abs=1e-6 * n)
        for j in range(1 if kind == "zero" else 0, i + 1):
            if i == j:
                bend = 16.0 * (value(e[i]) + value(-e[i])) - value(2 * e[i]) - value(-2 * e[i]) - 30.0 * value(0 * e[i])
                bend /= 12.0 * h * h
            else:
                near, far = (
                    sum(a * b * value(a * t * e[i], b * t * e[j]) for a in (-1, 1) for b in (-1, 1))
                    / (2.0 * t * h) ** 2
                    for t in (1, 2)
                )
                bend = (4.0 * near - far) / 3.0
            # rounding of the values over h^2, and the next term of the series
            assert found.hessian[i, j] == pytest.approx(bend, rel=1e-4, abs=1e-5 * n), (i, j)
    np.testing.assert_allclose(found.hessian, found.hessian.T, rtol=1e-9, atol=1e-9)


def reference_limits(name, key):
    data = json.loads((oracle.REFERENCE / f"{name}.json").read_text())["ml"]
    # `profile_ci_lme4` has the parameters in lme4's order: ours but that the fixed effects come last
    names = [*data["profile_ci_lme4"]]
    place = names.index("sigma") + 1
    return {parameter: data[key][parameter] for parameter in names[place:] + names[:place]}


@pytest.mark.parametrize("name", [n for n in oracle.SINGLE_FACTOR if n != "machines_q3"])
@pytest.mark.parametrize("reml", [True, False])
def test_reference(fitted_reference, name, reml):
    limits = confidence_limits(fitted_reference(name, reml, "formula"), reml=False)
    wanted = reference_limits(name, "profile_ci")
    assert len(limits) == len(wanted)
    for (parameter, expected), got in zip(wanted.items(), limits.values(), strict=True):
        if (name, parameter) not in DOUBTFUL:
            np.testing.assert_allclose(got, expected, atol=1e-5 * np.ptp(expected), rtol=0.0, err_msg=parameter)


def test_reference_by_interpolation(fitted_reference):
    limits = confidence_limits(fitted_reference("machines_q3", True, "formula"), reml=False)
    wanted = reference_limits("machines_q3", "profile_ci_lme4")
    for (parameter, expected), got in zip(wanted.items(), limits.values(), strict=True):
        # lme4 interpolates between points that are far apart near a correlation of 1
        tolerance = 3e-2 if parameter.startswith("cor") else 1e-4
        np.testing.assert_allclose(got, expected, atol=tolerance * np.ptp(expected), rtol=0.0, err_msg=parameter)


@pytest.mark.parametrize(
    ("name", "parameter", "side"), [("dyestuff2", "Intercept", 0), ("orthodont_slope", "sigma", 1)]
)
def test_where_the_reference_is_doubtful(fitted_reference, name, parameter, side):
    ref = oracle.reference(name)
    fit = fitted_reference(name, False, "formula")
    dense = Dense(*ref.arrays)
    chosen = next(p for p in parameters_of(fit) if p.name == parameter)
    limit = confidence_limits(fit, parameters=parameter)[parameter][side]
    assert dense.profiled(chosen, limit, fit) - fit.criterion == pytest.approx(LEVEL_95, abs=5e-6)
    theirs = reference_limits(name, "profile_ci")["(Intercept)" if parameter == "Intercept" else parameter][side]
    assert dense.profiled(chosen, theirs, fit) - fit.criterion < LEVEL_95 - 1e-4


# ------------------------------------------------------------------------------------------------------------
# closed forms


def test_no_variation_between_groups(rng):
    """Exactly equal group means: sd = 0 is the estimate, and sigma and the limits of sd have closed forms."""
    m, k = 8, 6
    groups = np.repeat(np.arange(m), k)
    y = rng.normal(size=m * k)
    y -= np.repeat(y.reshape(m, k).mean(axis=1), k)
    fit = flc.LinearMixedModel(y, groups=groups).fit(reml=False)
    assert fit.singular
    limits = confidence_limits(fit)
    n, r2 = m * k, y @ y

    # with tau2 the deviance is n log s2 - m log s2 + m log(s2 + k tau2) + r2 / s2, and no sum of squares between
    def profiled(tau):
        def f(log_s2):
            s2 = np.exp(log_s2)
            return (n - m) * log_s2 + m * np.log(s2 + k * tau**2) + r2 / s2

        centre = np.log(r2 / n)
        return scipy.optimize.minimize_scalar(f, bounds=(centre - 1.0, centre + 1.0), options={"xatol": 1e-12}).fun

    upper = scipy.optimize.brentq(lambda tau: profiled(tau) - profiled(0.0) - LEVEL_95, 1e-3, 10.0, xtol=1e-13)
    assert limits["sd_Intercept|group"][0] == 0.0
    assert limits["sd_Intercept|group"][1] == pytest.approx(upper, rel=1e-7)

    # sigma: the variance between groups stays at zero on the side of small sigma^2 = r2 / n * u
    def rise(u):
        return n * np.log(u) + n / u - n - LEVEL_95

    lower, upper = (scipy.optimize.brentq(rise, *ends, xtol=1e-14) for ends in ((0.3, 1.0), (1.0, 4.0)))
    np.testing.assert_allclose(limits["sigma"], np.sqrt(r2 / n * np.array([lower, upper])), rtol=1e-8)


@pytest.mark.parametrize("spread", [0.0, 0.15, 0.3, 0.6, 1.2])
def test_zero_is_a_limit_where_the_deviance_does_not_rise_enough(rng, spread):
    m, k = 10, 5
    groups = np.repeat(np.arange(m), k)
    y = rng.normal(size=m * k) + np.repeat(spread * rng.normal(size=m), k)
    fit = flc.LinearMixedModel(y, groups=groups).fit(reml=False)
    r = y - y.mean()
    without = m * k * (1.0 + np.log(2.0 * np.pi * (r @ r) / (m * k)))
    for level, rise in ((0.5, 0.454936423119572), (0.95, LEVEL_95), (0.999, 10.827566170662733)):
        lower = confidence_limits(fit, level)["sd_Intercept|group"][0]
        assert (lower == 0.0) == (without - fit.criterion <= rise)


@pytest.mark.parametrize(("spread", "bounded"), [((3.0, 0.3), False), ((0.3, 3.0), False), ((2.0, 2.0), True)])
def test_with_an_effect_that_need_not_vary_any_correlation_is_as_likely(spread, bounded):
    groups, x = np.repeat(np.arange(25), 6), np.tile(np.linspace(-1.0, 1.0, 6), 25)
    rng = np.random.default_rng(3)
    b = rng.standard_normal((25, 2)) * spread
    y = b[groups, 0] + b[groups, 1] * x + rng.standard_normal(len(x))
    fit = flc.lmm("y ~ x + (x | g)", {"y": y, "x": x, "g": groups}).fit()
    limits = confidence_limits(fit, 0.99)
    assert not fit.singular and (min(limits["sd_Intercept|g"][0], limits["sd_x|g"][0]) > 0.0) == bounded
    assert (limits["cor_Intercept.x|g"] != (-1.0, 1.0)) == bounded


def test_the_profile_of_a_quadratic_is_that_of_its_minima(rng):
    root = rng.standard_normal((4, 4))
    gradient, hessian = rng.standard_normal(4), root @ root.T
    model = _Model(Expansion(2.0, gradient, hessian))

    def lowest(t):
        inner = gradient[1:] + t * hessian[0, 1:]
        step = np.append(t, -np.linalg.solve(hessian[1:, 1:], inner))
        np.testing.assert_allclose(model.step(t), step, rtol=1e-9)
        return 2.0 + gradient @ step + 0.5 * step @ hessian @ step

    for t in (0.0, 0.7, -1.3):
        assert model.value + model.slope * t + 0.5 * model.bend * t * t == pytest.approx(lowest(t), rel=1e-9)


# ------------------------------------------------------------------------------------------------------------
# invariances and edges


def test_units_and_origin(rng):
    y, X, Z, groups, w = unbalanced(rng, 2, m=15)
    plain = confidence_limits(flc.LinearMixedModel(y, X, Z, groups, weights=w).fit())
    moved = confidence_limits(
        flc.LinearMixedModel((y + 1e6) * 1e-6, X * [1.0, 1e4, 1e-3], Z * [1.0, 1e4], groups, weights=w * 1e3).fit()
    )
    units = {
        "sd_z0|group": 1e-6, "sd_z1|group": 1e-10, "cor_z0.z1|group": 1.0, "sigma": 1e-6 * np.sqrt(1e3),
        "x0": 1e-6, "x1": 1e-10, "x2": 1e-3,
    }  # fmt: skip
    for name, limits in plain.items():
        expected = np.array(limits) * units[name] + (1.0 if name == "x0" else 0.0)
        np.testing.assert_allclose(moved[name], expected, atol=1e-7 * np.ptp(expected), rtol=1e-12, err_msg=name)


def test_origin_of_time_changes_only_the_intercept(rng):
    """Intercept and slope are almost perfectly correlated where time is a calendar year."""
    y, X, Z, groups, _ = unbalanced(rng, 2, m=15)
    near = confidence_limits(flc.LinearMixedModel(y, X, Z, groups).fit())
    shift = np.array([[1.0, 2000.0], [0.0, 1.0]])
    shifted_X = np.column_stack([X[:, :2] @ shift, X[:, 2]])
    far = confidence_limits(flc.LinearMixedModel(y, shifted_X, Z @ shift, groups).fit())
    for name in ("sd_z1|group", "sigma", "x1", "x2"):
        np.testing.assert_allclose(far[name], near[name], atol=1e-6 * np.ptp(near[name]), err_msg=name)
    assert np.isfinite(list(far.values())).all()


def test_fixed_effects_of_a_reparametrised_model(rng):
    y, X, Z, groups, w = unbalanced(rng, 2, m=15)
    plain = confidence_limits(flc.LinearMixedModel(y, X, Z, groups, weights=w).fit(), parameters="fixed")
    turned = X @ [[1.0, 0.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]
    other = confidence_limits(flc.LinearMixedModel(y, turned, Z, groups, weights=w).fit(), parameters=["x1", "x2"])
    np.testing.assert_allclose(other["x1"], np.array(plain["x1"]) / 2.0, rtol=1e-7)
    assert set(plain) == {"x0", "x1", "x2"}
    assert list(other) == ["x1", "x2"]


def test_dropped_column(rng):
    y, X, Z, groups, w = unbalanced(rng, 2, m=12)
    plain = confidence_limits(flc.LinearMixedModel(y, X, Z, groups, weights=w).fit())
    result = flc.LinearMixedModel(y, np.column_stack([X, X[:, 0] - X[:, 1]]), Z, groups, weights=w).fit()
    limits = confidence_limits(result)
    assert np.isnan(limits.pop("x3")).all()
    for name, expected in plain.items():
        np.testing.assert_allclose(limits[name], expected, atol=1e-7 * np.ptp(expected), err_msg=name)
    assert "x3" not in result.profile(["fixed"], 0.5).names


def test_perfect_correlation(rng):
    m, k = 20, 6
    groups = np.repeat(np.arange(m), k)
    t = np.tile(np.arange(k) - 1.0, m)
    Z = np.column_stack([np.ones(m * k), t])
    for _ in range(60):
        b = rng.normal(size=m)
        y = b[groups] * (1.0 + 0.6 * t) + rng.normal(size=m * k)
        fit = flc.LinearMixedModel(y, Z, Z, groups).fit(reml=False)
        if fit.singular and (np.diag(fit.G["group"]) > 0.05).all():
            break
    limits = confidence_limits(fit)
    dense = Dense(y, Z, Z, groups)
    assert limits["cor_z0.z1|group"][1] == 1.0
    for parameter in parameters_of(fit)[:3]:
        limit = limits[parameter.name][0]
        assert dense.profiled(parameter, limit, fit) - fit.criterion == pytest.approx(LEVEL_95, abs=5e-6)


def test_no_variance_of_one_effect(rng):
    y, X, Z, groups, _ = unbalanced(rng, 2, "diagonal", m=12)
    for _ in range(60):
        b = rng.normal(size=12)
        y = X @ [1.0, 2.0, 3.0] + b[groups] + rng.normal(size=len(y))
        fit = flc.LinearMixedModel(y, X, Z, groups).fit(reml=False)
        if fit.G["group"][1, 1] == 0.0:
            break
    limits = confidence_limits(fit)
    assert limits["sd_z1|group"][0] == 0.0
    assert limits["cor_z0.z1|group"] == (-1.0, 1.0)
    chosen = next(p for p in parameters_of(fit) if p.name == "sd_z1|group")
    rise = Dense(y, X, Z, groups).profiled(chosen, limits["sd_z1|group"][1], fit) - fit.criterion
    assert rise == pytest.approx(LEVEL_95, abs=5e-6)


# ------------------------------------------------------------------------------------------------------------
# paths


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", ["sleepstudy_slope", "sleepstudy_uncorrelated", "orthodont_slope", "dyestuff2"])
def test_paths(fitted_reference, name, reml):
    result = fitted_reference(name, True, "formula")
    found = result.profile() if reml else result.profile(reml=False)
    assert found.fit.reml is found.reml is reml
    ref = oracle.reference(name)
    end = 2.5758293035489004
    for parameter in found.names:
        values, zeta = found.zeta(parameter)
        assert (np.diff(values) > 0.0).all()
        # where the estimate is at the boundary there is one side only
        assert len(values) >= PER_SIDE + 1 or parameter in found.notes
        np.testing.assert_allclose(np.diff(zeta)[1:-1], end / PER_SIDE, rtol=1e-9)
        assert 0.0 in zeta
        for side in (zeta[0], zeta[-1]):
            assert abs(side) == pytest.approx(end) or parameter in found.notes
    # the deviance from the dense likelihood at all parameters of a point
    frame = columns_of(found.to_frame())
    effects = ref.Z.shape[1]
    names = [p.name for p in parameters_of(result)]
    for row in range(0, len(frame["zeta"]), 5):
        point = {key: frame[key][row] for key in names}
        sd = np.array([v for key, v in point.items() if key.startswith("sd_")])
        corr = np.eye(effects)
        for key, value in point.items():
            if key.startswith("cor_") and np.isfinite(value):
                corr[0, 1] = corr[1, 0] = value
        beta = [point[key] for key in names[: ref.X.shape[1]]]
        G = corr * np.outer(sd, sd)
        own = reml and frame["term"][row] not in names[: ref.X.shape[1]]
        deviance = -2.0 * oracle.loglik(*ref.arrays, beta, G, point["sigma"] ** 2, own)
        rise = deviance - ref.blocks[own].criterion
        assert rise == pytest.approx(frame["zeta"][row] ** 2, abs=1e-6), (frame["term"][row], row)
        assert point[frame["term"][row]] in found.zeta(frame["term"][row])[0]


def test_limits_of_a_profile(fitted_reference):
    result = fitted_reference("sleepstudy_slope", True, "formula")
    found = result.profile(["Days", "sigma"], level=0.8)
    table = found.conf_int(0.99)
    assert list(table.columns) == ["term", "estimate", "conf_low", "conf_high", "note"]
    wanted = confidence_limits(result, 0.99)
    for i, name in enumerate(["Days", "sigma"]):
        assert table.term[i] == name
        np.testing.assert_allclose((table.conf_low[i], table.conf_high[i]), wanted[name], rtol=1e-12)
    assert (table.note == "").all()
    values, zeta = found.zeta("sigma")
    inner = confidence_limits(result, 0.8)["sigma"]
    np.testing.assert_allclose(values[[0, -1]], inner, rtol=1e-8)
    np.testing.assert_allclose(zeta[[0, -1]], [-1.2815515655446004, 1.2815515655446004], rtol=1e-12)


@pytest.mark.parametrize("reml", [True, False])
def test_a_pickled_profile_goes_on_by_its_criterion(fitted_reference, reml):
    found = fitted_reference("sleepstudy_slope", True, "formula").profile(["Days", "sigma"], reml=reml)
    again = pickle.loads(pickle.dumps(found))
    for level in (0.8, 0.95):
        one, other = (columns_of(each.conf_int(level)) for each in (found, again))
        for name in ("estimate", "conf_low", "conf_high"):
            assert np.isfinite(other[name]).all()
            np.testing.assert_allclose(other[name], one[name], rtol=1e-10)


@pytest.mark.parametrize("seed", range(8))
def test_random_problems_are_solved(seed):
    """Many shapes, often singular: every limit is found, contains the estimate, and grows with the level."""
    rng = np.random.default_rng(seed)
    q = int(rng.integers(1, 4))
    structure = "full" if seed % 4 else "diagonal"
    y, X, Z, groups, w = unbalanced(rng, q, structure, int(rng.integers(5, 20)), float(rng.choice([0.0, 0.2, 1.0])))
    fit = flc.LinearMixedModel(y, X, Z, groups, weights=w, structure=structure).fit()
    profilers = {reml: Profiler(fit, reml) for reml in (True, False)}
    narrow, wide = confidence_limits(fit, 0.5), confidence_limits(fit, 0.99)
    for parameter in parameters_of(fit):
        estimate = profilers[parameter.kind != "beta"].estimate(parameter)
        low, high = narrow[parameter.name]
        lowest, highest = wide[parameter.name]
        assert lowest <= low <= high <= highest
        assert np.isnan(estimate) or low <= estimate <= high


def test_balanced_one_way_by_reml_has_a_closed_form(rng):
    """Mean squares are independent chi-squares: the REML criterion is theirs, maximised over one of two variances."""
    m, k = 8, 5
    groups = np.repeat(np.arange(m), k)
    y = 1.3 * rng.standard_normal(m)[groups] + rng.standard_normal(m * k)
    fit = flc.LinearMixedModel(y, groups=groups).fit()
    means = y.reshape(m, k).mean(axis=1)
    between, within = k * ((means - means.mean()) ** 2).sum(), ((y.reshape(m, k) - means[:, None]) ** 2).sum()

    def criterion(sd, sigma2):
        lamb = sigma2 + k * sd**2
        return (m - 1) * np.log(lamb) + between / lamb + m * (k - 1) * np.log(sigma2) + within / sigma2

    least = scipy.optimize.minimize(lambda x: criterion(x[0], np.exp(x[1])), [1.0, 0.0], options={"gtol": 1e-8}).fun
    sd, sigma = list(confidence_limits(fit, parameters="random").values())
    for limit in sd:
        found = scipy.optimize.minimize_scalar(lambda x, limit=limit: criterion(limit, np.exp(x)), bounds=(-5, 5))
        assert found.fun - least == pytest.approx(LEVEL_95, abs=1e-6)
    for limit in sigma:
        found = scipy.optimize.minimize_scalar(lambda x, limit=limit: criterion(x, limit**2), bounds=(0, 10))
        assert found.fun - least == pytest.approx(LEVEL_95, abs=1e-6)


def test_crossed_factors_by_reml(rng):
    a, b = (part.ravel() for part in np.meshgrid(np.arange(7), np.arange(6), indexing="ij"))
    kept = rng.uniform(size=len(a)) < 0.85
    a, b = a[kept], b[kept]
    x = rng.standard_normal(len(a))
    y = x + rng.standard_normal(7)[a] + 0.7 * rng.standard_normal(6)[b] + 0.6 * rng.standard_normal(len(a))
    fit = flc.lmm("y ~ x + (1 | a) + (1 | b)", {"y": y, "x": x, "a": a, "b": b}).fit()
    X = np.column_stack([np.ones(len(y)), x])
    parts = [a[:, None] == a, b[:, None] == b, np.eye(len(y))]

    def criterion(sd):
        V = sum(value**2 * part for value, part in zip(sd, parts, strict=True))
        W = np.linalg.solve(V, X)
        r = y - X @ np.linalg.solve(X.T @ W, W.T @ y)
        return np.linalg.slogdet(V)[1] + np.linalg.slogdet(X.T @ W)[1] + r @ np.linalg.solve(V, r)

    names = ("sd_Intercept|a", "sd_Intercept|b", "sigma")
    own = fit.profile("random")
    assert own.names == names
    estimate = np.asarray(own.conf_int()["estimate"])
    for i, name in enumerate(names):
        for limit in confidence_limits(fit, parameters=name)[name]:
            found = scipy.optimize.minimize(
                lambda z, i=i, limit=limit: criterion(np.insert(np.exp(z), i, limit)),
                np.log(np.delete(estimate, i)),
                options={"gtol": 1e-7},
            )
            assert found.fun - criterion(estimate) == pytest.approx(LEVEL_95, abs=1e-5) or limit == 0.0


def test_a_step_beyond_the_limit_may_end_in_another_valley():
    """Where one standard deviation vanishes any correlation is as likely: a plateau just above the level."""
    g, t = np.repeat(np.arange(12), 5), np.tile(np.arange(5.0), 12)
    X = np.column_stack([np.ones(60), t])
    key = np.random.SeedSequence(5).generate_state(2, np.uint64)
    noise = np.random.Philox(key=key)
    effects = np.random.Generator(noise.jumped(1)).standard_normal((301, 2, 12))
    turned = X @ np.linalg.cholesky([[1.0, 0.2], [0.2, 0.3]])
    Y = np.random.Generator(noise).standard_normal((301, 60)) + np.einsum("ij,kji->ki", turned, effects[:, :, g])
    for i, reml in ((9, True), (9, False), (159, False), (300, True)):
        fit = flc.LinearMixedModel(Y[i], X, X, g, exog_re_names=["Intercept", "t"], group_name="g").fit(reml=reml)
        dense = Dense(Y[i], X, X, g, reml=reml)
        name = "cor_Intercept.t|g"
        parameter = next(p for p in parameters_of(fit) if p.name == name)
        low, high = confidence_limits(fit, parameters=name)[name]
        assert -1.0 < low < high <= 1.0
        assert dense.profiled(parameter, low, fit) - fit.criterion == pytest.approx(LEVEL_95, abs=5e-6)


# ------------------------------------------------------------------------------------------------------------
# errors


def test_bad_arguments(fitted_reference):
    result = fitted_reference("dyestuff", True, "formula")
    with pytest.raises(flc.LMMError, match=r"parameters: there is no 'tau'.*sigma"):
        result.profile("tau")
    with pytest.raises(flc.LMMError, match="level=95"):
        confidence_limits(result, 95)
    with pytest.raises(flc.LMMError, match="'Intercept' was not profiled; use one of sigma"):
        result.profile("sigma").zeta("Intercept")


def test_a_lower_point_is_reported(fitted_reference):
    profiler = Profiler(fitted_reference("sleepstudy_slope", False, "formula"))
    profiler.minimum += 10.0
    for parameter in parameters_of(profiler.fit):
        with pytest.raises(ProfileError, match="not the global one"):
            profiler.reach(parameter, 1, 1.0)


def test_what_is_not_found_is_nan(fitted_reference, monkeypatch):
    result = fitted_reference("sleepstudy_slope", False, "formula")

    def fail(*_):
        raise ProfileError("no way")

    monkeypatch.setattr(Profiler, "_cross", fail)
    with pytest.warns(RuntimeWarning, match=r"sigma, lower: no way; upper: no way"):
        limits = confidence_limits(result)
    assert np.isnan(limits["sigma"]).all()
    assert np.isfinite(limits["Days"]).all()
    table = result.profile("fixed").conf_int()
    assert (table.note == "").all()
    found = result.profile("sigma")
    assert "no way" in found.notes["sigma"]
    assert len(found.zeta("sigma")[0]) == 1
