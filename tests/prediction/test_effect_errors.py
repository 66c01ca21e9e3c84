"""Errors of predicted random effects against G - G Z'P Z G, formed in full."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import block_diag

import fastlmm_core as flc
import oracle
from fastlmm_core.prediction.one_factor import LEAST_DF

RTOL = 1e-8


def dense(X, parts, sigma2, weights=None):
    """Covariances of b^ - b and of b given y; `parts` are pairs of Z (n, k) and the covariance of its effects."""
    Z = np.column_stack([Z for Z, _ in parts])
    G = np.zeros((Z.shape[1], Z.shape[1]))
    at = 0
    for part, own in parts:
        G[at : at + part.shape[1], at : at + part.shape[1]] = own
        at += part.shape[1]
    noise = sigma2 * (np.eye(len(X)) if weights is None else np.diag(1.0 / weights))
    W = np.linalg.inv(Z @ G @ Z.T + noise)
    P = W - W @ X @ np.linalg.solve(X.T @ W @ X, X.T @ W)
    return G - G @ Z.T @ P @ Z @ G, G - G @ Z.T @ W @ Z @ G


def close(found, expected):
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=RTOL * size)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(("q", "structure"), [(1, "full"), (2, "full"), (2, "diagonal"), (3, "full")])
def test_one_factor(rng, q, structure, weights):
    m = 9
    g = np.repeat(np.arange(m), rng.integers(4, 9, m))
    n = len(g)
    Z = np.column_stack([np.ones(n), rng.standard_normal((n, q - 1)) + 0.5])
    X = np.column_stack([Z, rng.standard_normal(m)[g]])
    w = rng.uniform(0.5, 2.0, n) if weights else None
    y = X.sum(axis=1) + np.sum(Z * rng.standard_normal((m, q))[g], axis=1) + rng.standard_normal(n)
    result = flc.LinearMixedModel(y, X, Z, g, weights=w, structure=structure).fit()
    _, wide = oracle.random_design(Z, g)
    G = oracle.covariance_blocks(result)
    expected = dense(X, [(wide, np.kron(np.eye(m), G))], result.sigma2, w)
    for kind, whole in zip(("prediction", "conditional"), expected, strict=True):
        found = result.random_effects_covariance(kind)
        assert found.shape == (m, q, q)
        close(found, np.array([whole[i * q : i * q + q, i * q : i * q + q] for i in range(m)]))
    # what predict gives for a row that is the effect alone
    one = {"X": np.zeros((1, q + 1)), "Z": np.eye(q)[-1:], "groups": [3]}
    error = result.predict(one, effects="all", interval="confidence")["std_error"][0]
    assert error == pytest.approx(np.sqrt(result.random_effects_covariance("prediction")[3, -1, -1]), rel=1e-8)


@pytest.mark.parametrize("nested", [False, True])
def test_several_factors(rng, nested):
    a = np.repeat(np.arange(6), 8)
    b = (np.arange(48) // 4 if nested else np.arange(48) % 5).astype(int)
    x = rng.standard_normal(48)
    y = x + rng.standard_normal(6)[a] + 0.8 * rng.standard_normal(12)[b] + 0.5 * x * rng.standard_normal(6)[a]
    y = y + 0.4 * rng.standard_normal(48)
    result = flc.lmm("y ~ x + (x | a) + (1 | b)", {"y": y, "x": x, "a": a, "b": b}).fit()
    parts = []
    for f in result.model.factors:
        index, Z = np.asarray(f.grouping.index), result.model.exog_re[:, f.columns]
        wide = (index[:, None] == np.arange(f.grouping.m))[:, :, None] * Z[:, None, :]
        G = result.covariance[f.columns, f.columns]
        parts.append((wide.reshape(len(y), -1), np.kron(np.eye(f.grouping.m), G)))
    for kind, whole in zip(("prediction", "conditional"), dense(result.model.exog, parts, result.sigma2), strict=True):
        at = 0
        for f in result.model.factors:
            q, m = f.stop - f.start, f.grouping.m
            blocks = np.array([whole[at + i * q : at + i * q + q, at + i * q : at + i * q + q] for i in range(m)])
            close(result.random_effects_covariance(kind)[f.grouping.name], blocks)
            at += q * m


@pytest.mark.parametrize("weights", [None, "w"])
def test_structured_residuals(rng, weights):
    n, m = 15, 4
    i, v = (part.ravel() for part in np.indices((n, m)))
    data = pd.DataFrame({"id": i, "v": v, "site": (i + v) % 6, "x": rng.standard_normal(n * m)})
    data["w"] = rng.uniform(0.3, 3.0, n * m)
    data["y"] = data.x + 2.0 * rng.standard_normal((6, 2))[data.site] @ [1.0, 0.0] + rng.standard_normal(n * m)
    data = data[rng.random(n * m) > 0.1].reset_index(drop=True)
    result = flc.lmm("y ~ x + (x | site) + (1 | id)", data, residual="ar1(v | id)", weights=weights).fit()
    s2, rho = result.residual_parameters()["estimate"]
    lag = np.abs(np.subtract.outer(data.v.to_numpy(), data.v.to_numpy()))
    R = s2 * rho**lag * np.equal.outer(data.id.to_numpy(), data.id.to_numpy())
    if weights:
        R = R / np.sqrt(np.outer(data.w, data.w))
    X = np.column_stack([np.ones(len(data)), data.x])
    designs = {"site": X, "id": X[:, :1]}
    Z = np.concatenate(
        [np.where((data[f].to_numpy() == k)[:, None], Z, 0.0) for f, Z in designs.items() for k in np.unique(data[f])],
        1,
    )
    G = block_diag(*[np.kron(np.eye(data[f].nunique()), result.G[f]) for f in designs])
    W = np.linalg.inv(Z @ G @ Z.T + R)
    P = W - W @ X @ np.linalg.solve(X.T @ W @ X, X.T @ W)
    found = result.random_effects_covariance("prediction"), result.random_effects_covariance()
    for covariances, inner in zip(found, (P, W), strict=True):
        whole = G - G @ Z.T @ inner @ Z @ G
        at = 0
        for f, own in designs.items():
            q = own.shape[1]
            places = at + q * np.arange(data[f].nunique())
            at = places[-1] + q
            close(np.asarray(covariances[f]), np.array([whole[k : k + q, k : k + q] for k in places]))


def test_stated_coefficients_have_no_error_and_unknown_kinds_are_refused():
    result = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
    stated = result.at(params={"Intercept": 250.0, "Days": 10.0})
    np.testing.assert_array_equal(
        stated.random_effects_covariance("prediction"), stated.random_effects_covariance("conditional")
    )
    with pytest.raises(flc.LMMError, match="kind='condVar' is unknown: use 'conditional' or 'prediction'"):
        result.random_effects_covariance("condVar")


def test_intervals_of_known_groups_do_not_explode():
    """Estimates near zero: the delta method's degrees of freedom go to 0, and the t quantile to 1e10."""
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(10), [2, 4, 5, 6, 7, 8, 9, 10, 12, 14])
    least = 0
    for _ in range(60):
        y = 0.15 * rng.standard_normal(10)[g] + rng.standard_normal(len(g))
        result = flc.LinearMixedModel(y, groups=g).fit()
        for interval in ("confidence", "prediction"):
            found = result.predict(effects="all", interval=interval)
            assert (found["df"] >= LEAST_DF).all()
            # 12.7 is the quantile of t with one degree of freedom
            assert (found["conf_high"] - found["conf_low"] <= 2.0 * 12.7063 * found["std_error"]).all()
            least += (found["df"] == LEAST_DF).sum()
    assert least > 50
