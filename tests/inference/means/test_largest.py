"""The largest of correlated t statistics: against other integrals, closed forms, and simulated statistics."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from scipy.special import ndtr

from fastlmm_core.inference.means.largest import max_t_sf


def over_scales(df, inside):
    """P(outside) for t statistics from the probability that normal ones are inside limits larger by a factor s."""
    if np.isinf(df):
        return 1.0 - inside(1.0)
    s, step = np.linspace(1e-3, 4.0, 801, retstep=True)
    density = scipy.stats.chi.pdf(s * np.sqrt(df), df) * np.sqrt(df) * step
    return 1.0 - float(density @ [inside(value) for value in s])


def one_factor(x, df, loadings):
    """Sum over the common factor."""
    z, step = np.linspace(-9.0, 9.0, 601, retstep=True)
    weight = scipy.stats.norm.pdf(z) * step
    sd = np.sqrt(1.0 - loadings**2)[:, None]

    def inside(s):
        shifted = loadings[:, None] * z
        return float(np.prod(ndtr((x * s - shifted) / sd) - ndtr((-x * s - shifted) / sd), axis=0) @ weight)

    return over_scales(df, inside)


@pytest.mark.parametrize("df", [1.0, 4.3, 30.0, np.inf])
@pytest.mark.parametrize(
    "loadings", [[0.9, 0.5, 0.3], [0.99, -0.2, 0.7, 0.0], [-0.6, 0.6], [0.97, 0.98], [0.0, 0.0, 0.4, 0.8]]
)
def test_one_common_factor(df, loadings):
    loadings = np.array(loadings)
    correlation = np.outer(loadings, loadings)
    np.fill_diagonal(correlation, 1.0)
    for x in (0.7, 2.0, 3.1):
        # the sum over scales below 1 / 1000 is left out
        assert max_t_sf(x, df, correlation) == pytest.approx(
            one_factor(x, df, loadings), abs=2e-3 if df == 1.0 else 1e-8
        )


def test_one_common_factor_and_one_degree_of_freedom():
    # two independent normals over one scale: P(max |T| <= x) is the share of the sphere where both are small
    angle, step = np.linspace(0.0, 0.5 * np.pi, 4001, retstep=True)
    larger = np.maximum(np.cos(angle), np.sin(angle))
    # distance / scale is Fisher's F with (2, 1): P(F > f) = (1 + 2 f) ** (-1 / 2)
    tail = 1.0 / np.sqrt(1.0 + (2.5 / larger) ** 2)
    expected = float((tail.sum() - 0.5 * (tail[0] + tail[-1])) * step / (0.5 * np.pi))
    assert max_t_sf(2.5, 1.0, np.eye(2)) == pytest.approx(expected, abs=1e-7)


def successive(x, df, k):
    """Differences of each of k independent means and the one before: a chain of sums over one mean."""
    z, step = np.linspace(-8.0, 8.0, 801, retstep=True)
    gap = np.abs(z[:, None] - z)
    weight = scipy.stats.norm.pdf(z) * step

    def inside(s):
        near = np.clip((x * s * np.sqrt(2.0) - gap) / step + 0.5, 0.0, 1.0)
        share = np.ones(len(z))
        for _ in range(k - 1):
            share = near @ (weight * share)
        return float(share @ weight)

    return 1.0 - inside(1.0) if np.isinf(df) else over_scales(df, inside)


@pytest.mark.parametrize(("k", "within"), [(4, 1e-5), (6, 1e-5), (8, 1e-4)])
def test_successive_differences(k, within):
    correlation = np.eye(k - 1) - 0.5 * (np.eye(k - 1, k=1) + np.eye(k - 1, k=-1))
    for x in (2.0, 2.6, 3.2):
        assert max_t_sf(x, np.inf, correlation) == pytest.approx(successive(x, np.inf, k), abs=within)


def test_successive_differences_of_small_samples():
    correlation = np.eye(3) - 0.5 * (np.eye(3, k=1) + np.eye(3, k=-1))
    assert max_t_sf(2.4, 7.0, correlation) == pytest.approx(successive(2.4, 7.0, 4), abs=1e-5)


def test_any_correlations(rng):
    # a million statistics simulated: standard error 2e-4
    root = rng.normal(size=(5, 5))
    covariance = root @ root.T
    sd = np.sqrt(np.diag(covariance))
    normals = rng.normal(size=(1_000_000, 5)) @ (root / sd[:, None]).T
    scale = np.sqrt(rng.chisquare(9.0, size=1_000_000) / 9.0)
    share = np.mean(np.abs(normals).max(axis=1) > 2.6 * scale)
    assert max_t_sf(2.6, 9.0, covariance / np.outer(sd, sd)) == pytest.approx(share, abs=8e-4)


def test_a_statistic_twice_is_one():
    correlation = np.array([[1.0, 1.0, 0.3], [1.0, 1.0, 0.3], [0.3, 0.3, 1.0]])
    assert max_t_sf(2.2, 11.0, correlation) == pytest.approx(max_t_sf(2.2, 11.0, correlation[1:, 1:]), abs=1e-6)
    assert max_t_sf(2.2, 11.0, np.ones((3, 3))) == pytest.approx(2.0 * scipy.stats.t.sf(2.2, 11.0), rel=1e-9)


def test_far_tails_keep_their_digits():
    single = 2.0 * scipy.stats.t.sf(14.0, 400.0)
    correlation = 0.2 * np.ones((3, 3)) + 0.8 * np.eye(3)
    assert max_t_sf(14.0, 400.0, correlation) == pytest.approx(3.0 * single, rel=1e-3)


def test_what_is_no_number():
    assert np.isnan(max_t_sf(np.nan, 3.0, np.eye(2)))
    assert np.isnan(max_t_sf(2.0, np.nan, np.eye(2)))
    assert max_t_sf(0.0, 3.0, np.eye(2)) == 1.0
