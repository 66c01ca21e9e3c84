"""Residual structures as users write them: what is read, what is refused, and that two ways of writing agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle_residual as dense
from fastlmm_core.formula.residual import parse_residual, split_mmrm
from fastlmm_core.inference.wald import covariance
from fastlmm_core.support.distributions import chi2_tail

SAME = 1e-9  # relative, criteria of two ways to one model


@pytest.fixture(scope="module")
def fev() -> pd.DataFrame:
    return flc.datasets.load("fev").dropna(subset="FEV1").reset_index(drop=True)


def test_reading():
    plain = parse_residual("us( AVISIT|USUBJID )")
    assert (plain.name, plain.time, plain.subject, plain.by) == ("us", ("AVISIT",), ("USUBJID",), None)
    assert parse_residual("ar1(week | site:id, by=arm)").subject == ("site", "id")
    assert parse_residual("ar1(week | arm / id)").by == "arm"
    several = parse_residual("sp_exp(x, `y z` | id, nugget=True)")
    assert several.time == ("x", "y z") and several.nugget
    assert parse_residual("fa(visit | id, q=2)").factors == 2


@pytest.mark.parametrize(
    ("formula", "rest", "term"),
    [
        ("y ~ a * v + us(v | id)", "y ~ a * v", "us(v | id)"),
        ("y ~ us(v | id)", "y ~ 1", "us(v | id)"),
        ("y ~ a + ar1(v | g / id) + x", "y ~ a + x", "ar1(v | g / id)"),
        ("y ~ cs(v | id) + x", "y ~ x", "cs(v | id)"),
        ("log(y) ~ a + toeph(v | id)", "log(y) ~ a", "toeph(v | id)"),
    ],
)
def test_the_structure_is_split_from_a_formula(formula, rest, term):
    assert split_mmrm(formula) == (rest, term)


def test_formulas_and_arrays_agree(fev):
    formula = "FEV1 ~ ARMCD * AVISIT"
    for structure, by in (("us", None), ("ar1h", "ARMCD"), ("cs", None)):
        where = f"AVISIT | {'ARMCD / ' if by else ''}USUBJID"
        written = flc.mmrm(f"{formula} + {structure}({where})", fev).fit()
        other = flc.lmm(formula, fev, residual=f"{structure}(AVISIT | USUBJID{', by=ARMCD' if by else ''})").fit()
        assert other.criterion == pytest.approx(written.criterion, rel=SAME)
        arrays = flc.LinearMixedModel(
            written.model.endog,
            written.model.exog,
            residual=flc.Residual(structure, fev.USUBJID.to_numpy(), fev.AVISIT.to_numpy(), by and fev[by].to_numpy()),
        ).fit()
        assert arrays.criterion == pytest.approx(written.criterion, rel=SAME)
        np.testing.assert_allclose(arrays.params, written.beta, rtol=1e-6)


def test_structures_that_coincide(fev):
    fev = fev.assign(t=fev.VISITN.astype(float))

    def criterion(residual: str, formula: str = "FEV1 ~ ARMCD + AVISIT", **options) -> float:
        fit = flc.lmm(formula, fev, residual=residual, **options).fit()
        assert fit.converged
        return fit.criterion

    ar1 = criterion("ar1(AVISIT | USUBJID)")
    assert criterion("car1(t | USUBJID)") == pytest.approx(ar1, rel=SAME)
    assert criterion("sp_exp(t | USUBJID)") == pytest.approx(ar1, rel=SAME)
    assert criterion("sp_exp(t | USUBJID, nugget=True)") == pytest.approx(criterion("arma(AVISIT | USUBJID)"), rel=SAME)
    varied = criterion("ar1(AVISIT | USUBJID)", variance="~ 0 + AVISIT")
    assert varied == pytest.approx(criterion("ar1h(AVISIT | USUBJID)"), rel=SAME)
    intercept = flc.lmm("FEV1 ~ ARMCD + AVISIT + (1 | USUBJID)", fev).fit()
    assert intercept.G["USUBJID"][0, 0] > 0.0
    assert criterion("cs(AVISIT | USUBJID)") == pytest.approx(intercept.criterion, rel=SAME)
    independent = criterion("id(AVISIT | USUBJID)", "FEV1 ~ ARMCD + (1 | USUBJID)")
    assert independent == pytest.approx(flc.lmm("FEV1 ~ ARMCD + (1 | USUBJID)", fev).fit().criterion, rel=SAME)


def test_negative_correlations_are_reached(rng):
    n = 60
    e = rng.normal(size=(n, 3))
    e -= 0.9 * e.mean(axis=1, keepdims=True)
    frame = pd.DataFrame({"id": np.repeat(np.arange(n), 3), "v": np.tile([0, 1, 2], n), "y": e.ravel()})
    fit = flc.lmm("y ~ 1", frame, residual="cs(v | id)").fit()
    matrix = fit.residual_covariance().to_numpy()
    assert fit.converged and matrix[0, 1] < -0.1
    # closed form: mean squares between and within subjects
    means = e.mean(axis=1)
    within = ((e - means[:, None]) ** 2).sum() / (2 * n)
    between = 3.0 * means.var(ddof=1)
    assert matrix[0, 1] == pytest.approx((between - within) / 3.0, rel=1e-6)
    assert matrix[0, 0] == pytest.approx((between + 2.0 * within) / 3.0, rel=1e-6)


@pytest.mark.parametrize(
    ("residual", "said"),
    [
        ("us(WEIGHT | USUBJID)", "fractions"),
        ("uss(AVISIT | USUBJID)", "did you mean 'us'"),
        ("us(ARMCD | USUBJID)", "two rows at one place"),
        ("us(AVISIT | USUBJID, by=AVISIT)", "varies within the subject"),
        ("us(AVISIT, VISITN | USUBJID)", "one column of visits"),
        ("us AVISIT", "cannot be read"),
        ("us(AVISIT | USUBJID, q=x)", "q is a number"),
        ("us(AVISIT | USUBJID, size=2)", "size= is unknown"),
        ("us(log(VISITN) | USUBJID)", "no column"),
        ("us(NOT | USUBJID)", "no column 'NOT'"),
    ],
)
def test_refusals(residual, said, fev):
    with pytest.raises(flc.LMMError, match=said):
        flc.lmm("FEV1 ~ ARMCD", fev, residual=residual)


def test_contained_random_effects_are_refused(fev):
    for structure in ("us", "cs", "toep"):
        with pytest.raises(flc.LMMError, match="contains the random effect 'Intercept'"):
            flc.lmm("FEV1 ~ ARMCD + (1 | USUBJID)", fev, residual=f"{structure}(AVISIT | USUBJID)")
    with pytest.raises(flc.LMMError, match="contains the random effects 'Intercept' and 'VISITN'"):
        flc.lmm("FEV1 ~ ARMCD + (VISITN | USUBJID)", fev, residual="us(AVISIT | USUBJID)")


def test_uneven_visits_are_refused_where_each_lag_has_a_parameter(fev):
    uneven = fev.assign(week=fev.VISITN.map({1: 0, 2: 4, 3: 12, 4: 24}))
    with pytest.raises(flc.LMMError, match="not evenly spaced"):
        flc.lmm("FEV1 ~ ARMCD", uneven, residual="toep(week | USUBJID)")
    assert flc.lmm("FEV1 ~ ARMCD", uneven, residual="us(week | USUBJID)").fit().converged


def test_levels_without_rows_count_for_lags(fev):
    seen = fev[fev.AVISIT != "VIS2"]
    kept = seen.assign(AVISIT=pd.Categorical(seen.AVISIT, categories=["VIS1", "VIS2", "VIS3", "VIS4"]))
    dropped = seen.assign(AVISIT=pd.Categorical(seen.AVISIT, categories=["VIS1", "VIS3", "VIS4"]))

    def criterion(data, visit):
        return flc.lmm("FEV1 ~ ARMCD", data, residual=f"ar1({visit} | USUBJID)").fit().criterion

    # the number of the visit has the same gap
    assert criterion(kept, "AVISIT") == pytest.approx(criterion(seen, "VISITN"), rel=SAME)
    assert abs(criterion(dropped, "AVISIT") - criterion(kept, "AVISIT")) > 0.1
    with pytest.raises(flc.LMMError, match="no row is at the level 'VIS2' of"):
        flc.lmm("FEV1 ~ ARMCD", kept, residual="toep(AVISIT | USUBJID)")


def test_fallbacks_are_tried_in_order(fev):
    model = flc.lmm("FEV1 ~ ARMCD", fev, residual="us(AVISIT | USUBJID)", fallback=["us", "toeph", "ar1h"])
    assert model.fit().model is model
    limited = model.fit(options={"maxiter": 0})
    assert "us(AVISIT | USUBJID): not certified" in limited.message
    assert "toeph(AVISIT | USUBJID): not certified" in limited.message
    assert limited.model.design.residual.name == "ar1h"


def test_simulated_responses_have_the_covariance_of_the_model(fev):
    fit = flc.lmm("FEV1 ~ ARMCD", fev, residual="us(AVISIT | USUBJID)", weights="WEIGHT").fit()
    y = np.asarray(fit.simulate(4000, seed=1))
    rows = np.flatnonzero(fev.USUBJID.value_counts().index[0] == fev.USUBJID)
    drawn = np.cov((y - np.asarray(fit.marginal_mean))[:, rows].T)
    known = fit.marginal_covariance(fev.USUBJID[rows[0]])
    root = np.sqrt(np.outer(np.diag(known), np.diag(known)))
    assert np.abs((drawn - known) / root).max() < 5.0 * np.sqrt(2.0 / 4000)


def test_what_takes_independent_residuals_says_so(fev):
    fit = flc.lmm("FEV1 ~ ARMCD", fev, residual="us(AVISIT | USUBJID)").fit()
    with pytest.raises(flc.LMMError, match="takes residuals that are independent"):
        fit.residuals("studentized")
    with pytest.raises(flc.LMMError, match="no random effects"):
        fit.icc()
    assert fit.principal_components() == {} and fit.G == {}
    np.testing.assert_allclose(fit.predict(), fit.fittedvalues, rtol=1e-12)
    np.testing.assert_allclose(fit.predict(effects="all"), fit.fittedvalues, rtol=1e-12)
    mean = fit.predict(fev.iloc[:3], interval="confidence", ddf="kenward-roger")
    X = fit.model.exog[:3]
    adjusted = covariance(fit, "kenward-roger")
    np.testing.assert_allclose(mean["std_error"], np.sqrt(np.diag(X @ adjusted @ X.T)), rtol=1e-9)
    whitened = fit.residuals("whitened")
    assert np.asarray(whitened).std() == pytest.approx(1.0, rel=0.05)


def test_many_responses_are_fitted_as_one(fev):
    model = flc.lmm("FEV1 ~ ARMCD * AVISIT", fev, residual="ar1h(AVISIT | USUBJID)")
    Y = np.asarray(model.fit().simulate(3, seed=2))
    batch = model.fit_many(Y)
    tests = batch.test(["ARMCD[T.TRT]", "ARMCD[T.TRT]:AVISIT[T.VIS4]"])
    adjusted = batch.test("ARMCD[T.TRT] = 0", ddf="kenward-roger")
    assert batch.converged.all()
    for i, y in enumerate(Y):
        one = model.refit(y)
        assert batch.criterion[i] == pytest.approx(one.criterion, rel=SAME)
        np.testing.assert_allclose(batch.theta[i], one.theta, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(batch.bse[i], one.bse, rtol=1e-6)
        found = one.test(["ARMCD[T.TRT]", "ARMCD[T.TRT]:AVISIT[T.VIS4]"])
        assert tests.pvalues[i] == pytest.approx(found.pvalue, rel=1e-5)
        known = one.test("ARMCD[T.TRT] = 0", ddf="kenward-roger")
        assert adjusted.pvalues[i] == pytest.approx(known.pvalue, rel=1e-5)
    with pytest.raises(flc.LMMError, match="expected"):
        batch.test("ARMCD[T.TRT] = 0", ddf="kenward-roger", information="expected")


def test_bootstrap_and_power(fev):
    fit = flc.lmm("FEV1 ~ ARMCD", fev, residual="ar1(AVISIT | USUBJID)").fit()
    found = fit.bootstrap(60, seed=3)
    assert found.names[-2:] == ("sigma2|USUBJID", "rho|USUBJID")
    spread = found.replicates.std(axis=0, ddof=1)
    known = np.append(np.sqrt(np.diag(fit.cov)), fit.residual_parameters()["std_error"])
    # 60 draws tell a standard deviation to a tenth
    np.testing.assert_allclose(spread, known, rtol=0.4)
    power = flc.power(fit, "ARMCD[T.TRT]", n_sim=20, seed=1)
    assert power.n_converged == 20 and power.power > 0.8


@pytest.mark.parametrize(
    ("formula", "residual", "weights"),
    [
        ("FEV1 ~ ARMCD * AVISIT", "us(AVISIT | USUBJID)", None),
        ("FEV1 ~ ARMCD * AVISIT", "ar1h(AVISIT | USUBJID, by=ARMCD)", "WEIGHT"),
        ("FEV1 ~ ARMCD + VISITN + (VISITN | USUBJID)", "ar1(AVISIT | USUBJID)", None),
        ("FEV1 ~ ARMCD + (1 | SITE)", "cs(AVISIT | USUBJID)", None),
    ],
)
def test_missed_visits_given_those_observed(formula, residual, weights):
    # the joint covariance of all rows, observed and missed, in full
    full = flc.datasets.load("fev").iloc[:240].reset_index(drop=True)
    full = full[full.groupby("USUBJID").FEV1.transform("count") > 0].reset_index(drop=True)
    full["SITE"] = full.USUBJID.str[2:].astype(int) % 7
    seen = full.FEV1.notna().to_numpy()
    fit = flc.lmm(formula, full, residual=residual, weights=weights).fit()
    filled = full.assign(FEV1=full.FEV1.fillna(full.FEV1.mean()))
    joint = flc.lmm(formula, filled, residual=residual, weights=weights)
    V = fit.sigma2 * dense.covariance(joint, fit.phi, fit.relative_covariance)
    X, missed = joint.exog, ~seen
    K = V[np.ix_(missed, seen)] @ np.linalg.inv(V[np.ix_(seen, seen)])
    rest = full.FEV1.to_numpy()[seen] - X[seen] @ fit.beta
    new = full[missed]
    given = {} if weights is None else {"weights": new[weights].to_numpy()}
    found = fit.predict(new, "all", interval="prediction", **given)
    np.testing.assert_allclose(found["mean"], X[missed] @ fit.beta + K @ rest, rtol=1e-8)
    d = X[missed] - K @ X[seen]
    variance = np.diag(V[np.ix_(missed, missed)] - K @ V[np.ix_(seen, missed)]) + np.diag(d @ fit.cov @ d.T)
    np.testing.assert_allclose(found["std_error"], np.sqrt(variance), rtol=1e-7)
    alone = fit.predict(new, interval="prediction", **given)
    np.testing.assert_allclose(
        alone["std_error"], np.sqrt(np.diag(V)[missed] + np.diag(X[missed] @ fit.cov @ X[missed].T)), rtol=1e-7
    )
    with pytest.raises(flc.LMMError, match="levels of USUBJID that the model has not seen"):
        fit.predict(new.assign(USUBJID="nobody"), "all")
    with pytest.raises(flc.LMMError, match=r"not among those of the fit|the fit has not seen"):
        fit.predict(new.assign(AVISIT="VIS9"), "all", interval="prediction")


def test_structures_are_compared_by_chi_square_where_one_is_part_of_the_other(fev):
    def fit(structure: str, formula: str = "FEV1 ~ ARMCD * AVISIT") -> flc.LMMResult:
        return flc.lmm(formula, fev, residual=f"{structure}(AVISIT | USUBJID)").fit()

    us, ar1h, csh, cs = map(fit, ("us", "ar1h", "csh", "cs"))
    found = flc.compare(ar1h, us)
    row = found.rows[1]
    assert row.df == 5 and row.statistic == pytest.approx(ar1h.criterion - us.criterion, rel=1e-9)
    assert row.pvalue == pytest.approx(float(chi2_tail(row.statistic, 5)), rel=1e-9)
    assert "residual us(AVISIT | USUBJID)" in str(found)
    assert flc.compare(cs, csh).rows[1].df == 3
    assert np.isnan(flc.compare(cs, ar1h).rows[1].pvalue)
    independent = flc.lmm("FEV1 ~ ARMCD * AVISIT + (1 | USUBJID)", fev).fit()
    assert np.isnan(flc.compare(independent, us).rows[1].pvalue)
    both = flc.lmm("FEV1 ~ ARMCD * AVISIT + (1 | USUBJID)", fev, residual="ar1h(AVISIT | USUBJID)").fit()
    # one variance more: half the statistics are zero (Self and Liang 1987)
    row = flc.compare(ar1h, both).rows[1]
    assert row.df == 1 and row.pvalue == pytest.approx(0.5 * float(chi2_tail(row.statistic, 1)), rel=1e-9)
    test = both.random_effect_test().rows[1]
    assert test.pvalue == pytest.approx(row.pvalue, rel=1e-5) and test.df == 1
    slopes = flc.lmm("FEV1 ~ ARMCD * AVISIT + (VISITN | USUBJID)", fev, residual="ar1(AVISIT | USUBJID)").fit()
    ar1 = flc.lmm("FEV1 ~ ARMCD * AVISIT", fev, residual="ar1(AVISIT | USUBJID)").fit()
    assert "bootstrap" in flc.compare(ar1, slopes).rows[1].null
    assert flc.compare(independent, both).rows[1].df == 4


def test_factors_alone(fev):
    # SAS's FA0 of full rank is unstructured, that of a lower rank is singular among residuals
    one = flc.lmm("FEV1 ~ ARMCD", fev, residual="fa0(AVISIT | USUBJID)").fit()
    us = flc.lmm("FEV1 ~ ARMCD", fev, residual="us(AVISIT | USUBJID)").fit()
    assert one.criterion == us.criterion
    np.testing.assert_array_equal(one.residual_covariance(), us.residual_covariance())
    again = flc.lmm("FEV1 ~ ARMCD", fev, residual="fa0(AVISIT | USUBJID, q=4)").fit()
    assert again.criterion == us.criterion
    with pytest.raises(flc.LMMError, match=r"fa0 with q=2 over 4 visits has a singular covariance.*take fa with q=2"):
        flc.lmm("FEV1 ~ ARMCD", fev, residual="fa0(AVISIT | USUBJID, q=2)")
