"""Many responses with several factors of independent effects: the lanes against dense matrices and single fits."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
import landscapes
from fastlmm_core import RandomTerm
from fastlmm_core.estimation.fit import Fit
from fastlmm_core.estimation.many import factor_lanes
from fastlmm_core.estimation.many.batch_fit import BatchFit
from fastlmm_core.estimation.many.looks import in_lanes
from fastlmm_core.estimation.many.one_factor import shared_design
from fastlmm_core.kernels.hierarchies import CorrelatedBatch, FactorBatch
from fastlmm_core.kernels.records.batches import BatchLook

# Sums of squares of numbers of moderate size; differences where the core explains most of what the leaves leave.
EXACT = 1e-9
# A certified optimum is within 5e-9 of the minimum of the criterion.
CRITERION = 1e-8

SHAPES = ("crossed", "nested", "three", "leaves of one row", "two parts")


def design(rng, shape, p=2, weights=False):
    """Terms (column of Z, codes) and X; sparse, unbalanced, in no order."""
    if shape == "nested":
        mid = rng.permutation(np.repeat(np.arange(12), rng.integers(2, 6, 12)))
        codes = [mid, mid // 3]
    elif shape == "three":
        mid = rng.permutation(np.repeat(np.arange(12), 5))
        codes = [mid, mid // 3, rng.permutation(np.arange(len(mid)) % 3)]
    elif shape == "leaves of one row":
        codes = [np.arange(40), rng.permutation(np.arange(40) % 7), rng.permutation(np.arange(40) % 5)]
        codes[0][:12] = np.arange(6).repeat(2)
        codes[0] = np.unique(codes[0], return_inverse=True)[1]
    elif shape == "two parts":
        half = np.arange(60) % 2
        codes = [half * 6 + rng.integers(0, 6, 60), half * 3 + rng.integers(0, 3, 60)]
        codes = [np.unique(code, return_inverse=True)[1] for code in codes]
    else:
        a, b = np.divmod(rng.permutation(9 * 6)[:45], 6)
        codes = [a, b]
    n = len(codes[0])
    t = rng.uniform(-1.0, 1.0, n)
    columns = [np.ones(n) for _ in codes]
    if shape == "slopes":
        columns, codes = [*columns, t], [*codes, codes[1]]
    X = np.column_stack([np.ones(n), t, rng.standard_normal((n, 3))])[:, :p]
    w = rng.uniform(0.3, 3.0, n) if weights else None
    names = [f"f{i}" for i in range(len(codes))]
    if shape == "slopes":
        terms = [
            RandomTerm(None, codes[0], name="f0"),
            RandomTerm(np.column_stack(columns[1:]), codes[1], name="f1", structure="diagonal"),
        ]
    else:
        terms = [RandomTerm(None, code, name=name) for code, name in zip(codes, names, strict=True)]
    y = rng.standard_normal(n)
    return flc.LinearMixedModel(y, X, terms=terms, weights=w, offset=rng.standard_normal(n) if weights else None)


def responses(rng, model, count, sd=1.0):
    Y = rng.standard_normal((count, model.nobs))
    for f in model.factors:
        b = sd * rng.standard_normal((count, len(f.grouping.labels), f.stop - f.start))
        Y += np.einsum("rij,ij->ri", b[:, f.grouping.index], model.exog_re[:, f.columns])
    return Y


def dense(model, theta):
    """V^-1, Z_t Z_t' of each term and X_o, whitened, in conditioned units."""
    problem = model.problem
    root = np.ones(model.nobs) if model.weights is None else np.sqrt(model.weights)
    Z = problem.conditioned_z(model.exog_re) * root[:, None]
    along = []
    for f in model.factors:
        same = f.grouping.index[:, None] == f.grouping.index
        along += [np.outer(z, z) * same for z in Z[:, f.columns].T]
    V = np.eye(model.nobs) + sum(t**2 * D for t, D in zip(theta, along, strict=True))
    return np.linalg.inv(V), along, problem.conditioned_x(model.exog) * root[:, None]


def close(actual, desired, tolerance=EXACT):
    desired = np.asarray(desired)
    np.testing.assert_allclose(actual, desired, rtol=0.0, atol=tolerance * np.max(np.abs(desired), initial=1e-300))


def thetas(rng, model, count=9):
    """Of sizes at which a dense inverse keeps its digits, some of them zero."""
    theta = 10.0 ** rng.uniform(-2.0, 0.5, (count, model.structure.q))
    theta[1, 0] = theta[2, -1] = 0.0
    theta[3] = 0.0
    return theta


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_those_of_dense_matrices(rng, shape, weights):
    model = design(rng, shape, weights=weights)
    batch = shared_design(model)
    assert isinstance(batch, FactorBatch)
    theta = thetas(rng, model)
    half, trace, square, cross, both = batch.moments(theta)
    for i, own in enumerate(theta):
        W, along, X = dense(model, own)
        close(half[i], np.linalg.inv(np.linalg.cholesky(X.T @ W @ X)))
        close(trace[i], [np.sum(W * D) for D in along])
        close(cross[i], [X.T @ W @ D @ W @ X for D in along])
        at = 0
        for k, D in enumerate(along):
            for F in along[: k + 1]:
                close(square[i, at], np.trace(W @ D @ W @ F))
                product = X.T @ W @ D @ W @ F @ W @ X
                close(both[i, at] + both[i, at].T, product + product.T)
                at += 1


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_contrasts_are_those_of_single_engines(rng, shape, reml):
    model = design(rng, shape, p=3, weights=shape in ("crossed", "two parts"))
    theta = thetas(rng, model)
    Y = responses(rng, model, len(theta))
    rows = rng.standard_normal((2, model.problem.rank))
    covariance, slope, shift, hess = shared_design(model).contrasts(Y, reml, theta, rows)
    for i, own in enumerate(theta):
        problem = model.with_response(Y[i]).problem
        engine = problem.criterion()
        engine.reml = reml
        exact = engine.evaluate(own, 2)[2]
        close(hess[i], exact, 1e-8)
        W, along, X = dense(model, own)
        K = np.linalg.inv(X.T @ W @ X)
        close(covariance[i], rows @ K @ rows.T)
        for t, D in enumerate(along):
            close(slope[i, t], 2.0 * own[t] * rows @ K @ X.T @ W @ D @ W @ X @ K @ rows.T)
        P = W - W @ X @ K @ X.T @ W
        root = 1.0 if model.weights is None else np.sqrt(model.weights)
        y = root * (Y[i] if model.offset is None else Y[i] - model.offset)
        close(shift[i], [2.0 * own[t] * (y @ P @ D @ P @ y) / (y @ P @ y) for t, D in enumerate(along)], 1e-8)


def starts(values, screen):
    """Other points than the lowest from which a search starts: valleys, lowest points, some of all heights."""
    order = [i for i in np.argsort(values, kind="stable").tolist() if np.isfinite(values[i])]
    found = [i for i in order if values[i] <= values[screen.neighbours[i]].min()][: screen.limit + 1]
    found = [*found, *(i for i in order[: screen.lowest] if i not in found)][: screen.limit + 1]
    others = [i for i in order if i not in found]
    return [*found[1:], *others[:: max(1, len(others) // max(1, screen.spread))][: screen.spread]]


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_screen_has_the_values_of_the_criterion(rng, shape, reml):
    model = design(rng, shape)
    batch = shared_design(model)
    Y = responses(rng, model, 5)
    into = BatchFit(model, Fit, reml, 5, None)
    screen = batch.screen
    look = BatchLook(np.empty((5, screen.width), dtype=np.intc), np.empty(5), np.empty((5, len(screen.thetas))))
    in_lanes(batch, Y, into, 0, look=look)
    assert (into.status > 0).sum() >= 3
    at = rng.integers(0, len(screen.thetas), 12)
    for i, y in enumerate(Y):
        engine = model.with_response(y).problem.criterion()
        engine.reml = reml
        expected = [engine.evaluate(one, 0)[0] for one in screen.thetas[at]]
        # far out hardly anything is left of y, to rounding errors of its sum of squares
        np.testing.assert_allclose(look.values[i, at], expected, rtol=1e-6, atol=1e-4)
        # where the residual variance runs to zero there is no optimum, and single fits say so
        if into.status[i] > 0:
            own = engine.evaluate(into.theta_o[i])[0]
            assert into.criterion[i] <= look.values[i].min() + into.criterion[i] - own + 1e-9
        chosen = look.chosen[i][look.chosen[i] >= 0].tolist()
        if into.status[i] > 0:
            assert chosen == starts(look.values[i], screen)
        else:
            assert not chosen


def problems(family, count):
    """Problems of a family whose terms are independent effects of several factors."""
    found = []
    for seed in range(200):
        p = landscapes.problem(family, seed)
        single = all(term.Z.shape[1] == 1 or not term.full for term in p.terms)
        if single and len({term.factor for term in p.terms}) > 1:
            found.append(p)
        if len(found) == count:
            return found
    raise AssertionError("too few problems")


@pytest.mark.parametrize("family", ["identical_factors", "several_terms", "nested_slopes"])
def test_landscapes_have_the_minima_of_single_fits(family):
    for p in problems(family, 8):
        terms = [RandomTerm(t.Z, t.codes, name=t.factor, structure="full" if t.full else "diagonal") for t in p.terms]
        try:
            model = flc.LinearMixedModel(p.y, p.X, terms=terms, weights=p.weights)
        except flc.LMMError:
            continue  # not identified
        assert isinstance(shared_design(model), (FactorBatch, CorrelatedBatch))
        rng = np.random.default_rng(p.seed)
        Y = np.concatenate([p.y[None], *(responses(rng, model, 3, sd) for sd in (0.0, 0.1, 1.0, 10.0))])
        batch = model.fit_many(Y, reml=p.reml, n_jobs=1)
        assert batch.converged.all()
        for i, y in enumerate(Y):
            single = model.refit(y, reml=p.reml)
            assert abs(batch.criterion[i] - single.criterion) < CRITERION * (1.0 + abs(single.criterion)), (p.name, i)


def test_the_other_of_two_like_terms():
    # two factors that differ in a few rows: a minimum where either has all variance, in one valley of the screen
    p = landscapes.problem("identical_factors", 19)
    rng = np.random.default_rng(19)
    for draw in range(10):
        y = p.X.sum(axis=1) + rng.standard_normal(len(p.y))
        for t in p.terms:
            y = y + landscapes._effects(rng, t, 10.0 ** rng.uniform(-2, 1.5, t.Z.shape[1]))
        y = y + rng.standard_t(1.0, len(y)) if draw % 5 == 4 else y
    model = flc.LinearMixedModel(y, p.X, terms=[RandomTerm(t.Z, t.codes, name=t.factor) for t in p.terms])
    batch = model.fit_many(y[None], reml=p.reml)
    assert not batch.alone[0]
    # the other one is 3.7e-4 higher
    assert abs(batch.criterion[0] - model.refit(y, reml=p.reml).criterion) < CRITERION


@pytest.mark.parametrize(
    ("shape", "spread"), [("crossed", 0), ("nested", 4), ("three", 4), ("slopes", 4), ("leaves of one row", 4)]
)
def test_more_searches_start_where_minima_may_lie_close_together(rng, shape, spread):
    model = design(rng, shape)
    assert shared_design(model).screen.spread == spread
    few = model.nobs < 3.0 * sum(len(f.grouping.labels) for f in model.factors)
    assert few == (shape in ("nested", "leaves of one row"))


def test_likeness_of_terms(rng):
    one, other = rng.integers(0, 5, 40), rng.integers(0, 4, 40)
    z = rng.standard_normal((40, 2))
    first, second = (np.outer(a, a) * (c[:, None] == c) for a, c in zip(z.T, (one, other), strict=True))
    expected = np.sum(first * second) / np.linalg.norm(first) / np.linalg.norm(second)
    assert factor_lanes._likeness(z, one, other) == pytest.approx(expected, rel=1e-12)


def test_moved_starts(rng):
    batch = shared_design(design(rng, "three"))
    theta = np.empty((2, 3))
    theta[:, batch.search.terms] = np.array([[0.0, 4.0, 3.0], [1.0, 0.0, 0.0]]) * batch.search.unit
    rows, starts = factor_lanes.moved_starts(batch, theta)
    starts = starts[:, batch.search.terms] / batch.search.unit
    assert rows.tolist() == [0, 0, 0, 0, 1, 1]
    little, much = np.hypot(0.1, [4.0, 3.0]), np.hypot(0.1, 1.0)
    close(starts[:2], [[little[0], 0.1, 3.0], [0.1, 0.1, 5.0]])
    close(starts[2:4], [[little[1], 4.0, 0.1], [0.1, 5.0, 0.1]])
    close(starts[4:], [[0.1, much, 0.1], [0.1, 0.1, much]])


def test_leaves_of_one_size_are_one_pattern(rng):
    a, b = np.repeat(np.arange(20), 4), np.tile(np.arange(4), 20)
    terms = [RandomTerm(None, a, name="a"), RandomTerm(None, b, name="b")]
    model = flc.LinearMixedModel(rng.standard_normal(80), np.ones((80, 1)), terms=terms)
    parts = factor_lanes._tree([a, b], 0, 2)
    assert len(parts.core) == 2 and len(parts.of) == 4
    nested = factor_lanes._tree([np.arange(80) // 2, np.arange(80) // 8], 0, 2)
    assert np.diff(nested.core).tolist() == [1] * 10
    assert isinstance(shared_design(model), FactorBatch)


def test_correlated_effects_and_wide_cores_are_left_to_single_engines(rng):
    a, b = rng.integers(0, 12, 90), rng.integers(0, 9, 90)
    t = rng.standard_normal(90)
    line = np.column_stack([np.ones(90), t])
    slopes = [RandomTerm(line, a, name="a"), RandomTerm(None, b, name="b")]
    assert factor_lanes.factor_batch(flc.LinearMixedModel(rng.standard_normal(90), line, terms=slopes)) is None
    a, b = rng.integers(0, 150, 2000), rng.integers(0, 150, 2000)
    wide = [RandomTerm(None, a, name="a"), RandomTerm(None, b, name="b")]
    model = flc.LinearMixedModel(rng.standard_normal(2000), np.ones((2000, 1)), terms=wide)
    assert factor_lanes.factor_batch(model) is None
