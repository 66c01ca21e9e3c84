"""Moderated variances and false discovery rates: by hand, by simulation, and where responses lend all or nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import digamma, polygamma
from scipy.stats import false_discovery_control, t

import fastlmm_core as flc
from fastlmm_core.inference.false_discoveries import false_discovery_rates
from fastlmm_core.inference.many.moderated import moderate, prior_of, trigamma_inverse
from fastlmm_core.tables.rows import FitLabels


def test_inverse_of_trigamma():
    y = np.geomspace(1e-6, 1e6, 25)
    np.testing.assert_allclose(trigamma_inverse(polygamma(1, y)), y, rtol=1e-9)
    # psi'(1) = pi^2 / 6, psi'(1/2) = pi^2 / 2
    np.testing.assert_allclose(trigamma_inverse([np.pi**2 / 6, np.pi**2 / 2]), [1.0, 0.5], rtol=1e-12)


def test_prior_by_hand():
    # two degrees of freedom: psi(1) = -gamma, psi'(1) = pi^2 / 6
    variance = np.array([0.1, 1.0, 30.0])
    e = np.log(variance) + np.euler_gamma
    excess = e.var(ddof=1) - np.pi**2 / 6
    d0, s0 = prior_of(variance, np.full(3, 2.0))
    assert polygamma(1, d0 / 2) == pytest.approx(excess, rel=1e-12)
    assert np.log(s0) - digamma(d0 / 2) + np.log(d0 / 2) == pytest.approx(e.mean(), rel=1e-12)
    # one: psi(1/2) = -gamma - 2 log 2, psi'(1/2) = pi^2 / 2
    variance = np.array([0.001, 1.0, 3000.0])
    e = np.log(variance) + np.euler_gamma + np.log(2.0)
    d0, s0 = prior_of(variance, np.ones(3))
    assert polygamma(1, d0 / 2) == pytest.approx(e.var(ddof=1) - np.pi**2 / 2, rel=1e-12)
    assert np.log(s0) - digamma(d0 / 2) + np.log(d0 / 2) == pytest.approx(e.mean(), rel=1e-12)
    assert prior_of(np.array([1.0, 1.1, 1.2]), np.array([1.0, 1.0, 2.0])) == (np.inf, pytest.approx(4.5 / 4))


def test_prior_by_simulation(rng):
    n, d0, s0 = 40_000, 5.0, 2.5
    true = s0 * d0 / rng.chisquare(d0, n)
    df = rng.uniform(3.0, 20.0, n)
    found = prior_of(true * rng.chisquare(df) / df, df)
    # standard errors of about 0.6 % and 1.5 %
    np.testing.assert_allclose(found, [d0, s0], rtol=0.06)


@pytest.fixture
def model(rng):
    groups = np.repeat(np.arange(8), 4)
    X = np.column_stack([np.ones(32), groups % 2, np.tile([0.0, 0.0, 1.0, 1.0], 8)])
    return flc.LinearMixedModel(rng.standard_normal(32), X, None, groups)


def drawn(rng, n, d0=4.0):
    scale = np.sqrt(d0 / rng.chisquare(d0, n))[:, None]
    groups = np.repeat(np.arange(8), 4)
    return scale * (rng.standard_normal((n, 32)) + 1.2 * rng.standard_normal((n, 8))[:, groups])


def test_tests_of_a_batch(rng, model):
    Y = drawn(rng, 400)
    Y[7] = np.nan
    batch = model.fit_many(Y)
    found = batch.moderate()
    good = np.arange(400) != 7
    for j in range(3):
        d, v = batch.df[good, j], batch.bse[good, j] ** 2
        d0, s0 = prior_of(v, d)
        assert (found.df_prior[j], found.scale_prior[j]) == (d0, pytest.approx(np.sqrt(s0), rel=1e-12))
        posterior = (d0 * s0 + d * v) / (d0 + d)
        np.testing.assert_allclose(found.std_error[good, j], np.sqrt(posterior), rtol=1e-12)
        np.testing.assert_allclose(found.df[good, j], d + d0, rtol=1e-12)
        p = 2.0 * t.sf(np.abs(batch.params[good, j]) / np.sqrt(posterior), d + d0)
        np.testing.assert_allclose(found.pvalues[good, j], p, rtol=1e-9)
        np.testing.assert_allclose(found.fdr()[good, j], false_discovery_control(p), rtol=1e-9)
        np.testing.assert_allclose(10.0 ** found.log10p[good, j], p, rtol=1e-9)
    for values in (found.std_error, found.pvalues, found.fdr(), found.conf_int()):
        assert np.isnan(values[7]).all()
    middle = found.conf_int(0.5).mean(axis=2)
    np.testing.assert_allclose(middle[good], batch.params[good], atol=1e-12)
    assert list(found.to_frame()) == [
        "response", "term", "estimate", "std_error", "df", "statistic", "p_value", "fdr"
    ]  # fmt: skip
    assert repr(found).startswith("<ModeratedTests: 400 responses; prior df: x0 ")
    with pytest.raises(flc.LMMError, match="needs three responses"):
        batch[:2].moderate()


def test_variances_that_are_alike_have_all_degrees_of_freedom():
    df = np.array([[5.0], [6.0], [7.0], [8.0]])
    found = moderate(["x"], np.ones((4, 1)), np.full((4, 1), 0.5), df, FitLabels("dict", None))
    assert found.df_prior[0] == np.inf
    np.testing.assert_array_equal(found.df, 26.0)
    np.testing.assert_allclose(found.std_error, 0.5, rtol=1e-12)
    np.testing.assert_allclose(found.pvalues, 2.0 * t.sf(2.0, 26.0), rtol=1e-12)


def test_size_and_power(rng, model):
    batch = model.fit_many(drawn(rng, 4000))
    found = batch.moderate()
    for j in (1, 2):  # between and within groups
        assert abs(np.mean(found.pvalues[:, j] < 0.05) - 0.05) < 0.015
    Y = drawn(rng, 2000) + 2.5 * model.exog[:, 1]
    batch = model.fit_many(Y)
    assert np.mean(batch.moderate().pvalues[:, 1] < 0.01) > 1.15 * np.mean(batch.pvalues[:, 1] < 0.01)


@pytest.mark.parametrize("method", ["bh", "by"])
def test_false_discovery_rates(rng, method):
    p = rng.uniform(size=(50, 3)) ** 3
    p[4, 1] = p[9, 1] = p[11, 0]
    found = false_discovery_rates(p, method)
    for j in range(3):
        np.testing.assert_allclose(found[:, j], false_discovery_control(p[:, j], method=method), rtol=1e-12)
    p[[3, 8], 1] = np.nan
    there = np.isfinite(p[:, 1])
    again = false_discovery_rates(p, method)
    np.testing.assert_allclose(again[there, 1], false_discovery_control(p[there, 1], method=method), rtol=1e-12)
    assert np.isnan(again[~there, 1]).all()
    with pytest.raises(flc.LMMError, match="use 'bh' or 'by'"):
        false_discovery_rates(p, "fdr")


def test_of_hypotheses(rng, model):
    batch = model.fit_many(drawn(rng, 30))
    for rows in ([[0.0, 1.0, -1.0]], np.eye(3)[1:]):
        for ddf in ("satterthwaite", "normal"):
            found = batch.test(rows, ddf=ddf)
            np.testing.assert_allclose(10.0**found.log10p, found.pvalues, rtol=1e-9)
            np.testing.assert_allclose(found.fdr("by"), false_discovery_control(found.pvalues, method="by"), rtol=1e-9)
