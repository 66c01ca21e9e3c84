"""Crossed factors by conjugate gradients and random probes: what is no estimate against block elimination to rounding,
what is one within its Monte Carlo errors.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import fastlmm_core as flc
from dense_factors import CASES, make
from fastlmm_core.engines.choose import condition_factors
from fastlmm_core.engines.crossed import cores, systems
from fastlmm_core.engines.crossed import problem as crossed
from fastlmm_core.engines.crossed.iterative import IterativeProblem
from fastlmm_core.engines.crossed.problem import CrossedProblem
from fastlmm_core.engines.crossed.systems import conjugate
from fastlmm_core.engines.nested.problem import NestedProblem
from fastlmm_core.support import memory

MONTE_CARLO = 4.0
"""Standard errors of estimates by probes, as these themselves state them."""

SOLVED = 1e-8
"""Solutions by conjugate gradients, relative to their size."""


def close(found, wanted):
    size = max(1.0, float(np.abs(wanted).max(initial=0.0)))
    np.testing.assert_allclose(found, wanted, rtol=SOLVED, atol=SOLVED * size)


def problems(kind, q, weights):
    y, X, factors, w, off, structure = make(kind, 4, q, weights)
    problem = condition_factors(y, X, factors, w, off, structure)
    if type(problem) is not CrossedProblem or len(factors) < 2:
        pytest.skip("taken by another engine")
    return problem, IterativeProblem.of(problem, 512, 1)


@pytest.mark.parametrize(("kind", "q", "weights"), CASES)
def test_against_block_elimination(kind, q, weights):
    problem, iterative = problems(kind, q, weights)
    exact, other = problem.criterion(), iterative.criterion()
    rng = np.random.default_rng(q)
    columns = rng.normal(size=(exact.n_slots, 11))
    close(other.gram_times(columns), exact.gram_times(columns))
    for theta in (np.full(problem.structure.n_parameters, 0.3), problem.start(exact)):
        for reml in (True, False):
            exact.reml = other.reml = reml
            value, gradient, _ = exact.evaluate(theta, 1)
            exact.average = True
            curve = exact.evaluate(theta, 2)[2]
            exact.average = False
            found, slope, hessian = other.evaluate(theta, 2)
            # what no probe enters
            for a, b in zip(other.solution()[:3], exact.solution()[:3], strict=True):
                close(np.tril(a) if np.ndim(a) == 2 else a, np.tril(b) if np.ndim(b) == 2 else b)
            close(other.scores(), exact.scores())
            close(other.multiply(columns), exact.multiply(columns))
            close(other.means(columns), exact.means(columns))
            close(other.cross(), exact.cross())
            weight = np.triu(rng.normal(size=(other.k, other.k)))
            close(other.traces(weight), exact.traces(weight))
            assert hessian.shape == curve.shape and np.linalg.eigvalsh(hessian)[0] > -1e-9 * np.abs(hessian).max()
            # what probes estimate
            probed = other.probed
            assert abs(found - value) <= MONTE_CARLO * probed.log_det_error + SOLVED
            noise = other.noise()
            spread = np.sqrt(np.sum(noise**2, axis=0) / (len(noise) - 2) / len(noise))
            assert (np.abs(slope - gradient) <= MONTE_CARLO * spread + 1e-6 * np.abs(gradient).max()).all()


@pytest.mark.parametrize("q", [1, 2])
def test_what_the_probes_state_is_how_they_vary(q):
    problem, _ = problems("crossed", q, False)
    theta = np.full(problem.structure.n_parameters, 0.4)
    values, errors = [], []
    for seed in range(60):
        engine = IterativeProblem.of(problem, 32, seed).criterion()
        values.append(engine.evaluate(theta)[0])
        errors.append(engine.probed.log_det_error)
    exact = problem.criterion().evaluate(theta)[0]
    assert 0.6 < np.std(values) / np.sqrt(np.mean(np.square(errors))) < 1.6
    assert abs(np.mean(values) - exact) < MONTE_CARLO * np.std(values) / np.sqrt(60)


def test_the_average_information():
    # half of the expected and half of the observed information, whose traces are left out: by differences of e'D e
    problem, iterative = problems("crossed", 2, False)
    engine, exact = iterative.criterion(), problem.criterion()
    theta = np.full(problem.structure.n_parameters, 0.3)
    engine.evaluate(theta, 2)
    exact.evaluate(theta, 2)
    nu, r2, b, inverse = exact.state()[2:]
    e = exact.scores() @ b[:, None]
    which, turned = exact.directed(e)
    N = exact.multiply(turned[:, :, 0])
    E_x = exact.scores()[:, :-1] @ inverse.T
    inner = turned[:, :, 0].T @ N - (turned[:, :, 0].T @ E_x) @ (E_x.T @ turned[:, :, 0])
    squares = turned[:, :, 0].T @ e[:, 0]
    wanted = nu / r2 * inner - nu / r2**2 * np.outer(squares, squares)
    close(engine.average()[np.ix_(which, which)], wanted)


def ratings(n=4000, users=400, films=60, seed=1):
    rng = np.random.default_rng(seed)
    user, film = rng.integers(0, users, n), np.minimum(rng.geometric(1.5 / films, n), films) - 1
    x, other = rng.normal(size=n), rng.integers(0, 8, n)
    y = 1.0 + 0.5 * x + 0.7 * rng.normal(size=users)[user] + rng.normal(size=films)[film] * 0.5 + rng.normal(size=n)
    y += 0.3 * x * rng.normal(size=films)[film]
    return {"y": y, "x": x, "user": user, "film": film, "other": other, "day": rng.integers(0, 3, n)}


FORMULAS = [
    "y ~ x + (1 | user) + (1 | film)", "y ~ x + (1 | user) + (x | film)", "y ~ x + (1 | user/day) + (1 | film)",
    "y ~ x + (x || user) + (x || film) + (1 | other)",
]  # fmt: skip


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("formula", FORMULAS)
def test_fits_within_their_monte_carlo_errors(formula, reml):
    model = flc.lmm(formula, ratings())
    one, other = model.fit(reml), model.fit(reml, method="iterative")
    assert one.converged and other.converged and other.singular == one.singular
    drawn = other.optimum.monte_carlo
    assert f"standard error of {drawn.criterion:.1g}" in other.message and "Monte Carlo" in other.message
    assert abs(other.criterion - one.criterion) < MONTE_CARLO * drawn.criterion
    # covariance parameters, in their standard errors
    found, wanted = (fit.variance_components(method="wald") for fit in (other, one))
    size = np.where(np.isfinite(wanted["std_error"]), wanted["std_error"], 1.0)
    apart = (found["estimate"] - wanted["estimate"]) / size
    assert np.abs(apart).max() < MONTE_CARLO * drawn.parameters + 1e-3
    change = np.abs(other.beta - one.beta) / np.sqrt(np.diag(one.cov))
    assert change.max() < MONTE_CARLO * drawn.parameters + 1e-4
    np.testing.assert_allclose(other.bse["x"], one.bse["x"], rtol=0.02)
    np.testing.assert_allclose(other.df["x"], one.df["x"], rtol=0.05)
    for a, b in zip(other.blups, one.blups, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02)


def test_a_variance_that_vanishes_is_none():
    data = ratings()
    # less between the levels than chance leaves there
    means = np.bincount(data["other"], data["y"]) / np.bincount(data["other"])
    model = flc.lmm("y ~ x + (1 | user) + (1 | other)", data | {"y": data["y"] - means[data["other"]]})
    one, other = model.fit(), model.fit(method="iterative")
    assert one.singular and other.singular and other.converged and "on the boundary" in other.message
    assert other.random_effects_sd["other"] == 0.0 and np.abs(other.blups[1]).max() == 0.0
    assert other.random_effects_sd["user"] == pytest.approx(one.random_effects_sd["user"], rel=0.01)


def test_threads_and_pickles_change_no_bit_and_seeds_do():
    model = flc.lmm(FORMULAS[1], ratings())
    one, two = (model.fit(method="iterative", n_jobs=jobs) for jobs in (1, 3))
    np.testing.assert_array_equal(one.theta, two.theta)
    assert one.criterion == two.criterion
    again = pickle.loads(pickle.dumps(one))
    assert again.test("x").pvalue == one.test("x").pvalue
    np.testing.assert_array_equal(again.blups[1], one.blups[1])
    other = model.fit(method="iterative", options={"seed": 5, "probes": 200})
    assert other.criterion != one.criterion and other.optimum.monte_carlo.probes == 200
    assert other.optimum.monte_carlo.criterion < one.optimum.monte_carlo.criterion
    # a start is where the search begins, not where it ends
    far = model.fit(method="iterative", start=4.0 * one.theta)
    np.testing.assert_allclose(far.theta, one.theta, rtol=1e-4)
    assert far.n_evaluations > one.n_evaluations


def test_how_many_are_solved_for_at_once_changes_nothing(monkeypatch):
    problem, iterative = problems("crossed", 2, True)
    theta = np.full(problem.structure.n_parameters, 0.4)
    found = []
    for at_once in (0, systems.AT_ONCE):
        monkeypatch.setattr(systems, "AT_ONCE", at_once)
        engine = iterative.criterion()
        value, gradient, _ = engine.evaluate(theta, 1)
        found.append(np.concatenate([[value], gradient, engine.noise().ravel(), engine.traces().ravel()]))
        assert engine.system.together == (64 if at_once else systems.TOGETHER)
    np.testing.assert_allclose(*found, rtol=SOLVED, atol=SOLVED * np.abs(found[0]).max())


def test_a_fit_does_not_read_the_rows_again():
    data = ratings(20_000)
    y, X = data["y"].copy(), np.column_stack([np.ones(20_000), data["x"]])
    terms = [flc.RandomTerm(None, data[name], name) for name in ("user", "film")]
    model = flc.LinearMixedModel(y, X, terms=terms)
    y[:] = y[::-1].copy()  # which would be met
    fit = model.fit(method="iterative")
    np.testing.assert_array_equal(fit.theta, flc.lmm(FORMULAS[0], data).fit(method="iterative").theta)
    with pytest.raises(flc.LMMError, match="changed since the model was made"):
        _ = fit.resid


def test_what_is_refused():
    data = ratings()
    fit = flc.lmm(FORMULAS[0], data).fit(method="iterative")
    with pytest.raises(flc.LMMError, match="have Monte Carlo errors; take intervals by method='wald', or fit with"):
        fit.profile()
    with pytest.raises(flc.LMMError, match="conditional variances of random effects need the exact criterion"):
        _ = fit.blup_covariances
    with pytest.raises(flc.LMMError, match="needs the exact criterion"):
        fit.engine.conditional()
    for formula, words in (
        ("y ~ x + (1 | user)", "is for crossed grouping factors"), ("y ~ x + (1 | user/day)", "these are nested"),
        ("y ~ x + cs(1 + x | user) + (1 | film)", "free covariances"),
    ):  # fmt: skip
        with pytest.raises(flc.LMMError, match=words):
            flc.lmm(formula, data).fit(method="iterative")
    model = flc.lmm(FORMULAS[0], data)
    for options, words in (
        ({"tolerance": 1.0}, "options: 'tolerance' is unknown"), ({"probes": 2}, "probes"), ({"seed": -1}, "seed"),
    ):  # fmt: skip
        with pytest.raises(flc.LMMError, match=words):
            model.fit(method="iterative", options=options)
    assert isinstance(flc.lmm("y ~ x + (1 | user/day)", data).problem, NestedProblem)


def test_what_is_not_certified_says_so(monkeypatch):
    model = flc.lmm(FORMULAS[0], ratings())
    stopped = model.fit(method="iterative", options={"maxiter": 1}, start=[30.0, 30.0])
    assert not stopped.converged and "can still be lowered" in stopped.message
    monkeypatch.setattr("fastlmm_core.estimation.iterative.CERTAIN", 1e-9)
    drawn = model.fit(method="iterative")
    assert not drawn.converged and "take more, options={'probes': 256}" in drawn.message


def test_more_than_memory_is_refused_with_the_remedy(monkeypatch):
    model = flc.lmm(FORMULAS[0], ratings())
    monkeypatch.setattr(memory, "ANYWAY", 0)
    monkeypatch.setattr(crossed, "available", lambda: 60.0 * 60.0 * 8.0 * 1.9)
    with pytest.raises(
        flc.LMMError, match=r"60 random effects .* dense matrices of 0\.0 GB.*fit\(method='iterative'\)"
    ):
        model.fit()
    assert model.fit(method="iterative").converged


def test_conjugate_gradients():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(30, 30))
    A = root @ root.T / 30.0 + np.eye(30)
    b = rng.normal(size=(30, 3))
    b[:, 1] = 0.0
    found = conjugate(lambda v: A @ v, b, 1e-12)
    np.testing.assert_allclose(found.x, np.linalg.solve(A, b), rtol=0, atol=1e-10)
    assert found.steps[1] == 0 and (found.x[:, 1] == 0.0).all()
    with pytest.raises(flc.LMMError, match="have not converged in 2000 steps"):
        conjugate(lambda v: A @ v + rng.normal(size=v.shape), b, 1e-12)


def test_no_order_of_elimination_is_looked_for(rng, monkeypatch):
    monkeypatch.setattr(cores, "SPARSE_FROM", 0)
    n = 3000
    a, b = rng.integers(0, 200, n), rng.integers(0, 60, n)
    y = rng.normal(size=200)[a] + rng.normal(size=60)[b] + rng.normal(size=n)
    terms = [flc.RandomTerm(None, a, "a"), flc.RandomTerm(None, b, "b")]
    asked = []
    find = cores.hierarchies.minimum_degree
    monkeypatch.setattr(cores.hierarchies, "minimum_degree", lambda *given: asked.append(1) or find(*given))
    model = flc.LinearMixedModel(y, None, terms=terms)
    iterated = model.fit(method="iterative")
    assert not asked
    # found once for all criteria of the problem, of other covariances too
    exact = model.fit()
    problem = model.problem
    assert problem.with_structure(problem.structure).layout is problem.layout
    assert len(asked) == 1
    np.testing.assert_allclose(iterated.theta, exact.theta, rtol=0.05)
