"""Explained variance against F tests, non-central distributions and refits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import chi2, ncx2

import fastlmm_core as flc
import fits

GROWTH = "distance ~ age * Sex + (age | Subject)"


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual"])
def test_partial_r2_is_that_of_the_f_tests(ddf):
    fit = fits.fitted(GROWTH, "orthodont")
    found = fit.partial_r2(ddf=ddf).set_index("term")
    table = fit.anova("III", ddf=ddf).to_frame().set_index("term")
    assert list(found.index) == ["model", *table.index]
    for term, row in table.iterrows():
        share = row["df_num"] * row["statistic"] / (row["df_num"] * row["statistic"] + row["df_denom"])
        assert found.loc[term, "estimate"] == pytest.approx(share, rel=1e-12)
    whole = fit.test(np.eye(4)[1:], ddf=ddf)
    assert found.loc["model", "statistic"] == pytest.approx(whole.statistic, rel=1e-9)
    assert found.loc["model", "df_num"] == 3


def test_limits_are_where_the_noncentral_f_has_its_tails():
    found = fits.fitted(GROWTH, "orthodont").partial_r2(level=0.9)
    for row in found.itertuples():
        total = row.df_num + row.df_denom + 1.0
        for limit, tail in ((row.conf_low, 0.95), (row.conf_high, 0.05)):
            noncentrality = total * limit / (1.0 - limit)
            # by quadrature over the chi-square below: P(chi'2(df_num) <= u) at u = F df_num chi2 / df_denom
            reached = quad(
                lambda c, row=row, noncentrality=noncentrality: (
                    chi2.pdf(c, row.df_denom)
                    * ncx2.cdf(row.statistic * row.df_num * c / row.df_denom, row.df_num, noncentrality)
                ),
                0.0, chi2.isf(1e-14, row.df_denom), epsabs=1e-11, limit=200,
            )[0]  # fmt: skip
            assert limit == 0.0 or reached == pytest.approx(tail, abs=1e-7)
            assert limit > 0.0 or reached <= tail
        assert row.conf_low <= row.estimate <= row.conf_high


def test_what_cannot_be_tested_has_none():
    data = flc.datasets.load("orthodont").assign(twice=lambda d: 2.0 * d["age"])
    found = flc.lmm("distance ~ age + twice + (1 | Subject)", data).fit().partial_r2().set_index("term")
    alone = flc.lmm("distance ~ age + (1 | Subject)", data).fit().partial_r2().set_index("term")
    assert found.loc["model", "estimate"] == pytest.approx(alone.loc["age", "estimate"], rel=1e-9)
    only = fits.fitted("Yield ~ 1 + (1 | Batch)", "dyestuff").partial_r2()
    assert only["term"].tolist() == ["model"] and only["estimate"].isna().all()
    with pytest.raises(flc.LMMError, match="'normal' has no denominator"):
        fits.fitted(GROWTH, "orthodont").partial_r2(ddf="normal")


@pytest.mark.parametrize(
    ("formula", "dataset"), [(GROWTH, "orthodont"), ("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin")]
)
def test_intervals_are_quantiles_of_refits(formula, dataset):
    fit = fits.fitted(formula, dataset)
    found = fit.r2_intervals(0.8, n_sim=40, seed=3)
    each = [fit.model.refit(y).r2() for y in fit.simulate(40, 3)]
    for name in ("marginal", "conditional"):
        low, high = np.quantile([one[name] for one in each], [0.1, 0.9])
        assert found.loc[name, "conf_low"] == pytest.approx(low, rel=1e-5, abs=1e-9)
        assert found.loc[name, "conf_high"] == pytest.approx(high, rel=1e-5, abs=1e-9)
        assert found.loc[name, "estimate"] == fit.r2()[name]


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e9])
def test_shares_do_not_depend_on_the_unit_of_weights(unit):
    data = flc.datasets.load("orthodont")
    w = unit * np.where(data["Sex"] == "Female", 4.0, 1.0)
    fit = flc.lmm("distance ~ age * Sex + (age | Subject)", data, weights=w).fit()
    X, G = fit.model.exog, fit.G["Subject"]
    fixed = np.var(X @ fit.params.to_numpy(), ddof=1)
    random = np.mean([z @ G @ z for z in X[:, :2]])
    residual = np.mean(fit.sigma2 / w)
    total = fixed + random + residual
    assert fit.icc() == pytest.approx(random / (random + residual), rel=1e-9)
    assert fit.r2() == pytest.approx({"marginal": fixed / total, "conditional": 1.0 - residual / total}, rel=1e-9)
    batch = fit.model.fit_many(np.array([data["distance"]] * 2))
    assert batch.icc() == pytest.approx(fit.icc(), rel=1e-5)
    assert batch.r2()["conditional"] == pytest.approx(fit.r2()["conditional"], rel=1e-5)
    assert batch.variance_fractions().fractions[0, -1] == pytest.approx(residual / total, rel=1e-5)
    assert fit.r2_intervals(n_sim=20, seed=1)["conf_high"].iloc[1] > 1.0 - residual / total


def test_shares_are_those_of_variances_that_are_estimated():
    """The same standard deviations by sex, estimated and as weights."""
    data = flc.datasets.load("orthodont")
    formula = "distance ~ age * Sex + (age | Subject)"
    estimated = flc.lmm(formula, data, variance="~ 0 + Sex").fit()
    given = flc.lmm(formula, data, weights=7.0 / estimated.residual_variances).fit()
    assert given.icc() == pytest.approx(estimated.icc(), rel=1e-6)
    assert given.r2() == pytest.approx(estimated.r2(), rel=1e-6)
