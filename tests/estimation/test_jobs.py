"""Fits of large data by several threads have the bits of one."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import kernels
from fastlmm_core.errors import LMMError
from fastlmm_core.support.threads import in_threads, threads_for, threads_in_use

M = 10_000
"""Groups: more than are swept over in one part, whatever the lanes."""


def long_data(times, seed=1):
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(M), 8)
    t = rng.uniform(0.0, 5.0, codes.size) if times == "own" else np.tile(np.arange(8.0), M)
    effects = rng.standard_normal((M, 2)) * [1.0, 0.3]
    y = 2.0 + 0.5 * t + effects[codes, 0] + effects[codes, 1] * t + rng.standard_normal(codes.size)
    if times == "one odd group":
        t[-1] = 9.0
    return y, np.column_stack([np.ones(codes.size), t]), codes


def numbers(fit):
    found = fit.test([0.0, 1.0])
    return {
        "params": fit.params, "bse": fit.bse, "theta": fit.theta, "criterion": fit.criterion, "sigma2": fit.sigma2,
        "df": found.df_denom, "gradient": fit.optimum.gradient, "hessian": fit.optimum.hessian,
    }  # fmt: skip


@pytest.mark.parametrize("times", ["shared", "own", "one odd group"])
@pytest.mark.parametrize("order", ["sorted", "any"])
def test_threads_change_no_bit(times, order):
    y, X, codes = long_data(times)
    if order == "any":
        at = np.random.default_rng(3).permutation(y.size)
        y, X, codes = y[at], X[at], codes[at]
    alone = numbers(flc.LinearMixedModel(y, X, X, codes, n_jobs=1).fit(n_jobs=1))
    for jobs in (2, 5, None):
        found = numbers(flc.LinearMixedModel(y, X, X, codes, n_jobs=jobs).fit(n_jobs=jobs))
        for name, value in alone.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_threads_change_no_bit_of_formulas_and_scans():
    pd = pytest.importorskip("pandas")
    y, X, codes = long_data("own")
    frame = pd.DataFrame({"y": y, "t": X[:, 1], "g": codes})
    alone = flc.lmm("y ~ t + (t | g)", frame, n_jobs=1).fit(n_jobs=1)
    for data in (frame, flc.scan(frame)):
        found = flc.lmm("y ~ t + (t | g)", data, n_jobs=3).fit(n_jobs=3)
        assert found.criterion == alone.criterion
        np.testing.assert_array_equal(np.asarray(found.params), np.asarray(alone.params))


@pytest.mark.parametrize("q", [1, 2])
def test_sums_in_parts_are_those_of_all_groups(q):
    """Against the dense formulas of each group, summed by numpy."""
    y, X, codes = long_data("own", seed=4)
    problem = flc.LinearMixedModel(y, X, X[:, :q], codes, n_jobs=2).problem
    criterion = problem.criterion()
    criterion.jobs = 3
    theta = np.array([0.8, 0.2, 0.5])[: q * (q + 1) // 2]
    criterion.reml = False
    value, gradient, _ = criterion.evaluate(theta, 2)
    Z, X_o = problem.conditioned_z(X[:, :q]), problem.conditioned_x(X)
    y_o = (y - X @ problem.beta_base) / problem.scale
    L = np.zeros((q, q))
    L[np.tril_indices(q)] = theta if q == 1 else theta[[0, 1, 2]]
    columns = np.column_stack([X_o, y_o]).reshape(M, 8, -1)
    V = np.eye(8) + Z.reshape(M, 8, q) @ L @ L.T @ Z.reshape(M, 8, q).transpose(0, 2, 1)
    H = np.einsum("gij,gil->jl", columns, np.linalg.solve(V, columns))
    r2 = H[-1, -1] - H[-1, :-1] @ np.linalg.solve(H[:-1, :-1], H[:-1, -1])
    n = y.size
    expected = np.linalg.slogdet(V)[1].sum() + n * (1.0 + np.log(2.0 * np.pi * r2 / n))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for j in range(len(theta)):
        step = np.zeros(len(theta))
        step[j] = 1e-5
        slope = (criterion.evaluate(theta + step, 0)[0] - criterion.evaluate(theta - step, 0)[0]) / 2e-5
        np.testing.assert_allclose(gradient[j], slope, rtol=1e-5, atol=1e-2)


def test_groups_that_are_all_alike_are_told_in_one_go():
    """What stands for them has their sums; one group of another design, wherever it is, is not overlooked."""
    y, X, codes = long_data("shared")
    problem = flc.LinearMixedModel(y, X, X, codes, n_jobs=1).problem
    lines = (problem.raw, problem.z_transform, problem.xy_transform)
    each, between = kernels.factor_groups(*lines)
    few, same_between = kernels.factor_alike(*lines, 2)
    np.testing.assert_allclose(same_between, between, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(few, kernels.compress(each, M, 2, 3), rtol=1e-9, atol=1e-9)
    assert few[:, -1].sum() == M
    for group in (1, 7, 5000, M - 1):
        other = problem.raw.copy()
        other[group, 2] *= 1.0 + 1e-10
        assert kernels.factor_alike(other, *lines[1:]) is None
        other[group, 2] = np.nan
        assert kernels.factor_alike(other, *lines[1:]) is None


def test_few_rows_take_one_thread_and_inner_work_too():
    with threads_for(None, 100):
        assert threads_in_use() == 1
    with threads_for(3, 100):
        assert threads_in_use() == 3
        with threads_for(None, 10**9):
            assert threads_in_use() == 3
        seen = []
        in_threads(lambda i: seen.append(threads_in_use()) or 1, iter([(0,), (1,), (2,)]), 2)
        assert seen == [1, 1, 1]
        assert threads_in_use() == 3
    assert threads_in_use() == 1


@pytest.mark.parametrize("n_jobs", [0, -2, 1025])
def test_threads_that_make_no_sense_are_refused(n_jobs):
    y, X, codes = long_data("own")
    for call in (
        lambda: flc.LinearMixedModel(y, X, X, codes, n_jobs=n_jobs),
        lambda: flc.LinearMixedModel(y[:80], X[:80], X[:80], codes[:80]).fit(n_jobs=n_jobs),
    ):
        with pytest.raises(LMMError, match=f"n_jobs={n_jobs} must be"):
            call()
