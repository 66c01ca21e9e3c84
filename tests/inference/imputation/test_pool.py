"""Rubin's rules: by hand, by the formulas of the papers, and fit by fit."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import fastlmm_core as flc
from fastlmm_core.inference.imputation.rubin import joint_df, rubin
from fastlmm_core.inference.means import multiplicity

EXACT = 1e-10


def same(actual, desired, tolerance=EXACT):
    np.testing.assert_allclose(np.asarray(actual, dtype=float), desired, rtol=tolerance, atol=0.0)


@pytest.fixture(scope="module")
def fits():
    """Fits of cakes of which a tenth were not measured, and imputed from a rough guess."""
    data = flc.datasets.load("cake")
    rng = np.random.default_rng(7)
    gone = rng.uniform(size=len(data)) < 0.1
    guess = data.groupby(["recipe", "temperature"], observed=True).angle.transform("mean")
    out = []
    for _ in range(6):
        drawn = data.assign(angle=np.where(gone, guess + rng.normal(0.0, 6.0, len(data)), data.angle))
        out.append(flc.lmm("angle ~ recipe * temperature + (1 | recipe:replicate)", drawn).fit())
    return out


# ---- by hand ---------------------------------------------------------------------------------------


def test_by_hand():
    """Three imputations, one estimate: Q 2, 3, 4 with variances 1, 2, 3 and ten complete degrees of freedom.

    U = 2, B = 1, T = 2 + 4/3, lambda = 0.4; nu_m = 2 / 0.16 = 12.5; nu_obs = 11 / 13 * 10 * 0.6 = 66 / 13;
    nu = 1 / (0.08 + 13 / 66); r = 2/3; fraction (2/3 + 2 / (nu + 3)) / (5/3).
    """
    found = rubin(np.array([[2.0], [3.0], [4.0]]), np.array([[1.0], [2.0], [3.0]]), np.full((3, 1), 10.0))
    nu = 1.0 / (0.08 + 13.0 / 66.0)
    same(found.estimate, [3.0])
    same(found.std_error, [np.sqrt(10.0 / 3.0)])
    same([found.within[0], found.between[0]], [2.0, 1.0])
    same(found.df, [nu])
    same(found.fraction_missing, [(2.0 / 3.0 + 2.0 / (nu + 3.0)) / (5.0 / 3.0)])


def test_limits_of_barnard_and_rubin():
    """With infinitely many complete data Rubin's own degrees of freedom; never more than the complete ones."""
    estimates, variances = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0]]), np.ones((3, 2))
    normal = rubin(estimates, variances, np.full((3, 2), np.inf))
    share = (4.0 / 3.0) / (1.0 + 4.0 / 3.0)
    same(normal.df[0], 2.0 / share**2)
    assert np.isinf(normal.df[1])
    for complete in (3.0, 20.0, 1e4):
        found = rubin(estimates, variances, np.full((3, 2), complete))
        assert found.df[0] < min(complete, normal.df[0])
        # nothing is missing: not quite nu, as Barnard and Rubin's formula has it
        same(found.df[1], complete * (complete + 1.0) / (complete + 3.0))
        assert found.fraction_missing[1] == 0.0


def reiter(m, k, r, nu):
    """Reiter (2007), written out term by term."""
    t = k * (m - 1)
    a = r * t / (t - 2)
    star = nu * (nu + 1) / (nu + 3)
    p, q = star - 2 * (1 + a), star - 4 * (1 + a)
    terms = [
        a**2 * p / ((1 + a) ** 2 * q),
        8 * a**2 * p / ((1 + a) * q**2),
        4 * a**2 / ((1 + a) * q),
        4 * a**2 / (q * p),
        16 * a**2 * p / q**3,
        8 * a**2 / q**2,
    ]
    return 4 + 1 / (1 / q + sum(terms) / (t - 4))


def test_joint_degrees_of_freedom():
    for m, k, r, nu in ((5, 3, 0.3, 40.0), (20, 2, 1.5, 200.0), (10, 7, 0.05, 25.0)):
        same(joint_df(m, k, r, nu), reiter(m, k, r, nu))
        # Li, Raghunathan and Rubin (1991) for infinitely many complete data, which Reiter's tends to
        t = k * (m - 1)
        expected = 4 + (t - 4) * (1 + (1 - 2 / t) / r) ** 2
        same(joint_df(m, k, r, np.inf), expected)
        same(joint_df(m, k, r, 1e12), expected, 1e-6)
        assert joint_df(m, k, r, nu) < nu
    # where Reiter's formula has no value
    assert 0.0 < joint_df(2, 2, 0.5, 30.0) < 30.0
    assert 0.0 < joint_df(10, 3, 5.0, 6.0) < 6.0
    same(joint_df(4, 2, 0.0, 17.0), 17.0)


# ---- fit by fit --------------------------------------------------------------------------------------


def by_rules(estimates, variances, complete):
    """Estimate, standard error and df of one number, in plain Python."""
    m = len(estimates)
    mean = sum(estimates) / m
    within = sum(variances) / m
    between = sum((q - mean) ** 2 for q in estimates) / (m - 1)
    total = within + (1 + 1 / m) * between
    share = (1 + 1 / m) * between / total
    nu = sum(complete) / m
    observed = (nu + 1) / (nu + 3) * nu * (1 - share)
    return mean, total**0.5, 1 / (share**2 / (m - 1) + 1 / observed)


@pytest.mark.parametrize(
    "options", [{}, {"ddf": "kenward-roger"}, {"vcov": "CR2"}, {"vcov": "CR0", "ddf": "residual"}], ids=str
)
def test_coefficients(fits, options):
    pooled = flc.pool(fits, **options)
    tables = [fit.tidy(**options) for fit in fits]
    found = pooled.tidy(level=0.9)
    for j, name in enumerate(pooled.names):
        q, se, nu = by_rules(*([t[column].iloc[j] ** power for t in tables] for column, power in (
            ("estimate", 1), ("std_error", 2), ("df", 1))))  # fmt: skip
        row = found.iloc[j]
        assert row.term == name
        same([row.estimate, row.std_error, row.df], [q, se, nu], 1e-9)
        same(row.p_value, 2 * stats.t.sf(abs(q / se), nu), 1e-7)
        same([row.conf_low, row.conf_high], q + np.array([-1, 1]) * stats.t.ppf(0.95, nu) * se, 1e-7)
    same(np.sqrt(np.diag(pooled.cov_params())), found.std_error)
    same(pooled.conf_int(0.9).conf_low, found.conf_low)
    same(pooled.bse, found.std_error)
    same(pooled.params, found.estimate)
    same(pooled.pvalues, found.p_value)


def test_contrasts_and_means(fits):
    pooled = flc.pool(fits)
    means = pooled.emmeans("recipe", contrasts="pairwise", adjust="none")
    each = [fit.emmeans("recipe", contrasts="pairwise", adjust="none") for fit in fits]
    for j in range(3):
        for found, parts in ((means, each), (means.comparison, [e.comparison for e in each])):
            expected = by_rules(
                [p.estimate[j] for p in parts], [p.std_error[j] ** 2 for p in parts], [p.df[j] for p in parts]
            )
            same([found.estimate[j], found.std_error[j], found.df[j]], expected, 1e-9)
    # a contrast by its coefficients is the same
    test = pooled.test(means.comparison.L)
    same(test.std_error, means.comparison.std_error)
    same(test.row_df, means.comparison.df)
    assert means.contrasts.fraction_missing.between(0.0, 1.0).all()
    assert "6 imputations" in str(means) and "6 imputations" in str(test)
    # Tukey's method on pooled statistics
    tukey = pooled.emmeans("recipe", contrasts="pairwise").comparison
    t, nu = tukey.statistic[0], tukey.df[0]
    same(tukey.pvalues[0], stats.studentized_range.sf(abs(t) * np.sqrt(2.0), 3, nu), 1e-6)
    # multivariate t with the correlations of the pooled contrasts
    mvt = pooled.emmeans("recipe", contrasts="reference", ref="B").comparison
    assert mvt.labels["contrast"] == ["A - B", "C - B"]
    L = mvt.L
    total = L @ pooled.cov_params() @ L.T
    corr = total / np.sqrt(np.outer(np.diag(total), np.diag(total)))
    same(mvt.std_error, np.sqrt(np.diag(total)))
    expected = multiplicity.adjusted_p(mvt.statistic, mvt.df, "mvt", correlation=corr)
    same(mvt.pvalues, expected, 1e-9)
    assert "multivariate t" in str(mvt) and "Averaged over temperature" in str(means)


def test_slopes():
    data = flc.datasets.load("orthodont")
    rng = np.random.default_rng(2)
    fits = [
        flc.lmm(
            "distance ~ age * Sex + (1 | Subject)", data.assign(distance=data.distance + rng.normal(0, 0.5, 108))
        ).fit()
        for _ in range(4)
    ]
    found = flc.pool(fits).slopes("age", "Sex", contrasts="pairwise")
    each = [fit.slopes("age", "Sex") for fit in fits]
    expected = by_rules([p.estimate[1] for p in each], [p.std_error[1] ** 2 for p in each], [p.df[1] for p in each])
    same([found.estimate[1], found.std_error[1], found.df[1]], expected, 1e-8)


def test_joint_test(fits):
    pooled = flc.pool(fits)
    L = np.zeros((2, 18))
    L[0, 1] = L[1, 2] = 1.0
    rhs = [0.3, -1.0]
    found = pooled.test(L, rhs)
    m, k = 6, 2
    beta = np.array([np.asarray(fit.params) for fit in fits])
    U = np.mean([L @ fit.cov_params().to_numpy() @ L.T for fit in fits], axis=0)
    B = np.cov(beta @ L.T, rowvar=False)
    r = (1 + 1 / m) * np.trace(B @ np.linalg.inv(U)) / k
    gap = L @ beta.mean(axis=0) - rhs
    f = gap @ np.linalg.solve(U, gap) / (k * (1 + r))
    complete = np.mean([fit.test(L, rhs).df_denom for fit in fits])
    nu = reiter(m, k, r, complete)
    same([found.statistic, found.df_denom], [f, nu], 1e-8)
    same(found.pvalue, stats.f.sf(f, 2, nu), 1e-6)
    assert found.distribution == "F" and found.imputations == 6
    # other rows that say the same, one of them too many
    mix = np.array([[1.0, 2.0], [-3.0, 0.5], [1.0, 1.0]])
    other = pooled.test(mix @ L, mix @ rhs)
    assert other.df_num == 2
    same([other.statistic, other.pvalue], [found.statistic, found.pvalue], 0.02)
    same(other.statistic, found.statistic, 1e-8)


def test_fits_that_are_all_the_same(fits):
    """Nothing is missing: the fit's own numbers, and Barnard and Rubin's degrees of freedom for complete data."""
    pooled, own = flc.pool([fits[0]] * 3), fits[0].tidy()
    same(pooled.estimate, own.estimate)
    same(pooled.std_error, own.std_error)
    same(pooled.df, own.df * (own.df + 1.0) / (own.df + 3.0))
    assert (pooled.fraction_missing == 0.0).all()


def test_normal_degrees_of_freedom_are_rubins(fits):
    pooled = flc.pool(fits, ddf="normal")
    share = 7 / 6 * pooled.between / pooled.std_error**2
    same(pooled.df, 5 / share**2)
    assert pooled.test("recipe[T.B]").distribution == "t"


def test_what_is_refused(fits):
    other = flc.lmm("angle ~ recipe + (1 | recipe:replicate)", flc.datasets.load("cake")).fit()
    with pytest.raises(flc.LMMError, match="at least two imputed data sets, not 1"):
        flc.pool(fits[:1])
    with pytest.raises(flc.LMMError, match="another coefficients than"):
        flc.pool([*fits, other])
    whole = flc.lmm("angle ~ recipe * temperature + (1 | replicate)", flc.datasets.load("cake")).fit()
    with pytest.raises(flc.LMMError, match="another random part"):
        flc.pool([*fits, whole])
    with pytest.raises(flc.LMMError, match="another criterion"):
        flc.pool([*fits, fits[0].model.fit(reml=False)])
    with pytest.raises(flc.LMMError, match="type 'int', not a fit"):
        flc.pool([fits[0], 3])
    with pytest.raises(flc.LMMError, match="'kenward-roger' adjusts the covariance of the model"):
        flc.pool(fits, ddf="kenward-roger", vcov="CR2")
    with pytest.raises(flc.LMMError, match="for comparisons"):
        flc.pool(fits).emmeans("recipe", adjust="tukey")


def test_presentation(fits):
    pooled = flc.pool(fits)
    again = pickle.loads(pickle.dumps(pooled))
    assert str(again) == str(pooled) == repr(pooled)
    assert "fitted to 6 imputed data sets" in str(pooled) and "<table>" in pooled._repr_html_()
    assert isinstance(pooled.tidy(), pd.DataFrame)
    assert "<table>" in pooled.emmeans("recipe", contrasts="pairwise")._repr_html_()


def test_dropped_columns():
    data = flc.datasets.load("orthodont")
    frames = [data.assign(twice=data.age * 2.0, distance=data.distance + k * data.age) for k in (0.0, 0.01)]
    pooled = flc.pool([flc.lmm("distance ~ age + twice + (1 | Subject)", frame).fit() for frame in frames])
    assert np.isnan(pooled.std_error[2]) and np.isfinite(pooled.std_error[:2]).all()
    assert "twice  " not in str(pooled)
