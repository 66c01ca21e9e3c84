"""Draws with other distributions: their moments, and that everything else is as for normal ones."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError
from fastlmm_core.simulation.shapes import shape_of


@pytest.fixture(scope="module")
def fit():
    return flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()


@pytest.mark.parametrize(
    ("draw", "skewness", "excess"),
    [("t(9)", 0.0, 6 / 5), ("t", 0.0, None), ("skewed", 1.0, 1.5), (" skewed( 0.5 )", 0.5, 0.375)],
)
def test_moments_of_numbers(draw, skewness, excess):
    x = shape_of(draw)(np.random.default_rng(1), (1000, 1000))
    assert abs(x.mean()) < 0.005 and abs(x.var() - 1.0) < 0.02
    assert excess is None or abs((x**3).mean() - skewness) < 0.03
    assert excess is None or abs((x**4).mean() - 3.0 - excess) < 0.15


@pytest.mark.parametrize("draw", ["t(5)", "skewed(1)"])
def test_covariances_are_those_of_the_model(fit, draw):
    n = 20_000
    fit = fit.at(G=np.array([[600.0, 110.0], [110.0, 30.0]]))
    Y = fit.simulate(n, 1, draw=draw)
    same = fit.model.grouping.index[:, None] == fit.model.grouping.index
    V = same * (fit.model.exog_re @ fit.covariance @ fit.model.exog_re.T) + fit.sigma2 * np.eye(180)
    np.testing.assert_allclose(Y.mean(axis=0), fit.population_mean, atol=5 * np.sqrt(np.diag(V).max() / n))
    assert np.abs((np.cov(Y.T) - V) / np.sqrt(np.outer(np.diag(V), np.diag(V)))).max() < 0.08


def test_fits_are_those_of_the_draws(fit):
    batch = fit.simulate_fit(700, 3, draw="t(4)", first=200)
    Y = fit.simulate(900, 3, draw="t(4)")[200:]
    np.testing.assert_allclose(batch.params, fit.model.fit_many(Y).params, rtol=1e-12)
    np.testing.assert_array_equal(batch[650].model.endog, Y[650])
    again = pickle.loads(pickle.dumps(batch))
    np.testing.assert_array_equal(again[3].model.endog, Y[3])
    np.testing.assert_array_equal(fit.simulate_fit(50, 3, draw="normal").params, fit.simulate_fit(50, 3).params)


def test_a_function_of_the_caller(fit):
    def draw(rng, count):
        return fit.population_mean + 10.0 * rng.laplace(size=(count, 180))

    batch = fit.simulate_fit(60, 3, draw=draw)
    Y = fit.simulate(60, 3, draw=draw)
    np.testing.assert_allclose(batch.params, fit.model.fit_many(Y).params, rtol=1e-12)
    np.testing.assert_array_equal(batch.responses[[5]][0], Y[5])
    assert batch.singular.mean() > 0.3


def test_what_is_refused(fit):
    for draw, message in (
        ("cauchy", "draw='cauchy' is unknown"),
        ("t(2)", "above 2 degrees"),
        ("t(x)", "unknown"),
        ("skewed(0)", "must be positive"),
        ("normal(3)", "unknown"),
        (3, "draw must be 'normal'"),
        (lambda rng, count: np.zeros((count, 3)), r"must return numbers of the shape"),
    ):
        with pytest.raises(LMMError, match=message):
            fit.simulate_fit(4, 1, draw=draw)
    with pytest.raises(LMMError, match="whole responses"):
        fit.simulate(4, 1, draw=lambda rng, count: np.zeros((count, 180)), effects="all")
