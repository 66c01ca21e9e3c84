"""Equivalence tests and compact letters: against t distributions, limits, and the definition of letters."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import fastlmm_core as flc
from fastlmm_core.inference.means.letters import compact_letters


@pytest.fixture(scope="module")
def pairs():
    cake = flc.datasets.load("cake")
    result = flc.lmm("angle ~ recipe + C(temperature) + (1 | recipe:replicate)", cake).fit()
    return result.emmeans("recipe", contrasts="pairwise").comparison


def test_two_one_sided_tests(pairs):
    found = pairs.equivalence((-4.0, 3.0))
    above = scipy.stats.t.sf((pairs.estimate + 4.0) / pairs.std_error, pairs.df)
    below = scipy.stats.t.cdf((pairs.estimate - 3.0) / pairs.std_error, pairs.df)
    np.testing.assert_allclose(found.pvalues, np.maximum(above, below), rtol=1e-9)
    for alpha in (0.01, 0.05, 0.2):
        at = pairs.equivalence((-4.0, 3.0), alpha=alpha)
        inside = (at.conf_low > -4.0) & (at.conf_high < 3.0)
        np.testing.assert_array_equal(inside, at.pvalues < alpha)
        np.testing.assert_allclose(
            at.conf_high, pairs.estimate + scipy.stats.t.isf(alpha, pairs.df) * pairs.std_error, rtol=1e-9
        )


def test_margins_around_zero_and_far_estimates(pairs):
    one, two = pairs.equivalence(2.0), pairs.equivalence((-2.0, 2.0))
    np.testing.assert_array_equal(one.pvalues, two.pvalues)
    far = pairs.equivalence((50.0, 60.0))  # all estimates are outside
    assert (far.pvalues > 0.99).all()
    assert "two one-sided tests of -2 < estimate < 2" in str(one)
    assert next(iter(one.to_frame().columns)) == "contrast"


@pytest.mark.parametrize("margin", [0.0, -1.0, (2.0, 1.0), "wide", (1.0, 2.0, 3.0)])
def test_refuses_margins(pairs, margin):
    with pytest.raises(flc.LMMError, match="margin"):
        pairs.equivalence(margin)
    with pytest.raises(flc.LMMError, match="alpha"):
        pairs.equivalence(1.0, alpha=0.95)


def test_letters_say_what_differs(rng):
    for _ in range(200):
        k = int(rng.integers(1, 8))
        different = [pair for pair in combinations(range(k), 2) if rng.random() < 0.5]
        letters = compact_letters(k, different)
        assert all(letters)
        for i, j in combinations(range(k), 2):
            assert bool(set(letters[i]) & set(letters[j])) == ((i, j) not in different)


def test_letters_of_means():
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"arm": np.tile(list("abcd"), 30), "who": np.repeat(np.arange(30), 4)})
    frame["y"] = frame["arm"].map({"a": 5.0, "b": 0.0, "c": 0.1, "d": 0.8}) + rng.normal(size=120)
    means = flc.lmm("y ~ arm + (1 | who)", frame).fit().emmeans("arm")
    table = means.letters()
    pairs = means.contrast("pairwise")
    found = dict(zip(table["arm"], table["letters"], strict=True))
    for contrast, p in zip(pairs.labels["contrast"], pairs.pvalues, strict=True):
        first, second = contrast.split(" - ")
        assert bool(set(found[first]) & set(found[second])) == (p >= 0.05)
    assert "a" in found[table["arm"][int(np.argmin(means.estimate))]]
    with pytest.raises(flc.LMMError, match="alpha"):
        means.letters(95)
