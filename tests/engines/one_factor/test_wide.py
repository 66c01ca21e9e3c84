"""The criterion for many fixed effects: against dense matrices, and against the one in plain loops."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
import oracle
from dense_inference import Dense
from fastlmm_core import kernels
from fastlmm_core.engines.one_factor.wide import WideCriterion
from fastlmm_core.kernels.records.rows import ConditionedRows

# The same sums of some hundred products in another order, relative to the largest element.
SAME = 1e-11

# Estimates: the optimum of either side is certified to 1e-6 of a standard error or better.
ESTIMATE = 1e-5

SHAPES = {
    "pairs of groups": dict(q=2, p=70, m=20),
    "sums of squares": dict(q=2, p=70, m=90),
    "three effects, pairs": dict(q=3, p=80, m=12),
    "three effects, sums": dict(q=3, p=66, m=60),
    "one effect": dict(q=1, p=5, m=40),
    "equal designs": dict(q=2, p=4, m=96, equal=True),
}


def draw(rng, q, p, m, equal=False, n=None):
    n = n or max(4 * m, 2 * p + 4 * m)
    groups = np.arange(n) % m if equal else rng.integers(0, m, n)
    t = (np.arange(n) // m - 2.0) if equal else rng.standard_normal(n)
    Z = np.vander(t, q, increasing=True)
    X = np.column_stack([np.ones(n), t, rng.standard_normal((m, 1))[groups], rng.standard_normal((n, max(p - 3, 0)))])
    b = rng.standard_normal((m, q))
    return X[:, :p] @ rng.standard_normal(p) + (Z * b[groups]).sum(axis=1) + rng.standard_normal(n), X[:, :p], Z, groups


def close(actual, desired, tolerance=SAME):
    desired = np.asarray(desired)
    np.testing.assert_allclose(actual, desired, rtol=0.0, atol=tolerance * max(1.0, float(np.abs(desired).max())))


def both(rng, reml, **shape):
    """The criterion in plain loops and that of BLAS, of one problem."""
    problem = flc.LinearMixedModel(*draw(rng, **shape)).problem
    given = (problem.packed, problem.within, problem.n, problem.structure.q, problem.rank + 1)
    found = []
    for kind in (kernels.ClusterCriterion, WideCriterion):
        engine = kind(*given, *problem.structure.positions, problem.uniform)
        engine.reml = reml
        found.append(engine)
    return found


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("panel", [2**20, 1])
@pytest.mark.parametrize("name", SHAPES)
def test_everything_is_that_of_plain_loops(name, panel, reml, monkeypatch):
    monkeypatch.setattr("fastlmm_core.engines.one_factor.panels.PANEL", panel)
    rng = np.random.default_rng(3)
    loops, wide = both(rng, reml, **SHAPES[name])
    q, k = wide.q, wide.k
    weight = np.triu(rng.standard_normal((k, k)))
    pairs = rng.standard_normal((q * (q + 1) // 2,) * 2)
    for turn in (None, np.linalg.qr(rng.standard_normal((q, q)))[0]):
        theta = rng.standard_normal(wide.n_par)
        for engine in (loops, wide):
            engine.rotate(turn)
        for order in (0, 1, 2):
            expected, found = loops.evaluate(theta, order), wide.evaluate(theta, order)
            assert found[0] == pytest.approx(expected[0], rel=1e-13)
            for one, other in zip(found[1 : order + 1], expected[1 : order + 1], strict=True):
                close(one, other)
            assert all(part is None for part in found[order + 1 :])
        for one, other in zip(wide.solution(), loops.solution(), strict=True):
            close(one, other)
        for ask in (
            lambda e: e.curvature(),
            lambda e: e.precision(),
            lambda e: e.cross(),
            lambda e: e.traces(),
            lambda e: e.traces(weight),
            lambda e: e.sandwich(pairs + pairs.T),
        ):
            close(ask(wide), ask(loops))


def test_solves_with_v():
    rng = np.random.default_rng(5)
    y, X, Z, groups = draw(rng, q=2, p=70, m=15)
    model = flc.LinearMixedModel(y, X, Z, groups)
    engine = model.problem.criterion()
    assert isinstance(engine, WideCriterion)
    theta = np.array([0.7, -0.2, 0.4])
    engine.evaluate(theta, 1)
    z_o = model.problem.conditioned_z(Z)
    factor = np.array([[0.7, 0.0], [-0.2, 0.4]])
    V = oracle.relative_v(z_o, groups, factor @ factor.T)
    v = rng.standard_normal((len(y), 3))
    close(engine.solve(v, ConditionedRows((np.ascontiguousarray(z_o),), (groups,), None)), np.linalg.solve(V, v), 1e-12)


def test_what_is_known_is_not_computed_again():
    rng = np.random.default_rng(8)
    _, wide = both(rng, True, q=2, p=70, m=20)
    theta = np.array([0.8, 0.3, 0.5])
    first = wide.evaluate(theta, 2)
    wide.evaluate(theta, 1)
    turn = np.linalg.qr(rng.standard_normal((2, 2)))[0]
    # the same G^ in other coordinates: Q'L is made lower triangular by a rotation from the right
    factor = turn @ np.array([[0.8, 0.0], [0.3, 0.5]])
    lower = np.linalg.qr(factor.T)[1].T
    wide.rotate(turn)
    again = wide.evaluate(lower[np.tril_indices(2)][[0, 1, 2]], 2)
    assert wide.n_evaluations == 1
    assert again[0] == first[0]
    wide.reml = False
    wide.evaluate(lower[np.tril_indices(2)], 0)
    assert wide.n_evaluations == 2
    with pytest.raises(ValueError, match="order=1"):
        wide.cross()


@pytest.mark.parametrize(("reml", "weighted"), [(True, False), (True, True), (False, False)])
def test_a_fit_of_many_fixed_effects(reml, weighted):
    rng = np.random.default_rng(11)
    y, X, Z, groups = draw(rng, q=2, p=70, m=12, n=220)
    X[:, 5] = 1e6 + X[:, 5]
    weights = rng.uniform(0.5, 2.0, len(y)) if weighted else None
    result = flc.LinearMixedModel(y, X, Z, groups, weights=weights).fit(reml=reml)
    assert result.converged
    # the same model with X_o, of which the oracle's sums lose nothing
    G = np.asarray(next(iter(result.G.values())))
    dense = Dense(y, X - np.r_[0, X[0, 1:]], Z, groups, G, result.sigma2, np.ones((2, 2), dtype=bool), weights, reml)
    bse = np.sqrt(np.diag(dense.Phi))
    assert result.criterion == pytest.approx(
        oracle.criterion(y, X - np.r_[0, X[0, 1:]], Z, groups, G / result.sigma2, reml, weights), rel=1e-9
    )
    np.testing.assert_allclose((result.params - dense.beta)[1:] / bse[1:], 0.0, atol=ESTIMATE)
    np.testing.assert_allclose(result.bse[1:] / bse[1:], 1.0, atol=ESTIMATE)
    best = oracle.fit(y, X - np.r_[0, X[0, 1:]], Z, groups, reml, weights, start=result.theta)
    assert result.criterion <= best.criterion + 1e-7


def test_satterthwaite_of_many_fixed_effects():
    rng = np.random.default_rng(12)
    y, X, Z, groups = draw(rng, q=2, p=66, m=12, n=200)
    result = flc.LinearMixedModel(y, X, Z, groups).fit()
    G = np.asarray(next(iter(result.G.values())))
    dense = Dense(y, X, Z, groups, G, result.sigma2, np.ones((2, 2), dtype=bool))
    table = result.tidy()
    found = [dense.satterthwaite(row) for row in np.eye(66)]
    np.testing.assert_allclose(np.asarray(table["df"], dtype=float)[:66], found, rtol=1e-4)
