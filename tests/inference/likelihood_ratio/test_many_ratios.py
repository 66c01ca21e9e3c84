"""Likelihood ratio tests of a batch: each is the comparison of two fits of one response."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import LMMError

AGREE = 1e-6
"""Criteria agree to 1e-9 of their size; p-values follow the tail."""


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(12)
    g = np.repeat(np.arange(18), 5)
    table = {"y": rng.normal(size=90), "x": rng.normal(size=90), "z": rng.normal(size=90), "g": g}
    u = rng.normal(size=(7, 18, 2)) * [0.8, 0.4]
    Y = u[:, g, 0] + u[:, g, 1] * table["x"] + rng.normal(size=(7, 90)) + 0.2 * table["z"]
    Y[5:] = rng.normal(size=(2, 90))
    return table, Y


@pytest.mark.parametrize(
    ("large", "small", "reml", "null"),
    [
        ("y ~ x + z + (1 | g)", "y ~ x + (1 | g)", False, "auto"),
        ("y ~ x + z + (x | g)", "y ~ x + z + (1 | g)", True, "auto"),
        ("y ~ x + z + (x || g)", "y ~ x + z + (1 | g)", True, "auto"),
        ("y ~ x + z + (x || g)", "y ~ x + z + (1 | g)", True, "exact"),
        ("y ~ x + z + (x | g)", "y ~ x + z + (1 | g)", True, "chi2"),
        ("y ~ x + z + (x | g)", "y ~ x + (1 | g)", False, "mixture"),
    ],
)
def test_two_models(data, large, small, reml, null):
    table, Y = data
    over, under = (flc.lmm(formula, table).fit_many(Y, reml=reml) for formula in (large, small))
    found = over.compare(under, null=null, n_sim=2000, seed=5)
    for i in range(len(Y)):
        row = flc.compare(under[i], over[i], null=null, n_sim=2000, seed=5).rows[1]
        np.testing.assert_allclose(found.statistic[i], row.statistic, rtol=AGREE, atol=1e-6)
        np.testing.assert_allclose(found.pvalues[i], row.pvalue, rtol=1e-5)
        np.testing.assert_allclose(found.p_std_error[i], row.p_std_error, rtol=1e-4, atol=1e-12)
        assert found.df == row.df
    assert list(found.to_frame())[-1] == "fdr" and found.null in str(found)


@pytest.mark.parametrize(
    ("formula", "reml", "null"),
    [("y ~ x + (1 | g)", True, "auto"), ("y ~ x + (x | g)", True, "auto"), ("y ~ x + (x || g)", False, "exact")],
)
def test_random_effects(data, formula, reml, null):
    table, Y = data
    weights = np.random.default_rng(3).uniform(0.5, 2.0, 90)
    batch = flc.lmm(formula, table, weights=weights).fit_many(Y, reml=reml)
    found = batch.random_effect_test(null=null, n_sim=2000, seed=5)
    for i in (0, 4, 6):
        wanted = batch[i].random_effect_test(null=null, n_sim=2000, seed=5)
        assert [f"without {name}" for name in found] == [row.name for row in wanted.rows[1:]]
        for one, row in zip(found.values(), wanted.rows[1:], strict=True):
            np.testing.assert_allclose(one.statistic[i], row.statistic, rtol=AGREE, atol=1e-6)
            np.testing.assert_allclose(one.pvalues[i], row.pvalue, rtol=1e-5)


def test_what_is_refused(data):
    table, Y = data
    fits = {
        formula: flc.lmm(formula, table).fit_many(Y)
        for formula in ("y ~ x + (1 | g)", "y ~ x + z + (1 | g)", "y ~ z + (x | g)")
    }
    small, large, other = fits.values()
    for call, message in (
        (lambda: large.compare(small), "fit both with reml=False"),
        (lambda: large.compare(other), "not nested"),
        (lambda: large.compare(small[0]), "smaller must be a BatchResult"),
        (lambda: large.compare(small[:3]), "the same responses"),
        (lambda: large.compare(flc.lmm("y ~ x + (1 | g)", table).fit_many(Y, reml=False)), "fit both alike"),
        (lambda: small.random_effect_test(null="bootstrap"), "for single fits"),
        (lambda: flc.lmm("y ~ x + (1 | g)", table).fit_many(iter([Y])).random_effect_test(), "stream"),
    ):
        with pytest.raises(LMMError, match=message):
            call()
