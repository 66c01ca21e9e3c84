"""What a change of units, of origin, of the order of rows or of the names of groups must do to a fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlmm_core as flc
import oracle

# The same examples in every run; no deadline, because the first example pays for imports.
PROFILE = settings(max_examples=40, deadline=None, derandomize=True)

# Both fits are optima of one smooth function to full precision. Quantities of first order in theta may differ by what a
# Newton iteration leaves, the criterion by rounding.
CRITERION = 1e-9
FIRST_ORDER = 1e-6

seeds = st.integers(0, 2**32 - 1)
methods = st.booleans()
logs = st.floats(-6.0, 6.0)
structures = st.sampled_from(["full", "diagonal"])


def problem(seed):
    """Unbalanced random slopes; some of the variances that are drawn are small enough for a fit on the boundary."""
    rng = np.random.default_rng(seed)
    m = int(rng.integers(5, 25))
    n_i = rng.integers(2, 9, m)
    n_i[:2] = 8
    groups = np.repeat(np.arange(m), n_i)
    x = rng.choice([rng.uniform(0.0, 4.0, len(groups)), rng.integers(0, 5, len(groups)).astype(float)])
    b = rng.standard_normal((m, 2)) * np.exp(rng.uniform(-3.0, 1.5, 2))
    y = 2.0 + 0.5 * x + b[groups, 0] + b[groups, 1] * x + rng.standard_normal(len(groups))
    X = np.column_stack([np.ones(len(y)), x])
    return y, X, groups


def fit(y, X, groups, reml, structure="full"):
    result = flc.LinearMixedModel(y, X, X, groups, structure=structure).fit(reml=reml)
    assert result.converged
    return result


def unit(result):
    """Scale in which covariances of effects are compared: a variance below 1e-4 of sigma2 counts as that much."""
    G = oracle.covariance_blocks(result)
    return G, np.sqrt(np.diag(G) + 1e-4 * float(result.sigma2))


def same(actual, desired, tolerance, scale):
    assert np.max(np.abs(np.asarray(actual) - np.asarray(desired)) / np.asarray(scale)) <= tolerance


def same_fit(base, other, *, A, criterion, y_scale=1.0, y_shift=None):
    """`other` fits X A^-1 (fixed and random) to y_scale * y: its coefficients are y_scale * A times those of `base`.

    `criterion` is what the transformation adds to it, `y_shift` what it adds to the coefficients.
    """
    assert float(other.criterion) - float(base.criterion) == pytest.approx(
        criterion, abs=CRITERION * (1.0 + abs(float(base.criterion)) + abs(criterion))
    )
    shift = np.zeros(2) if y_shift is None else y_shift
    cov = y_scale**2 * A @ np.asarray(base.cov_params()) @ A.T
    se = np.sqrt(np.diag(cov))
    size = np.abs(shift) * 1e-9  # rounding of coefficients that became large
    same(oracle.values(other.params), y_scale * A @ oracle.values(base.params) + shift, FIRST_ORDER, se + size)
    same(other.cov_params(), cov, 5 * FIRST_ORDER, np.outer(se, se))
    G, _ = unit(base)
    expected = y_scale**2 * A @ G @ A.T
    floor = 1e-4 * float(base.sigma2) * y_scale**2 * np.diag(A @ A.T)
    sd = np.sqrt(np.diag(expected) + floor)
    same(oracle.covariance_blocks(other), expected, 20 * FIRST_ORDER, np.outer(sd, sd))
    assert float(other.sigma2) == pytest.approx(y_scale**2 * float(base.sigma2), rel=5 * FIRST_ORDER)
    assert bool(other.singular) == bool(base.singular)


@PROFILE
@given(seed=seeds, reml=methods, structure=structures, log_scale=logs, negative=st.booleans())
def test_units_of_the_response(seed, reml, structure, log_scale, negative):
    y, X, groups = problem(seed)
    c = 10.0**log_scale * (-1.0 if negative else 1.0)
    base, other = fit(y, X, groups, reml, structure), fit(c * y, X, groups, reml, structure)
    nu = len(y) - 2 if reml else len(y)
    same_fit(base, other, A=np.eye(2), criterion=2.0 * nu * np.log(abs(c)), y_scale=c)
    same(other.fittedvalues, c * np.asarray(base.fittedvalues), FIRST_ORDER * 10, abs(c) * np.sqrt(float(base.sigma2)))


@PROFILE
@given(seed=seeds, reml=methods, structure=structures, log_scale=logs, negative=st.booleans())
def test_units_of_x(seed, reml, structure, log_scale, negative):
    y, X, groups = problem(seed)
    k = 10.0**log_scale * (-1.0 if negative else 1.0)
    base, other = fit(y, X, groups, reml, structure), fit(y, X * [1.0, k], groups, reml, structure)
    # log|X'V^-1 X| is in the restricted likelihood and knows the units of X
    same_fit(base, other, A=np.diag([1.0, 1.0 / k]), criterion=2.0 * np.log(abs(k)) if reml else 0.0)
    same(other.fittedvalues, base.fittedvalues, FIRST_ORDER * 10, np.sqrt(float(base.sigma2)))


@PROFILE
@given(seed=seeds, reml=methods, origin=st.floats(-100.0, 100.0))
def test_origin_of_time(seed, reml, origin):
    # only for a full covariance: independence of intercept and slope is a statement about one origin
    y, X, groups = problem(seed)
    base, other = fit(y, X, groups, reml), fit(y, X + np.array([0.0, origin]), groups, reml)
    same_fit(base, other, A=np.array([[1.0, -origin], [0.0, 1.0]]), criterion=0.0)
    same(other.fittedvalues, base.fittedvalues, FIRST_ORDER * 10, np.sqrt(float(base.sigma2)))


@PROFILE
@given(seed=seeds, reml=methods, structure=structures, a=st.floats(-1e6, 1e6), b=st.floats(-1e3, 1e3))
def test_response_plus_a_line(seed, reml, structure, a, b):
    y, X, groups = problem(seed)
    line = X @ [a, b]
    stored = y + line
    base = fit(stored - line, X, groups, reml, structure)  # what is left of y after the sum was rounded
    other = fit(stored, X, groups, reml, structure)
    same_fit(base, other, A=np.eye(2), criterion=0.0, y_shift=np.array([a, b]))


@PROFILE
@given(seed=seeds, reml=methods, structure=structures)
def test_order_of_rows(seed, reml, structure):
    y, X, groups = problem(seed)
    order = np.random.default_rng(seed).permutation(len(y))
    base, other = fit(y, X, groups, reml, structure), fit(y[order], X[order], groups[order], reml, structure)
    same_fit(base, other, A=np.eye(2), criterion=0.0)
    same(other.fittedvalues, np.asarray(base.fittedvalues)[order], FIRST_ORDER * 10, np.sqrt(float(base.sigma2)))


@PROFILE
@given(seed=seeds, reml=methods, structure=structures, text=st.booleans())
def test_labels_of_groups(seed, reml, structure, text):
    y, X, groups = problem(seed)
    new = np.random.default_rng(seed).permutation(groups.max() + 1) * 7 - 50
    labels = np.array([f"g{k}" for k in new]) if text else new
    base, other = fit(y, X, groups, reml, structure), fit(y, X, labels[groups], reml, structure)
    same_fit(base, other, A=np.eye(2), criterion=0.0)
    names, b = oracle.random_effects(other)
    order = [names.index(str(labels[int(g)])) for g in base.group_labels]
    _, scale = unit(base)
    same(b[order], base.random_effects, FIRST_ORDER * 10, scale)


@PROFILE
@given(seed=seeds, reml=methods)
def test_value_is_the_dense_criterion(seed, reml):
    y, X, groups = problem(seed)
    result = fit(y, X, groups, reml)
    assert oracle.criterion_theta(result.theta, y, X, X, groups, reml) == pytest.approx(
        float(result.criterion), rel=1e-10
    )


@settings(PROFILE, max_examples=15)
@given(seed=seeds, reml=methods, structure=structures)
def test_nothing_lower_is_found(seed, reml, structure):
    y, X, groups = problem(seed)
    best = oracle.fit(y, X, X, groups, reml, structure=structure)
    result = fit(y, X, groups, reml, structure)
    assert float(result.criterion) <= best.criterion + 1e-8 * abs(best.criterion)
