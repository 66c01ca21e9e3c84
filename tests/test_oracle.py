"""The oracle against lme4, against itself by complex step, and against plain facts."""

from __future__ import annotations

import numpy as np
import pytest

import oracle

CASES = [(name, reml) for name in oracle.SINGLE_FACTOR for reml in (True, False)]
IDS = [f"{name}-{'reml' if reml else 'ml'}" for name, reml in CASES]


@pytest.mark.parametrize(("name", "reml"), CASES, ids=IDS)
def test_agrees_with_lme4_at_its_theta(name, reml):
    # Everything here is evaluated at lme4's printed theta (15 digits): no optimisation is involved.
    ref = oracle.reference(name)
    block = ref.blocks[reml]
    data = ref.arrays
    Lam = oracle.lambda_from_theta(block.theta, len(ref.effect_names), ref.structure)
    Ghat = Lam @ Lam.T
    value = oracle.criterion(*data, Ghat, reml)
    assert value == pytest.approx(block.criterion, rel=1e-10)
    assert oracle.criterion_theta(block.theta, *data, reml, structure=ref.structure) == value
    assert oracle.sigma2(*data, Ghat, reml) == pytest.approx(block.sigma**2, rel=1e-10)
    np.testing.assert_allclose(block.sigma**2 * Ghat, block.G, rtol=1e-10, atol=1e-12)
    b = oracle.beta(*data, Ghat)
    np.testing.assert_allclose(b, block.beta, rtol=1e-9, atol=1e-10)
    V = oracle.cov_params(*data, Ghat, reml)
    np.testing.assert_allclose(V, block.vcov, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(np.sqrt(np.diag(V)), block.se, rtol=1e-10)
    np.testing.assert_allclose(oracle.blups(*data, Ghat), block.ranef, rtol=1e-8, atol=1e-9)
    condvar = oracle.blup_covariances(*data, Ghat, reml)[block.condvar_rows]
    np.testing.assert_allclose(condvar, block.condvar, rtol=1e-8, atol=1e-10)
    k = len(block.fitted)
    np.testing.assert_allclose(oracle.fitted(*data, Ghat)[:k], block.fitted, rtol=1e-10)
    np.testing.assert_allclose(oracle.residuals(*data, Ghat, reml)[:k], block.resid, rtol=1e-8, atol=1e-9)
    assert oracle.loglik(*data, b, block.G, block.sigma**2, reml) == pytest.approx(block.loglik, rel=1e-10)
    assert value == pytest.approx(-2 * block.loglik, rel=1e-10)


@pytest.mark.parametrize(("name", "reml"), CASES, ids=IDS)
def test_lme4_theta_is_the_optimum(name, reml):
    ref = oracle.reference(name)
    theta = ref.blocks[reml].theta
    args = (*ref.arrays, reml, None, None, ref.structure)
    g = oracle.complex_step_gradient(theta, *args)
    step = -np.linalg.solve(oracle.hessian_theta(theta, *args), g)
    # lme4's theta is good to 2e-7 of its largest element; the criterion cannot see an error of that size
    assert np.max(np.abs(step)) < 2e-7 * max(1.0, np.max(theta))
    assert -0.5 * g @ step < 1e-12


def test_cake_has_a_closed_form():
    # Balanced split plot: theta^2 = (MSB / MSW - 1) / 6 from the two error strata. This decides who is right about
    # the eighth digit, where the recorded theta differs from the optimum of the oracle.
    ref = oracle.reference("cake")
    y, recipe, temperature = ref.y, ref.columns["recipe"], ref.columns["temperature"]
    mean_of = {level: y[ref.groups == level].mean() for level in ref.levels}
    group_mean = np.array([mean_of[g] for g in ref.groups])
    recipe_mean = np.array([y[recipe == a].mean() for a in recipe])
    cell_mean = np.array(
        [y[(recipe == a) & (temperature == b)].mean() for a, b in zip(recipe, temperature, strict=True)]
    )
    between = np.sum((group_mean - recipe_mean) ** 2) / (45 - 3)
    within = np.sum((y - group_mean - cell_mean + recipe_mean) ** 2) / (270 - 18 - 42)
    theta = np.sqrt((between / within - 1.0) / 6.0)
    assert oracle.fit(*ref.arrays, True).theta[0] == pytest.approx(theta, rel=1e-11)
    assert ref.blocks[True].theta[0] == pytest.approx(theta, rel=1e-7)
    assert abs(ref.blocks[True].theta[0] / theta - 1.0) > 1e-9


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", ["sleepstudy_slope", "sleepstudy_uncorrelated", "machines_q3", "dyestuff2"])
def test_optimum_is_lme4s(name, reml):
    ref = oracle.reference(name)
    block = ref.blocks[reml]
    best = oracle.fit(*ref.arrays, reml, structure=ref.structure)
    assert best.criterion == pytest.approx(block.criterion, rel=1e-10)
    scale = np.sqrt(np.outer(np.diag(block.G), np.diag(block.G)))
    np.testing.assert_array_less(np.abs(best.G - block.G), 1e-6 * scale + 1e-12)
    np.testing.assert_allclose(best.theta, block.theta, atol=1e-6 * max(1.0, np.max(block.theta)))
    np.testing.assert_allclose(best.beta, block.beta, rtol=1e-8)
    np.testing.assert_allclose(np.sqrt(np.diag(best.cov_params)), block.se, rtol=1e-7)
    np.testing.assert_allclose(best.blups, block.ranef, rtol=1e-6, atol=1e-6)


def random_problem(rng, q, weighted):
    n, m, p = 30, 6, 3
    X = np.column_stack([np.ones(n), rng.standard_normal((n, p - 1))])
    Z = np.column_stack([np.ones(n), rng.standard_normal((n, q - 1))])
    groups = rng.integers(0, m, n)
    y = rng.standard_normal(n) + rng.standard_normal(m)[groups]
    return y, X, Z, groups, rng.uniform(0.5, 2.0, n) if weighted else None


@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("q", [1, 2, 4])
def test_derivatives(rng, q, reml, weighted, structure):
    y, X, Z, groups, w = random_problem(rng, q, weighted)
    k = q if structure == "diagonal" else q * (q + 1) // 2
    theta = rng.standard_normal(k)
    args = (y, X, Z, groups, reml, w, None, structure)

    def f(t):
        return float(oracle.criterion_theta(t, *args))

    exact = oracle.complex_step_gradient(theta, *args)
    np.testing.assert_allclose(oracle.gradient_theta(theta, *args), exact, rtol=1e-9, atol=1e-9)
    h = 1e-3  # fourth-order differences: error about h^4 times the fifth derivative, rounding about 1e-14 / h
    eye = h * np.eye(k)
    numeric = [(8 * (f(theta + e) - f(theta - e)) - (f(theta + 2 * e) - f(theta - 2 * e))) / (12 * h) for e in eye]
    np.testing.assert_allclose(numeric, exact, rtol=1e-6, atol=1e-6)
    # the real part of the complex evaluation is the real evaluation, although the factorisations differ
    assert oracle.criterion_theta(theta + 0j, *args).real == pytest.approx(f(theta), rel=1e-12)
    # sign of a column of the factor is immaterial
    Lam = oracle.lambda_from_theta(theta, q, structure)
    flipped = oracle.theta_from_lambda(Lam * np.where(np.arange(q) == 0, -1.0, 1.0), structure)
    assert f(flipped) == pytest.approx(f(theta), rel=1e-12)


def test_lambda_is_filled_by_columns():
    Lam = oracle.lambda_from_theta(np.arange(1.0, 7.0), 3)
    np.testing.assert_array_equal(Lam, [[1, 0, 0], [2, 4, 0], [3, 5, 6]])
    np.testing.assert_array_equal(oracle.theta_from_lambda(Lam), np.arange(1.0, 7.0))


def test_semidefinite_cholesky():
    L = np.array([[2.0, 0.0], [-3.0, 0.0]])
    np.testing.assert_allclose(oracle.semidefinite_cholesky(L @ L.T), L, atol=1e-7)
    np.testing.assert_array_equal(oracle.semidefinite_cholesky(np.zeros((2, 2))), np.zeros((2, 2)))
    A = np.array([[4.0, 1.0], [1.0, 9.0]])
    np.testing.assert_allclose(oracle.semidefinite_cholesky(A), np.linalg.cholesky(A), rtol=1e-13)


@pytest.mark.parametrize("reml", [True, False])
def test_weights_as_replication(rng, reml):
    # A row with weight 1/sigma2-variance w equals a transformed row: V^-1/2 scaling by hand with w = 4 means sd 1/2.
    y, X, Z, groups, w = random_problem(rng, 2, True)
    Ghat = np.array([[0.7, 0.2], [0.2, 0.4]])
    s = np.sqrt(w)
    scaled = oracle.criterion(s * y, s[:, None] * X, s[:, None] * Z, groups, Ghat, reml)
    assert oracle.criterion(y, X, Z, groups, Ghat, reml, w) == pytest.approx(scaled - np.sum(np.log(w)), rel=1e-12)
    assert oracle.sigma2(y, X, Z, groups, Ghat, reml, w) == pytest.approx(
        oracle.sigma2(s * y, s[:, None] * X, s[:, None] * Z, groups, Ghat, reml), rel=1e-12
    )
    np.testing.assert_allclose(
        oracle.residuals(y, X, Z, groups, Ghat, reml, "pearson", w),
        oracle.residuals(s * y, s[:, None] * X, s[:, None] * Z, groups, Ghat, reml, "pearson"),
        atol=1e-12,
    )


def test_offset_is_subtracted(rng):
    y, X, Z, groups, _ = random_problem(rng, 2, False)
    o = rng.standard_normal(len(y))
    Ghat = np.array([[0.7, 0.2], [0.2, 0.4]])
    assert oracle.criterion(y, X, Z, groups, Ghat, True, None, o) == oracle.criterion(y - o, X, Z, groups, Ghat, True)
    np.testing.assert_allclose(
        oracle.fitted(y, X, Z, groups, Ghat, None, o), o + oracle.fitted(y - o, X, Z, groups, Ghat), rtol=1e-13
    )


def test_criterion_is_the_profiled_likelihood(rng):
    y, X, Z, groups, w = random_problem(rng, 2, True)
    Ghat = np.array([[0.7, 0.2], [0.2, 0.4]])
    b = oracle.beta(y, X, Z, groups, Ghat, w)
    for reml in (True, False):
        s2 = oracle.sigma2(y, X, Z, groups, Ghat, reml, w)
        top = oracle.loglik(y, X, Z, groups, b, s2 * Ghat, s2, reml, w)
        assert oracle.criterion(y, X, Z, groups, Ghat, reml, w) == pytest.approx(-2 * top, rel=1e-12)
        for factor in (0.99, 1.01):
            s2_other = s2 * factor
            assert oracle.loglik(y, X, Z, groups, b, s2_other * Ghat, s2_other, reml, w) < top


def test_whitened_residuals_have_the_right_norm(rng):
    y, X, Z, groups, w = random_problem(rng, 2, True)
    Ghat = np.array([[0.7, 0.2], [0.2, 0.4]])
    e = oracle.residuals(y, X, Z, groups, Ghat, True, "whitened", w)
    assert e @ e == pytest.approx(len(y) - X.shape[1], rel=1e-12)  # r'V^-1 r / sigma2 = n - p by the REML estimate


def test_prediction_for_a_subject_that_was_in_the_fit_is_its_blup(rng):
    y, X, Z, groups, _ = random_problem(rng, 2, False)
    Ghat = np.array([[0.7, 0.2], [0.2, 0.4]])
    s2 = oracle.sigma2(y, X, Z, groups, Ghat, True)
    b = oracle.beta(y, X, Z, groups, Ghat)
    rows = groups == 2
    mean_b, cov_b = oracle.new_subject_blup(y[rows], X[rows], Z[rows], b, s2 * Ghat, s2)
    np.testing.assert_allclose(mean_b, oracle.blups(y, X, Z, groups, Ghat)[2], rtol=1e-10)
    np.testing.assert_allclose(cov_b, oracle.blup_covariances(y, X, Z, groups, Ghat, True)[2], rtol=1e-10)


def test_prediction_variance_by_henderson(rng):
    # The mixed model equations give the joint covariance of (betahat - beta, bhat - b) in one inverse.
    y, X, Z, groups, _ = random_problem(rng, 2, False)
    Ghat = np.array([[0.7, 0.2], [0.2, 0.4]])
    s2, p = 1.3, X.shape[1]
    levels, Z_big = oracle.random_design(Z, groups)
    M = np.hstack([X, Z_big])
    penalty = np.zeros((M.shape[1], M.shape[1]))
    penalty[p:, p:] = np.kron(np.eye(len(levels)), np.linalg.inv(Ghat))
    joint = s2 * np.linalg.inv(M.T @ M + penalty)
    b = oracle.beta(y, X, Z, groups, Ghat)
    cov_b = s2 * oracle.cov_unscaled(X, Z, groups, Ghat)
    np.testing.assert_allclose(cov_b, joint[:p, :p], rtol=1e-9, atol=1e-12)
    rows = groups == levels[1]
    x_new, z_new = rng.standard_normal((2, p)), rng.standard_normal((2, 2))
    _, variance = oracle.new_subject_prediction(x_new, z_new, y[rows], X[rows], Z[rows], b, s2 * Ghat, s2, cov_b)
    K = np.zeros((2, M.shape[1]))
    K[:, :p], K[:, p + 2 : p + 4] = x_new, z_new
    np.testing.assert_allclose(variance, K @ joint @ K.T, rtol=1e-8, atol=1e-10)
    # nothing seen of the subject: fixed effects and the whole of G
    _, prior = oracle.new_subject_prediction(
        x_new, z_new, np.empty(0), np.empty((0, p)), np.empty((0, 2)), b, s2 * Ghat, s2, cov_b, noise=True
    )
    expected = x_new @ cov_b @ x_new.T + z_new @ (s2 * Ghat) @ z_new.T + s2 * np.eye(2)
    np.testing.assert_allclose(prior, expected, rtol=1e-12)


def test_values_reads_every_container():
    pd = pytest.importorskip("pandas")
    for container in ([1.0, 2.0], np.array([1.0, 2.0]), {"a": 1.0, "b": 2.0}, pd.Series([1.0, 2.0], index=["a", "b"])):
        np.testing.assert_array_equal(oracle.values(container), [1.0, 2.0])
    assert oracle.names(pd.Series([1.0, 2.0], index=["a", "b"])) == ["a", "b"]
