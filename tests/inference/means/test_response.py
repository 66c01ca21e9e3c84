"""Means on the scale of the response: closed forms, finite differences and averages of drawn responses."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc


@cache
def data() -> pd.DataFrame:
    rng = np.random.default_rng(8)
    n = 240
    arm = np.array(["a", "b", "c"])[np.arange(n) % 3]
    who = np.repeat(np.arange(24), 10)
    eta = 1.0 + 0.4 * (arm == "b") + 0.3 * rng.normal(size=24)[who] + 0.5 * rng.normal(size=n)
    return pd.DataFrame({"y": np.exp(eta), "arm": arm, "who": who, "x": rng.normal(size=n)})


@cache
def fitted(response: str, random: str = "1 | who"):
    return flc.lmm(f"{response} ~ arm + ({random})", data()).fit()


BACK = {
    "log(y)": np.exp,
    "np.log(y)": np.exp,
    "log2(y)": lambda m: 2.0**m,
    "log10(y)": lambda m: 10.0**m,
    "np.log1p(y)": lambda m: np.exp(m) - 1.0,
    "np.sqrt(y)": lambda m: m * m,
}


@pytest.mark.parametrize("response", BACK)
def test_medians_and_their_errors(response):
    back = BACK[response]
    plain = fitted(response).emmeans("arm")
    found = fitted(response).emmeans("arm", transform="response")
    np.testing.assert_allclose(found.estimate, back(plain.estimate), rtol=1e-12)
    np.testing.assert_allclose(found.conf_low, back(plain.conf_low), rtol=1e-12)
    np.testing.assert_allclose(found.conf_high, back(plain.conf_high), rtol=1e-12)
    step = 1e-6
    slope = (back(plain.estimate + step) - back(plain.estimate - step)) / (2.0 * step)
    np.testing.assert_allclose(found.std_error, slope * plain.std_error, rtol=1e-7)
    np.testing.assert_array_equal(found.df, plain.df)
    assert any(note.startswith("Medians of y, from means of ") for note in found.notes)
    same = fitted(response).emmeans("arm", transform="median")
    np.testing.assert_array_equal(same.estimate, found.estimate)


@pytest.mark.parametrize("response", BACK)
def test_means_are_those_of_normal_errors(response):
    result = fitted(response)
    plain = result.emmeans("arm")
    found = result.emmeans("arm", transform="mean")
    variance = float(result.G["who"][0, 0] + result.sigma2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    eta = plain.estimate[:, None] + np.sqrt(variance) * nodes
    expected = BACK[response](eta) @ weights / np.sqrt(2.0 * np.pi)
    np.testing.assert_allclose(found.estimate, expected, rtol=1e-9)
    step = 1e-5
    moved = [BACK[response](eta + by) @ weights / np.sqrt(2.0 * np.pi) for by in (step, -step)]
    np.testing.assert_allclose(found.std_error, (moved[0] - moved[1]) / (2.0 * step) * plain.std_error, rtol=1e-6)


@pytest.mark.parametrize(("response", "base"), [("log(y)", np.e), ("log2(y)", 2.0), ("log10(y)", 10.0)])
@pytest.mark.parametrize("transform", ["median", "mean"])
def test_differences_of_logarithms_are_ratios(response, base, transform):
    plain = fitted(response).emmeans("arm", contrasts="pairwise").comparison
    means = fitted(response).emmeans("arm", contrasts="pairwise", transform=transform)
    found = means.comparison
    a, b, c = means.estimate
    np.testing.assert_allclose(found.estimate, [a / b, a / c, b / c], rtol=1e-12)
    np.testing.assert_allclose(found.std_error, np.log(base) * found.estimate * plain.std_error, rtol=1e-12)
    np.testing.assert_allclose(found.conf_low, base**plain.conf_low, rtol=1e-12)
    np.testing.assert_array_equal(found.pvalues, plain.pvalues)
    assert found.adjust == "tukey"
    assert found.notes[0].startswith("Ratios of y")


def test_other_comparisons_stay_on_the_scale_of_the_model():
    plain = fitted("np.sqrt(y)").emmeans("arm", contrasts="pairwise").comparison
    found = fitted("np.sqrt(y)").emmeans("arm", contrasts="pairwise", transform="response").comparison
    np.testing.assert_array_equal(found.estimate, plain.estimate)
    assert found.notes[0] == "Comparisons of np.sqrt(y)."
    single = fitted("log(y)").emmeans("arm", contrasts={"first": [1, 0, 0]}, transform="response").comparison
    assert single.notes[0] == "Comparisons of log(y)."


def test_refuses():
    with pytest.raises(flc.LMMError, match="response 'y' is no transformation that can be undone"):
        fitted("y").emmeans("arm", transform="response")
    with pytest.raises(flc.LMMError, match="transform='ratio' is unknown"):
        fitted("log(y)").emmeans("arm", transform="ratio")
    slopes = fitted("log(y)", "x | who")
    with pytest.raises(flc.LMMError, match="differs between rows"):
        slopes.emmeans("arm", transform="mean")
    assert np.isfinite(slopes.emmeans("arm", transform="median").estimate).all()
    with pytest.raises(flc.LMMError, match="on the scale of the model"):
        fitted("log(y)").emmeans("arm", transform="response").equivalence(0.2)
