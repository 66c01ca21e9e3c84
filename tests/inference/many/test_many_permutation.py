"""Permutation tests: maps against fits of rearranged residuals, levels against their nominal values."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

import fastlmm_core as flc
from fastlmm_core import LMMError
from fastlmm_core.estimation.many import correlated_lanes
from fastlmm_core.inference.hypotheses import parse_hypothesis
from fastlmm_core.inference.many.rearrangements import rearrangements

AGREE = 1e-6
"""Statistics follow theta, which two searches leave at 1e-8 standard errors of the optimum."""


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(12), [4, 5, 4, 5, 4, 5, 4, 5, 4, 5, 4, 5])
    n = len(g)
    table = {"y": rng.normal(size=n), "x": rng.normal(size=n), "z": rng.normal(size=n), "g": g}
    weights, offset = rng.uniform(0.5, 2.0, n), rng.normal(size=n)
    Y = rng.normal(size=(6, n)) / np.sqrt(weights) + 1.5 * rng.normal(size=(6, 12))[:, g] + table["x"] + offset
    return flc.lmm("y ~ x + z + (1 | g)", table, weights=weights, offset=offset).fit_many(Y)


def covariance(model, theta):
    """V relative to sigma^2."""
    same = model.grouping.index[:, None] == model.grouping.index
    return theta**2 * same + np.diag(1.0 / model.weights)


@pytest.mark.parametrize("scheme", ["freedman-lane", "sign-flip", "whole", "within"])
@pytest.mark.parametrize("hypothesis", ["x = 1", ["x = 0.5", "z = 0"], "x - z = 0.3"])
@pytest.mark.parametrize("refit", [False, True])
def test_maps_are_those_of_rearranged_residuals(batch, scheme, hypothesis, refit):
    model = batch.model
    n, maps = 4, []
    found = batch.permute(
        hypothesis, n, scheme=scheme, refit=refit, seed=9, reduce=lambda values: maps.append(values.copy()) or 0.0
    )
    parsed = parse_hypothesis(hypothesis, model.exog_names)
    L, rhs = parsed.L, parsed.rhs
    beta0 = np.linalg.lstsq(L, rhs, rcond=None)[0]
    X, root = model.exog, np.sqrt(model.weights)
    X0 = X @ scipy.linalg.null_space(L)
    make = rearrangements(scheme, model.nobs, None if scheme == "freedman-lane" else model.grouping.index, 9)
    for i in range(len(batch)):
        y = batch.responses[i] - X @ beta0 - model.offset
        null = flc.LinearMixedModel(y, X0, None, model.grouping.index, weights=model.weights).fit()
        e = (y - X0 @ null.beta) * root
        theta0 = float(np.asarray(null.theta)[0])
        V0 = covariance(model, theta0)
        half = np.real(scipy.linalg.sqrtm(V0 * np.outer(root, root)))
        for k in range(-1, n):
            if k < 0:
                star = e / root
            elif scheme == "freedman-lane":
                star = half @ make(k).of(np.linalg.solve(half, e)[None])[0] / root
            else:
                star = make(k).of(e[None])[0] / root
            if refit:
                fit = flc.LinearMixedModel(star, X, None, model.grouping.index, weights=model.weights).fit()
                wanted = fit.test(L).statistic
            else:
                inverse = np.linalg.inv(V0)
                C = np.linalg.inv(X.T @ inverse @ X)
                beta = C @ X.T @ inverse @ star
                rest = star - X @ beta
                sigma2 = rest @ inverse @ rest / (len(star) - X.shape[1])
                gap, K = L @ beta, sigma2 * L @ C @ L.T
                wanted = gap[0] / np.sqrt(K[0, 0]) if len(L) == 1 else gap @ np.linalg.solve(K, gap) / len(L)
            np.testing.assert_allclose(maps[k + 1][i], wanted, rtol=AGREE, atol=1e-7)
    np.testing.assert_allclose(found.statistic, maps[0])
    counts = (np.abs(np.array(maps[1:])) >= np.abs(maps[0]) * (1.0 - 1e-10)).sum(axis=0)
    np.testing.assert_allclose(found.pvalues, (1.0 + counts) / (n + 1.0))


def test_largest_statistics_and_the_caller_s(batch):
    found = batch.permute("z", 60, seed=1)
    maps = []
    again = batch.permute("z", 60, seed=1, n_jobs=2, reduce=lambda values: maps.append(values) or np.abs(values).max())
    np.testing.assert_array_equal(found.null, again.null)
    np.testing.assert_array_equal(found.null, np.abs(maps[1:]).max(axis=1))
    assert found.observed == np.abs(found.statistic).max()
    wanted = [(1 + (found.null >= abs(t)).sum()) / 61 for t in found.statistic]
    np.testing.assert_allclose(found.familywise(), wanted)
    assert (found.familywise() >= found.pvalues - 1e-12).all() and found.pvalue == found.familywise().min()
    np.testing.assert_allclose(again.familywise([found.null.max() + 1.0]), [1 / 61])
    two = batch.permute("z", 5, seed=1, reduce=lambda values: [values.min(), values.max()])
    assert two.null.shape == (5, 2)
    # a shorter run is the beginning of a longer one
    np.testing.assert_array_equal(batch.permute("z", 20, seed=1).null, found.null[:20])
    assert "60 permutations" in str(found)


@pytest.mark.parametrize(
    ("scheme", "name"), [("freedman-lane", "x"), ("sign-flip", "x"), ("within", "x"), ("whole", "arm")]
)
@pytest.mark.parametrize("refit", [False, True])
def test_levels(scheme, name, refit):
    """Where the null hypothesis holds 5 % are rejected at 5 %: 600 responses share the permutations."""
    rng = np.random.default_rng(6)
    g = np.repeat(np.arange(16), 5)
    table = {"y": rng.normal(size=80), "x": rng.normal(size=80), "arm": (g % 2) * 1.0, "g": g}
    model = flc.lmm("y ~ x + arm + (1 | g)", table)
    Y = rng.normal(size=(600, 80)) + rng.normal(size=(600, 16))[:, g] + 2.0 * table["x" if name == "arm" else "arm"]
    found = model.fit_many(Y).permute(name, 199, scheme=scheme, refit=refit, seed=3)
    assert abs((found.pvalues <= 0.05).mean() - 0.05) < 4.0 * np.sqrt(0.05 * 0.95 / 600)
    assert abs((found.pvalues <= 0.5).mean() - 0.5) < 4.0 * 0.5 / np.sqrt(600)


def test_power(batch):
    """An effect that is there is found."""
    found = batch.permute("x", 199, scheme="sign-flip", seed=1)
    assert found.familywise().min() <= 0.02


def test_rearrangements():
    codes = np.array([0, 2, 1, 0, 2, 1, 3])
    for i in range(20):
        order = rearrangements("within", 7, codes, 1)(i).order
        np.testing.assert_array_equal(codes[order], codes)
        assert sorted(order) == list(range(7))
        order = rearrangements("whole", 7, codes, 1)(i).order
        assert sorted(order) == list(range(7))
        for block in range(4):
            mine = order[codes == block]
            assert len(set(codes[mine])) == 1 and (np.diff(mine) > 0).all()
        sign = rearrangements("sign-flip", 7, codes, 1)(i).sign
        assert set(sign) <= {-1.0, 1.0} and all(len(set(sign[codes == block])) == 1 for block in range(4))


@pytest.fixture(scope="module")
def crossed():
    """Two crossed factors with holes, weights and an offset."""
    rng = np.random.default_rng(5)
    g, h = np.divmod(rng.permutation(72)[:60], 8)
    table = {"y": rng.normal(size=60), "x": rng.normal(size=60), "z": rng.normal(size=60), "g": g, "h": h}
    weights, offset = rng.uniform(0.5, 2.0, 60), rng.normal(size=60)
    Y = rng.normal(size=(4, 60)) / np.sqrt(weights) + rng.normal(size=(4, 9))[:, g] + rng.normal(size=(4, 8))[:, h]
    model = flc.lmm("y ~ x + z + (1 | g) + (1 | h)", table, weights=weights, offset=offset)
    return model.fit_many(Y + offset + table["x"])


@pytest.mark.parametrize("scheme", ["freedman-lane", "sign-flip"])
@pytest.mark.parametrize("hypothesis", ["x = 1", ["x = 0.5", "z = 0"]])
@pytest.mark.parametrize("refit", [False, True])
def test_several_factors(crossed, scheme, hypothesis, refit):
    """Against dense covariance matrices and roots of them."""
    model = crossed.model
    n, maps = 3, []
    crossed.permute(
        hypothesis, n, scheme=scheme, refit=refit, seed=9, reduce=lambda values: maps.append(values.copy()) or 0.0
    )
    parsed = parse_hypothesis(hypothesis, model.exog_names)
    L, X, root = parsed.L, model.exog, np.sqrt(model.weights)
    beta0 = np.linalg.lstsq(L, parsed.rhs, rcond=None)[0]
    X0 = X @ scipy.linalg.null_space(L)
    indices = [f.grouping.index for f in model.factors]
    same = [index[:, None] == index for index in indices]
    codes = None if scheme == "freedman-lane" else indices[-1]
    make = rearrangements(scheme, model.nobs, codes, 9)
    terms = [flc.RandomTerm(None, index, name=f.grouping.name) for index, f in zip(indices, model.factors, strict=True)]
    for i in range(len(crossed)):
        y = crossed.responses[i] - X @ beta0 - model.offset
        null = flc.LinearMixedModel(y, X0, terms=terms, weights=model.weights).fit()
        e = (y - X0 @ null.beta) * root
        V0 = np.diag(1.0 / model.weights)
        for block, own in zip(null.G.values(), same, strict=True):
            V0 = V0 + block.item() / null.sigma2 * own
        half = np.real(scipy.linalg.sqrtm(V0 * np.outer(root, root)))
        for k in range(-1, n):
            if k < 0:
                star = e / root
            elif scheme == "freedman-lane":
                star = half @ make(k).of(np.linalg.solve(half, e)[None])[0] / root
            else:
                star = make(k).of(e[None])[0] / root
            if refit:
                wanted = flc.LinearMixedModel(star, X, terms=terms, weights=model.weights).fit().test(L).statistic
            else:
                inverse = np.linalg.inv(V0)
                C = np.linalg.inv(X.T @ inverse @ X)
                beta = C @ X.T @ inverse @ star
                rest = star - X @ beta
                sigma2 = rest @ inverse @ rest / (len(star) - X.shape[1])
                gap, K = L @ beta, sigma2 * L @ C @ L.T
                wanted = gap[0] / np.sqrt(K[0, 0]) if len(L) == 1 else gap @ np.linalg.solve(K, gap) / len(L)
            np.testing.assert_allclose(maps[k + 1][i], wanted, rtol=2e-6, atol=1e-6)


def of_correlated_effects():
    rng = np.random.default_rng(5)
    g, h = np.repeat(np.arange(8), 6), np.tile(np.arange(6), 8)
    table = {"y": rng.normal(size=48), "x": rng.normal(size=48), "g": g, "h": h}
    model = flc.lmm("y ~ x + (x | g) + (1 | h)", table)
    return table, model.fit_many(rng.normal(size=(3, 48)) + rng.normal(size=(3, 8))[:, g])


def test_several_factors_with_correlated_effects():
    table, batch = of_correlated_effects()
    for scheme in ("sign-flip", "freedman-lane"):
        found = batch.permute("x", 3, scheme=scheme, refit=True, seed=1)
        np.testing.assert_allclose(found.statistic, batch.tvalues[:, 1], rtol=1e-5)
    # the parameters under the null hypothesis kept: generalised least squares with dense matrices
    found = batch.permute("x", 3, scheme="sign-flip", seed=1)
    null = flc.lmm("y ~ 1 + (x | g) + (1 | h)", table)
    X, Z = batch.model.exog, batch.model.exog_re
    for i, y in enumerate(np.asarray(batch.responses)):
        one = null.refit(y)
        V = np.eye(48)
        for f in batch.model.factors:
            own = Z[:, f.columns] @ one.covariance[f.columns, f.columns] @ Z[:, f.columns].T / one.sigma2
            V += own * (f.grouping.index[:, None] == f.grouping.index)
        W = np.linalg.inv(V)
        K = np.linalg.inv(X.T @ W @ X)
        beta = K @ X.T @ W @ y
        e = y - X @ beta
        np.testing.assert_allclose(found.statistic[i], beta[1] / np.sqrt(K[1, 1] * (e @ W @ e) / 46), rtol=1e-5)


def test_several_factors_one_by_one(monkeypatch):
    monkeypatch.setattr(correlated_lanes, "WORK_UP_TO", 0.0)
    _, batch = of_correlated_effects()
    with pytest.raises(LMMError, match="with many levels, or with more than four effects of a level, needs refit=True"):
        batch.permute("x", 9)
    with pytest.raises(LMMError, match="tests one coefficient by its name"):
        batch.permute(["x", "Intercept"], 9, refit=True)


def test_what_is_refused(batch):
    model = batch.model
    for call, message in (
        (lambda: batch.permute("x", 9, scheme="bootstrap"), "scheme='bootstrap'"),
        (lambda: batch.permute("x", 0), "n=0"),
        (lambda: batch.permute("x", 9, scheme="whole", blocks=np.arange(model.nobs) * 0), "no two of these"),
        (lambda: batch.permute("x", 9, scheme="within", blocks=np.arange(model.nobs)), "none has two observations"),
        (lambda: batch.permute("x", 9, blocks=[1, 2]), "blocks"),
        (lambda: batch.permute("x", 3, reduce=lambda values: "no"), "reduce must return a number"),
        (lambda: batch.permute("x", 3, reduce=lambda values: 1.0).familywise(), "that of your reduce"),
        (lambda: model.fit_many(iter([batch.responses])).permute("x", 9), "stream"),
    ):
        with pytest.raises(LMMError, match=message):
            call()
