"""An ordinary regression beside mixed models: one comparison, and the tests that `random_effect_test` makes."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
import fits


def ordinary(formula, dataset, residual, reml=True):
    return flc.lmm(formula, flc.datasets.load(dataset), residual=residual).fit(reml=reml)


@pytest.mark.parametrize("reml", [True, False])
def test_one_variance_against_none(reml):
    """Batches of dyestuff: the exact distribution, as the variance is the only one."""
    large = fits.fitted("Yield ~ 1 + (1 | Batch)", "dyestuff", reml)
    data = flc.datasets.load("dyestuff").assign(row=lambda d: d.groupby("Batch").cumcount())
    small = flc.lmm("Yield ~ 1", data, residual="id(row | Batch)").fit(reml=reml)
    found, alone = flc.compare(small, large, seed=1), flc.random_effect_test(large, seed=1)
    rest = data["Yield"] - data["Yield"].mean()
    n = len(data)
    sigma2 = float(rest @ rest) / (n - reml)
    deviance = (n - reml) * (np.log(2.0 * np.pi * sigma2) + 1.0) + reml * np.log(n)
    assert found.rows[0].deviance == pytest.approx(deviance, rel=1e-10)
    assert found.rows[1].statistic == pytest.approx(alone.rows[1].statistic, abs=1e-8)
    assert found.rows[1].pvalue == alone.rows[1].pvalue and "exact" in found.rows[1].null


def test_intercepts_and_slopes_against_none():
    small = ordinary("Reaction ~ Days", "sleepstudy", "id(Days | Subject)")
    middle = fits.fitted("Reaction ~ Days + (1 | Subject)", "sleepstudy")
    large = fits.fitted(fits.SLEEPSTUDY, "sleepstudy")
    found = flc.compare(small, middle, large, seed=1)
    assert [row.df for row in found.rows] == [None, 1, 2]
    assert found.rows[1].statistic == pytest.approx(107.1986, abs=1e-3)  # lme4 and lm, REML
    fixed = ordinary("Reaction ~ 1", "sleepstudy", "id(Days | Subject)", reml=False)
    both = flc.compare(fixed, fits.fitted("Reaction ~ Days + (1 | Subject)", "sleepstudy", False))
    assert both.rows[1].df == 2 and "0.5 chi2(1) + 0.5 chi2(2)" in both.rows[1].null


def test_structured_residuals_are_no_ordinary_regression():
    small = ordinary("Reaction ~ Days", "sleepstudy", "ar1(Days | Subject)")
    large = fits.fitted(fits.SLEEPSTUDY, "sleepstudy")
    assert "have a structure" in flc.compare(small, large).rows[1].null
