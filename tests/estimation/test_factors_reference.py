"""Several grouping factors against lme4, lmerTest, pbkrtest and closed forms of balanced data."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import oracle_factors
from fastlmm_core.inference.profile.profile import confidence_limits

NAMES = ("pastes", "penicillin", "machines_nested", "cake")
CASES = [(name, reml) for name in NAMES for reml in (True, False)]
TOLERANCE = {
    # Both sides are optima: an error of 1e-7 in theta moves the criterion by 1e-13.
    "criterion": 1e-10,
    # The recorded theta is good to about 1e-7 (compare the closed forms below, which hold to 1e-12).
    "theta": 1e-6,
    "beta": 1e-8,
    "se": 1e-6,
    "blup": 1e-6,
    "satterthwaite": 1e-5,
    "kenward_roger": 1e-6,
    "profile": 1e-5,
}


@cache
def model(name: str):
    ref = oracle_factors.reference(name)
    return flc.lmm(ref.formula, pd.DataFrame(ref.columns))


@cache
def fit(name: str, reml: bool):
    return model(name).fit(reml=reml)


def renamed(name: str) -> str:
    """Coefficient or parameter in R's spelling."""
    return name.replace("[T.", "").replace("]", "").replace("Intercept", "(Intercept)")


def factor_of(result, group: str) -> str:
    """Our name of lme4's factor: for (1 | a/b) lme4 has b:a, we have a:b."""
    return next(name for name in result.n_groups if set(name.split(":")) == set(group.split(":")))


def label_of(factor: str, group: str, label: str) -> str:
    """Our label of lme4's level."""
    parts = dict(zip(group.split(":"), label.split(":"), strict=True))
    return ":".join(parts[name] for name in factor.split(":"))


def by_coefficient(result, x) -> dict[str, float]:
    return dict(zip([renamed(n) for n in result.model.exog_names], np.asarray(x, dtype=float), strict=True))


@pytest.fixture(params=CASES, ids=[f"{name}-{'reml' if reml else 'ml'}" for name, reml in CASES])
def case(request):
    name, reml = request.param
    return oracle_factors.reference(name).block(reml), fit(name, reml), reml


def test_criterion(case):
    block, result, reml = case
    assert result.converged
    assert not result.singular
    assert result.criterion == pytest.approx(
        block["reml_criterion" if reml else "deviance"], rel=TOLERANCE["criterion"]
    )
    assert result.llf == pytest.approx(block["loglik"], rel=TOLERANCE["criterion"])
    assert result.aic == pytest.approx(block["aic"], rel=TOLERANCE["criterion"])
    assert result.bic == pytest.approx(block["bic"], rel=TOLERANCE["criterion"])
    assert result.n_parameters == block["n_params"]
    assert result.nobs == block["nobs"]


def test_estimates(case):
    block, result, _ = case
    beta, se = by_coefficient(result, result.params), by_coefficient(result, result.bse)
    assert set(beta) == set(block["coef_names"])
    for name in block["coef_names"]:
        assert abs(beta[name] - block["beta"][name]) < TOLERANCE["beta"] * block["se"][name]
        assert se[name] == pytest.approx(block["se"][name], rel=TOLERANCE["se"])
    order = [list(beta).index(name) for name in block["coef_names"]]
    expected = np.array(block["vcov"])
    found = result.cov_params().to_numpy()[np.ix_(order, order)]
    assert np.abs(found - expected).max() < TOLERANCE["se"] * np.abs(expected).max()
    assert result.sigma == pytest.approx(block["sigma"], rel=TOLERANCE["theta"])


def test_covariances_in_the_order_of_lme4(case):
    block, result, _ = case
    np.testing.assert_allclose(result.theta, block["theta"], rtol=TOLERANCE["theta"])
    assert [factor_of(result, term["group"]) for term in block["varcorr"]] == list(result.G)
    for term, G in zip(block["varcorr"], result.G.values(), strict=True):
        np.testing.assert_allclose(G, term["cov"], rtol=2 * TOLERANCE["theta"])
    assert {factor_of(result, g): m for g, m in block["ngroups"].items()} == result.n_groups


def test_random_effects(case):
    block, result, _ = case
    several = len(block["ranef"]) > 1
    for group, expected in block["ranef"].items():
        factor = factor_of(result, group)
        table = result.random_effects[factor] if several else result.random_effects
        found = dict(zip(table[factor], table["Intercept"], strict=True))
        assert len(found) == expected["n_levels"]
        scale = np.sqrt(result.G[factor][0, 0])
        for label, value in expected["values"].items():
            assert abs(found[label_of(factor, group, label)] - value[0]) < TOLERANCE["blup"] * scale
        covariances = result.random_effects_covariance()[factor] if several else result.random_effects_covariance()
        labels = list(result.group_labels[factor] if several else result.group_labels)
        for label, value in block["condvar"][group]["values"].items():
            C = covariances[labels.index(label_of(factor, group, label))]
            np.testing.assert_allclose(C, value, rtol=2 * TOLERANCE["theta"])


def test_fitted_values(case):
    block, result, _ = case
    k = len(block["fitted"])
    assert np.abs(result.fittedvalues[:k] - block["fitted"]).max() < TOLERANCE["blup"] * result.sigma
    assert np.abs(result.resid[:k] - block["resid"]).max() < TOLERANCE["blup"] * result.sigma


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_degrees_of_freedom(name, ddf):
    expected = oracle_factors.reference(name).block(True)[ddf.replace("-", "_")]
    result = fit(name, True)
    table = result.tidy(ddf=ddf)
    tolerance = TOLERANCE[ddf.replace("-", "_")]
    for name_, df in by_coefficient(result, table["df"]).items():
        assert df == pytest.approx(expected["df"][name_], rel=tolerance)
    for name_, p in by_coefficient(result, table["p_value"]).items():
        assert p == pytest.approx(expected["p"][name_], rel=20 * tolerance)
    if ddf == "kenward-roger":
        for name_, se in by_coefficient(result, table["std_error"]).items():
            assert se == pytest.approx(expected["se"][name_], rel=tolerance)


@pytest.mark.parametrize("name", ["machines_nested", "cake"])
@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_analysis_of_variance(name, ddf):
    expected_of = oracle_factors.reference(name).block(True)[f"anova_type3_{ddf.replace('-', '_')}"]
    table = fit(name, True).anova(ddf=ddf)
    assert set(table.terms) == set(expected_of)
    for term, expected in expected_of.items():
        i = table.terms.index(term)
        assert table.statistic[i] == pytest.approx(expected["F"], rel=1e-6)
        assert table.df_num[i] == expected["num_df"]
        assert table.df_denom[i] == pytest.approx(expected["den_df"], rel=1e-5)
        assert table.pvalues[i] == pytest.approx(expected["p"], rel=1e-5)


def test_analysis_of_variance_of_an_intercept_says_so():
    table = fit("penicillin", True).anova()
    assert table.terms == ()
    assert str(table).endswith("The fixed part has no terms to test.")


@pytest.mark.parametrize("name", NAMES)
def test_profile_limits(name):
    result = fit(name, False)
    expected = oracle_factors.reference(name).block(False)["profile_ci"]
    found = {}
    for parameter, limits in confidence_limits(result).items():
        found[renamed(parameter)] = limits
    for parameter, (low, high) in expected.items():
        if "|" in parameter:
            effect, group = parameter.split("|")
            parameter = f"{effect}|{factor_of(result, group)}"
        got = found[parameter]
        assert abs(got[0] - low) < TOLERANCE["profile"] * (high - low)
        assert abs(got[1] - high) < TOLERANCE["profile"] * (high - low)
    assert len(found) == len(expected)


# ---- closed forms: in balanced data REML is the analysis of variance wherever that gives no negative variance -------


def mean_squares(y, *nested):
    """Mean squares of a chain of factors, the coarsest first, and that of the rest."""
    before, df_before, out = np.full(len(y), y.mean()), 1, []
    for codes in nested:
        labels, index = np.unique(codes, return_inverse=True)
        mean = (np.bincount(index, y) / np.bincount(index))[index]
        out.append(np.sum((mean - before) ** 2) / (len(labels) - df_before))
        before, df_before = mean, len(labels)
    return [*out, np.sum((y - before) ** 2) / (len(y) - df_before)]


def test_closed_form_of_nested_factors():
    columns = oracle_factors.reference("pastes").columns
    cask = np.char.add(columns["batch"], columns["cask"])
    batches, casks, rest = mean_squares(columns["strength"], columns["batch"], cask)
    result = fit("pastes", True)
    assert result.sigma2 == pytest.approx(rest, rel=1e-12)
    assert result.G["batch:cask"][0, 0] == pytest.approx((casks - rest) / 2, rel=1e-11)
    assert result.G["batch"][0, 0] == pytest.approx((batches - casks) / 6, rel=1e-11)
    assert result.bse.iloc[0] == pytest.approx(np.sqrt(batches / 60), rel=1e-11)
    for ddf in ("satterthwaite", "kenward-roger"):
        assert result.tidy(ddf=ddf)["df"][0] == pytest.approx(9.0, rel=1e-9)


def test_closed_form_of_crossed_factors():
    columns = oracle_factors.reference("penicillin").columns
    y = columns["diameter"]
    plates, _ = mean_squares(y, columns["plate"])
    samples, _ = mean_squares(y, columns["sample"])
    total = np.sum((y - y.mean()) ** 2)
    rest = (total - 23 * plates - 5 * samples) / 115
    result = fit("penicillin", True)
    assert result.sigma2 == pytest.approx(rest, rel=1e-11)
    assert result.G["plate"][0, 0] == pytest.approx((plates - rest) / 6, rel=1e-11)
    assert result.G["sample"][0, 0] == pytest.approx((samples - rest) / 24, rel=1e-11)
    variance = plates + samples - rest
    assert result.bse.iloc[0] == pytest.approx(np.sqrt(variance / 144), rel=1e-11)
    df = variance**2 / (plates**2 / 23 + samples**2 / 5 + rest**2 / 115)  # Satterthwaite's own formula
    assert result.tidy()["df"][0] == pytest.approx(df, rel=1e-9)


def test_closed_form_of_a_split_plot():
    columns = oracle_factors.reference("machines_nested").columns
    y, machine = columns["score"], columns["Machine"]
    _, index = np.unique(machine, return_inverse=True)
    within = y - (np.bincount(index, y) / 18)[index] + y.mean()  # balanced: the machines' effects are orthogonal
    workers = np.sum((np.bincount(np.unique(columns["Worker"], return_inverse=True)[1], y) / 9 - y.mean()) ** 2) * 9 / 5
    plots = np.char.add(columns["Worker"], machine)
    between = mean_squares(within, columns["Worker"], plots)[1] * 12 / 10
    rest = mean_squares(y, plots)[1]
    result = fit("machines_nested", True)
    assert result.sigma2 == pytest.approx(rest, rel=1e-12)
    assert result.G["Worker:Machine"][0, 0] == pytest.approx((between - rest) / 3, rel=1e-11)
    assert result.G["Worker"][0, 0] == pytest.approx((workers - between) / 9, rel=1e-11)
    table = result.anova()
    spread = np.sum((np.bincount(index, y) / 18 - y.mean()) ** 2) * 18 / 2
    assert table.statistic[0] == pytest.approx(spread / between, rel=1e-10)
    assert table.df_denom[0] == pytest.approx(10.0, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["BFGS", "L-BFGS-B", "Nelder-Mead", "trust-exact"])
def test_other_optimisers_reach_the_same_optimum(name, method):
    for reml in (True, False):
        result = model(name).fit(reml=reml, method=method)
        assert result.criterion == pytest.approx(fit(name, reml).criterion, rel=1e-8)


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("name", NAMES)
def test_start_does_not_matter(name, scale):
    for reml in (True, False):
        best = fit(name, reml)
        result = model(name).fit(reml=reml, start=scale * best.theta)
        assert result.converged
        assert result.criterion == pytest.approx(best.criterion, rel=1e-12)


def test_frames_of_every_library_give_the_same_fit():
    ref = oracle_factors.reference("machines_nested")
    expected = fit("machines_nested", True)
    for library in ("dict", "polars", "pyarrow"):
        frame = dict(ref.columns)
        if library != "dict":
            module = pytest.importorskip(library)
            frame = module.table(frame) if library == "pyarrow" else module.DataFrame(frame)
        result = flc.lmm(ref.formula, frame).fit()
        assert result.criterion == expected.criterion
        for factor, table in result.random_effects.items():
            assert isinstance(table, type(frame))
            np.testing.assert_array_equal(np.asarray(table["Intercept"]), expected.random_effects[factor]["Intercept"])
            assert [str(g) for g in np.asarray(table[factor])] == list(expected.random_effects[factor][factor])
        for effects in ("fixed", "ran_pars", "ran_vals"):
            table, same = result.tidy(effects), expected.tidy(effects)
            assert isinstance(table, type(frame))
            names = table.column_names if library == "pyarrow" else table.columns if library == "polars" else table
            assert list(names) == list(same.columns)
            np.testing.assert_array_equal(np.asarray(table["estimate"]), same["estimate"])
        assert isinstance(result.variance_components(), type(frame))
