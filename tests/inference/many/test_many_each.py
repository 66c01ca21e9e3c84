"""Tests of many problems with designs of their own: each is that of the single fit."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc

# Degrees of freedom are functions of variances, which searches find to some 1e-8 of their standard errors.
AGREE = 1e-6


@pytest.fixture(scope="module")
def made():
    """Fits of ten problems, one of them with a column less and one of few groups, and their rows."""
    rng = np.random.default_rng(7)
    each = np.repeat(np.arange(10), 60)
    groups = np.tile(np.repeat(np.arange(12), 5), 10)
    groups[each == 8] %= 3
    n = len(each)
    X = np.column_stack([np.ones(n), rng.standard_normal(n), rng.standard_normal((10, 12))[each, groups]])
    X[each == 4, 1] = 1.0
    y = X.sum(axis=1) + rng.standard_normal((10, 12))[each, groups] + rng.standard_normal(n)
    return flc.fit_each(y, X, None, groups, each), X


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual", "normal"])
@pytest.mark.parametrize(
    "hypothesis", ["x1 = 0.5", "x1 + x2 = 2", ["x1 = 1", "x2 = 1"], ["x0 = 0", "x0 - x2 = 0", "x2 = 0"]]
)
def test_hypotheses(made, hypothesis, ddf):
    result, _ = made
    found = result.test(hypothesis, ddf=ddf)
    for k in range(len(result)):
        try:
            one = result[k].test(hypothesis, ddf=ddf)
        except flc.LMMError:
            assert k == 4
            assert np.isnan(found.pvalues[k])
            assert np.isnan(found.estimate[k]).all()
            continue
        np.testing.assert_allclose(found.estimate[k], one.estimate, rtol=AGREE, atol=1e-9)
        np.testing.assert_allclose(found.std_error[k], one.std_error, rtol=AGREE)
        assert found.statistic[k] == pytest.approx(one.statistic, rel=AGREE)
        assert found.df_denom[k] == pytest.approx(one.df_denom, rel=AGREE)
        assert found.pvalues[k] == pytest.approx(one.pvalue, rel=1e-5)
        assert found.df_num == one.df_num


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual", "normal"])
def test_tables(made, ddf):
    result, _ = made
    table = result.tidy(0.9, ddf=ddf)
    limits = result.conf_int(0.9, ddf=ddf)
    assert table["problem"].tolist() == np.repeat(np.arange(10), 3).tolist()
    for k in range(len(result)):
        one = result[k].tidy(level=0.9, ddf=ddf)
        part = slice(3 * k, 3 * k + 3)
        for name in ("estimate", "std_error", "df", "p_value", "conf_low", "conf_high"):
            ours = np.array(table[name][part], dtype=float)
            theirs = np.array(
                [dict(zip(one["term"], one[name], strict=True)).get(t, np.nan) for t in result.exog_names]
            )
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9, err_msg=name)
        np.testing.assert_array_equal(limits[k, :, 0], table["conf_low"][part])


def test_covariances(made):
    result, _ = made
    found = result.cov_params()
    for k in range(len(result)):
        np.testing.assert_allclose(found[k], result[k].cov, rtol=AGREE, atol=1e-9)


def test_information_criteria(made):
    result, _ = made
    for k in range(len(result)):
        one = result[k]
        assert result.aic[k] == pytest.approx(one.aic, abs=1e-8)
        assert result.bic[k] == pytest.approx(one.bic, abs=1e-8)
        assert result.llf[k] == pytest.approx(one.llf, abs=1e-8)


def test_kenward_roger_needs_reml(made):
    rng = np.random.default_rng(1)
    each, groups = np.repeat([0, 1], 40), np.tile(np.repeat(np.arange(8), 5), 2)
    result = flc.fit_each(rng.standard_normal(80), None, None, groups, each, reml=False)
    with pytest.raises(flc.LMMError, match="needs REML"):
        result.test("Intercept = 0", ddf="kenward-roger")
    with pytest.raises(flc.LMMError, match="ddf='between-within'"):
        result.tidy(ddf="between-within")
