"""Crossed factors whose levels touch few others: levels eliminated one by one before a dense core."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import dense_factors as dense
from fastlmm_core import LinearMixedModel, RandomTerm
from fastlmm_core.engines.choose import condition_factors
from fastlmm_core.engines.crossed import cores as tail
from fastlmm_core.engines.crossed import problem as crossed
from fastlmm_core.errors import LMMError
from fastlmm_core.kernels.hierarchies import minimum_degree

CASES = [case for case in dense.CASES if case[0] not in ("one", "nested", "nested3")]


def force(monkeypatch, share):
    """Let about this share of the levels of the tail be eliminated one by one."""

    def some(start, members, width, _):
        order, begin, neighbours = minimum_degree(start, members, width, np.inf)
        n = max(round(share * len(order)), 1)
        return order[:n], begin[: n + 1], neighbours[: begin[n]]

    monkeypatch.setattr(tail.hierarchies, "minimum_degree", some)
    monkeypatch.setattr(tail, "SPARSE_FROM", 0)
    monkeypatch.setattr(tail, "SPARSE_GAIN", np.inf)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("singular", [False, True, "zero", "each"])
@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("kind", "q", "weights"), CASES)
def test_every_quantity_against_dense_matrices(kind, q, weights, reml, singular, share, monkeypatch):
    force(monkeypatch, share)
    y, X, factors, w, off, structure = dense.make(kind, 7, q, weights)
    found = condition_factors(y, X, factors, w, off, structure).layout
    assert found.sparse is not None
    assert (len(found.sparse.slot) == sum(t.m for t in found.tails)) == (share == 1.0)
    dense.compare_every_quantity(kind, q, weights, reml, singular)


def elements(rng, n, count, most):
    """Sets of levels in the form that `minimum_degree` takes, and the graph that they make."""
    sets = [rng.choice(n, size=rng.integers(1, most + 1), replace=False) for _ in range(count)]
    joined = np.zeros((n, n), dtype=bool)
    for members in sets:
        joined[np.ix_(members, members)] = True
    np.fill_diagonal(joined, False)
    start = np.concatenate([[0], np.cumsum([len(members) for members in sets])]).astype(np.intp)
    return start, np.concatenate(sets).astype(np.int32), joined


@pytest.mark.parametrize("share", [np.inf, 0.5, 0.3])
@pytest.mark.parametrize("seed", range(20))
def test_order_joins_what_elimination_joins(seed, share):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 60))
    start, members, joined = elements(rng, n, int(rng.integers(1, 3 * n)), min(n, 5))
    width = rng.integers(1, 4, n).astype(np.intp)
    if share < 1.0 and n > 20:
        # some have more neighbours than may be eliminated, and belong to elements of all kinds
        popular = rng.random(len(members)) < 0.2
        popular[start[:-1]] = False
        repeated = np.repeat(np.arange(len(start) - 1), np.diff(start))
        members[popular] = rng.integers(0, 4, int(popular.sum()))
        pairs = np.unique(np.column_stack([repeated, members]), axis=0)
        start = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=len(start) - 1))]).astype(np.intp)
        members = np.ascontiguousarray(pairs[:, 1]).astype(np.int32)
        joined[:] = False
        for first, last in pairwise(start):
            joined[np.ix_(members[first:last], members[first:last])] = True
        np.fill_diagonal(joined, False)
    total = int(width.sum())
    crowded = joined @ width > share * total
    order, begin, neighbours = minimum_degree(start, members, width, share)
    assert len(set(order)) == len(order) and (share < 1.0 or len(order) == n)
    assert not crowded[order].any()
    left = np.ones(n, dtype=bool)
    for i, v in enumerate(order):
        found = neighbours[begin[i] : begin[i + 1]]
        assert sorted(found) == list(np.flatnonzero(joined[v] & left & (np.arange(n) != v)))
        assert width[found].sum() <= share * width[left].sum()
        left[v] = False
        joined[np.ix_(found, found)] = True
        joined[found, found] = False


def test_degrees_are_small_on_a_path_and_on_a_star():
    n = 500
    path = np.column_stack([np.arange(n - 1), np.arange(1, n)]).astype(np.int32)
    star = np.column_stack([np.zeros(n - 1), np.arange(1, n)]).astype(np.int32)
    for pairs in (path, star):
        start = np.arange(0, 2 * n - 1, 2, dtype=np.intp)
        order, begin, _ = minimum_degree(start, pairs.ravel().copy(), np.ones(n, dtype=np.intp), np.inf)
        assert len(order) == n
        assert np.diff(begin).max() <= 2


def movers(seed, n_workers, n_firms, years=4, q=1):
    """Workers who now and then change to a firm nearby: the graph of firms is nearly a band."""
    rng = np.random.default_rng(seed)
    firm = rng.integers(0, n_firms, n_workers)
    at = np.empty((n_workers, years), dtype=int)
    for t in range(years):
        at[:, t] = firm
        moves = rng.uniform(size=n_workers) < 0.3
        firm = np.where(moves, np.clip(firm + rng.integers(-2, 3, n_workers), 0, n_firms - 1), firm)
    worker, firm = np.repeat(np.arange(n_workers), years), at.ravel()
    n = len(worker)
    x = rng.normal(size=n)
    Z = np.column_stack([np.ones(n), rng.normal(size=n)])[:, :q]
    b = rng.normal(size=(n_firms, q)) * [0.8, 0.4][:q]
    y = 1.0 + 0.5 * x + rng.normal(size=n_workers)[worker] + np.sum(Z * b[firm], axis=1) + rng.normal(size=n)
    terms = [RandomTerm(np.ones((n, 1)), worker, name="worker"), RandomTerm(Z, firm, name="firm")]
    return y, np.column_stack([np.ones(n), x]), terms


@pytest.mark.parametrize("q", [1, 2])
def test_fits_are_those_with_a_dense_tail(q, monkeypatch):
    y, X, terms = movers(6, 6000 // q, 900 // q, q=q)
    model = LinearMixedModel(y, X, terms=terms)
    found = model.problem.layout
    assert found.sparse is not None
    # most columns are sparse
    assert (found.comp_slot[1:] - found.core_slot).max() < 150
    result = model.fit()
    effects_before = result.random_effects  # rows are read before the order of elimination changes
    monkeypatch.setattr(tail, "SPARSE_FROM", np.inf)
    other = LinearMixedModel(y, X, terms=terms)
    assert other.problem.layout.sparse is None
    expected = other.fit()
    assert result.converged and expected.converged
    assert abs(result.criterion - expected.criterion) < 1e-8
    np.testing.assert_allclose(result.params, expected.params, rtol=1e-9)
    np.testing.assert_allclose(result.theta, expected.theta, rtol=1e-7)
    np.testing.assert_allclose(result.bse, expected.bse, rtol=1e-9)
    np.testing.assert_allclose(result.pvalues, expected.pvalues, rtol=1e-5)
    for name, effects in expected.random_effects.items():
        np.testing.assert_allclose(effects_before[name], effects, atol=1e-7)


def test_more_levels_than_a_dense_matrix_may_have(monkeypatch):
    y, X, terms = movers(6, 6000, 900)
    monkeypatch.setattr(crossed, "available", lambda: 3.0 * 8.0 * 300.0**2)
    result = LinearMixedModel(y, X, terms=terms).fit()
    assert result.converged
    # the same levels in disorder leave a dense core
    rng = np.random.default_rng(5)
    n = len(y)
    shuffled = [terms[0], RandomTerm(np.ones((n, 1)), rng.integers(0, 900, n), name="firm")]
    with pytest.raises(LMMError, match=r"crossed factors: .* random effects .* need dense matrices"):
        LinearMixedModel(y, X, terms=shuffled).fit()


def test_order_of_levels_and_rows_does_not_matter():
    y, X, terms = movers(6, 6000, 900)
    result = LinearMixedModel(y, X, terms=terms).fit()
    rng = np.random.default_rng(7)
    rows = rng.permutation(len(y))
    relabelled = [
        RandomTerm(term.Z[rows], rng.permutation(term.groups.max() + 1)[term.groups[rows]], name=term.name)
        for term in terms
    ]
    other = LinearMixedModel(y[rows], X[rows], terms=relabelled[::-1]).fit()
    assert abs(result.criterion - other.criterion) < 1e-8
    np.testing.assert_allclose(result.params, other.params, rtol=1e-8)
    np.testing.assert_allclose(result.bse, other.bse, rtol=1e-8)
