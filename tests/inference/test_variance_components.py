"""Standard errors of variance parameters against finite differences of dense likelihoods and closed forms."""

from __future__ import annotations

import json
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core.inference.profile.profile import confidence_limits


def table(result, level=0.95, method="wald"):
    """{(group, effects, kind): (estimate, se, lower, upper)}"""
    found = result.variance_components(level, method=method)
    names = ("group", "term", "kind", "estimate", "std_error", "conf_low", "conf_high")
    columns = {name: np.asarray(found[name]) for name in names}
    keys = []
    for group, term, kind in zip(*(columns[name].tolist() for name in names[:3]), strict=True):
        if group == "Residual":
            assert term == {"sd": "sigma", "var": "sigma2"}[kind]
            keys.append((group, "Observation", kind))
        else:
            assert term.startswith(f"{kind}_") and term.endswith(f"|{group}")
            keys.append((group, term.removeprefix(f"{kind}_").removesuffix(f"|{group}"), kind))
    values = np.column_stack([columns[name] for name in ("estimate", "std_error", "conf_low", "conf_high")])
    return dict(zip(keys, values, strict=True))


def unbalanced(rng, q, structure="full", m=9, weights=True):
    sizes = rng.integers(4, 9, m)
    groups = np.repeat(np.arange(m), sizes)
    n = len(groups)
    Z = np.column_stack([np.ones(n), *(rng.normal(size=(q - 1, n)) + 0.5)])
    X = np.column_stack([Z[:, : min(q, 2)], rng.normal(size=n)])
    w = rng.uniform(0.5, 2.0, n) if weights else None
    L = np.tril(rng.normal(size=(q, q)) * 0.4) + np.eye(q)
    b = rng.normal(size=(m, q)) @ (np.diag(np.diag(L)) if structure == "diagonal" else L).T
    noise = rng.normal(size=n) * 0.7 / (1.0 if w is None else np.sqrt(w))
    y = X @ rng.normal(size=X.shape[1]) + np.sum(Z * b[groups], axis=1) + noise
    return y, X, Z, groups, w


def second_differences(f, x, h):
    """Hessian by central differences of fourth order along the diagonals and edges, by extrapolation in the step."""

    def at(step):
        k = len(x)
        out = np.empty((k, k))
        e = np.diag(step)
        for i, j in combinations_with_replacement(range(k), 2):
            out[i, j] = out[j, i] = (
                f(x + e[i] + e[j]) - f(x + e[i] - e[j]) - f(x - e[i] + e[j]) + f(x - e[i] - e[j])
            ) / (4.0 * step[i] * step[j])
        return out

    return (4.0 * at(h) - at(2.0 * h)) / 3.0


def dense_covariance(y, X, Z, groups, w, result, free, reml):
    """Asymptotic covariance of (free elements of G, sigma2), from the dense likelihood with beta profiled out."""
    G = oracle.covariance_blocks(result)
    rows, columns = free

    def deviance(x):
        covariance = np.zeros_like(G)
        covariance[rows, columns] = covariance[columns, rows] = x[:-1]
        relative = covariance / x[-1]
        beta = oracle.beta(y, X, Z, groups, relative, w)
        return -2.0 * oracle.loglik(y, X, Z, groups, beta, covariance, x[-1], reml, w)

    x = np.append(G[rows, columns], result.sigma2)
    step = 2e-3 * np.append(np.sqrt(np.diag(G)[rows] * np.diag(G)[columns]), result.sigma2)
    return 2.0 * np.linalg.inv(second_differences(deviance, x, step))


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("q", "structure"), [(1, "full"), (2, "full"), (2, "diagonal"), (3, "full")])
def test_against_the_dense_hessian(rng, q, structure, reml):
    y, X, Z, groups, w = unbalanced(rng, q, structure, m=12 if q < 3 else 25)
    result = flc.LinearMixedModel(y, X, Z, groups, weights=w, structure=structure).fit(reml=reml)
    assert result.converged
    assert not result.singular
    free = np.tril_indices(q) if structure == "full" else (np.arange(q), np.arange(q))
    covariance = dense_covariance(y, X, Z, groups, w, result, free, reml)
    found = table(result)
    G = oracle.covariance_blocks(result)
    place = {(i, j): k for k, (i, j) in enumerate(zip(*free, strict=True))}
    tolerance = 2e-4

    def slope(**at):
        out = np.zeros(len(covariance))
        for key, value in at.items():
            out[-1 if key == "sigma2" else place[tuple(map(int, key[1:]))]] = value
        return np.sqrt(out @ covariance @ out)

    for i in range(q):
        assert found["group", f"z{i}", "var"][1] == pytest.approx(slope(**{f"g{i}{i}": 1.0}), rel=tolerance)
        assert found["group", f"z{i}", "sd"][1] == pytest.approx(
            slope(**{f"g{i}{i}": 0.5 / np.sqrt(G[i, i])}), rel=tolerance
        )
        for j in range(i if structure == "full" else 0):
            root = np.sqrt(G[i, i] * G[j, j])
            corr = G[i, j] / root
            assert found["group", f"z{j}.z{i}", "cov"][1] == pytest.approx(slope(**{f"g{i}{j}": 1.0}), rel=tolerance)
            of_corr = {f"g{i}{j}": 1 / root, f"g{i}{i}": -0.5 * corr / G[i, i], f"g{j}{j}": -0.5 * corr / G[j, j]}
            assert found["group", f"z{j}.z{i}", "cor"][1] == pytest.approx(slope(**of_corr), rel=tolerance)
    assert found["Residual", "Observation", "var"][1] == pytest.approx(slope(sigma2=1.0), rel=tolerance)
    assert found["Residual", "Observation", "sd"][1] == pytest.approx(slope(sigma2=0.5 / result.sigma), rel=tolerance)

    # theta by differences of the Cholesky factor
    def theta(x):
        covariance_ = np.zeros_like(G)
        covariance_[free] = covariance_[free[::-1]] = x[:-1]
        return oracle.theta_from_lambda(np.linalg.cholesky(covariance_ / x[-1]), structure)

    x = np.append(G[free], result.sigma2)
    h = 1e-5
    jacobian = np.array([(theta(x + h * e) - theta(x - h * e)) / (2.0 * h) for e in np.eye(len(x))]).T
    expected = np.sqrt(np.diag(jacobian @ covariance @ jacobian.T))
    names = [
        f"z{i}" if i == j else f"z{j}.z{i}" for j in range(q) for i in range(j, q if structure == "full" else j + 1)
    ]
    got = np.array([found["group", name, "theta"] for name in names])
    np.testing.assert_allclose(got[:, 0], result.theta, rtol=1e-12)
    np.testing.assert_allclose(got[:, 1], expected, rtol=tolerance)


def test_balanced_one_way_layout_has_closed_forms(rng):
    # REML: E = MSW with N - m degrees of freedom, B = MSB with m - 1; at the estimates the observed information of
    # (lambda = E + k tau2, E) is diagonal: d'' = df / estimate^2
    m, k = 11, 5
    groups = np.repeat(np.arange(m), k)
    y = np.repeat(rng.normal(size=m) * 2.0, k) + rng.normal(size=m * k)
    result = flc.LinearMixedModel(y, groups=groups).fit()
    within = m * k - m
    var_e = 2.0 * result.sigma2**2 / within
    total = result.sigma2 + k * result.G["group"][0, 0]
    var_tau2 = (2.0 * total**2 / (m - 1) + var_e) / k**2
    found = table(result)
    assert found["Residual", "Observation", "var"][1] == pytest.approx(np.sqrt(var_e), rel=1e-9)
    assert found["group", "Intercept", "var"][1] == pytest.approx(np.sqrt(var_tau2), rel=1e-9)


def test_intervals(rng):
    y, X, Z, groups, w = unbalanced(rng, 2, m=30)
    result = flc.LinearMixedModel(y, X, Z, groups, weights=w).fit()
    z = 1.6448536269514722
    found = table(result, 0.9)
    diagonal = {("group", f"z{i}", "theta") for i in range(2)}
    assert diagonal < set(found)
    for key, (estimate, se, lower, upper) in found.items():
        kind = key[-1]
        if kind in ("sd", "var") or key in diagonal:
            assert np.log(upper / estimate) == pytest.approx(z * se / estimate, rel=1e-10)
            assert lower * upper == pytest.approx(estimate**2, rel=1e-10)
        elif kind == "cor":
            half = z * se / (1.0 - estimate**2)
            np.testing.assert_allclose(
                np.arctanh([lower, upper]), np.arctanh(estimate) + half * np.array([-1.0, 1.0]), rtol=1e-9
            )
        else:
            np.testing.assert_allclose([lower, upper], [estimate - z * se, estimate + z * se], rtol=1e-10)
    # sd and variance tell the same
    assert found["group", "z0", "sd"][2] ** 2 == pytest.approx(found["group", "z0", "var"][2], rel=1e-10)


@pytest.mark.parametrize("reml", [True, False])
def test_units(rng, reml):
    y, X, Z, groups, w = unbalanced(rng, 2, m=20)
    plain = flc.LinearMixedModel(y, X, Z, groups, weights=w).fit(reml=reml)
    scaled = flc.LinearMixedModel(y * 1e-6, X * [1.0, 1e5, 1.0], Z * [1.0, 1e5], groups, weights=w).fit(reml=reml)
    before, after = table(plain), table(scaled)
    unit = {"z0": 1e-6, "z1": 1e-11, "Observation": 1e-6}
    for (group, term, kind), values in before.items():
        scale = 1.0
        for part in term.split("."):
            scale *= unit[part]
        scale = {"sd": scale, "var": scale**2, "cov": scale, "cor": 1.0}.get(kind)
        if scale is not None:
            np.testing.assert_allclose(after[group, term, kind], values * scale, rtol=1e-6, err_msg=f"{term} {kind}")


def test_zero_variance(rng):
    # anova mean squares: no variation between groups is left
    m, k = 10, 6
    groups = np.repeat(np.arange(m), k)
    y = rng.normal(size=m * k)
    y = y - np.repeat(y.reshape(m, k).mean(axis=1), k)
    result = flc.LinearMixedModel(y, groups=groups).fit(reml=False)
    assert result.singular
    found = table(result)
    for kind in ("sd", "var", "theta"):
        estimate, *rest = found["group", "Intercept", kind]
        assert estimate == 0.0
        assert np.isnan(rest).all()
    # ordinary least squares: var(sigma2) = 2 sigma2^2 / n
    assert found["Residual", "Observation", "var"][1] == pytest.approx(result.sigma2 * np.sqrt(2.0 / (m * k)), rel=1e-9)


@pytest.mark.parametrize("reml", [True, False])
def test_perfect_correlation(rng, reml):
    """On the face of rank one G = f f', with f and log sigma2 as parameters of a dense likelihood."""
    m, k = 30, 6
    groups = np.repeat(np.arange(m), k)
    t = np.tile(np.arange(k) - 1.0, m)
    Z = np.column_stack([np.ones(m * k), t])
    b = rng.normal(size=m)
    y = b[groups] * (1.0 + 0.5 * t) + rng.normal(size=m * k)
    for _ in range(50):  # until the fit is singular
        result = flc.LinearMixedModel(y, Z, Z, groups).fit(reml=reml)
        if result.singular and (np.diag(result.G["group"]) > 0.01).all():
            break
        b = rng.normal(size=m)
        y = b[groups] * (1.0 + 0.5 * t) + rng.normal(size=m * k)
    G = result.G["group"]
    assert abs(G[1, 0]) == pytest.approx(np.sqrt(G[0, 0] * G[1, 1]))
    f = np.sqrt(np.diag(G)) * [1.0, np.sign(G[1, 0])]

    def deviance(x):
        covariance = np.outer(x[:2], x[:2])
        beta = oracle.beta(y, Z, Z, groups, covariance / x[2])
        return -2.0 * oracle.loglik(y, Z, Z, groups, beta, covariance, x[2], reml)

    x = np.append(f, result.sigma2)
    covariance = 2.0 * np.linalg.inv(second_differences(deviance, x, 1e-3 * np.abs(x)))
    errors = np.sqrt(np.diag(covariance))
    found = table(result)
    assert found["group", "z0", "sd"][1] == pytest.approx(errors[0], rel=1e-4)
    assert found["group", "z1", "sd"][1] == pytest.approx(errors[1], rel=1e-4)
    assert found["Residual", "Observation", "var"][1] == pytest.approx(errors[2], rel=1e-4)
    cov = np.sqrt(np.array([f[1], f[0]]) @ covariance[:2, :2] @ [f[1], f[0]])
    assert found["group", "z0.z1", "cov"][1] == pytest.approx(cov, rel=1e-4)
    assert np.isnan(found["group", "z0.z1", "cor"][1:]).all()
    assert np.isnan(found["group", "z1", "theta"][1:]).all()
    # theta: f / sigma
    slope = np.array([0.0, 1.0, -0.5 * f[1] / result.sigma2]) / result.sigma
    assert found["group", "z0.z1", "theta"][1] == pytest.approx(np.sqrt(slope @ covariance @ slope), rel=1e-4)


@pytest.mark.parametrize("reml", [True, False])
def test_profile_limits(rng, reml):
    y, X, Z, groups, w = unbalanced(rng, 2, m=20)
    result = flc.LinearMixedModel(y, X, Z, groups, weights=w).fit(reml=reml)
    wald, found = table(result, 0.9), table(result, 0.9, "profile")
    limits = confidence_limits(result, 0.9, reml=reml)
    for (group, term, kind), values in found.items():
        np.testing.assert_array_equal(values[:2], wald[group, term, kind][:2])
        name = "sigma" if group == "Residual" else f"{kind}_{term}|{group}".replace("var_", "sd_")
        if kind in ("sd", "cor"):
            np.testing.assert_array_equal(values[2:], limits[name])
        elif kind == "var":
            np.testing.assert_allclose(values[2:], np.square(limits[name]), rtol=1e-14)
        else:
            np.testing.assert_array_equal(values[2:], wald[group, term, kind][2:])


def test_limits_near_zero_are_finite_and_reach_zero():
    """An estimate near zero, where estimate / exp(z se / estimate) is nothing."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(10), rng.integers(3, 11, 10))
    seen = {"zero": 0, "near": 0}
    for _ in range(60):
        y = 0.1 * rng.standard_normal(10)[groups] + rng.standard_normal(len(groups))
        result = flc.LinearMixedModel(y, groups=groups).fit()
        estimate = result.random_effects_sd["group"][0]
        _, _, low, high = table(result, method="profile")["group", "Intercept", "sd"]
        assert 0.0 <= low <= estimate <= high < 3.0
        if estimate < 0.15:
            assert low == 0.0
            wald = table(result)["group", "Intercept", "sd"]
            assert np.isnan(wald[3]) if estimate == 0.0 else wald[3] > high
            seen["zero" if estimate == 0.0 else "near"] += 1
    assert min(seen.values()) >= 3


def test_frames_and_errors(fitted_reference):
    result = fitted_reference("sleepstudy_uncorrelated", True, "formula")
    frame = result.variance_components()
    assert type(frame).__module__.startswith("pandas")
    assert list(frame.columns) == ["group", "term", "kind", "estimate", "std_error", "conf_low", "conf_high"]
    assert not (frame.kind == "cor").any()
    assert frame.std_error.notna().all()
    with pytest.raises(flc.LMMError, match=r"level=1\.5"):
        result.variance_components(level=1.5)
    with pytest.raises(flc.LMMError, match=r"method='delta'"):
        result.variance_components(method="delta")


def test_with_structured_residuals():
    data = flc.datasets.load("sleepstudy")
    plain = flc.lmm("Reaction ~ Days + (Days | Subject)", data).fit().variance_components(method="wald")
    fit = flc.lmm("Reaction ~ Days + (Days | Subject)", data, residual="id(Days | Subject)").fit()
    found = fit.variance_components().set_index("term")
    plain = plain.set_index("term").drop(index="sigma").rename(index={"sigma2": "sigma2|Subject"})
    assert set(found.index) == set(plain.index)
    columns = ["estimate", "std_error", "conf_low", "conf_high"]
    np.testing.assert_allclose(found.loc[plain.index, columns], plain[columns], rtol=1e-5, atol=1e-6)


def test_residual_parameters_by_differences_of_dense_algebra():
    rng = np.random.default_rng(3)
    id_, time = np.repeat(np.arange(30), 4), np.tile(np.arange(4), 30)
    data = pd.DataFrame({"id": id_, "t": time, "y": rng.normal(size=120) + 0.7 * rng.normal(size=30)[id_]})
    fit = flc.lmm("y ~ t", data, residual="ar1(t | id)").fit()
    X, y = np.column_stack([np.ones(120), time]), data.y.to_numpy()

    def deviance(variance, rho):
        V = np.kron(np.eye(30), variance * rho ** np.abs(np.subtract.outer(np.arange(4), np.arange(4))))
        W = np.linalg.inv(V)
        P = W - W @ X @ np.linalg.solve(X.T @ W @ X, X.T @ W)
        return np.linalg.slogdet(V)[1] + np.linalg.slogdet(X.T @ W @ X)[1] + y @ P @ y

    table = fit.variance_components(0.9)
    at = table["estimate"].to_numpy()
    h = 1e-3 * np.eye(2)
    hessian = [[(deviance(*(at + a + b)) - deviance(*(at + a - b)) - deviance(*(at - a + b)) + deviance(*(at - a - b)))
                / 4e-6 for b in h] for a in h]  # fmt: skip
    errors = np.sqrt(np.diag(2.0 * np.linalg.inv(np.array(hessian))))
    np.testing.assert_allclose(table["std_error"], errors, rtol=1e-4)
    z = 1.6448536269514722
    assert list(table["kind"]) == ["var", "cor"]
    low = at[0] * np.exp(-z * errors[0] / at[0]), np.tanh(np.arctanh(at[1]) - z * errors[1] / (1.0 - at[1] ** 2))
    np.testing.assert_allclose(table["conf_low"], low, rtol=1e-4)


def test_residual_parameters_at_their_limit_or_told_by_no_row_have_no_errors():
    rng = np.random.default_rng(0)
    id_, time = np.repeat(np.arange(60), 4), np.tile(np.arange(4), 60)
    y = rng.normal(size=240)
    opposite = y - 0.5 * np.append(0.0, y[:-1]) * (time > 0)  # neighbours are negatively correlated
    frame = pd.DataFrame({"id": id_, "t": 1.0 * time, "v": time, "y": opposite})
    fit = flc.lmm("y ~ 1", frame, residual="car1(t | id)").fit()
    assert fit.converged and fit.singular_components == ("rho|id = 0",)
    table = fit.variance_components().set_index("term")
    assert table.loc["rho|id", ["std_error", "conf_low", "conf_high"]].isna().all()
    assert table.loc["sigma2|id", "std_error"] > 0.0
    assert np.isnan(fit.residual_parameters()["std_error"][1])
    assert "nan" not in str(fit.summary())
    # nobody has both of the last two visits
    some = frame[((frame.v < 2) & (frame.id < 30)) | ((frame.v == 2 + frame.id % 2) & (frame.id >= 30))]
    errors = flc.lmm("y ~ 1", some, residual="adh(v | id)").fit().variance_components().set_index("term").std_error
    assert errors.index[errors.isna()].tolist() == ["rho_1.2|id", "rho_2.3|id"]


def test_nlme_and_the_log_cholesky_scale():
    """nlme::intervals takes second differences of the likelihood for its covariance matrix: half a per cent."""
    ours = ("sd_Intercept|Subject", "sd_age|Subject", "cor_Intercept.age|Subject", "sigma")
    reference = Path(__file__).parents[1] / "reference"
    theirs = json.loads((reference / "nlme_tools.json").read_text())
    data = pd.read_csv(reference / "data" / "orthodont.csv").assign(weight=theirs["weight"])
    table = flc.lmm(theirs["formula"], data).fit().variance_components(method="wald").set_index("term")
    for i, name in enumerate(ours):
        scale = np.arctanh if name.startswith("cor") else np.log
        low, high = (scale(theirs["intervals"][end][i]) for end in ("lower", "upper"))
        own_low, own_high = scale(table.loc[name, "conf_low"]), scale(table.loc[name, "conf_high"])
        assert own_high - own_low == pytest.approx(high - low, rel=0.006)
        assert 0.5 * (own_high + own_low) == pytest.approx(0.5 * (high + low), abs=1e-4)
    half = 1.959963984540054 * table["std_error"]
    for name in ("theta_Intercept|Subject", "theta_age|Subject"):
        reach = np.exp(half[name] / table.loc[name, "estimate"])
        assert table.loc[name, "conf_high"] == pytest.approx(table.loc[name, "estimate"] * reach)
        assert table.loc[name, "conf_low"] == pytest.approx(table.loc[name, "estimate"] / reach)
    across = table.loc["theta_Intercept.age|Subject"]
    assert across["conf_high"] - across["estimate"] == pytest.approx(half["theta_Intercept.age|Subject"])
