"""Levels of tests and coverage of intervals, by simulation with fixed seeds.

Bounds are quantiles of the binomial distribution of the counts: a test fails where a rate beyond the one named would
give such a count less than once in ten thousand times.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

import fastlmm_core as flc

RARE = 1e-4


def at_most(rate, share, n):
    """Whether a share of n is compatible with a probability of at most `rate`."""
    return share * n <= scipy.stats.binom.ppf(1.0 - RARE, n, rate)


def at_least(rate, share, n):
    """Whether a share of n is compatible with a probability of at least `rate`."""
    return share * n >= scipy.stats.binom.ppf(RARE, n, rate)


# ---- Kenward and Roger near the boundary -------------------------------------------------------


def few_groups(variance):
    """Six groups of 2 to 14, a covariate between them."""
    g = np.repeat(np.arange(6), [2, 3, 5, 8, 11, 14])
    data = {"g": g, "x": (g % 2).astype(float)}
    return flc.assume("y ~ x + (1 | g)", data, [0.0, 0.0], [[max(variance, 1e-12)]], 1.0)


def few_slopes(G):
    """Eight groups of 3 to 7 with random slopes, an interaction between groups and time."""
    sizes = [3, 4, 5, 6, 7, 3, 5, 7]
    g = np.repeat(np.arange(8), sizes)
    t = np.concatenate([np.arange(k) for k in sizes]).astype(float)
    return flc.assume("y ~ x * t + (t | g)", {"g": g, "t": t, "x": (g % 2).astype(float)}, [0.0] * 4, G, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("variance", [0.0, 0.05, 0.3, 1.0, 10.0])
def test_kenward_roger_holds_its_level_near_the_boundary(variance):
    n = 4000
    batch = few_groups(variance).simulate_fit(n, seed=1)
    share = {
        information: np.mean(batch.test("x", ddf="kenward-roger", information=information).pvalues < 0.05)
        for information in ("auto", "observed", "expected")
    }
    for information in ("auto", "observed"):
        assert at_most(0.06, share[information], n) and at_least(0.03, share[information], n), share
    # why the expected information is not the default there
    if variance < 0.5:
        assert at_most(0.01, share["expected"], n), share
    if variance == 10.0:
        assert at_least(0.045, share["expected"], n), share


@pytest.mark.slow
@pytest.mark.parametrize("G", [[[1, 0.2], [0.2, 0.3]], [[1, 0], [0, 0.02]], [[4, -1.5], [-1.5, 1]]])
def test_kenward_roger_with_slopes_near_the_boundary(G):
    n = 2000
    batch = few_slopes(G).simulate_fit(n, seed=2)
    for hypothesis in ("x:t", ["x", "t", "x:t"]):
        share = {
            information: np.mean(batch.test(hypothesis, ddf="kenward-roger", information=information).pvalues < 0.05)
            for information in ("auto", "observed", "expected")
        }
        for information in ("auto", "observed"):
            assert at_most(0.055, share[information], n), share
            assert at_least(0.02, share[information], n), share
            # never less than with the expected information, which hardly ever rejects at singular fits
            assert share[information] >= share["expected"] - 0.002, share


def test_power_takes_the_information():
    truth = few_groups(0.05)
    by = {
        information: flc.power(truth, "x", n_sim=200, seed=3, ddf="kenward-roger", information=information)
        for information in ("auto", "expected", "observed")
    }
    batch = truth.simulate_fit(200, seed=3)
    for information, result in by.items():
        found = batch.test("x", ddf="kenward-roger", information=information).pvalues
        np.testing.assert_array_equal(result.pvalues, np.where(batch.converged, found, np.nan))
    assert by["expected"].power < by["auto"].power
