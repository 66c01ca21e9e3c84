"""Null distributions of likelihood ratio statistics against closed forms, dense algebra and brute force."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import brentq, minimize, nnls
from scipy.stats import chi2, ks_2samp

import oracle
from fastlmm_core import LinearMixedModel, LMMError
from fastlmm_core.inference.likelihood_ratio import exact as exact_variance_test
from fastlmm_core.inference.likelihood_ratio.exact import draw, spectrum
from fastlmm_core.inference.likelihood_ratio.nesting import cones, contained, efficient_information, nest, orthonormal
from fastlmm_core.inference.likelihood_ratio.null_distributions import (
    chi_bar_square,
    chi_square,
    counted,
    orthant_weights,
    projection_shares,
)


def unbalanced(rng, m=6, weights=False, least=1):
    """A small design with groups of different sizes."""
    groups = np.repeat(np.arange(m), least + np.arange(m) % 4)
    n = len(groups)
    X = np.column_stack([np.ones(n), rng.standard_normal(n)])
    return X, groups, rng.uniform(0.3, 3.0, n) if weights else None


def positive_definite(rng, d):
    root = rng.standard_normal((d, d + 1))
    return root @ root.T


# ---- mixtures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [0, 1, 3])
def test_one_variance_is_an_even_mixture(free):
    for t in (0.5, 4.0, 60.0):
        tails = [chi2.sf(t, df) if df else 0.0 for df in (free, free + 1)]
        found = chi_bar_square(t, free, (1,))
        assert found.pvalue == pytest.approx(0.5 * sum(tails), rel=1e-12)
        assert found.p_std_error == 0.0
    assert chi_bar_square(0.0, free, (1,)).pvalue == 1.0
    assert chi_square(3.0, 2).pvalue == pytest.approx(np.exp(-1.5), rel=1e-13)


@pytest.mark.parametrize("d", [2, 3])
def test_orthant_weights_are_shares_of_faces(rng, d):
    information = positive_definite(rng, d)
    root = np.linalg.cholesky(information)
    z = rng.standard_normal((20_000, d))
    # |root'x - z|: coordinates that are positive in the projection count the dimension of its face
    faces = np.array([np.count_nonzero(nnls(root.T, row)[0] > 1e-12) for row in z])
    share = np.bincount(faces, minlength=d + 1) / len(z)
    weights = orthant_weights(information)
    assert weights.sum() == pytest.approx(1.0, abs=1e-14)
    assert weights[::2].sum() == pytest.approx(0.5, abs=1e-14)  # Gauss and Bonnet
    np.testing.assert_allclose(share, weights, atol=4.5 * 0.5 / np.sqrt(len(z)))


def test_independent_estimates_have_binomial_weights():
    np.testing.assert_allclose(orthant_weights(np.diag([2.0, 5.0, 0.1])), np.array([1, 3, 3, 1]) / 8, atol=1e-15)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_projection_on_the_orthant_is_that_of_non_negative_least_squares(rng, d):
    information = positive_definite(rng, d)
    shares = projection_shares(information, (1,) * d, 300, np.random.default_rng(4))
    u = np.random.default_rng(4).standard_normal((300, d))
    unit = np.diag(information) ** -0.5
    root = np.linalg.cholesky(information * np.outer(unit, unit))
    for share, row in zip(shares, u, strict=True):
        x, _ = nnls(root.T, row)
        assert share == pytest.approx(np.sum((root.T @ x) ** 2) / np.sum(row**2), abs=1e-7)


def test_projection_on_matrices_is_the_best_positive_semidefinite_one(rng):
    information = positive_definite(rng, 6)
    rows, columns = np.tril_indices(3)
    unit = np.diag(information)[rows == columns] ** -0.25
    scale = np.where(rows == columns, 1.0, np.sqrt(0.5)) * unit[rows] * unit[columns]
    metric = information * np.outer(scale, scale)
    root = np.linalg.cholesky(metric)
    shares = projection_shares(information, (3,), 12, np.random.default_rng(4))
    for share, u in zip(shares, np.random.default_rng(4).standard_normal((12, 6)), strict=True):

        def distance(theta, u=u):
            factor = np.zeros((3, 3))
            factor[rows, columns] = theta
            x = (factor @ factor.T)[rows, columns] / np.where(rows == columns, 1.0, np.sqrt(0.5))
            return np.sum((root.T @ x - u) ** 2)

        starts = rng.standard_normal((6, 6))
        best = min(minimize(distance, start, options={"gtol": 1e-9}).fun for start in starts)
        assert share == pytest.approx(1.0 - best / np.sum(u**2), abs=2e-7)


def test_simulated_mixtures_agree_with_the_closed_form(rng):
    information = positive_definite(rng, 3)
    weights = orthant_weights(information)
    shares = projection_shares(information, (1, 1, 1), 40_000, rng)
    for t in (1.0, 5.0, 40.0):
        exact = weights[1:] @ chi2.sf(t, [1, 2, 3])
        tails = chi2.sf(t / np.maximum(shares, 1e-300), 3)
        assert abs(tails.mean() - exact) < 4.5 * tails.std() / 200.0
        # relative precision does not suffer far out
        assert tails.std() / 200.0 < 0.02 * exact


def test_matrices_with_free_parameters_against_draws(rng):
    """One 2 x 2 matrix in the Frobenius metric: the projection keeps the positive eigenvalues."""
    information = np.diag([1.0, 2.0, 1.0])
    a = rng.standard_normal((200_000, 3))
    whole = np.empty((len(a), 2, 2))
    whole[:, 0, 0], whole[:, 1, 1] = a[:, 0], a[:, 1]
    whole[:, 0, 1] = whole[:, 1, 0] = a[:, 2] / np.sqrt(2.0)
    length = np.sum(np.maximum(np.linalg.eigvalsh(whole), 0.0) ** 2, axis=1)
    for free in (0, 2):
        drawn = length + (rng.chisquare(free, len(a)) if free else 0.0)
        for t in (1.0, 5.0):
            found = chi_bar_square(t, free, (2,), information, 20_000, 1)
            p = np.mean(drawn >= t)
            assert abs(found.pvalue - p) < 4.5 * np.hypot(found.p_std_error, np.sqrt(p * (1 - p) / len(a)))


def test_the_seed_decides_and_information_is_needed(rng):
    information = positive_definite(rng, 3)
    assert chi_bar_square(3.0, 1, (2,), information, 500, 7) == chi_bar_square(3.0, 1, (2,), information, 500, 7)
    assert chi_bar_square(0.0, 1, (2,), information, 500, 7).pvalue == 1.0
    with pytest.raises(LMMError, match="bootstrap"):
        chi_bar_square(3.0, 0, (1, 1))


def test_monte_carlo_p_values_count_ties_and_are_never_zero():
    assert counted(0.0, np.zeros(9), "").pvalue == 1.0
    found = counted(5.0, np.arange(9.0), "")
    assert found.pvalue == 0.5
    assert found.p_std_error == pytest.approx(np.sqrt(0.25 / 9))
    assert counted(50.0, np.arange(9.0), "").pvalue == 0.1


# ---- information -------------------------------------------------------------------------------


def dense_information(model, relative, directions, reml):
    """Expected information on G / sigma^2 along natural directions, then on log sigma^2."""
    n, m = model.nobs, model.problem.m
    index, Z = model.grouping.index, model.exog_re
    root = np.ones(n) if model.weights is None else np.sqrt(model.weights)
    same = index[:, None] == index
    V = np.eye(n) + same * (Z @ relative @ Z.T) * np.outer(root, root)
    P = np.linalg.inv(V)
    if reml:
        X = model.exog[:, model.problem.kept] * root[:, None]
        P = P - P @ X @ np.linalg.solve(X.T @ P @ X, X.T @ P)
    assert m > 1
    slopes = [P @ (same * (Z @ D @ Z.T) * np.outer(root, root)) for D in directions] + [P @ V]
    return np.array([[0.5 * np.trace(a @ b) for b in slopes] for a in slopes])


def efficient(information, new):
    old = np.setdiff1d(np.arange(len(information)), new)
    across = information[np.ix_(old, new)]
    return information[np.ix_(new, new)] - across.T @ np.linalg.solve(information[np.ix_(old, old)], across)


def symmetric_unit(q, i, j):
    out = np.zeros((q, q))
    out[i, j] = out[j, i] = 1.0
    return out


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_information_on_two_independent_variances(rng, reml, weights):
    X, groups, w = unbalanced(rng, 12, weights, 3)
    y = rng.standard_normal(len(groups))
    Z = np.column_stack([np.ones(len(y)), 3.0 + 10.0 * X[:, 1], rng.standard_normal(len(y))])
    small = LinearMixedModel(y, X, Z[:, :1], groups, weights=w)
    large = LinearMixedModel(y, X, Z, groups, weights=w, structure="diagonal")
    relative = np.array([[0.7]])
    found = efficient_information(nest(small, large), large, relative, reml)
    directions = [symmetric_unit(3, i, i) for i in range(3)]
    expected = efficient(dense_information(large, np.diag([0.7, 0.0, 0.0]), directions, reml), [1, 2])
    # units of the effects are free
    unit = np.sqrt(np.diag(expected) / np.diag(found))
    np.testing.assert_allclose(found * np.outer(unit, unit), expected, rtol=1e-10)


@pytest.mark.parametrize("reml", [True, False])
def test_information_on_correlated_effects_gives_the_same_mixture(rng, reml):
    X, groups, _ = unbalanced(rng, 14, least=3)
    y = rng.standard_normal(len(groups))
    Z = np.column_stack([np.ones(len(y)), 3.0 + 10.0 * X[:, 1], rng.standard_normal(len(y))])
    # the smaller model has its effect in other units
    small = LinearMixedModel(y, X, 2.0 * Z[:, :1], groups)
    large = LinearMixedModel(y, X, Z, groups)
    nesting = nest(small, large)
    assert (nesting.free, nesting.new, nesting.df) == (2, (2,), 5)
    found = efficient_information(nesting, large, np.array([[0.2]]), reml)
    pairs = [(i, j) for i in range(3) for j in range(i + 1)]
    dense = dense_information(large, np.diag([0.8, 0.0, 0.0]), [symmetric_unit(3, i, j) for i, j in pairs], reml)
    expected = efficient(dense, [pairs.index(pair) for pair in ((1, 1), (2, 1), (2, 2))])
    for t in (4.0, 12.0):
        one, other = (chi_bar_square(t, 2, (2,), info, 20_000, k) for k, info in enumerate((found, expected)))
        assert abs(one.pvalue - other.pvalue) < 4.5 * np.hypot(one.p_std_error, other.p_std_error)


# ---- exact distribution ------------------------------------------------------------------------


def dense_spectrum(X, z, groups, weights):
    root = np.ones(len(z)) if weights is None else np.sqrt(weights)
    Z = (groups[:, None] == np.unique(groups)) * (z * root)[:, None]
    Z = Z / np.linalg.norm(z * root)
    Q = np.linalg.qr(X * root[:, None])[0]
    return np.sort(np.linalg.eigvalsh(Z.T @ Z - (Z.T @ Q) @ (Q.T @ Z))), np.sort(np.linalg.eigvalsh(Z.T @ Z)), Z


@pytest.mark.parametrize("kind", ["balanced", "unbalanced", "weighted", "slope", "group-level x"])
def test_eigenvalues_from_group_sums(rng, kind):
    groups = np.repeat(np.arange(60), 4) if kind == "balanced" else rng.integers(0, 50, 300)
    n = len(groups)
    x = rng.standard_normal(n)
    z = x if kind == "slope" else np.ones(n)
    X = np.column_stack([np.ones(n), 1e6 + x, rng.standard_normal(60)[groups] if kind == "group-level x" else x**2])
    weights = rng.uniform(0.2, 5.0, n) if kind == "weighted" else None
    model = LinearMixedModel(rng.standard_normal(n), X, z[:, None], groups, weights=weights)
    found = spectrum(X, cones(model)[0], weights)
    mu, xi, _ = dense_spectrum(np.column_stack([X[:, 0], X[:, 1] - 1e6, X[:, 2]]), z, groups, weights)
    mu = mu[mu > 1e-9 * mu[-1]]
    np.testing.assert_allclose(np.sort(np.repeat(found.values, found.counts)), mu, rtol=1e-8)
    np.testing.assert_allclose(np.sort(np.repeat(found.penalty_values, found.penalty_counts)), xi, rtol=1e-12)
    assert found.rest == n - 3 - len(mu)
    if kind == "balanced":
        assert len(found.values) <= 4


def test_many_equal_groups_need_few_eigenvalues(rng):
    groups = np.repeat(np.arange(20_000), 5)
    model = LinearMixedModel(rng.standard_normal(100_000), None, None, groups)
    found = spectrum(model.exog, cones(model)[0], None)
    assert found.counts.sum() == 19_999
    assert len(found.values) == 1
    statistic = draw(found, 50_000, 1, True)
    # the large-sample mixture
    assert np.mean(statistic == 0.0) == pytest.approx(0.5, abs=0.015)
    assert np.mean(statistic > chi2.isf(0.1, 1)) == pytest.approx(0.05, abs=0.006)


def test_too_many_different_groups_are_refused(rng):
    groups = np.repeat(np.arange(3001), 2)
    model = LinearMixedModel(rng.standard_normal(6002), None, rng.standard_normal((6002, 1)), groups)
    with pytest.raises(LMMError, match="mixture"):
        spectrum(model.exog, cones(model)[0], None)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("kind", ["intercept", "weighted slope"])
def test_exact_distribution_is_that_of_simulated_fits(rng, reml, kind):
    """Responses drawn under the null hypothesis, the criterion minimised over a fine grid with dense matrices."""
    X, groups, w = unbalanced(rng, 6, kind != "intercept")
    n = len(groups)
    z = np.ones(n) if kind == "intercept" else X[:, 1] + 0.5
    root = np.ones(n) if w is None else np.sqrt(w)
    Y = rng.standard_normal((6000, n)) / root
    nu = n - 2 if reml else n
    values = []
    for lam in np.concatenate([[0.0], np.exp(np.linspace(-9.0, 14.0, 500))]):
        V = np.diag(1.0 / root**2) + lam * (groups[:, None] == groups) * np.outer(z, z)
        inverse = np.linalg.inv(V)
        H = X.T @ inverse @ X
        P = inverse - inverse @ X @ np.linalg.solve(H, X.T @ inverse)
        quadratic = np.einsum("ij,ij->i", Y @ P, Y)
        log_det = np.linalg.slogdet(V)[1] + (np.linalg.slogdet(H)[1] if reml else 0.0)
        values.append(nu * np.log(quadratic) + log_det)
    statistic = values[0] - np.min(values, axis=0)
    model = LinearMixedModel(Y[0], X, z[:, None], groups, weights=w)
    found = draw(spectrum(X, cones(model)[0], w), 100_000, 5, reml)
    assert abs(np.mean(statistic < 1e-6) - np.mean(found < 1e-6)) < 4.5 * 0.5 / np.sqrt(6000)
    assert ks_2samp(statistic, found).pvalue > 1e-4
    for level in (0.1, 0.01):
        share = np.mean(statistic > np.quantile(found, 1.0 - level))
        assert abs(share - level) < 4.5 * np.sqrt(level / 6000)


@pytest.mark.parametrize("name", ["dyestuff", "sleepstudy"])
def test_quantiles_of_rlrsim(name):
    known = json.loads((oracle.REFERENCE / f"lrt_{name}.json").read_text())["finite_sample_RLRsim"]
    group, response = ("Batch", "Yield") if name == "dyestuff" else ("Subject", "Reaction")
    columns = oracle.read_csv(oracle.REFERENCE / "data" / f"{name}.csv", [group])
    y = np.asarray(columns[response], dtype=float)
    X = np.ones((len(y), 1))
    if name == "sleepstudy":
        X = np.column_stack([X, np.asarray(columns["Days"], dtype=float)])
    model = LinearMixedModel(y, X, None, columns[group])
    drawn = draw(spectrum(X, cones(model)[0], None), 200_000, 2, True)
    known = known["null_distribution_intercept"]
    # both sides are simulated
    assert abs(np.mean(drawn == 0.0) - known["prob_zero"]) < 4.0 * np.sqrt(2.0 * 0.25 / 200_000)
    for level in (0.1, 0.05, 0.01):
        share = np.mean(drawn > known[f"quantile_{round(100 * (1 - level))}"])
        assert abs(share - level) < 4.0 * np.sqrt(2.0 * level / 200_000)


@pytest.mark.parametrize("reml", [True, False])
def test_the_grid_is_fine_enough(rng, reml, monkeypatch):
    X, groups, _ = unbalanced(rng, 10)
    model = LinearMixedModel(rng.standard_normal(len(X)), X, None, groups)
    found = spectrum(X, cones(model)[0], None)
    coarse = draw(found, 150, 1, reml)
    monkeypatch.setattr(exact_variance_test, "_STEP", 0.002)
    np.testing.assert_allclose(coarse, draw(found, 150, 1, reml), atol=3e-5)


def test_draws_depend_on_the_seed_only(rng):
    X, groups, _ = unbalanced(rng)
    model = LinearMixedModel(rng.standard_normal(len(X)), X, None, groups)
    found = spectrum(X, cones(model)[0], None)
    np.testing.assert_array_equal(draw(found, 3000, 1, True), draw(found, 3000, 1, True))
    assert (draw(found, 3000, 1, True) >= 0.0).all()


# ---- nesting -----------------------------------------------------------------------------------


def test_column_spaces(rng):
    x = rng.standard_normal(200)
    one = np.ones(200)
    year = np.column_stack([one, 2000.0 + 1e-4 * x])
    assert contained(year, np.column_stack([one, x, x**2]))
    assert contained(np.column_stack([one, x]), year)
    assert not contained(np.column_stack([one, x + 1e-5 * x**2]), np.column_stack([one, x]))
    assert not contained(np.column_stack([one, x, x**2]), year)
    half = x > 0.0
    assert contained(one[:, None], np.column_stack([half, ~half]).astype(float))
    basis = orthonormal(year, np.full(200, 4.0))
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-12)


def test_what_is_nested_in_what(rng):
    n = 120
    groups = rng.integers(0, 10, n)
    x = rng.standard_normal(n)
    y = rng.standard_normal(n)
    X = np.column_stack([np.ones(n), x])
    Z = np.column_stack([np.ones(n), x, x**2])

    def model(columns, structure="full", X=X, groups=groups):
        return LinearMixedModel(y, X, Z[:, columns], groups, structure=structure)

    def added(small, large):
        found = nest(small, large)
        return (found.fixed, found.free, found.new)

    assert added(model([0]), model([0, 1])) == (0, 1, (1,))
    assert added(model([0]), model([0, 1], "diagonal")) == (0, 0, (1,))
    assert added(model([0, 1], "diagonal"), model([0, 1])) == (0, 1, ())
    assert added(model([0, 1], "diagonal"), model([0, 1, 2])) == (0, 3, (1,))
    assert added(model([0]), model([0, 1, 2])) == (0, 2, (2,))
    assert added(model([0]), model([0, 1, 2], "diagonal")) == (0, 0, (1, 1))
    assert added(model([0], X=X[:, :1]), model([0, 1])) == (1, 1, (1,))
    assert added(None, model([0, 1, 2])) == (0, 0, (3,))
    # other labels and another basis are the same
    assert added(model([0], groups=(-groups).astype(str)), model([0, 1])) == (0, 1, (1,))
    other = LinearMixedModel(y, X @ [[1.0, 2.0], [0.0, 3.0]], Z[:, :2] @ [[2.0, 1.0], [1.0, 1.0]], groups)
    assert added(other, model([0, 1])) == (0, 0, ())
    assert nest(model([0]), model([0, 1], "diagonal")).alone.effects == ("z1",)
    # and these are not nested
    assert "fixed" in nest(model([0]), model([0, 1], X=X[:, :1]))
    assert "random" in nest(model([0]), model([1, 2]))
    assert "random" in nest(model([0, 1]), model([0, 1, 2], "diagonal"))
    assert "random" in nest(model([0]), model([0, 1], groups=rng.integers(0, 10, n)))


def test_thresholds_hold_their_level_for_three_parameters(rng):
    """(x | g) against no random effects: 3 parameters on the boundary, 1500 responses under the null hypothesis."""
    m, k = 80, 6
    groups = np.repeat(np.arange(m), k)
    x = np.tile(np.arange(k) - 1.5, m)
    X = np.column_stack([np.ones(m * k), x])
    Y = rng.standard_normal((1500, m * k))
    large = LinearMixedModel(Y[0], X, X, groups)
    information = efficient_information(nest(None, large), large, None, True)
    threshold = brentq(lambda t: chi_bar_square(t, 0, (2,), information, 4000, 1).pvalue - 0.05, 1.0, 12.0)
    batch = large.fit_many(Y, reml=True)
    Q = orthonormal(X)
    rss = np.sum((Y - (Y @ Q) @ Q.T) ** 2, axis=1)
    constant = large.evaluate(np.zeros(3)).value - (m * k - 2) * np.log(rss[0])
    statistic = constant + (m * k - 2) * np.log(rss) - batch.criterion
    assert batch.converged.all()
    assert statistic.min() > -1e-6
    assert abs(np.mean(statistic > threshold) - 0.05) < 3.5 * np.sqrt(0.05 * 0.95 / 1500)
