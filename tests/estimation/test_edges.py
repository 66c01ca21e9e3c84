"""Hard and odd cases: the boundary, bad scales, tiny and huge groups, redundant columns. Truth is the dense oracle."""

from __future__ import annotations

import signal

import formulaic
import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core.covariance.parameters import one_block
from fastlmm_core.design.grouping import Codes
from fastlmm_core.engines.one_factor.conditioning import condition

BOTH = pytest.mark.parametrize("reml", [True, False])


def growth(rng, m=12, sizes=(3, 8), sd=(2.0, 0.7), sigma=1.0):
    """Random intercepts and slopes, subjects of unequal size, visits at irregular times."""
    n_i = rng.integers(sizes[0], sizes[1] + 1, m)
    groups = np.repeat(np.arange(m), n_i)
    x = rng.uniform(0.0, 5.0, len(groups))
    b = rng.standard_normal((m, 2)) * sd
    y = 10.0 + 1.5 * x + b[groups, 0] + b[groups, 1] * x + sigma * rng.standard_normal(len(groups))
    X = np.column_stack([np.ones(len(y)), x])
    return y, X, X.copy(), groups


def by_label(result, levels):
    labels, b = oracle.random_effects(result)
    return b[[labels.index(str(level)) for level in levels]]


def close(actual, desired, tolerance, scale=1.0):
    """|actual - desired| <= tolerance * scale, elementwise; `scale` broadcasts."""
    excess = np.abs(np.asarray(actual, dtype=float) - desired) / np.asarray(scale)
    assert np.max(excess) <= tolerance


def agrees(result, best, y, *, criterion=1e-10, relative=1e-6):
    """Everything that the oracle knows. `relative` bounds what follows theta to first order, in its natural scale."""
    assert result.converged
    assert float(result.criterion) == pytest.approx(best.criterion, rel=criterion)
    se = np.sqrt(np.diag(best.cov_params))
    close(oracle.values(result.params), best.beta, relative, se)
    close(oracle.values(result.bse), se, relative, se)
    sd = np.sqrt(np.diag(best.G) + 1e-6 * best.sigma2)
    close(oracle.covariance_blocks(result), best.G, 10 * relative, np.outer(sd, sd))
    assert float(result.sigma2) == pytest.approx(best.sigma2, rel=2 * relative)
    close(by_label(result, best.levels), best.blups, 10 * relative, sd)
    sigma = np.sqrt(best.sigma2)
    close(oracle.values(result.fittedvalues), best.fitted, 10 * relative, sigma)
    close(oracle.values(result.resid), y - best.fitted, 10 * relative, sigma)


def certified(result, data, reml, weights=None, structure="full"):
    """For models too wide to search by brute force: the result is a minimum of the dense criterion.

    The value is that of the dense criterion at the reported theta; the derivative by the relative change of each row of
    the factor vanishes, and no direction is left in which the criterion curves downwards.
    """
    y, X, Z, groups = data
    theta = np.asarray(result.theta, dtype=float)
    args = (y, X, Z, groups, reml, weights, None, structure)
    assert result.converged
    assert float(result.criterion) == pytest.approx(oracle.criterion_theta(theta, *args), rel=1e-10)
    Lam = oracle.lambda_from_theta(theta, Z.shape[1], structure)
    rows = np.linalg.norm(Lam, axis=1)
    scale = oracle.theta_from_lambda(np.tile(rows[:, None], (1, len(rows))), structure)
    assert np.max(np.abs(oracle.gradient_theta(theta, *args) * scale)) < 1e-4
    # in the units of `scale`, by scaling the columns of Z: then a step of the differences is small for every element
    Z1, theta1 = Z * rows, theta / scale
    curvature = np.linalg.eigvalsh(oracle.hessian_theta(theta1, y, X, Z1, groups, reml, weights, None, structure))
    assert curvature[0] > -1e-6 * curvature[-1]
    b = oracle.beta(y, X, Z, groups, Lam @ Lam.T, weights)
    V = oracle.cov_params(y, X, Z, groups, Lam @ Lam.T, reml, weights)
    close(oracle.values(result.params), b, 1e-7, np.sqrt(np.diag(V)))
    np.testing.assert_allclose(oracle.values(result.bse), np.sqrt(np.diag(V)), rtol=1e-8)
    close(
        by_label(result, np.unique(groups)),
        oracle.blups(y, X, Z, groups, Lam @ Lam.T, weights),
        1e-7,
        np.sqrt(V.max()) + rows * np.sqrt(float(result.sigma2)),
    )


# ------------------------------------------------------------------------------------------------------------
# the boundary


def orthogonal_noise(rng, x, m):
    """Noise of every subject orthogonal to the intercept and to x, so that its OLS coefficients are what was put in."""
    Q, _ = np.linalg.qr(np.column_stack([np.ones(len(x)), x]))
    e = rng.standard_normal((m, len(x)))
    return e - (e @ Q) @ Q.T


@BOTH
def test_variance_zero(reml):
    ref = oracle.reference("dyestuff2")
    result = flc.LinearMixedModel(ref.y, None, None, ref.groups).fit(reml=reml)
    assert result.converged
    assert result.singular
    assert oracle.covariance_blocks(result)[0, 0] <= 1e-14 * float(result.sigma2)
    assert float(result.sigma2) == pytest.approx(np.var(ref.y, ddof=1 if reml else 0), rel=1e-12)
    close(result.random_effects, 0.0, 1e-10, np.std(ref.y))
    assert float(result.criterion) == pytest.approx(ref.blocks[reml].criterion, rel=1e-12)


@BOTH
def test_slope_variance_zero(rng, reml):
    m, x = 10, np.arange(6.0)
    intercepts = 3.0 * rng.standard_normal(m)
    Y = intercepts[:, None] + 0.8 * x + orthogonal_noise(rng, x, m)
    y, groups = Y.ravel(), np.repeat(np.arange(m), len(x))
    X = np.column_stack([np.ones(len(y)), np.tile(x - x.mean(), m)])
    result = flc.LinearMixedModel(y, X, X, groups).fit(reml=reml)
    best = oracle.fit(y, X, X, groups, reml)
    agrees(result, best, y)
    assert result.singular
    G = oracle.covariance_blocks(result)
    assert G[1, 1] <= 1e-12 * float(result.sigma2)
    assert abs(G[0, 1]) <= 1e-6 * np.sqrt(G[0, 0] * float(result.sigma2))
    # and the fit is that of the random intercept alone
    reduced = flc.LinearMixedModel(y, X, X[:, :1], groups).fit(reml=reml)
    assert not reduced.singular
    assert float(result.criterion) == pytest.approx(float(reduced.criterion), rel=1e-11)


@BOTH
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_correlation_one(rng, sign, reml):
    m, x = 10, np.arange(6.0)
    u = rng.standard_normal(m)
    Y = 4.0 + 3.0 * u[:, None] + (0.8 + sign * 1.2 * u[:, None]) * x + orthogonal_noise(rng, x, m)
    y, groups = Y.ravel(), np.repeat(np.arange(m), len(x))
    X = np.column_stack([np.ones(len(y)), np.tile(x, m)])
    result = flc.LinearMixedModel(y, X, X, groups).fit(reml=reml)
    agrees(result, oracle.fit(y, X, X, groups, reml), y)
    assert result.singular
    G = oracle.covariance_blocks(result)
    assert G[0, 1] / np.sqrt(G[0, 0] * G[1, 1]) == pytest.approx(sign, abs=1e-10)


def test_interior_fits_are_not_called_singular(rng):
    y, X, Z, groups = growth(rng, m=30)
    result = flc.LinearMixedModel(y, X, Z, groups).fit()
    assert result.converged
    assert not result.singular


# ------------------------------------------------------------------------------------------------------------
# group sizes


def test_every_group_of_size_one_is_refused(rng):
    y = rng.standard_normal(20)
    with pytest.raises(flc.LMMError, match=r"one|single"):
        flc.LinearMixedModel(y, None, None, np.arange(20)).fit()


def test_a_slope_between_two_times_is_refused(rng):
    groups = np.repeat(np.arange(10), 2)
    X = np.column_stack([np.ones(20), np.tile([0.0, 1.0], 10)])
    with pytest.raises(flc.LMMError, match="cannot be told apart"):
        flc.LinearMixedModel(rng.standard_normal(20), X, X, groups)


def test_one_group_is_refused(rng):
    with pytest.raises(flc.LMMError):
        flc.LinearMixedModel(rng.standard_normal(20), None, None, np.zeros(20, dtype=int)).fit()


@BOTH
def test_mostly_groups_of_size_one(rng, reml):
    groups = np.concatenate([np.arange(25), np.repeat([25, 26, 27], [4, 2, 5])])
    y = 2.0 * rng.standard_normal(28)[groups] + rng.standard_normal(len(groups))
    X = np.column_stack([np.ones(len(y)), rng.standard_normal(len(y))])
    Z = np.ones((len(y), 1))
    result = flc.LinearMixedModel(y, X, Z, groups).fit(reml=reml)
    agrees(result, oracle.fit(y, X, Z, groups, reml), y)


@BOTH
def test_subjects_with_fewer_rows_than_effects(rng, reml):
    n_i = np.array([1, 2, 1, 2, 9, 8, 1, 7, 2, 10, 6, 9])
    groups = np.repeat(np.arange(len(n_i)), n_i)
    t = rng.uniform(-1.0, 1.0, len(groups))
    Z = np.column_stack([np.ones(len(t)), t, t**2])
    y = np.sum(Z * (rng.standard_normal((len(n_i), 3)) * [2.0, 2.0, 3.0])[groups], axis=1)
    y = y + 0.3 * rng.standard_normal(len(t))
    data = (y, Z, Z, groups)
    result = flc.LinearMixedModel(*data).fit(reml=reml)
    agrees(result, oracle.fit(*data, reml), y)


@pytest.mark.slow
@BOTH
def test_a_million_groups(reml):
    m, k = 1_000_000, 3
    rng = np.random.default_rng(1)
    Y = 5.0 + 0.5 * rng.standard_normal((m, 1)) + rng.standard_normal((m, k))
    result = flc.LinearMixedModel(Y.ravel(), None, None, np.repeat(np.arange(m), k)).fit(reml=reml)
    means = Y.mean(axis=1)
    msb = k * np.sum((means - means.mean()) ** 2) / (m - 1 if reml else m)
    msw = np.sum((Y - means[:, None]) ** 2) / (m * (k - 1))
    assert result.converged
    assert float(result.sigma2) == pytest.approx(msw, rel=1e-9)
    assert oracle.covariance_blocks(result)[0, 0] == pytest.approx((msb - msw) / k, rel=1e-8)
    shrink = (msb - msw) / msb
    np.testing.assert_allclose(result.random_effects[:, 0], shrink * (means - means.mean()), atol=1e-8)


# ------------------------------------------------------------------------------------------------------------
# wide models


@BOTH
def test_eight_random_effects_and_twelve_fixed(rng, reml):
    m, q, p = 16, 8, 12
    n_i = rng.integers(10, 16, m)
    groups = np.repeat(np.arange(m), n_i)
    X = np.column_stack([np.ones(len(groups)), rng.standard_normal((len(groups), p - 1))])
    Z = X[:, :q] * np.array([1.0, 1e-3, 10.0, 1.0, 50.0, 1.0, 1.0, 1.0])
    root = rng.standard_normal((q, q)) / np.array([1.0, 1e-3, 10.0, 1.0, 50.0, 1.0, 1.0, 1.0])[:, None]
    b = rng.standard_normal((m, q)) @ root.T
    y = X @ rng.standard_normal(p) + np.sum(Z * b[groups], axis=1) + rng.standard_normal(len(groups))
    result = flc.LinearMixedModel(y, X, Z, groups).fit(reml=reml)
    certified(result, (y, X, Z, groups), reml)
    # and no worse than the covariance from which the data were drawn
    assert float(result.criterion) < oracle.criterion(y, X, Z, groups, root @ root.T, reml)


@BOTH
def test_fifty_fixed_effects(rng, reml):
    m = 20
    groups = rng.permutation(np.repeat(np.arange(m), 12))
    X = np.column_stack([np.ones(len(groups)), rng.standard_normal((len(groups), 49))])
    Z = X[:, :2]
    y = X @ rng.standard_normal(50) + np.sum(Z * rng.standard_normal((m, 2))[groups], axis=1)
    y = y + rng.standard_normal(len(groups))
    result = flc.LinearMixedModel(y, X, Z, groups).fit(reml=reml)
    agrees(result, oracle.fit(y, X, Z, groups, reml), y)


# ------------------------------------------------------------------------------------------------------------
# scale


@BOTH
def test_huge_offset_of_the_response(rng, reml):
    y, X, Z, groups = growth(rng)
    stored = 1e12 + 0.1 * (y - y.mean())
    clean = stored - 1e12  # exact: the truth is for the data as they were stored
    result = flc.LinearMixedModel(stored, X, Z, groups).fit(reml=reml)
    best = oracle.fit(clean, X, Z, groups, reml)
    assert result.converged
    assert float(result.criterion) == pytest.approx(best.criterion, rel=1e-9)
    se = np.sqrt(np.diag(best.cov_params))
    np.testing.assert_allclose(oracle.values(result.bse), se, rtol=1e-6)
    ulp = np.spacing(1e12)
    close(oracle.values(result.params) - [1e12, 0.0], best.beta, 1e-6, se + np.array([2e6 * ulp, 0.0]))
    np.testing.assert_allclose(oracle.covariance_blocks(result), best.G, rtol=1e-5)
    assert float(result.sigma2) == pytest.approx(best.sigma2, rel=1e-6)
    close(by_label(result, best.levels), best.blups, 1e-5, np.sqrt(np.diag(best.G)))
    close(oracle.values(result.fittedvalues) - 1e12, best.fitted, 4 * ulp)
    close(oracle.values(result.resid), clean - best.fitted, 4 * ulp)


@BOTH
def test_tiny_units_of_the_response(rng, reml):
    y, X, Z, groups = growth(rng)
    result = flc.LinearMixedModel(1e-6 * y, X, Z, groups).fit(reml=reml)
    best = oracle.fit(y, X, Z, groups, reml)
    nu = len(y) - 2 * reml
    assert result.converged
    assert float(result.criterion) == pytest.approx(best.criterion + 2 * nu * np.log(1e-6), rel=1e-10)
    np.testing.assert_allclose(1e6 * oracle.values(result.bse), np.sqrt(np.diag(best.cov_params)), rtol=1e-6)
    np.testing.assert_allclose(1e12 * oracle.covariance_blocks(result), best.G, rtol=1e-5)
    np.testing.assert_allclose(1e6 * oracle.values(result.params), best.beta, rtol=1e-6)


@BOTH
def test_huge_units_of_a_column(reml):
    ref = oracle.reference("sleepstudy_slope")
    block = ref.blocks[reml]
    k = np.array([1.0, 1e6])
    result = flc.LinearMixedModel(ref.y, ref.X * k, ref.Z * k, ref.groups).fit(reml=reml)
    assert result.converged
    # the criterion contains log|X'V^-1 X| under REML, which knows the units of X
    assert float(result.criterion) == pytest.approx(block.criterion + reml * 2 * np.log(1e6), rel=1e-10)
    np.testing.assert_allclose(oracle.values(result.params) * k, block.beta, rtol=1e-6)
    np.testing.assert_allclose(oracle.values(result.bse) * k, block.se, rtol=1e-6)
    close(oracle.covariance_blocks(result) * np.outer(k, k), block.G, 1e-5, np.sqrt(np.outer(*2 * [np.diag(block.G)])))
    np.testing.assert_allclose(oracle.values(result.fittedvalues)[:50], block.fitted, rtol=1e-6)


@BOTH
def test_calendar_years(rng, reml):
    m = 15
    years = np.tile(np.arange(2000.0, 2011.0), m)
    groups = np.repeat(np.arange(m), 11)
    b = rng.standard_normal((m, 2)) * [3.0, 0.6]
    y = 20.0 + b[groups, 0] + (0.4 + b[groups, 1]) * (years - 2005.0) + rng.standard_normal(len(years))
    X = np.column_stack([np.ones(len(y)), years])
    C = np.column_stack([np.ones(len(y)), years - 2005.0])
    raw = flc.LinearMixedModel(y, X, X, groups).fit(reml=reml)
    centred = flc.LinearMixedModel(y, C, C, groups).fit(reml=reml)
    agrees(centred, oracle.fit(y, C, C, groups, reml), y)
    assert raw.converged
    assert raw.singular == centred.singular
    assert float(raw.criterion) == pytest.approx(float(centred.criterion), rel=1e-10)
    assert raw.params[1] == pytest.approx(centred.params[1], rel=1e-7)
    assert raw.bse[1] == pytest.approx(centred.bse[1], rel=1e-6)
    np.testing.assert_allclose(raw.fittedvalues, centred.fittedvalues, rtol=1e-7)
    assert float(raw.sigma2) == pytest.approx(float(centred.sigma2), rel=1e-6)
    assert oracle.covariance_blocks(raw)[1, 1] == pytest.approx(oracle.covariance_blocks(centred)[1, 1], rel=1e-5)
    np.testing.assert_allclose(raw.random_effects[:, 1], centred.random_effects[:, 1], atol=1e-6)


# ------------------------------------------------------------------------------------------------------------
# order and labels


@BOTH
def test_order_of_rows(rng, reml):
    y, X, Z, groups = growth(rng)
    best = oracle.fit(y, X, Z, groups, reml)
    order = rng.permutation(len(y))
    result = flc.LinearMixedModel(y[order], X[order], Z[order], groups[order]).fit(reml=reml)
    back = np.argsort(order)
    close(oracle.values(result.fittedvalues)[back], best.fitted, 1e-5, np.sqrt(best.sigma2))
    assert float(result.criterion) == pytest.approx(best.criterion, rel=1e-10)
    close(by_label(result, best.levels), best.blups, 1e-5, np.sqrt(np.diag(best.G)))
    # whitening goes by the rows of a subject in the order in which they stand
    for kind in ("marginal", "pearson", "whitened"):
        desired = oracle.residuals(y[order], X[order], Z[order], groups[order], best.Ghat, reml, kind)
        close(oracle.values(result.residuals(kind=kind)), desired, 1e-5, max(1.0, np.sqrt(best.sigma2)))


@pytest.mark.parametrize(
    "relabel",
    [
        lambda g: g.astype(np.int8),
        lambda g: g.astype(np.uint64) + 2**40,
        lambda g: -1000 * g,
        lambda g: np.array([f"subject {k}" for k in g]),
        lambda g: np.array([f"S{k:03d}" for k in g], dtype=object),
        lambda g: list(map(int, g)),
    ],
    ids=["int8", "huge", "negative", "text", "objects", "list"],
)
def test_labels_of_groups(rng, relabel):
    y, X, Z, groups = growth(rng)
    expected = flc.LinearMixedModel(y, X, Z, groups).fit()
    result = flc.LinearMixedModel(y, X, Z, relabel(groups)).fit()
    assert float(result.criterion) == pytest.approx(float(expected.criterion), rel=1e-12)
    np.testing.assert_allclose(oracle.values(result.fittedvalues), oracle.values(expected.fittedvalues), rtol=1e-8)
    label_of = dict(zip(groups.tolist(), [str(g) for g in relabel(groups)], strict=True))
    desired = oracle.random_effects(expected)[1]
    actual = by_label(result, [label_of[int(g)] for g in expected.group_labels])
    np.testing.assert_allclose(actual, desired, rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------------------------------------
# fixed effects


@BOTH
@pytest.mark.parametrize("redundant", ["copy", "combination", "dummies"])
def test_redundant_columns_are_dropped_and_reported(rng, redundant, reml):
    y, X, Z, groups = growth(rng)
    if redundant == "copy":
        columns, names = [X[:, 1], -3.0 * X[:, 1]], ["x", "extra"]
    elif redundant == "combination":
        w = rng.standard_normal(len(y))
        columns, names = [X[:, 1], w, 2.0 * w - X[:, 1] + 5.0], ["x", "w", "extra"]
    else:  # the last of a full set of indicators beside an intercept
        level = rng.integers(0, 3, len(y))
        columns, names = [X[:, 1], *[(level == k).astype(float) for k in range(3)]], ["x", "a", "b", "extra"]
    wide = np.column_stack([np.ones(len(y)), *columns])
    result = flc.LinearMixedModel(y, wide, Z, groups, exog_names=["const", *names]).fit(reml=reml)
    params = oracle.values(result.params)
    # of columns that are linearly dependent the last is dropped, as everywhere in the field
    assert list(result.dropped_columns) == ["extra"]
    np.testing.assert_array_equal(np.isnan(params), [False] * len(names) + [True])
    np.testing.assert_array_equal(np.isnan(oracle.values(result.bse)), np.isnan(params))
    best = oracle.fit(y, wide[:, :-1], Z, groups, reml)
    assert float(result.criterion) == pytest.approx(best.criterion, rel=1e-10)
    se = np.sqrt(np.diag(best.cov_params))
    close(params[:-1], best.beta, 1e-6, se)
    close(oracle.values(result.bse)[:-1], se, 1e-6, se)
    close(oracle.values(result.fittedvalues), best.fitted, 1e-5, np.sqrt(best.sigma2))
    # parameters that were estimated: those of the reduced model
    k = len(params) - 1 + 4
    assert float(result.aic) == pytest.approx(best.criterion + 2 * k, rel=1e-9)


def test_nothing_is_dropped_without_need(rng):
    y, X, Z, groups = growth(rng)
    near = np.column_stack([X, X[:, 1] + 1e-5 * rng.standard_normal(len(y))])
    apart = np.column_stack([X, near[:, 2] - X[:, 1]])  # the same space, in a basis that the dense formulas can stand
    result = flc.LinearMixedModel(y, near, Z, groups).fit()
    assert list(result.dropped_columns) == []
    assert np.all(np.isfinite(oracle.values(result.params)))
    best = oracle.fit(y, apart, Z, groups)
    assert float(result.criterion) == pytest.approx(best.criterion, rel=1e-9)
    se = np.sqrt(np.diag(best.cov_params))
    assert oracle.values(result.bse)[2] == pytest.approx(se[2], rel=1e-6)
    assert abs(oracle.values(result.params)[2] - best.beta[2]) <= 1e-5 * se[2]


@BOTH
def test_random_effects_only_of_a_slope(rng, reml):
    y, X, Z, groups = growth(rng, sd=(0.0, 1.0))
    data = (y, X, Z[:, 1:], groups)
    result = flc.LinearMixedModel(*data).fit(reml=reml)
    agrees(result, oracle.fit(*data, reml), y)


@BOTH
def test_defaults_of_x_and_z(rng, reml):
    y, _, _, groups = growth(rng)
    ones = np.ones((len(y), 1))
    result = flc.LinearMixedModel(y, None, None, groups).fit(reml=reml)
    agrees(result, oracle.fit(y, ones, ones, groups, reml), y)
    explicit = flc.LinearMixedModel(y, ones, ones, groups).fit(reml=reml)
    assert float(explicit.criterion) == float(result.criterion)


@BOTH
def test_no_intercept_among_the_fixed_effects(rng, reml):
    y, X, Z, groups = growth(rng)
    data = (y, X[:, 1:], Z, groups)
    result = flc.LinearMixedModel(*data).fit(reml=reml)
    agrees(result, oracle.fit(*data, reml), y)


@BOTH
def test_diagonal_structure(rng, reml):
    y, X, Z, groups = growth(rng)
    result = flc.LinearMixedModel(y, X, Z, groups, structure="diagonal").fit(reml=reml)
    agrees(result, oracle.fit(y, X, Z, groups, reml, structure="diagonal"), y)
    assert np.asarray(result.theta).shape == (2,)


# ------------------------------------------------------------------------------------------------------------
# weights and offset


@BOTH
@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_weights(rng, structure, reml):
    y, X, Z, groups = growth(rng)
    w = rng.uniform(0.2, 5.0, len(y))
    result = flc.LinearMixedModel(y, X, Z, groups, weights=w, structure=structure).fit(reml=reml)
    best = oracle.fit(y, X, Z, groups, reml, w, structure)
    agrees(result, best, y)
    C = oracle.blup_covariances(y, X, Z, groups, best.Ghat, reml, w)
    sd = np.sqrt(np.diag(best.G))
    close(result.random_effects_covariance(), C, 1e-5, np.outer(sd, sd))
    for kind in ("conditional", "marginal", "pearson", "whitened"):
        desired = oracle.residuals(y, X, Z, groups, best.Ghat, reml, kind, w)
        close(oracle.values(result.residuals(kind=kind)), desired, 1e-5, max(1.0, np.sqrt(best.sigma2)))
    label = result.group_labels[3]
    desired = oracle.marginal_covariance(label, Z, groups, best.G, best.sigma2, w)
    close(result.marginal_covariance(label), desired, 1e-5, np.max(desired))


@BOTH
def test_equal_weights_change_sigma_only(rng, reml):
    y, X, Z, groups = growth(rng)
    plain = flc.LinearMixedModel(y, X, Z, groups).fit(reml=reml)
    result = flc.LinearMixedModel(y, X, Z, groups, weights=np.full(len(y), 4.0)).fit(reml=reml)
    assert float(result.criterion) == pytest.approx(float(plain.criterion), rel=1e-11)
    assert float(result.sigma2) == pytest.approx(4.0 * float(plain.sigma2), rel=1e-7)
    np.testing.assert_allclose(oracle.covariance_blocks(result), oracle.covariance_blocks(plain), rtol=1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_weights_that_are_not_positive_are_refused(rng, bad):
    y, X, Z, groups = growth(rng)
    w = np.ones(len(y))
    w[7] = bad
    with pytest.raises(flc.LMMError, match="weights"):
        flc.LinearMixedModel(y, X, Z, groups, weights=w).fit()


@BOTH
def test_offset(rng, reml):
    y, X, Z, groups = growth(rng)
    o = rng.standard_normal(len(y)) * 5.0
    result = flc.LinearMixedModel(y, X, Z, groups, offset=o).fit(reml=reml)
    agrees(result, oracle.fit(y, X, Z, groups, reml, offset=o), y)
    shifted = flc.LinearMixedModel(y - o, X, Z, groups).fit(reml=reml)
    np.testing.assert_allclose(oracle.values(result.fittedvalues) - o, oracle.values(shifted.fittedvalues), rtol=1e-8)
    np.testing.assert_allclose(oracle.values(result.resid), oracle.values(shifted.resid), atol=1e-8)


def test_weights_and_offset_by_the_formula_path(rng):
    y, X, Z, groups = growth(rng)
    w, o = rng.uniform(0.2, 5.0, len(y)), rng.standard_normal(len(y))
    data = {"y": y, "x": X[:, 1], "g": groups.astype(str)}
    result = flc.lmm("y ~ x + (x | g)", data, weights=w, offset=o).fit()
    expected = flc.LinearMixedModel(y, X, Z, groups, weights=w, offset=o).fit()
    assert float(result.criterion) == pytest.approx(float(expected.criterion), rel=1e-11)
    np.testing.assert_allclose(oracle.values(result.params), expected.params, rtol=1e-8)


# ------------------------------------------------------------------------------------------------------------
# simulation


def test_simulated_responses_have_the_model_covariance(rng):
    y, X, Z, groups = growth(rng, m=6)
    result = flc.LinearMixedModel(y, X, Z, groups).fit()
    draws = np.asarray(result.simulate(20_000, seed=1))
    assert draws.shape == (20_000, len(y))
    np.testing.assert_array_equal(draws, result.simulate(20_000, seed=1))
    V = float(result.sigma2) * oracle.relative_v(Z, groups, oracle.covariance_blocks(result) / float(result.sigma2))
    mean = X @ oracle.values(result.params)
    sd = np.sqrt(np.diag(V))
    # standard errors of a mean and of a covariance of 20,000 draws; five of them, over some thousand entries
    close(draws.mean(axis=0), mean, 5 / np.sqrt(20_000), sd)
    S = np.cov(draws.T)
    close(S, V, 5 / np.sqrt(20_000), np.sqrt(np.outer(sd**2, sd**2) + V**2))


def restricted(y, X, covariance):
    """-2 log restricted likelihood of error contrasts, sigma^2 = 1."""
    kept = np.linalg.svd(X)[0][:, np.linalg.matrix_rank(X) :]
    inner = kept.T @ covariance @ kept
    return np.linalg.slogdet(inner)[1] + (kept.T @ y) @ np.linalg.solve(inner, kept.T @ y)


ALIASED = {
    "a fixed factor": ("y ~ C(a) + (1 | a)", "a", [0], r"\(1 \| a\): .* leave the term out"),
    "a finer fixed factor": ("y ~ C(c) + (1 | a)", "a", [0], r"\(1 \| a\): "),
    "intercept of two": ("y ~ C(a) + (x | a)", "a", [0], "'Intercept' is explained .* every level of 'a'.* write"),
    "intercept, independent": ("y ~ C(a) + (x || a)", "a", [0], "'Intercept' is explained"),
    "slope of two": ("y ~ C(a):x + (x | a)", "a", [1], r"explained .* write \(1 \| a\)"),
    "both of two": ("y ~ C(a) * x + (x | a)", "a", [0, 1], "its random effects are explained"),
    "slope alone": ("y ~ 0 + C(a):x + (0 + x | a)", "a", [1], "the random effect is explained"),
}


def aliased_data(n=90, seed=5):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 6, n)
    c = a * 3 + rng.integers(0, 3, n)
    x = rng.standard_normal(n) + 2.0
    y = rng.standard_normal(6)[a] + x + rng.standard_normal(n)
    pooled = np.where(a < 2, 0, a)
    return {"y": y, "x": x, "a": a.astype(str), "c": c.astype(str), "pooled": pooled.astype(str), "w": 1.0 + x * x}


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("case", ALIASED)
def test_effects_that_the_fixed_effects_explain_are_refused(case, weights):
    formula, group, directions, message = ALIASED[case]
    data = aliased_data()
    with pytest.raises(flc.LMMError, match=message):
        flc.lmm(formula, data, weights=weights)
    # the restricted likelihood is flat in those variances indeed, and in those only
    fixed = formula.split("+ (")[0].removeprefix("y ~ ")
    X = np.asarray(formulaic.model_matrix(fixed, pd.DataFrame(data)), dtype=float)
    member = (data[group][:, None] == np.unique(data[group])).astype(float)
    root = 1.0 if weights is None else np.sqrt(data["w"])[:, None]
    for j, column in enumerate([np.ones(len(X)), data["x"]]):
        Z = member * column[:, None] * root
        flat = [restricted(data["y"], X * root, np.eye(len(X)) + g * Z @ Z.T) for g in (0.0, 1.0, 100.0)]
        assert (np.ptp(flat) < 1e-9 * abs(flat[0])) == (j in directions)


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ C(pooled) + (1 | a)",
        "y ~ C(a) + (0 + x | a)",
        "y ~ C(a) + (1 | c)",
        "y ~ x + (x | a)",
        "y ~ C(pooled) + (x | a)",
    ],
)
def test_effects_that_the_fixed_effects_explain_in_part_are_estimated(formula):
    data = aliased_data()
    model = flc.lmm(formula, data)
    assert model.fit().converged
    args = (model.endog, model.exog, model.exog_re, np.asarray(model.grouping.index), True)
    for theta in ([0.3], [2.0]) if model.structure.q == 1 else ([0.3, 0.1, 0.4], [2.0, -1.0, 0.5]):
        assert model.evaluate(theta).value == pytest.approx(oracle.criterion_theta(np.array(theta), *args), rel=1e-11)


def test_nearly_explained_effects_are_estimated():
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(8), 6)
    member = (groups[:, None] == np.arange(8)).astype(float)
    y = rng.standard_normal(48)
    nearly = member + 1e-3 * rng.standard_normal(member.shape)
    with pytest.raises(flc.LMMError, match="explained"):
        flc.LinearMixedModel(y, member, np.ones((48, 1)), groups)
    model = flc.LinearMixedModel(y, nearly, np.ones((48, 1)), groups)
    args = (y, nearly, np.ones((48, 1)), groups, True)
    assert model.evaluate([3.0]).value == pytest.approx(oracle.criterion_theta(np.array([3.0]), *args), rel=1e-10)
    # one group has all of the covariate: its slope is that of X
    x = np.where(groups == 3, rng.standard_normal(48), 0.0)
    X = np.column_stack([np.ones(48), x])
    with pytest.raises(flc.LMMError, match=r"explained .* write \(1 \| group\)"):
        flc.LinearMixedModel(y, X, X, groups, exog_re_names=("Intercept", "x"))
    with pytest.raises(flc.LMMError, match=r"^\(x \| g\): the random effect 'x' is explained .* write \(1 "):
        condition(y, X, X, Codes("g", groups, 0, 8), None, None, one_block(2, "full"), z_names=("Intercept", "x"))


def test_many_groups_of_one_observation_do_not_look_explained():
    rng = np.random.default_rng(9)
    groups = np.concatenate([np.arange(300), np.repeat(np.arange(300, 500), 8)])
    x = np.where(groups < 300, 1.0, rng.standard_normal(len(groups)))
    X = np.column_stack([np.ones(len(x)), x])
    y = rng.standard_normal(500)[groups] + x + rng.standard_normal(len(x))
    assert flc.LinearMixedModel(y, X, X, groups).fit().converged
    # only the last groups have the covariate
    late = np.where(groups < 490, 0.0, x)
    assert flc.LinearMixedModel(y, np.column_stack([X, late]), late[:, None], groups).fit().converged


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
def test_a_long_fit_can_be_interrupted():
    rng = np.random.default_rng(0)
    n, m = 150_000, 4000
    a, b = rng.integers(0, m, n), rng.integers(0, m, n)
    y = rng.standard_normal(m)[a] + rng.standard_normal(m)[b] + rng.standard_normal(n)
    terms = [flc.RandomTerm(None, a, name="a"), flc.RandomTerm(None, b, name="b")]
    model = flc.LinearMixedModel(y, np.ones((n, 1)), terms=terms)

    def lose_patience(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, lose_patience)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert model.fit().converged


@pytest.mark.parametrize("q", [1, 2, 3])
def test_the_gradient_norm_is_newtons_decrement(rng, q):
    # twice the fall of the quadratic model, where a search was stopped short of the optimum
    groups = np.repeat(np.arange(30), 8)
    Z = np.column_stack([np.ones(240), rng.standard_normal((240, 2))])[:, :q]
    y = np.sum(Z * rng.standard_normal((30, q))[groups], axis=1) + rng.standard_normal(240)
    seen = 0
    for steps in (2, 5, 12, 25):
        with np.errstate(all="ignore"):
            # balanced data would start at their optimum
            aside = 1.2 * np.eye(q)[np.triu_indices(q)]
            model = flc.LinearMixedModel(y, Z[:, :1], Z, groups)
            result = model.fit(method="nelder-mead", start=aside, options={"maxiter": steps})
        g, H = result.optimum.gradient, result.optimum.hessian
        if np.linalg.eigvalsh(H)[0] <= 0.0:
            continue
        assert result.gradient_norm == pytest.approx(np.sqrt(g @ np.linalg.solve(H, g)), rel=1e-8)
        assert result.converged == (result.gradient_norm <= 1e-4)
        seen += not result.converged
    assert seen


def test_a_small_variance_beside_one_of_zero_is_not_zero():
    # the variance of the intercept is estimated as zero, that of the slope, by bisection, as next to nothing
    rng = np.random.default_rng(3)
    groups, t = np.repeat(np.arange(40), 6), np.tile(np.linspace(-1.0, 1.0, 6), 40)
    e = rng.standard_normal(240)
    e -= 0.999 * (np.bincount(groups, e) / 6)[groups]
    Z, line = np.column_stack([np.ones(240), t]), rng.standard_normal(40)[groups] * t
    low, high = 0.0, 2.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        result = flc.LinearMixedModel(e + middle * line, Z, Z, groups, structure="diagonal").fit()
        share = result.theta[1] ** 2 * np.sum(t**2) / 40
        low, high = (middle, high) if share < 5e-5 else (low, middle)
    assert 4e-5 < share < 6e-5
    assert result.converged and result.singular
    assert result.theta[0] == 0.0 < result.theta[1]
    assert result.singular_components == ("sd of z0 | group is 0",)
