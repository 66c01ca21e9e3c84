"""Starts of several factors: expectations of their moments against dense matrices, and how near they are."""

import numpy as np
import pytest

import fastlmm_core as flc
from dense_factors import CASES, Dense, condition_factors, make
from fastlmm_core.engines.crossed import start

EXPECTATION = 1e-10  # sums of a few thousand products


@pytest.mark.parametrize("piece", [7, 1 << 22])
@pytest.mark.parametrize(("kind", "q", "weights"), [case for case in CASES if case[0] not in ("one",)])
def test_expected_squares_against_dense_matrices(kind, q, weights, piece, monkeypatch):
    monkeypatch.setattr(start, "PIECE", piece)
    y, X, factors, w, off, structure = make(kind, 11, q, weights)
    problem = condition_factors(y, X, factors, w, off, structure)
    if not hasattr(problem, "layout"):
        pytest.skip("no elimination by levels")
    dense = Dense(problem, factors, X, y, w, off)
    Z = np.zeros((dense.n, len(problem.cross)))
    for places, of_factor in zip(problem.layout.places, dense.Z, strict=True):
        Z[:, places.ravel()] = of_factor
    x, r = np.linalg.qr(dense.xy[:, :-1])[0], dense.xy[:, -1]
    products = Z.T @ Z - (Z.T @ x) @ (x.T @ Z)
    squares = start._Squares(problem, problem.criterion())
    weight = np.random.default_rng(3).uniform(0.5, 2.0, Z.shape[1])
    # those of one equation are negative, and of another factor nothing
    weight[1::5] *= -0.2
    weight[::3] = 0.0
    (other, observed), (_, expected) = squares.forms(np.stack([np.ones(len(weight)), weight]))
    assert other == pytest.approx(np.sum((Z.T @ (r - x @ (x.T @ r))) ** 2), rel=EXPECTATION)
    assert observed == pytest.approx(np.sum(weight * (Z.T @ (r - x @ (x.T @ r))) ** 2), rel=EXPECTATION)
    for found, places in zip(expected, problem.layout.places, strict=False):
        assert found == pytest.approx(np.sum(weight[:, None] * products[:, places.ravel()] ** 2), rel=EXPECTATION)
    assert expected[-1] == pytest.approx(weight @ np.diag(products), rel=EXPECTATION)


def uneven(seed):
    """Crossed intercepts of which some levels have most of the rows."""
    rng = np.random.default_rng(seed)
    n = 6000
    drawn = rng.integers(0, 400, n), np.minimum(rng.pareto(0.7, n) * 3.0, 300.0).astype(int)
    codes = [np.unique(c, return_inverse=True)[1] for c in drawn]
    effects = [sd * rng.normal(size=c.max() + 1)[c] for sd, c in zip((0.5, 1.0), codes, strict=True)]
    terms = [flc.RandomTerm(None, c, name) for c, name in zip(codes, "ab", strict=True)]
    return flc.LinearMixedModel(rng.normal(size=n) + sum(effects), np.ones((n, 1)), terms=terms)


def away(seed):
    """Decrement at the start, in standard errors."""
    problem = uneven(seed).problem
    engine = problem.criterion()
    _, gradient, hessian = engine.evaluate(start.factors_start(problem, engine), 2)
    return float(np.sqrt(gradient @ np.linalg.solve(hessian, gradient)))


def test_levels_are_weighted_by_what_they_tell(monkeypatch):
    near = [away(seed) for seed in range(6)]
    monkeypatch.setattr(start, "REFINED", 0)
    far = [away(seed) for seed in range(6)]
    assert np.median(near) < 0.4 * np.median(far)


def test_a_search_ends_a_millionth_of_a_standard_error_from_the_optimum():
    for seed in range(4):
        model = uneven(seed)
        engine = model.problem.criterion()
        assert engine.averaged
        found, exact = model.fit(), model.fit(options={"tolerance": 1e-12})
        _, _, hessian = engine.evaluate(exact.theta, 2)
        step = found.theta - exact.theta
        assert np.sqrt(step @ hessian @ step) <= 1.1e-6
        assert found.converged and exact.converged and found.n_evaluations < exact.n_evaluations
