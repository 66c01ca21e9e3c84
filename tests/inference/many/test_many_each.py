"""Tests of many problems with designs of their own: each is that of the single fit."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
import oracle
from dense_inference import at_optimum

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
    table, frame = result.tidy(0.9, ddf=ddf), result.to_frame()
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
        assert frame["sigma"][k] == pytest.approx(np.sqrt(result[k].sigma2), rel=1e-6)


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


def drawn(q, structure, weighted, sd, seed):
    """Six problems of some 105 rows in twenty groups (q = 3: 240 in 48) of sizes that differ, four columns of X."""
    rng = np.random.default_rng(seed)
    sizes, m = (rng.integers(230, 250, 6), 48) if q == 3 else (rng.integers(100, 111, 6), 20)
    each = np.repeat(np.arange(6), sizes)
    n = len(each)
    groups = rng.integers(0, m, n)
    X = np.column_stack([np.ones(n), 1e3 + rng.standard_normal((n, 2)), rng.standard_normal((6, m))[each, groups]])
    Z = np.column_stack([np.ones(n), rng.standard_normal((n, 2))])[:, :q]
    b = sd * rng.standard_normal((6, m, q))
    y = X[:, 1] + (Z * b[each, groups]).sum(axis=1) + rng.standard_normal(n)
    weights = rng.uniform(0.3, 3.0, n) if weighted else None
    return flc.fit_each(y, X, Z, groups, each, weights=weights, structure=structure)


CASES = [
    (1, "full", False, 1.0), (1, "full", True, 0.7), (1, "full", False, 0.0), (2, "full", True, 0.8),
    (2, "full", False, 0.15), (2, "diagonal", False, 0.8), (3, "full", False, 0.9), (3, "diagonal", True, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("information", ["auto", "expected", "observed"])
@pytest.mark.parametrize(("q", "structure", "weighted", "sd"), CASES)
def test_kenward_roger_of_dense_matrices(monkeypatch, q, structure, weighted, sd, information):
    """At the estimates of each problem, by matrices of all its rows; none that the lanes fitted is fitted again."""
    result = drawn(q, structure, weighted, sd, 3 * q)
    lanes, singles = result.by_lanes == 1, [result[i] for i in range(len(result))]
    assert lanes.sum() >= 3
    asked = {"row": [0.0, 1.0, -1.0, 0.5], "two": ["x1 = 1", "x2 + x3 = 0.2"]}
    fitted = []
    monkeypatch.setattr(type(result), "one", lambda self, i: fitted.append(i) or singles[i])
    found = result.tests(asked, ddf="kenward-roger", information=information)
    table = result.tidy(ddf="kenward-roger", information=information)
    assert not set(fitted) & set(np.flatnonzero(lanes).tolist())
    L = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    for i in np.flatnonzero(lanes).tolist():
        dense, edge = at_optimum(singles[i]), None
        if singles[i].singular and information != "expected":
            G = oracle.covariance_blocks(singles[i])
            if structure == "diagonal" or information == "observed":
                continue  # the observed information there is that of the single fit's own search: below
            values, vectors = np.linalg.eigh(G)
            edge = vectors[:, values > 1e-9 * dense.sigma2] * np.sqrt(values[values > 1e-9 * dense.sigma2])
        row = np.array(asked["row"])
        adjusted = dense.adjusted(information, edge)
        assert found["row"].std_error[i, 0] == pytest.approx(np.sqrt(row @ adjusted @ row), rel=1e-5)
        F, df = dense.kenward_roger(L, np.array([1.0, 0.2]), information, edge)
        assert found["two"].statistic[i] == pytest.approx(F, rel=1e-4)
        assert found["two"].df_denom[i] == pytest.approx(df, rel=1e-4)
        np.testing.assert_allclose(table["std_error"][4 * i : 4 * i + 4], np.sqrt(np.diag(adjusted)), rtol=1e-5)
    for i in np.flatnonzero(lanes).tolist():
        one = singles[i].test(asked["row"], ddf="kenward-roger", information=information)
        assert found["row"].df_denom[i] == pytest.approx(one.df_denom, rel=1e-4)
        assert found["row"].std_error[i, 0] == pytest.approx(one.std_error[0], rel=1e-5)


def test_kenward_roger_does_not_depend_on_threads(monkeypatch):
    result = drawn(2, "full", True, 0.8, 5)
    whole = result.test("x1 = 1", ddf="kenward-roger")
    monkeypatch.setattr("fastlmm_core.inference.many.own_tests.PART", 1)
    parts = result.test("x1 = 1", ddf="kenward-roger")
    np.testing.assert_array_equal(whole.df_denom, parts.df_denom)
    np.testing.assert_array_equal(whole.std_error, parts.std_error)


def test_moderated_variances(made):
    result, _ = made
    found = result.moderate()
    assert len(found) == 10
    assert np.isnan(found.statistic[4, 1])
    d0, s0 = found.df_prior[2], found.scale_prior[2]
    own, d = result.bse[:, 2], result.df[:, 2]
    expected = s0 if np.isinf(d0) else np.sqrt((d0 * s0**2 + d * own**2) / (d0 + d))
    np.testing.assert_allclose(found.std_error[:, 2], expected, rtol=1e-12)
    # as in all tables of these fits
    assert found.to_frame()["problem"].tolist() == np.repeat(np.arange(10), 3).tolist()
