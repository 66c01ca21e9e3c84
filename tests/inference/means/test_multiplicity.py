"""Adjusted p-values and simultaneous limits: against scipy, closed forms, tables, and each other."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from scipy.special import ndtr

from fastlmm_core.errors import LMMError
from fastlmm_core.inference.means import multiplicity as mp
from fastlmm_core.inference.means.largest import max_t_sf


@pytest.mark.parametrize("k", [2, 3, 6, 20, 100])
@pytest.mark.parametrize("df", [1.0, 2.3, 5.0, 41.7, 500.0, np.inf])
def test_studentized_range_agrees_with_scipy(k, df):
    for q in (0.3, 1.0, 2.5, 3.7, 5.5, 9.0):
        # scipy integrates to about 1e-11
        assert float(mp.studentized_range_sf(q, k, df)) == pytest.approx(
            scipy.stats.studentized_range.sf(q, k, df), abs=1e-10, rel=0
        )


@pytest.mark.parametrize(("k", "df", "upper"), [(3, 10, 3.877), (4, 20, 3.958), (10, 5, 6.995), (2, 60, 2.829)])
def test_five_per_cent_points_of_the_tables(k, df, upper):
    assert mp.studentized_range_quantile(0.95, k, df) == pytest.approx(upper, abs=5e-4)


def test_range_of_two_is_t_and_small_tails_keep_their_digits():
    t = np.array([0.4, 2.0, 8.0, 25.0])
    np.testing.assert_allclose(
        mp.studentized_range_sf(np.sqrt(2.0) * t, 2, 17.0), 2.0 * scipy.stats.t.sf(t, 17.0), rtol=1e-12
    )
    # far out only the largest pair counts: Bonferroni with 1 - O(p)
    tail = float(mp.studentized_range_sf(np.sqrt(2.0) * 14.0, 3, 400.0))
    single = 2.0 * scipy.stats.t.sf(14.0, 400.0)
    assert tail < 3.0 * single
    assert tail == pytest.approx(3.0 * single, rel=1e-4)


def test_large_df_go_over_into_the_normal_limit():
    limit = float(mp.studentized_range_sf(3.4, 5, np.inf))
    errors = [float(mp.studentized_range_sf(3.4, 5, df)) - limit for df in (1e4, 1e6, 1e8)]
    assert errors[0] > errors[1] > 0.0
    assert errors[0] / errors[1] == pytest.approx(100.0, rel=1e-2)
    assert abs(errors[2]) < 2e-8


def test_nan_and_nonpositive():
    assert np.isnan(mp.studentized_range_sf(np.nan, 3, 5.0))
    assert float(mp.studentized_range_sf(0.0, 3, 5.0)) == 1.0


def dunnett_tail(x: float, df: float, k: int) -> float:
    """P(max |t_i| > x) with correlations 1/2, by two nested sums over the shared normal and the scale."""
    z = np.linspace(-9.0, 9.0, 1201)
    weight = np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi) * (z[1] - z[0])
    s = np.linspace(1e-6, 4.0, 2001)
    density = scipy.stats.chi.pdf(s * np.sqrt(df), df) * np.sqrt(df) * (s[1] - s[0])
    limit = x * s[:, None]
    inside = (ndtr(np.sqrt(2.0) * limit - z) - ndtr(-np.sqrt(2.0) * limit - z)) ** k
    return 1.0 - float(density @ (inside @ weight))


@pytest.mark.parametrize(("x", "df", "k"), [(2.54, 20.0, 3), (2.2, 7.0, 2), (3.3, 60.0, 8), (2.9, 5.5, 5)])
def test_dunnett(x, df, k):
    equal = 0.5 * np.eye(k) + 0.5
    assert max_t_sf(x, df, equal) == pytest.approx(dunnett_tail(x, df, k), abs=3e-6)


def test_dunnett_table():
    # Dunnett (1964), Biometrics 20, 482-491: two-sided, 5 per cent, 3 treatments and 20 df
    limits = mp.critical_values(0.95, np.full(3, 20.0), "mvt", correlation=0.5 * np.eye(3) + 0.5)
    np.testing.assert_allclose(limits, 2.54, atol=5e-3)
    assert dunnett_tail(limits[0], 20.0, 3) == pytest.approx(0.05, abs=2e-6)


def test_all_pairs_by_multivariate_t_are_tukey():
    k = 5
    pairs = np.array([np.eye(k)[i] - np.eye(k)[j] for i in range(k) for j in range(i + 1, k)])
    corr = 0.5 * pairs @ pairs.T
    for x in (2.0, 3.0, 4.5):
        assert max_t_sf(x, 12.0, corr) == pytest.approx(
            float(mp.studentized_range_sf(np.sqrt(2.0) * x, k, 12.0)), abs=2e-5
        )


def test_independent_normals():
    assert max_t_sf(2.1, np.inf, np.eye(3)) == pytest.approx(1.0 - (2.0 * ndtr(2.1) - 1.0) ** 3, abs=1e-6)


P = np.array([0.01, 0.04, 0.03, 0.005, 0.8])


def t_of(p):
    return scipy.stats.t.isf(p / 2.0, 9.0)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("none", P),
        ("bonferroni", [0.05, 0.2, 0.15, 0.025, 1.0]),
        ("holm", [0.04, 0.09, 0.09, 0.025, 0.8]),
        ("fdr", [0.025, 0.05, 0.05, 0.025, 0.8]),
        ("sidak", 1.0 - (1.0 - P) ** 5),
    ],
)
def test_classical_adjustments(method, expected):
    np.testing.assert_allclose(mp.adjusted_p(t_of(P), 9.0, method), expected, rtol=1e-10)


def test_scheffe():
    np.testing.assert_allclose(
        mp.adjusted_p(t_of(P), 9.0, "scheffe", rank=3), scipy.stats.f.sf(t_of(P) ** 2 / 3, 3, 9.0), rtol=1e-10
    )
    limit = mp.critical_values(0.9, [9.0, 9.0], "scheffe", rank=3)
    np.testing.assert_allclose(limit, np.sqrt(3 * scipy.stats.f.ppf(0.9, 3, 9.0)), rtol=1e-9)


@pytest.mark.parametrize("method", ["none", "bonferroni", "sidak", "tukey", "scheffe", "mvt"])
def test_limits_and_p_values_agree(method):
    k = 4
    pairs = np.array([np.eye(k)[i] - np.eye(k)[j] for i in range(k) for j in range(i + 1, k)])
    options = {"n_means": k, "correlation": 0.5 * pairs @ pairs.T, "rank": k - 1}
    df = np.array([6.0, 6.0, 11.5, 11.5, 80.0, np.inf])
    limits = mp.critical_values(0.9, df, method, **options)
    tolerance = 1e-6 if method == "mvt" else 1e-9
    np.testing.assert_allclose(mp.adjusted_p(limits, df, method, **options), 0.1, rtol=tolerance)


def test_what_is_missing_does_not_count():
    p = mp.adjusted_p([2.0, np.nan, 3.0], [9.0, np.nan, 9.0], "bonferroni")
    np.testing.assert_allclose(p[[0, 2]], 4.0 * scipy.stats.t.sf([2.0, 3.0], 9.0))
    assert np.isnan(p[1])
    alone = mp.adjusted_p([2.0, np.nan], [9.0, np.nan], "sidak")
    assert alone[0] == pytest.approx(2.0 * scipy.stats.t.sf(2.0, 9.0))


@pytest.mark.parametrize("method", ["none", "bonferroni", "holm", "fdr", "sidak", "mvt"])
def test_limits_of_what_is_missing_do_not_count(method):
    # two estimates of four are there
    df = np.array([9.0, np.nan, 9.0, np.nan])
    correlation = np.full((4, 4), np.nan)
    correlation[::2, ::2] = np.eye(2)
    found = mp.critical_values(0.95, df, method, correlation=correlation)
    assert np.isnan(found[1::2]).all()
    if method == "mvt":
        # two uncorrelated t statistics with a common scale
        s, step = np.linspace(1e-6, 5.0, 4001, retstep=True)
        inside = (2.0 * ndtr(found[0] * s) - 1.0) ** 2
        share = np.sum(scipy.stats.chi.pdf(s * 3.0, 9.0) * 3.0 * step * inside)
        assert share == pytest.approx(0.95, abs=2e-6)
        assert found[2] == found[0]
        return
    tail = {"none": 0.05, "sidak": 1.0 - np.sqrt(0.95)}.get(method, 0.025)
    np.testing.assert_allclose(found[::2], scipy.stats.t.isf(0.5 * tail, 9.0), rtol=1e-10)
    # one that is left needs no adjustment
    alone = mp.critical_values(0.95, [9.0, np.nan], method, correlation=np.eye(2))
    assert alone[0] == pytest.approx(scipy.stats.t.isf(0.025, 9.0), rel=1e-10)


def test_names():
    assert mp.method_name("bh") == "fdr"
    assert mp.method_name("dunnett") == "mvt"
    with pytest.raises(LMMError, match="adjust='hochberg'"):
        mp.method_name("hochberg")
