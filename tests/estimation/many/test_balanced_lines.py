"""Responses with covariates of balanced designs: where their searches start, and which minima are the only ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core.estimation.many import covariate_lanes
from own_covariates import EXACT, SLOPE, drawn, same, single, together


@pytest.fixture(autouse=True)
def few_responses(monkeypatch):
    monkeypatch.setattr(covariate_lanes, "FEWEST", 1)


def design(q, arms=1, m=24, n=9):
    """Groups that share their times; in several arms each group has the columns of its own arm alone."""
    t = np.arange(n) / 2.0 - 1.0
    own = t[:, None] ** np.arange(q)
    groups = np.repeat(np.arange(m), n)
    Z = np.tile(own, (m, 1))
    X = (np.eye(arms)[groups % arms][:, :, None] * Z[:, None]).reshape(len(Z), arms * q)
    return X, Z, groups


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("sizes", [(1.0, 0.6, 0.3), (0.15, 0.02, 0.0), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize(("q", "arms"), [(1, 1), (2, 1), (2, 2), (3, 1)])
def test_each_is_the_single_fit(q, arms, sizes, reml):
    X, Z, groups = design(q, arms)
    Y, C = drawn(Z, groups, 16, sizes, 0.3)
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch = model.fit_many(Y, reml, covariates={"c": C})
    assert batch.stack.lines().spanned and together(batch, reml) >= 14
    for i in range(16):
        same(batch, i, single(model, Y[i], [C[i]], reml))


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("covariates", [1, 2, 3])
@pytest.mark.parametrize(("q", "arms"), [(1, 2), (2, 1), (3, 1)])
def test_searches_start_where_they_end(q, arms, covariates, reml):
    X, Z, groups = design(q, arms, 40)
    Y, C = drawn(Z, groups, 24)
    given = [C, *np.random.default_rng(4).standard_normal((2, *Y.shape))][:covariates]
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch = model.fit_many(Y, reml, covariates={f"c{i}": c for i, c in enumerate(given)})
    assert batch.stack.lines().spanned and together(batch, reml) == 24
    inside = ~batch.singular
    assert inside.sum() > 12
    assert np.median(batch.n_evaluations[inside]) <= 2
    for i in np.flatnonzero(inside)[:3]:
        G = batch.G["group"][i] / batch.sigma2[i]
        data = (Y[i], np.column_stack([X, *[c[i] for c in given]]), Z, groups, G)
        assert batch.criterion[i] == pytest.approx(oracle.criterion(*data, reml), rel=EXACT)
        scale = np.sqrt(np.diag(G))
        assert np.abs(oracle.gradient_ghat(*data, reml) * np.outer(scale, scale)).max() < SLOPE


def test_units_and_origins():
    X, Z, groups = design(2)
    Y, C = drawn(Z, groups, 16)
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    plain = model.fit_many(Y, covariates={"c": C})
    moved = model.fit_many(1e-30 * Y + 1e-25, covariates={"c": 1e40 * C - 1e45})
    np.testing.assert_allclose(moved.params[:, 2] * 1e70, plain.params[:, 2], rtol=1e-8)
    np.testing.assert_allclose(moved.bse[:, 2] * 1e70, plain.bse[:, 2], rtol=1e-7)


def test_covariates_that_the_groups_or_the_columns_explain():
    X, Z, groups = design(2)
    Y, C = drawn(Z, groups, 12)
    own = C.copy()
    own[0] = np.random.default_rng(6).normal(size=24)[groups]
    own[1] = own[0] + 1e-6 * C[1]
    own[2], own[3] = 2.0, 1.0 - 3.0 * X[:, 1]
    own[4] = X[:, 1] + 1e-9 * C[4]
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch = model.fit_many(Y, covariates={"c": own})
    for i in range(5):
        one = single(model, Y[i], [own[i]])
        assert batch.criterion[i] == pytest.approx(one.criterion, rel=1e-8)
        np.testing.assert_array_equal(np.isnan(batch.params[i]), np.isnan(one.params))
        np.testing.assert_allclose(batch.params[i] / one.bse, one.params / one.bse, atol=1e-4)


@pytest.mark.parametrize(("m", "n", "apart"), [(12, 4, 1), (12, 4, 8), (20, 3, 8)])
@pytest.mark.parametrize("reml", [True, False])
def test_the_lower_of_two_minima(m, n, apart, reml):
    # within groups the slope is another one than between them: the variance of groups is small or large;
    # where others with one minimum are between them, they wait for their screens, and those of many groups
    # are found by these alone
    X, Z, groups = design(1, 1, m, n)
    rng = np.random.default_rng(8)
    Y, C = np.empty((24 * apart, len(X))), np.empty((24 * apart, len(X)))
    for i in range(len(Y)):
        mean, (one, two) = rng.standard_normal(m), rng.standard_normal((2, len(X)))
        C[i] = mean[groups] + 0.3 * one if i % apart == 0 else one
        slope = (0.2 + 0.05 * (i // apart)) * (1.0 if m < 14 else 5.0) if i % apart == 0 else 0.0
        Y[i] = 1.2 * mean[groups] - slope * 0.3 * one + 0.3 * two
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch = model.fit_many(Y, reml, covariates={"c": C})
    points = np.append(0.0, np.exp(np.linspace(-6.0, 6.0, 33)))
    several = 0
    for i in range(0, len(Y), apart):
        wide = np.column_stack([X, C[i]])
        values = np.array([oracle.criterion(Y[i], wide, Z, groups, np.full((1, 1), g), reml) for g in points])
        low = np.r_[np.inf, values, np.inf]
        several += ((low[1:-1] < low[:-2]) & (low[1:-1] < low[2:])).sum() > 1
        assert batch.criterion[i] <= values.min() + 1e-9 * abs(values.min()), i
    assert several >= 12


def lowest_margin(q, p, mu):
    """What the criterion rises from a minimum at least, relative to the distance, at the limits of the bound.

    See lanes/balanced_lines.pxi; mu: by REML, infinite by ML.
    """
    a, b, nu = 0.1 / q, (0.6 - 0.5 * q * p) / q, mu / p
    one = np.concatenate([np.exp(np.linspace(-12.0, 12.0, {1: 801, 2: 161, 3: 41}[q])), [0.98, 0.99, 1.01, 1.02]])
    z = np.array(list(itertools.combinations_with_replacement(one, q)))
    away = np.abs(z - 1.0)
    lowered = p * (away * np.minimum(np.sqrt(a), np.sqrt(b / np.maximum(z, 1.0)))).sum(axis=1) ** 2
    value = 1.0 + p * (z - 1.0).sum(axis=1) - lowered
    changed = (away * b / np.maximum(z, 1.0)).sum(axis=1)
    assert changed.max() < 1.0
    size = (np.log(z) ** 2).sum(axis=1)
    out = np.inf
    for s in (changed, -changed):
        assert (value - s / nu > 0.0).all()
        beyond = np.log(value - s / nu) + np.log1p(s) / nu - p * np.log(z).sum(axis=1)
        out = min(out, (beyond[size > 0.0] / np.minimum(size, np.sqrt(size))[size > 0.0]).min() / p)
    return out


@pytest.mark.parametrize("q", [1, 2, 3])
def test_no_point_is_lower_than_a_minimum_within_the_limits(q):
    for share in (1e-4, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5):
        # by REML of the fewest groups that are left to the lanes
        for mu in (6.0 * q - 1.0, 1e12):
            assert lowest_margin(q, share / q, mu) > 0.02, (share, mu)
