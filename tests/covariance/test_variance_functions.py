"""Variance functions: definitions, starts, and which columns of a formula are relative to sigma."""

from __future__ import annotations

import numpy as np
import pytest

from fastlmm_core import LMMError
from fastlmm_core.covariance.residual.catalogue import of_covariate, of_positions, variance_names
from fastlmm_core.covariance.residual.grouped_variance import GroupedVariance
from fastlmm_core.covariance.residual.log_linear import LogLinear, relative_columns
from fastlmm_core.covariance.residual.varied import Varied

V = np.array([[0.0], [0.3], [-2.0], [5.0]])

DEFINITIONS = {
    "power": ([0.7], lambda v: np.abs(v) ** 0.7),
    "exp": ([-0.4], lambda v: np.exp(-0.4 * v)),
    "constpower": ([0.5, 1.5], lambda v: 0.5 + np.abs(v) ** 1.5),
    "constprop": ([0.8], lambda v: np.sqrt(1.0 + (0.8 * v) ** 2)),
}


@pytest.mark.parametrize("name", variance_names())
def test_definitions(name):
    natural, function = DEFINITIONS[name]
    found = of_covariate(name)
    v = V[1:] if name == "power" else V
    phi = found.from_natural(np.array(natural))
    np.testing.assert_allclose(np.exp(found.logarithm(phi, v)), function(v[:, 0]), rtol=1e-13)
    # derivatives are finite where the covariate is zero, too
    assert all(np.isfinite(part).all() for part in found.at(phi, v))


def test_a_function_scales_the_structure():
    varied = Varied(of_covariate("exp"), of_positions("cs", 3))
    where = np.array([[2.0, 0.5], [0.0, -1.0]])
    phi, sigma2 = varied.from_natural(np.array([2.0, 0.6, 0.3]))
    s = np.exp(0.3 * where[:, 1])
    expected = np.array([[2.0, 0.6], [0.6, 2.0]]) * np.outer(s, s)
    np.testing.assert_allclose(sigma2 * varied.matrix(phi, where), expected, rtol=1e-13)
    assert varied.names(("a", "b", "c"), "id") == ("sigma2|id", "cov|id", "exp")


def test_levels_have_functions_of_their_own():
    grouped = GroupedVariance(of_covariate("power"), ("x", "y"))
    v = np.array([[2.0, 0.0], [2.0, 1.0], [3.0, 1.0]])
    np.testing.assert_allclose(np.exp(grouped.logarithm(np.array([1.0, -0.5]), v)), [2.0, 2.0**-0.5, 3.0**-0.5])
    assert grouped.labels() == ("power[x]", "power[y]")


@pytest.mark.parametrize("name", variance_names())
def test_starts_are_near(name):
    rng = np.random.default_rng(0)
    _, function = DEFINITIONS[name]
    v = rng.uniform(0.5, 6.0, (20_000, 1))
    residuals = 2.0 * function(v[:, 0]) * rng.standard_normal(len(v))
    found = of_covariate(name)
    start = found.start(residuals, v)
    # what counts is the shape: standard deviations at both ends, relative to each other
    ends = np.array([[0.5], [6.0]])
    s = np.exp(found.logarithm(start, ends))
    expected = function(ends[:, 0])
    np.testing.assert_allclose(np.log(s[1] / s[0]), np.log(expected[1] / expected[0]), atol=0.6)


@pytest.mark.parametrize("name", variance_names())
@pytest.mark.parametrize("v", [np.zeros((4, 1)), np.ones((4, 1)), V])
def test_starts_are_finite(name, v):
    if name == "power":
        v = v + 1.5
    for residuals in (np.zeros(4), np.array([1.0, 0.0, -3.0, 1e-9])):
        assert np.isfinite(of_covariate(name).start(residuals, v)).all()


def test_linear_starts_at_the_logarithms_of_ratios():
    rng = np.random.default_rng(0)
    arm = np.arange(4_000) % 2
    found = LogLinear(("B",)).start(np.where(arm == 1, 3.0, 0.5) * rng.standard_normal(4_000), arm[:, None] * 1.0)
    np.testing.assert_allclose(found, np.log(6.0), atol=0.1)


def test_columns_relative_to_sigma():
    arm = np.eye(3)[np.arange(9) % 3]
    x = np.arange(9.0)[:, None]
    # indicators of all levels: the first is the reference
    assert relative_columns(arm).tolist() == [1, 2]
    # an intercept belongs to sigma
    assert relative_columns(np.column_stack((np.ones(9), x))).tolist() == [1]
    assert relative_columns(x).tolist() == [0]
    # combinations of columns before, and columns of zeros
    assert relative_columns(np.column_stack((np.ones(9), arm[:, 1], np.zeros(9), 2 * arm[:, 1], x))).tolist() == [1, 4]
    assert relative_columns(np.ones((9, 1))).tolist() == []


def test_boundaries():
    assert of_covariate("constpower", 2.0).boundary(np.array([-14.0, 1.0])) == "const = 0"
    assert of_covariate("constpower", 2.0).boundary(np.array([-1.0, 1.0])) is None
    assert of_covariate("constprop", 2.0).boundary(np.array([-9.0])) == "prop = 0"
    assert of_covariate("constprop", 2.0).boundary(np.array([9.0])) == "prop = infinity"
    assert of_covariate("constprop", 2.0).boundary(np.array([0.0])) is None
    grouped = GroupedVariance(of_covariate("constprop"), ("x", "y"))
    assert grouped.boundary(np.array([0.0, -9.0])) == "prop[y] = 0"


def test_refusals():
    with pytest.raises(LMMError, match="there is no function 'log'; known are power, exp, constpower, constprop"):
        of_covariate("log")
