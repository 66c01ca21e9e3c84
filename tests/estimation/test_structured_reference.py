"""Models for repeated measures against mmrm, SAS and nlme; see tests/reference/README.md for their precision."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle_residual as dense
from fastlmm_core.formula.residual import split_mmrm
from fastlmm_core.inference.wald import coefficient_df, covariance

FOLDER = Path(__file__).parents[1] / "reference"
MMRM = json.loads((FOLDER / "mmrm_fev_full.json").read_text())
SAS = json.loads((FOLDER / "sas_mmrm.json").read_text())
US = json.loads((FOLDER / "mmrm_fev_us.json").read_text())

STRUCTURES = {name: value for name, value in MMRM.items() if isinstance(value, dict) and "formula" in value}

NEVER_ABOVE = 1e-9  # relative, -2 log-likelihood
LIKELIHOOD = 1e-8  # of mmrm, relative; by ML it stops up to 6e-6 above its minimum
LOOSE = 3e-9  # of SAS, relative: the digits of its optimum (us: 6e-6 above)
MMRM_TABLE = 5e-7  # relative, standard errors and degrees of freedom at mmrm's optimum (its parameters: 1e-7)
SAS_TABLE = 1e-6  # relative; us: SAS stops 6e-6 above the minimum, which is 3e-4 in degrees of freedom


@cache
def frame() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "data" / "fev_full.csv")


@cache
def fitted(formula: str, residual: str, reml: bool = True, weights: str | None = None) -> flc.LMMResult:
    return flc.lmm(formula, frame(), residual=residual, weights=weights).fit(reml=reml)


@pytest.mark.parametrize("name", STRUCTURES)
def test_fits_are_those_of_mmrm(name):
    known = STRUCTURES[name]
    fit = fitted(*split_mmrm(known["formula"]))
    full = fitted(*split_mmrm(known["formula"]), reml=False)
    for result, value in ((fit, known["deviance"]), (full, known["deviance_ml"])):
        assert result.converged
        assert result.criterion == pytest.approx(value, rel=LIKELIHOOD)
        assert result.criterion <= value * (1.0 + NEVER_ABOVE)
    assert np.abs((fit.beta - known["beta"]) / np.sqrt(np.diag(fit.cov))).max() < 1e-6


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize(
    ("kind", "ddf"), [("Asymptotic", "satterthwaite"), ("Kenward-Roger-Linear", "kenward-roger-linear")]
)
def test_standard_errors_and_df_are_those_of_mmrm(name, kind, ddf):
    known = STRUCTURES[name]
    fit = fitted(*split_mmrm(known["formula"]))
    errors = np.sqrt(np.diag(covariance(fit, ddf, "observed")))
    np.testing.assert_allclose(errors, known[kind]["se"], rtol=MMRM_TABLE)
    np.testing.assert_allclose(coefficient_df(fit, ddf, "observed"), known[kind]["df"], rtol=MMRM_TABLE)


def test_expected_information_is_the_direct_evaluation_in_natural_parameters():
    # `kenward_roger_natural_parameters`: variances and covariances, expected information
    known = US["reml"]["kenward_roger_natural_parameters"]
    fit = fitted("FEV1 ~ RACE + SEX + ARMCD * AVISIT", "us(AVISIT | USUBJID)")
    np.testing.assert_allclose(covariance(fit, "kenward-roger", "expected"), known["vcov_adj"], rtol=1e-6)


@pytest.mark.parametrize("name", SAS["two"])
@pytest.mark.parametrize("by", [False, True])
def test_likelihoods_are_those_of_sas(name, by):
    known = SAS["two_by_arm" if by else "two"].get(name)
    if known is None:
        pytest.skip("not in the reference")
    residual = f"{name}(AVISIT | USUBJID{', by=ARMCD' * by})"
    for reml, value in zip((True, False), known, strict=True):
        fit = fitted("FEV1 ~ 1", residual, reml)
        assert fit.converged
        assert fit.criterion == pytest.approx(value, rel=LOOSE)
        assert fit.criterion <= value * (1.0 + NEVER_ABOVE)


@pytest.mark.parametrize("name", SAS["treatment"])
@pytest.mark.parametrize(("ddf", "key"), [("kenward-roger", "kr"), ("kenward-roger-linear", "kr_linear")])
def test_kenward_roger_is_that_of_sas(name, ddf, key):
    known = SAS["treatment"][name]
    fit = fitted("FEV1 ~ ARMCD", f"{name}(AVISIT | USUBJID)")
    # of us SAS stops before its optimum, see the next test
    tolerance = 3e-4 if name == "us" else SAS_TABLE
    errors = np.sqrt(np.diag(covariance(fit, ddf, "observed")))
    assert errors[1] == pytest.approx(known[f"se_{key}"], rel=tolerance)
    assert coefficient_df(fit, ddf, "observed")[1] == pytest.approx(known[f"df_{key}"], rel=tolerance)


def test_kenward_roger_of_us_is_exact_and_that_of_sas_where_sas_stopped():
    fit = fitted("FEV1 ~ ARMCD", "us(AVISIT | USUBJID)")
    model, part = fit.model, fit.model.residual
    codes = np.asarray(part.subject.codes)
    same = codes[:, None] == codes
    at = part.where[:, None] == np.arange(4)
    pairs = [(a, b) for a in range(4) for b in range(a + 1)]
    E = np.array([same & (np.outer(at[:, a], at[:, b]) | np.outer(at[:, b], at[:, a])) for a, b in pairs], dtype=float)
    oracle = dense.LinearKenwardRoger(model.exog, model.endog, E, codes)
    S = np.asarray(fit.residual_covariance())
    psi = np.array([S[a, b] for a, b in pairs])
    least, gradient, hessian, found = oracle.at(psi)
    inverse = np.linalg.inv(hessian)
    assert 0.5 * gradient @ inverse @ gradient < 1e-12
    adjusted = covariance(fit, "kenward-roger", "observed")
    assert np.sqrt(adjusted[1, 1]) == pytest.approx(found[1], rel=1e-8)
    assert coefficient_df(fit, "kenward-roger", "observed")[1] == pytest.approx(found[2], rel=1e-8)
    # SAS stops where the criterion of FEV1 ~ 1 is 6.4e-6 too high.  As near to this optimum lies a point at which the
    # same formulas give all that SAS does: the nearest, by steps that are least in the metric of the Hessian
    known = SAS["treatment"]["us"]
    wanted = np.array([known["estimate"], known["se_kr"], known["df_kr"], *np.diag(known["cr0_cov"])])
    h, x, there = 1e-4, psi, found
    slopes = np.array([(oracle.at(psi + e)[3] - found) / h for e in h * np.eye(len(psi))]).T
    for _ in range(4):
        x = x + inverse @ slopes.T @ np.linalg.solve(slopes @ inverse @ slopes.T, wanted - there)
        above, _, _, there = oracle.at(x)
    np.testing.assert_allclose(there, wanted, rtol=1e-10)
    excess = SAS["two"]["us"][0] - fitted("FEV1 ~ 1", "us(AVISIT | USUBJID)").criterion
    assert 0.0 < above - least < excess < 1e-5


@pytest.mark.parametrize("name", ["us", "cs", "csh", "ar1", "ar1h", "toep", "ad"])
def test_inference_is_that_of_dense_algebra(name):
    some = frame().dropna(subset="FEV1").iloc[:120]
    fit = flc.lmm("FEV1 ~ ARMCD + VISITN", some, residual=f"{name}(AVISIT | USUBJID)").fit()
    wanted = dense.inference(fit.model, fit.phi, fit.sigma2)
    for ddf in ("satterthwaite", "kenward-roger", "kenward-roger-linear"):
        errors, df = wanted(ddf)
        # the oracle takes Hessians by differences of the criterion
        np.testing.assert_allclose(np.sqrt(np.diag(covariance(fit, ddf, "observed"))), errors, rtol=1e-5, err_msg=ddf)
        np.testing.assert_allclose(coefficient_df(fit, ddf, "observed"), df, rtol=2e-5, err_msg=ddf)


@pytest.mark.parametrize("name", ["gls_orthodont_un", "gls_orthodont_cs"])
@pytest.mark.parametrize("reml", [True, False])
def test_generalized_least_squares_are_those_of_nlme(name, reml):
    known = json.loads((FOLDER / f"{name}.json").read_text())["reml" if reml else "ml"]
    data = flc.datasets.load("orthodont")
    kind = "us" if name.endswith("un") else "cs"
    fit = flc.lmm("distance ~ age * Sex", data, residual=f"{kind}(age | Subject)").fit(reml=reml)
    assert fit.converged
    assert fit.criterion == pytest.approx(known["minus2loglik"], rel=1e-9)
    np.testing.assert_allclose(np.sqrt(np.diag(fit.cov)), list(known["se"].values()), rtol=1e-6)
    first = known["marginal_cov_first_group"]
    np.testing.assert_allclose(fit.marginal_covariance(first["group"]), first["cov"], rtol=1e-5)


@pytest.mark.parametrize("reml", [True, False])
def test_random_intercept_with_autoregression_is_that_of_nlme(reml):
    known = json.loads((FOLDER / "nlme_ovary_ar1.json").read_text())["reml" if reml else "ml"]
    data = pd.read_csv(FOLDER / "data" / "ovary.csv")
    data["row"] = data.groupby("Mare").cumcount()
    data["s"], data["c"] = np.sin(2 * np.pi * data.Time), np.cos(2 * np.pi * data.Time)
    fit = flc.lmm("follicles ~ s + c + (1 | Mare)", data, residual="ar1(row | Mare)").fit(reml=reml)
    assert fit.converged
    assert fit.criterion == pytest.approx(known["minus2loglik"], rel=1e-9)
    np.testing.assert_allclose(fit.beta, list(known["beta"].values()), rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(np.diag(fit.cov)), list(known["se"].values()), rtol=1e-6)
    np.testing.assert_allclose(fit.covariance, known["G"]["cov"], rtol=1e-5)
    assert fit.sigma == pytest.approx(known["sigma"], rel=1e-5)
    assert fit.residual_parameters()["estimate"][1] == pytest.approx(known["correlation_parameter"], rel=1e-5)
    labels = [str(label) for label in fit.group_labels]
    effects = [fit.blups[0][labels.index(mare), 0] for mare in known["ranef"]["values"]]
    np.testing.assert_allclose(effects, np.ravel(list(known["ranef"]["values"].values())), rtol=1e-5)


ROBUST = {"Empirical": "CR0", "Empirical-Bias-Reduced": "CR2", "Empirical-Jackknife": "CR3"}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("kind", ROBUST)
def test_robust_covariances_are_those_of_mmrm(name, kind):
    known = STRUCTURES[name]
    fit = fitted(*split_mmrm(known["formula"]))
    for i, coefficient in enumerate(fit.model.exog_names):
        test = fit.test(f"`{coefficient}` = 0" if " " in coefficient else coefficient, vcov=ROBUST[kind])
        assert test.std_error[0] == pytest.approx(known[kind]["se"][i], rel=1e-6)
        assert test.row_df[0] == pytest.approx(known[kind]["df"][i], rel=1e-5)


@pytest.mark.parametrize("name", SAS["treatment"])
def test_robust_and_between_within_are_those_of_sas(name):
    known = SAS["treatment"][name]
    tolerance = 1e-4 if name == "us" else 2e-6  # of its optimum
    for weights, key in ((None, "cr0_cov"), ("WEIGHT", "cr0_cov_weighted")):
        fit = fitted("FEV1 ~ ARMCD", f"{name}(AVISIT | USUBJID)", True, weights)
        np.testing.assert_allclose(fit.cov_params(vcov="CR0"), known[key], rtol=tolerance)
    assert fit.test("ARMCD[T.TRT] = 0", ddf="between-within").row_df[0] == known["df_between_within"]


def test_information_criteria_are_those_of_other_programs():
    for reml, kind in ((True, "reml"), (False, "ml")):
        fit = fitted("FEV1 ~ RACE + SEX + ARMCD * AVISIT", "us(AVISIT | USUBJID)", reml)
        table = fit.information_criteria().set_index("convention")
        assert table.aic["mmrm"] == pytest.approx(US[kind]["aic"], rel=1e-8)
        assert table.bic["mmrm"] == pytest.approx(US[kind]["bic"], rel=1e-8)
        assert table.aic["lme4"] == pytest.approx(fit.aic) and table.bic["lme4"] == pytest.approx(fit.bic)
        known = json.loads((FOLDER / "gls_orthodont_un.json").read_text())[kind]
        gls = flc.lmm("distance ~ age * Sex", flc.datasets.load("orthodont"), residual="us(age | Subject)").fit(reml)
        table = gls.information_criteria().set_index("convention")
        assert table.aic["nlme"] == pytest.approx(known["aic"], rel=1e-8)
        assert table.bic["nlme"] == pytest.approx(known["bic"], rel=1e-8)
