"""compare() and random_effect_test(): tables, refusals, references from R, levels under the null hypothesis."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy.stats import chi2

import fastlmm_core as flc
import oracle
from fastlmm_core import LinearMixedModel, LMMError
from fastlmm_core.inference.likelihood_ratio.compare import compare, null_test
from fastlmm_core.inference.likelihood_ratio.exact import draw, spectrum
from fastlmm_core.inference.likelihood_ratio.nesting import cones, nest
from fastlmm_core.inference.likelihood_ratio.random_effects import random_effect_test


@cache
def fitted(name: str, model: str, reml: bool):
    known = json.loads((oracle.REFERENCE / f"lrt_{name}.json").read_text())
    data = pd.read_csv(oracle.REFERENCE / "data" / f"{name}.csv")
    return flc.lmm(known["models"][model], data).fit(reml=reml)


def known(name: str):
    return json.loads((oracle.REFERENCE / f"lrt_{name}.json").read_text())


def arrays(rng, m=30, k=6, slope=0.0):
    groups = np.repeat(np.arange(m), k)
    x = rng.standard_normal(m * k)
    X = np.column_stack([np.ones(m * k), x])
    b = rng.standard_normal((m, 2)) * [1.0, slope]
    y = X @ [1.0, 0.5] + b[groups, 0] + b[groups, 1] * x + rng.standard_normal(m * k)
    return y, X, groups


# ---- references --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [t for t in known("sleepstudy")["tests"] if t["null"] != "none"], ids=str)
def test_sleepstudy_tests(case):
    reml = case["method"] == "REML"
    small, large = (fitted("sleepstudy", case[key], reml) for key in ("null", "alternative"))
    found = compare(large, small)
    first, row = found.rows
    logliks = known("sleepstudy")["loglik_reml" if reml else "loglik_ml"]
    assert first.llf == pytest.approx(logliks[case["null"]], abs=1e-7)
    assert row.llf == pytest.approx(logliks[case["alternative"]], abs=1e-7)
    assert row.statistic == pytest.approx(case["statistic"], abs=2e-7)
    assert row.df == case["df"]
    assert row.pvalue == pytest.approx(case["p_mixture"], rel=1e-6)
    assert compare(small, large, null="chi2").rows[1].pvalue == pytest.approx(case["p_chisq"], rel=1e-6)


@pytest.mark.parametrize("name", ["dyestuff", "sleepstudy"])
@pytest.mark.parametrize("reml", [True, False])
def test_one_variance_against_the_linear_model(name, reml):
    reference = known(name)
    result = fitted(name, "intercept", reml)
    case = next(t for t in reference["tests"] if t["null"] == "none" and t["method"] == ("REML" if reml else "ML"))
    row = random_effect_test(result, null="mixture").rows[1]
    assert row.llf == pytest.approx(reference["loglik_reml" if reml else "loglik_ml"]["none"], abs=1e-7)
    assert row.statistic == pytest.approx(case["statistic"], abs=2e-7)
    assert row.pvalue == pytest.approx(case["p_mixture"], rel=1e-6)
    simulated = reference["finite_sample_RLRsim"]["intercept_vs_none" if reml else "intercept_vs_none_ML"]
    row = random_effect_test(result, seed=1).rows[1]
    assert "exact" in row.null
    assert abs(row.pvalue - simulated["p"]) < 4.0 * np.hypot(row.p_std_error, simulated["p_mc_se"])


def test_exact_tests_beside_other_variances():
    large = fitted("sleepstudy", "uncorrelated", True)
    for name in ("intercept", "slope_only"):
        row = compare(fitted("sleepstudy", name, True), large, null="exact", n_sim=10_000, seed=1).rows[1]
        assert row.pvalue == pytest.approx(1.0 / 10_001)
        assert "other variances as known" in row.null


AGREE = {
    # by name of what is tested: the terms of the larger model and those left in the smaller
    "independent slope": ("diagonal", [0, 1], [0]),
    "correlated slope": ("full", [0, 1], [0]),
    "two slopes": ("diagonal", [0, 1, 2], [0, 1]),
}


@pytest.mark.parametrize(
    ("case", "null"),
    # a slope with its covariance is not one variance, as the exact distribution needs it
    [(c, n) for c in AGREE for n in ("auto", "mixture", "chi2", "exact") if (c, n) != ("correlated slope", "exact")],
)
def test_compare_and_random_effect_test_agree(rng, case, null):
    structure, columns, keep = AGREE[case]
    y, X, groups = arrays(rng, 12, 5, 0.3)
    Z = np.column_stack([X, rng.standard_normal(len(y))])
    y = y + 0.6 * np.sum(rng.standard_normal((12, 2))[groups] * Z[:, 1:], axis=1)  # nothing on the boundary
    names = ["one", "t", "u"]
    small, large = (
        LinearMixedModel(y, X, Z[:, use], groups, structure=structure, exog_re_names=[names[j] for j in use]).fit()
        for use in (keep, columns)
    )
    pair = compare(small, large, null=null, seed=1).rows[1]
    row = random_effect_test(large, names[columns[-1]], null=null, seed=1).rows[1]
    assert (pair.pvalue, pair.p_std_error, pair.null, pair.df) == (row.pvalue, row.p_std_error, row.null, row.df)
    assert 0.0 < pair.pvalue < 1.0


def test_crossed_factors_are_tested_alike(rng):
    a, b = rng.integers(0, 6, 80), rng.integers(0, 9, 80)
    y = rng.standard_normal(80) + 0.3 * rng.standard_normal(6)[a] + 0.4 * rng.standard_normal(9)[b]
    terms = [flc.RandomTerm(None, a, "a"), flc.RandomTerm(None, b, "b")]
    large = LinearMixedModel(y, terms=terms).fit()
    for name, left in (("a", terms[1]), ("b", terms[0])):
        pair = compare(LinearMixedModel(y, terms=[left]).fit(), large, seed=1).rows[1]
        row = random_effect_test(large, name, seed=1).rows[1]
        assert pair.statistic == pytest.approx(row.statistic, abs=1e-9)
        assert pair.pvalue == pytest.approx(row.pvalue, abs=1e-8)
        assert pair.null == row.null == "0.5 chi2(0) + 0.5 chi2(1)"


def test_auto_is_exact_for_the_only_variance(rng, monkeypatch):
    """One policy for both: the exact distribution, and the mixture where it cannot be had."""
    y, X, groups = arrays(rng, 8, 4)
    model = LinearMixedModel(y, X, None, groups)
    nesting = nest(None, model)
    auto, exact, mixture = (null_test(1.3, nesting, model, None, True, null, 50_000, 1) for null in
                            ("auto", "exact", "mixture"))  # fmt: skip
    assert auto == exact
    assert auto.pvalue != mixture.pvalue
    # beside another variance the exact distribution would take that one as known
    wide = LinearMixedModel(y, X, X, groups, structure="diagonal")
    beside = nest(model, wide)
    factor = np.diag([0.7, 0.0])
    auto, mixture = (null_test(1.3, beside, wide, factor, True, null, 50_000, 1) for null in ("auto", "mixture"))
    assert auto == mixture
    monkeypatch.setattr("fastlmm_core.inference.likelihood_ratio.exact.MAX_DISTINCT", 1)
    auto = null_test(1.3, nesting, model, None, True, "auto", 50_000, 1)
    assert auto.pvalue == pytest.approx(0.5 * chi2.sf(1.3, 1))
    assert "too many different groups" in auto.text


def test_bootstrap_and_exact_distribution_agree():
    result = fitted("dyestuff", "intercept", True)
    exact, bootstrap = (random_effect_test(result, null=null, n_sim=40_000, seed=3).rows[1] for null in
                        ("exact", "bootstrap"))  # fmt: skip
    assert abs(exact.pvalue - bootstrap.pvalue) < 4.0 * np.hypot(exact.p_std_error, bootstrap.p_std_error)
    assert "40000 responses" in bootstrap.null


@pytest.mark.parametrize("reml", [True, False])
def test_bootstrap_and_exact_distribution_agree_with_many_fixed_effects(rng, reml):
    # rank(X) is a fourth of n: what the linear model's criterion leaves out of its degrees of freedom shows
    groups = np.repeat(np.arange(7), 4)
    X = np.column_stack([np.ones(28), rng.standard_normal((28, 6))])
    y = (0.7 if reml else 1.0) * rng.standard_normal(7)[groups] + rng.standard_normal(28)
    result = LinearMixedModel(y, X, None, groups).fit(reml=reml)
    exact, bootstrap = (random_effect_test(result, null=null, n_sim=20_000, seed=3).rows[1] for null in
                        ("exact", "bootstrap"))  # fmt: skip
    assert 0.02 < exact.pvalue < 0.2
    assert abs(exact.pvalue - bootstrap.pvalue) < 4.5 * np.hypot(exact.p_std_error, bootstrap.p_std_error)


def test_bootstrap_leaves_out_what_either_fit_has_not_certified(rng, monkeypatch):
    from fastlmm_core.simulation.draws import simulate_fit

    y, X, groups = arrays(rng)
    small, large = (LinearMixedModel(y, X[:, :p], None, groups).fit(reml=False) for p in (1, 2))
    for of_null, of_large in ((1, 0), (0, 1), (1, 1)):

        def lossy(*args, fit=None, lost=(of_null, of_large), **options):
            batch = simulate_fit(*args, fit=fit, **options)
            if lost[0 if fit is None else 1]:
                batch.status[fit is not None :: 4] = -2
            return batch

        monkeypatch.setattr("fastlmm_core.inference.likelihood_ratio.compare.simulate_fit", lossy)
        row = compare(small, large, null="bootstrap", n_sim=100, seed=5).rows[1]
        lost = 25 * (of_null + of_large)
        assert (
            row.null == f"parametric bootstrap of {100 - lost} responses ({lost} more without certified fits left out)"
        )


def test_bootstrap_of_two_models_and_mixture_agree(rng):
    y, X, groups = arrays(rng, 60, 5, 0.4)
    small, large = (LinearMixedModel(y, X, X[:, :q], groups).fit() for q in (1, 2))
    mixture = compare(small, large).rows[1]
    bootstrap = compare(small, large, null="bootstrap", n_sim=4000, seed=5).rows[1]
    assert 0.001 < mixture.pvalue < 0.8  # something to compare
    assert abs(mixture.pvalue - bootstrap.pvalue) < 0.02 + 4.0 * bootstrap.p_std_error
    again = compare(small, large, null="bootstrap", n_sim=4000, seed=5, n_jobs=1).rows[1]
    np.testing.assert_equal(asdict(again), asdict(bootstrap))


# ---- levels ------------------------------------------------------------------------------------


def test_exact_test_holds_its_level_in_small_samples(rng):
    """Six groups of five; p-values of 2000 responses without a group effect are uniform above the atom."""
    groups = np.repeat(np.arange(6), 5)
    Y = 3.0 + rng.standard_normal((2000, 30))
    model = LinearMixedModel(Y[0], None, None, groups)
    batch = model.fit_many(Y)
    assert batch.converged.all()
    rss = np.sum((Y - Y.mean(axis=1, keepdims=True)) ** 2, axis=1)
    statistic = 29 * np.log(rss) - batch.criterion
    statistic += model.evaluate([0.0]).value - 29 * np.log(rss[0])
    drawn = np.sort(draw(spectrum(model.exog, cones(model)[0], None), 100_000, 1, True))
    p = 1.0 - np.searchsorted(drawn, statistic - 1e-8) / len(drawn)
    assert np.mean(p > 0.5) == pytest.approx(np.mean(drawn == 0.0), abs=0.06)
    for level in (0.01, 0.05, 0.1, 0.3):
        assert abs(np.mean(p <= level) - level) < 3.5 * np.sqrt(level * (1 - level) / 2000)
    # what the exact distribution is for: chi-square(1) rejects far too rarely
    assert np.mean(chi2.sf(statistic, 1) <= 0.05) < 0.03


def test_mixture_holds_its_level_for_a_slope(rng):
    """2000 responses with a random intercept only, 100 groups."""
    y, X, groups = arrays(rng, 100, 5)
    small = LinearMixedModel(y, X, X[:, :1], groups)
    large = LinearMixedModel(y, X, X, groups)
    first = small.fit()
    under, over = (first.simulate_fit(2000, 8, fit=model) for model in (small, large))
    assert under.converged.all()
    assert over.converged.all()
    statistic = np.maximum(under.criterion - over.criterion, 0.0)
    p = 0.5 * (chi2.sf(statistic, 1) + chi2.sf(statistic, 2))
    # as compare() has it
    assert compare(first, large.fit()).rows[1].null == "0.5 chi2(1) + 0.5 chi2(2)"
    for level in (0.05, 0.2, 0.5):
        assert abs(np.mean(p <= level) - level) < 3.5 * np.sqrt(level * (1 - level) / 2000)


# ---- the table ---------------------------------------------------------------------------------


def test_information_criteria():
    results = [fitted("sleepstudy", name, False) for name in ("correlated", "intercept", "uncorrelated")]
    found = compare(*results, test=None)
    assert [row.n_parameters for row in found.rows] == [4, 5, 6]
    for row, i in zip(found.rows, (1, 2, 0), strict=True):
        assert (row.aic, row.bic, row.llf) == (results[i].aic, results[i].bic, results[i].llf)
        k = row.n_parameters
        assert row.aicc == pytest.approx(row.aic + 2 * k * (k + 1) / (180 - k - 1), rel=1e-14)
        assert row.deviance == results[i].criterion
        assert row.df is None
        assert np.isnan(row.pvalue)
        assert np.isnan(row.statistic)


def test_aicc_without_observations_to_spare(rng):
    groups = np.repeat([0, 1, 2], 2)
    y = rng.standard_normal(6)
    X = np.column_stack([np.ones(6), rng.standard_normal(6)])
    results = [LinearMixedModel(y, X[:, :p], None, groups).fit(reml=False) for p in (1, 2)]
    found = compare(*results)
    assert found.rows[0].aicc == pytest.approx(found.rows[0].aic + 2 * 3 * 4 / (6 - 3 - 1))
    assert found.rows[1].aicc == pytest.approx(found.rows[1].aic + 2 * 4 * 5 / (6 - 4 - 1))
    wide = LinearMixedModel(y, np.column_stack([X, X[:, 1] ** 2]), None, groups).fit(reml=False)
    assert compare(results[0], wide).rows[1].aicc == np.inf


def test_reml_fits_with_different_fixed_parts_are_refitted():
    data = pd.read_csv(oracle.REFERENCE / "data" / "sleepstudy.csv")
    small = flc.lmm("Reaction ~ 1 + (Days | Subject)", data)
    large = flc.lmm("Reaction ~ Days + (Days | Subject)", data)
    found = compare(small.fit(), large.fit())
    assert not found.reml
    assert "Refitted by maximum likelihood" in found.notes[0]
    ml = [model.fit(reml=False) for model in (small, large)]
    assert found.rows[1].statistic == pytest.approx(ml[0].criterion - ml[1].criterion, abs=1e-8)
    assert found.rows[1].pvalue == pytest.approx(chi2.sf(ml[0].criterion - ml[1].criterion, 1), rel=1e-6)
    assert found.rows[1].null == "chi2(1)"
    # mixed kinds too
    mixed = compare(large.fit(), small.fit(reml=False))
    assert mixed.rows[1].statistic == pytest.approx(found.rows[1].statistic, abs=1e-8)
    assert "mixed" in mixed.notes[0]
    with pytest.raises(LMMError, match="refit=True"):
        compare(small.fit(), large.fit(), refit=False)


def test_the_coding_of_the_fixed_effects_does_not_matter(rng):
    y, X, groups = arrays(rng, slope=0.5)
    other = X @ [[1.0, 40.0], [1.0, 3.0]]
    small = LinearMixedModel(y, X, X[:, :1], groups).fit()
    same, recoded = (LinearMixedModel(y, columns, X, groups).fit() for columns in (X, other))
    assert abs(same.criterion - recoded.criterion) > 1.0
    one, two = compare(small, same), compare(small, recoded)
    assert two.reml
    assert two.rows[1].statistic == pytest.approx(one.rows[1].statistic, abs=1e-8)
    assert two.rows[1].aic == pytest.approx(one.rows[1].aic, abs=1e-8)
    assert "coding" in two.notes[0]
    # a statistic that is not extreme
    y, X, groups = arrays(rng)
    small = LinearMixedModel(y, X, X[:, :1], groups).fit()
    same, recoded = (LinearMixedModel(y, columns, X, groups).fit() for columns in (X, X @ [[1.0, 40.0], [1.0, 3.0]]))
    boot = [compare(small, fit, null="bootstrap", n_sim=200, seed=1).rows[1].pvalue for fit in (same, recoded)]
    assert 0.05 < boot[0] < 1.0
    assert boot[0] == boot[1]


def test_aliased_columns_count_once(rng):
    y, X, groups = arrays(rng)
    aliased = np.column_stack([X, X.sum(axis=1)])
    small = LinearMixedModel(y, aliased, X[:, :1], groups).fit()
    large = LinearMixedModel(y, X, X, groups).fit()
    found = compare(small, large)
    assert found.reml
    assert found.rows[1].df == 2


@pytest.mark.parametrize("null", ["auto", "exact"])
def test_units_and_origins_do_not_matter(rng, null):
    y, X, groups = arrays(rng, 20, 5, 0.3)
    Z = np.column_stack([X, rng.standard_normal(len(y))])
    keep = [0] if null == "auto" else [0, 1]
    rows = []
    for unit, origin, scale in ((1.0, 0.0, 1.0), (1e-6, 1e9, 1e6)):
        response = (y + origin) * unit
        columns = Z * [1.0, scale, scale]
        small = LinearMixedModel(response, X * [1.0, scale], columns[:, keep], groups, structure="diagonal").fit()
        large = LinearMixedModel(response, X * [1.0, scale], columns, groups, structure="diagonal").fit()
        rows.append(compare(small, large, null=null, seed=1).rows[1])
    # the second response has nine digits less
    assert rows[0].statistic == pytest.approx(rows[1].statistic, abs=1e-5)
    assert rows[0].pvalue == pytest.approx(rows[1].pvalue, rel=1e-4)
    if null == "auto":
        assert rows[0].null.count("chi2") == 3


def test_weights_and_offsets_enter(rng):
    y, X, groups = arrays(rng)
    w = rng.uniform(0.5, 2.0, len(y))
    offset = rng.standard_normal(len(y))
    result = LinearMixedModel(y, X, None, groups, weights=w, offset=offset).fit()
    row = random_effect_test(result, n_sim=1000, seed=1).rows[1]
    # the linear model by weighted least squares
    root = np.sqrt(w)
    Q, R = np.linalg.qr(X * root[:, None])
    r = root * (y - offset)
    rss = r @ r - np.sum((Q.T @ r) ** 2)
    nu = len(y) - 2
    expected = nu * (1 + np.log(2 * np.pi * rss / nu)) - np.log(w).sum() + 2 * np.log(np.abs(np.diag(R))).sum()
    assert row.deviance == pytest.approx(expected, rel=1e-12)
    assert row.statistic == pytest.approx(expected - result.criterion, abs=1e-8)
    for null in ("exact", "bootstrap"):
        assert 0.0 < random_effect_test(result, null=null, n_sim=500, seed=1).rows[1].pvalue <= 0.01


def test_no_test_where_models_are_not_nested(rng):
    y, X, groups = arrays(rng)
    other = np.column_stack([X, rng.standard_normal((len(y), 2))])
    one = LinearMixedModel(y, X, X[:, :1], groups).fit(reml=False)
    two = LinearMixedModel(y, other[:, [0, 2, 3]], X[:, :1], groups).fit(reml=False)
    found = compare(one, two)
    assert np.isnan(found.rows[1].pvalue)
    assert "not nested" in found.rows[1].null
    assert "fixed effects" in found.rows[1].null
    assert np.isfinite(found.rows[1].aic)
    coarse = LinearMixedModel(y, X, X, groups // 3).fit()
    found = compare(one.model.fit(), coarse)
    assert "random effects" in found.rows[1].null
    same = LinearMixedModel(y, X, None, groups // 3).fit()
    assert "as many parameters" in compare(one.model.fit(), same).rows[1].null


def test_a_singular_null_fit_and_an_uncertified_fit_are_named():
    data = pd.read_csv(oracle.REFERENCE / "data" / "dyestuff2.csv")
    data["x"] = np.tile([-1.0, 0.0, 1.0, 0.5, -0.5], 6)
    small = flc.lmm("Yield ~ x + (1 | Batch)", data).fit()
    large = flc.lmm("Yield ~ x + (x | Batch)", data).fit()
    assert small.singular
    found = compare(small, large)
    assert "boundary: model 1" in found.notes[0]
    assert found.rows[1].pvalue <= 1.0
    row = random_effect_test(small, seed=1).rows[1]
    assert row.statistic == pytest.approx(0.0, abs=1e-8)
    assert row.pvalue == 1.0
    stopped = small.model.fit(options={"maxiter": 0})
    if not stopped.converged:
        assert any("Not certified" in note for note in compare(stopped, large).notes)


def test_no_fixed_effects_at_all(rng):
    groups = np.repeat(np.arange(12), 4)
    y = rng.standard_normal(48)
    result = LinearMixedModel(y, np.zeros((48, 0)), None, groups).fit()
    exact, bootstrap, mixture = (
        random_effect_test(result, null=null, n_sim=20_000, seed=1).rows[1]
        for null in ("exact", "bootstrap", "mixture")
    )
    assert exact.deviance == pytest.approx(48 * (1 + np.log(2 * np.pi * (y @ y) / 48)), rel=1e-12)
    assert abs(exact.pvalue - bootstrap.pvalue) < 4.5 * np.hypot(exact.p_std_error, bootstrap.p_std_error) + 1e-12
    assert abs(exact.pvalue - mixture.pvalue) < 0.2 or mixture.pvalue == 1.0
    assert compare(result, LinearMixedModel(y, None, None, groups).fit()).rows[1].null == "chi2(1)"


def test_tests_of_every_effect(rng):
    y, X, groups = arrays(rng, slope=0.6)
    Z = np.column_stack([X, rng.standard_normal(len(y))])
    result = LinearMixedModel(y, X, Z, groups).fit()
    found = random_effect_test(result, seed=1)
    assert [row.name for row in found.rows] == ["all random effects", "without z1 | group", "without z2 | group"]
    for j, row in ((1, found.rows[1]), (2, found.rows[2])):
        small = LinearMixedModel(y, X, np.delete(Z, j, axis=1), groups).fit()
        pair = compare(small, result).rows[1]
        assert (row.statistic, row.pvalue, row.df) == (pair.statistic, pair.pvalue, 3)
        assert row.aic == small.aic
    # the whole term: a 3 x 3 matrix against nothing
    whole = random_effect_test(result, "group", n_sim=2000, seed=1).rows[1]
    assert whole.df == 6
    assert "chi2(6)" in whole.null
    assert 0.0 < whole.pvalue < 1e-8
    assert whole.p_std_error < 0.1 * whole.pvalue
    np.testing.assert_equal(asdict(random_effect_test(result, "z1").rows[1]), asdict(found.rows[1]))
    with pytest.raises(LMMError, match=r"use one of .*z1"):
        random_effect_test(result, "time")
    with pytest.raises(LMMError, match="exact"):
        random_effect_test(result, "z1", null="exact")


def test_columns_of_a_categorical_covariate_are_tested_together(rng):
    y, _, groups = arrays(rng, 40, 6)
    data = {"y": y, "arm": np.tile(np.array(["a", "b", "c"]), 80), "g": groups}
    result = flc.lmm("y ~ arm + (arm | g)", data).fit()
    found = random_effect_test(result, n_sim=2000, seed=1)
    assert [row.name for row in found.rows[1:]] == ["without arm | g"]
    assert found.rows[1].df == 5
    assert found.rows[1].null == "mixture of chi2(2) to chi2(5), simulated"
    pair = compare(flc.lmm("y ~ arm + (1 | g)", data).fit(), result, n_sim=2000, seed=1).rows[1]
    assert found.rows[1].pvalue == pytest.approx(pair.pvalue, rel=1e-9)


def test_several_terms_of_one_factor():
    data = pd.read_csv(oracle.REFERENCE / "data" / "sleepstudy.csv")
    data["week"] = (data["Days"] > 6).astype(float)
    separate = flc.lmm("Reaction ~ Days + (1 | Subject) + (0 + Days | Subject)", data).fit()
    together = fitted("sleepstudy", "uncorrelated", True)
    for one, other in zip(random_effect_test(separate).rows, random_effect_test(together).rows, strict=True):
        assert one.statistic == pytest.approx(other.statistic, abs=1e-7) or np.isnan(one.statistic)
    mixed = flc.lmm("Reaction ~ Days + (Days | Subject) + (0 + week | Subject)", data).fit()
    row = compare(fitted("sleepstudy", "correlated", True), mixed).rows[1]
    assert (row.df, row.null) == (1, "0.5 chi2(0) + 0.5 chi2(1)")
    exact = compare(fitted("sleepstudy", "correlated", True), mixed, null="exact", seed=1).rows[1]
    assert abs(exact.pvalue - row.pvalue) < 0.1


def test_many_different_groups_fall_back_to_the_mixture(rng):
    n = 6400
    groups = np.repeat(np.arange(3200), 2)
    z = rng.standard_normal(n)
    result = LinearMixedModel(rng.standard_normal(n), None, z, groups).fit()
    row = random_effect_test(result).rows[1]
    assert row.null.startswith("0.5 chi2(0) + 0.5 chi2(1)")
    assert "too many" in row.null
    with pytest.raises(LMMError, match="3000"):
        random_effect_test(result, null="exact")


# ---- frames and text ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table, dict])
def test_frames_come_in_the_callers_library(make):
    columns = pd.read_csv(oracle.REFERENCE / "data" / "sleepstudy.csv")
    data = make({name: columns[name].to_numpy() for name in columns})
    fits = [flc.lmm(f"Reaction ~ Days + ({term} | Subject)", data).fit() for term in ("1", "Days")]
    found = compare(*fits)
    frame = found.to_frame()
    assert isinstance(frame, type(data))
    assert list(frame.keys() if make is dict else getattr(frame, "column_names", getattr(frame, "columns", None))) == [
        "model", "n_parameters", "aic", "aicc", "bic", "llf", "deviance", "statistic", "df", "p_value", "p_std_error",
        "null",
    ]  # fmt: skip
    assert float(np.asarray(frame["p_value"])[1]) == found.rows[1].pvalue
    assert isinstance(random_effect_test(fits[1]).to_frame(), type(data))


def test_text_and_html():
    found = compare(*(fitted("sleepstudy", name, True) for name in ("intercept", "uncorrelated", "correlated")))
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "2           5  1753.67  1754.01  1769.63  -871.83   1743.67  42.80   1  <0.001" in text
    assert "2  0.5 chi2(0) + 0.5 chi2(1)" in text
    page = found._repr_html_()
    assert page.startswith("<div>")
    assert "Reaction ~ Days + (1 | Subject)" in page
    wide = replace(
        found, rows=tuple(replace(row, aic=row.aic * 1e4, deviance=row.deviance * 1e4) for row in found.rows)
    )
    assert max(map(len, str(wide).splitlines())) <= 80


def test_array_models_are_named_by_their_columns(rng):
    y, X, groups = arrays(rng)
    fits = [
        LinearMixedModel(y, X, X[:, :q], groups, structure="diagonal", exog_names=["one", "x"], group_name="g").fit()
        for q in (1, 2)
    ]
    assert [row.name for row in compare(*fits).rows] == ["y ~ one + x + (z0 | g)", "y ~ one + x + (z0 + z1 || g)"]
    assert set(map(type, compare(*fits).to_frame().values())) == {np.ndarray}


# ---- refusals ----------------------------------------------------------------------------------


def test_refusals(rng):
    y, X, groups = arrays(rng)
    result = LinearMixedModel(y, X, None, groups).fit()
    large = LinearMixedModel(y, X, X, groups).fit()
    for arguments, message in (
        ((), "at least two"),
        ((result,), "at least two"),
        ((result, result.model), r"argument 2 .*fit\(\)"),
        ((result, 3), "argument 2"),
    ):
        with pytest.raises(LMMError, match=message):
            compare(*arguments)
    for options, message in (
        ({"test": "score"}, "test='score'"),
        ({"null": "normal"}, "null='normal'"),
        ({"n_sim": 1}, "n_sim=1"),
        ({"seed": -1}, "seed=-1"),
        ({"null": "exact"}, "model 1 and model 2: .*exact"),
    ):
        with pytest.raises(LMMError, match=message):
            compare(result, large, **options)


def test_different_data_are_named(rng):
    y, X, groups = arrays(rng)
    w = rng.uniform(0.5, 2.0, len(y))
    result = LinearMixedModel(y, X, None, groups).fit()

    def fit(y=y, rows=slice(None), **options):
        return LinearMixedModel(y[rows], X[rows], None, groups[rows], **options).fit()

    changed = y.copy()
    changed[17] += 1.0
    for other, message in (
        (fit(rows=slice(5, None)), "180 and 175 observations"),
        (fit(y=changed), "response .*row 17"),
        (fit(y=np.roll(y, 1)), "same order"),
        (fit(weights=w), "weights"),
        (fit(offset=w), "offset"),
    ):
        with pytest.raises(LMMError, match=message):
            compare(result, other)
    # weights of one and offsets of zero are none
    neutral = fit(weights=np.ones(len(y)), offset=np.zeros(len(y)))
    assert compare(result, neutral).rows[1].aic == pytest.approx(result.aic)
    data = pd.DataFrame({"y": y, "x": X[:, 1], "g": groups})
    data.loc[:3, "x"] = np.nan
    with pytest.raises(LMMError, match=r"rows dropped for missing values: 0 and 4"):
        compare(flc.lmm("y ~ 1 + (1 | g)", data).fit(), flc.lmm("y ~ x + (1 | g)", data).fit())


def test_several_models_keep_their_order():
    names = ("intercept", "uncorrelated", "correlated")
    found = compare(*(fitted("sleepstudy", name, False) for name in names))
    for one, other in pairwise(found.rows):
        assert other.statistic == pytest.approx(one.deviance - other.deviance, abs=1e-12)


def test_names_of_models():
    data = flc.datasets.load("sleepstudy")
    small, large = (flc.lmm(f"Reaction ~ Days + {bar}", data).fit() for bar in ("(1 | Subject)", "(Days | Subject)"))
    found = flc.compare(large, small, names=["slopes", "intercepts"])
    assert [row.name for row in found.rows] == ["intercepts", "slopes"]
    assert "1  intercepts" in str(found) and "2  slopes" in str(found)
    assert found.rows[1].pvalue == flc.compare(small, large).rows[1].pvalue
    for names in (["one"], ["same", "same"]):
        with pytest.raises(flc.LMMError, match="names must be 2 different ones"):
            flc.compare(small, large, names=names)
