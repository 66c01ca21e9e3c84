"""A fit in sentences: every number is that of the fit."""

from __future__ import annotations

import re

import pytest

import fastlmm_core as flc
import fits


def test_the_whole_paragraph():
    text = fits.fitted(fits.SLEEPSTUDY, "sleepstudy").report()
    text = re.sub(r"fastlmm_core \S+ for Python \S+(?=\.)", "fastlmm_core V for Python P", text)
    assert text == (
        "Reaction was analysed by a linear mixed model with fixed effects of Days and random effects of Subject "
        "(intercept and Days, correlated). There were 180 observations of 18 levels of Subject. Parameters were "
        "estimated by restricted maximum likelihood (REML) with fastlmm_core V for Python P. Tests and 95% confidence "
        "intervals use Satterthwaite's degrees of freedom. The estimates were b = 251.41 for the intercept, SE = 6.82, "
        "95% CI [237.01, 265.80], t(17.0) = 36.84, p < .001; b = 10.47 for Days, SE = 1.55, 95% CI [7.21, 13.73], "
        "t(17.0) = 6.77, p < .001. The standard deviations of the random effects were 24.74 (intercept) and 5.922 "
        "(Days) by Subject with correlation .07; that of the residual was 25.59. Marginal R² was .28, conditional R² "
        ".80; the intraclass correlation was .72."
    )


def test_terms_of_several_columns_by_f():
    fit = fits.fitted("angle ~ recipe * temperature + (1 | recipe:replicate)", "cake")
    text, table = fit.report(), fit.anova()
    for name, f, df, p in zip(table.terms, table.statistic, table.df_denom, table.pvalues, strict=True):
        shown = "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)
        k = {"recipe": 2, "temperature": 5, "recipe:temperature": 10}[name]
        freedom = f"{df:.1f}" if df < 99.95 else f"{df:.0f}"
        assert f"{name}, F({k}, {freedom}) = {f:.2f}, {shown}" in text
    assert "b = 29.13 for the intercept" in text and "recipe[T.B]" not in text
    assert "χ²(2) = " in fit.report(ddf="normal") and "z = " in fit.report(ddf="normal")


def test_robust_and_level():
    text = fits.fitted(fits.SLEEPSTUDY, "sleepstudy").report(0.9, vcov="CR2")
    assert "rest on a robust covariance (CR2, 18 clusters by Subject), with Satterthwaite's degrees of freedom" in text
    low, high = fits.fitted(fits.SLEEPSTUDY, "sleepstudy").conf_int(0.9, vcov="CR2").loc["Days"]
    assert f"90% CI [{low:.2f}, {high:.2f}]" in text


def test_what_readers_must_know():
    data = flc.datasets.load("dyestuff2")
    data.loc[3, "Yield"] = float("nan")
    text = flc.lmm("Yield ~ 1 + (1 | Batch)", data).fit(reml=False).report()
    assert "1 rows with missing values were left out" in text or "1 row with missing values was left out" in text
    assert "The fit is singular: sd of Intercept | Batch is 0." in text
    assert "by maximum likelihood with" in text and "no fixed effects but the intercept" in text
    nested = fits.fitted("strength ~ 1 + (1 | batch/cask)", "pastes").report()
    assert "30 levels of batch:cask and 10 levels of batch" in nested
    assert ".78 (batch:cask) and .15 (batch)" in nested


def test_kenward_roger_and_stated():
    fit = fits.fitted(fits.SLEEPSTUDY, "sleepstudy")
    assert "are by Kenward and Roger's method" in fit.report(ddf="kenward-roger")
    stated = flc.assume("y ~ x + (1 | g)", {"x": [0.0, 1.0] * 6, "g": [0, 0, 1, 1, 2, 2] * 2}, [0.0, 1.0], [[1.0]], 1.0)
    with pytest.raises(flc.LMMError, match="were stated"):
        stated.report()
