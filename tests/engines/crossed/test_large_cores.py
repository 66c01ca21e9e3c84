"""Large dense cores: in tiles, by any number of threads, until a signal ends the evaluation."""

from __future__ import annotations

import signal
import tracemalloc
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import cholesky, solve_triangular
from scipy.sparse import coo_array, hstack

import fastlmm_core as flc
from fastlmm_core.support.threads import threads_for

CORE = 2100
"""Columns of a core whose evaluation asks for signals."""


class Stop(Exception):
    """Raised by the handler of a signal."""


@contextmanager
def alarm(seconds):
    """A signal after so many seconds, whose handler raises Stop."""

    def stop(*_):
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def crossed():
    """A model of two crossed factors whose core is dense and large, and its y, X, A and B."""
    return of_size(CORE)


@pytest.fixture(scope="module")
def evaluated(crossed):
    """evaluated(theta): an engine of that model and what it found there, value and gradient."""

    @cache
    def at(theta):
        criterion = crossed[0].problem.criterion()
        return criterion, criterion.evaluate(np.array(theta), 1)

    return at


def of_size(core):
    """A model of two crossed factors, one of which leaves a dense core of so many columns, and its y, X, A and B."""
    rng = np.random.default_rng(1)
    n, m = 10 * core, core + 50
    a, b = rng.integers(0, m, n), rng.integers(0, core, n)
    a[:m], b[:core] = np.arange(m), np.arange(core)
    X = np.column_stack([np.ones(n), rng.standard_normal(n)])
    y = X @ [1.0, 2.0] + rng.standard_normal(m)[a] + rng.standard_normal(core)[b] + rng.standard_normal(n)
    model = flc.LinearMixedModel(y, X, terms=[flc.RandomTerm(None, a, "a"), flc.RandomTerm(None, b, "b")])
    rows = np.arange(n)
    A, B = (coo_array((np.ones(n), (rows, codes))).tocsr() for codes in (a, b))
    return model, y, X, A, B


def schur(A, B, theta):
    """K = B'(I - A D A')B and the diagonal of D = theta_a^2 (I + theta_a^2 A'A)^-1."""
    D = theta[0] ** 2 / (1.0 + theta[0] ** 2 * A.sum(axis=0))
    BA = (B.T @ A).tocsr()
    return np.diag(B.sum(axis=0)) - (BA.multiply(D) @ BA.T).toarray(), D


def reml(y, X, A, B, theta):
    """The REML criterion, by the levels of b that are left after those of a."""
    K, D = schur(A, B, theta)
    S = np.eye(len(K)) + theta[1] ** 2 * K
    W = np.column_stack([X, y])
    AW = A.T @ W
    half = B.T @ W - B.T @ (A @ (D[:, None] * AW))
    lower = cholesky(S, lower=True, overwrite_a=True, check_finite=False)
    turned = solve_triangular(lower, half, lower=True, check_finite=False)
    H = W.T @ W - AW.T @ (D[:, None] * AW) - theta[1] ** 2 * turned.T @ turned
    n, p = X.shape
    r2 = H[p, p] - H[p, :p] @ np.linalg.solve(H[:p, :p], H[p, :p])
    logdet = np.log1p(theta[0] ** 2 * A.sum(axis=0)).sum() + 2.0 * np.log(np.diag(lower)).sum()
    logdet += np.linalg.slogdet(H[:p, :p])[1]
    return logdet + (n - p) * (1.0 + np.log(2.0 * np.pi * r2 / (n - p)))


@pytest.mark.parametrize("core", [383, 384, 400, 512, 777])
def test_a_core_in_tiles_by_any_number_of_threads(core):
    model, y, X, A, B = of_size(core)
    theta = np.array([0.9, 1.2])
    found = []
    for jobs in (1, 2, 3, 7):
        criterion = model.problem.criterion()
        assert criterion.layout.core_sizes.tolist() == [core]
        criterion.jobs = jobs
        value, gradient, _ = criterion.evaluate(theta, 1)
        found.append((value, *gradient, *criterion.conditional().ravel()))
    np.testing.assert_array_equal(found, found[:1] * 4)
    assert model.evaluate(theta).value == pytest.approx(reml(y, X, A, B, theta), rel=1e-11)
    # Z'V^-1 Z = Z'Z (I + T Z'Z)^-1 of all effects, T their variances relative to sigma^2
    Z = hstack((A, B)).toarray()
    variances = np.repeat(theta**2, [A.shape[1], core])
    N = np.diag(np.linalg.solve(np.eye(len(variances)) + (Z.T @ Z) * variances, Z.T @ Z))
    sums = [N[: A.shape[1]].sum(), N[A.shape[1] :].sum()]
    np.testing.assert_allclose(np.diag(criterion.precision()), sums, rtol=1e-11)


@pytest.mark.parametrize("core", [12, 40, 41, 300, 400])
@pytest.mark.parametrize("theta", [(0.9, 1.2), (0.9, 0.0), (300.0, 500.0)], ids=["inside", "boundary", "far"])
def test_solutions_beside_the_covariances_in_one_square(core, theta, rng):
    problem = of_size(core)[0].problem
    criterion = problem.criterion()
    columns = rng.standard_normal((criterion.n_slots, 2))
    criterion.evaluate(np.array(theta), 0)
    before = criterion.means(columns)
    criterion.evaluate(np.array(theta), 1)
    covered = criterion.conditional(), criterion.conditional(precision=True)
    after = criterion.means(columns)
    # u = G (c - Z'Z u), from which E = Z'V^-1 c is c - Z'Z u
    scores = columns - criterion.gram_times(after)
    variances = np.empty(criterion.n_slots)
    for places, t in zip(problem.layout.places, theta, strict=True):
        variances[places.ravel()] = t * t
    # the terms of a difference that cancels, where the variances are large
    size = np.abs(criterion.gram_times(np.abs(after))).max()
    np.testing.assert_allclose(variances[:, None] * scores, after, atol=1e-13 * size * max(variances))
    np.testing.assert_allclose(after, before, atol=1e-12 * size)
    np.testing.assert_allclose(criterion.multiply(after), criterion.gram_times(after - criterion.means(
        criterion.gram_times(after))), atol=1e-12 * size)  # fmt: skip
    # and the covariances are there a second time
    np.testing.assert_array_equal(criterion.conditional(), covered[0])
    np.testing.assert_array_equal(criterion.conditional(precision=True), covered[1])


@pytest.mark.parametrize(("theta", "matrices"), [((0.9, 1.2), 1), ((0.9, 0.0), 2)], ids=["inside", "boundary"])
def test_matrices_of_the_size_of_a_core(theta, matrices):
    problem = of_size(1200)[0].problem
    assert problem.layout.core_sizes.tolist() == [1200]
    before = resident()
    tracemalloc.start()
    criterion = problem.criterion()
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    criterion.evaluate(np.array(theta), 2)
    criterion.conditional()
    # all else is of the size of the rows, or of some columns
    assert arrays < 1.3 * 8 * 1200**2
    if before is not None:
        assert resident() - before < (matrices + 0.9) * 8 * 1200**2


def resident():
    """Bytes of memory that this process has, None where that is not told."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def test_threads_of_a_large_core_are_those_that_are_asked_for(crossed, monkeypatch):
    monkeypatch.setattr("fastlmm_core.engines.crossed.engine.blas_threads", lambda: 3)
    problem = crossed[0].problem
    assert problem.criterion().jobs == 3
    for n_jobs, jobs in ((1, 1), (2, 2), (8, 3)):
        with threads_for(n_jobs, np.inf):
            assert problem.criterion().jobs == jobs
    assert of_size(400)[0].problem.criterion().jobs == 1


def test_a_large_core_in_tiles(crossed):
    model, y, X, A, B = crossed
    theta = np.array([0.9, 1.2])
    found = model.evaluate(theta, order=1)
    # sums of some 1e5 terms of the order of one
    assert found.value == pytest.approx(reml(y, X, A, B, theta), rel=1e-11)
    step = np.array([0.0, 1e-4])
    difference = model.evaluate(theta + step).value - model.evaluate(theta - step).value
    # the third derivative times h^2 / 6, and rounding errors of the value over h
    assert found.gradient[1] == pytest.approx(difference / 2e-4, rel=1e-6)


def test_a_large_core_without_effects(crossed, evaluated):
    _, _, _, A, B = crossed
    criterion, _ = evaluated((0.9, 0.0))
    K = schur(A, B, [0.9, 0.0])[0]
    # the direction of b is that on which the criterion does not depend at zero
    assert criterion.precision()[1, 1] == pytest.approx(np.trace(K), rel=1e-12)


@pytest.mark.parametrize("theta", [(0.9, 1.2), (0.9, 0.0)], ids=["inside", "boundary"])
def test_a_signal_ends_an_evaluation(crossed, evaluated, theta):
    criterion = crossed[0].problem.criterion()
    _, fresh = evaluated(theta)
    theta = np.array(theta)
    with pytest.raises(Stop), alarm(0.02):
        criterion.evaluate(theta, 1)
    # not served when the evaluation was over
    with pytest.raises(ValueError, match="order=1"):
        criterion.scores()
    again = criterion.evaluate(theta, 1)
    assert again[0] == fresh[0]
    np.testing.assert_array_equal(again[1], fresh[1])


def test_a_signal_ends_a_fit(crossed):
    model = crossed[0]
    with pytest.raises(Stop), alarm(0.3):
        model.fit()
