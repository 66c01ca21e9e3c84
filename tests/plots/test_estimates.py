"""Plots of estimates: intervals are those of the tables, arrows overlap where pairs do not differ."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


from fastlmm_core import plots  # noqa: E402


@pytest.fixture(scope="module")
def fit():
    """Five treatments, of which some differ and some do not, two sexes; unbalanced."""
    rng = np.random.default_rng(8)
    g = np.repeat(np.arange(60), 5)
    dose, sex = rng.integers(0, 5, 300), np.where(rng.random(60) < 0.5, "f", "m")[g]
    y = np.array([0.0, 0.1, 0.5, 0.9, 1.0])[dose] + 0.3 * (sex == "m") + rng.standard_normal(60)[g]
    data = pd.DataFrame({"g": g, "dose": [f"d{i}" for i in dose], "sex": sex, "y": y + 0.7 * rng.standard_normal(300)})
    return flc.lmm("y ~ dose * sex + (1 | g)", data).fit()


@pytest.mark.parametrize("by", [None, "sex"])
def test_arrows_overlap_where_means_do_not_differ(fit, by):
    means = fit.emmeans("dose", by=by)
    table = plots.emmeans(means, data=True)
    np.testing.assert_allclose(table["conf_low"], means.conf_low)
    pairs = means.contrast("pairwise").to_frame()
    different = 0
    for family, mine in [(None, table)] if by is None else table.groupby("sex"):
        low = mine["arrow_low"].fillna(mine["estimate"]).to_numpy()
        high = mine["arrow_high"].fillna(mine["estimate"]).to_numpy()
        p = pairs if by is None else pairs[pairs["sex"] == family]
        for (i, j), value in zip(combinations(range(5), 2), p["p_value"], strict=True):
            overlap = low[i] <= high[j] and low[j] <= high[i]
            assert overlap == (value >= 0.05)
            different += value < 0.05
        assert mine["arrow_high"].isna().to_numpy()[mine["estimate"].argmax()]
        assert mine["arrow_low"].isna().to_numpy()[mine["estimate"].argmin()]
    assert 0 < different < len(pairs)


def test_two_means_meet_at_the_significant_difference(fit):
    means = fit.emmeans("sex")
    table = plots.emmeans(means, data=True)
    pair = means.contrast("pairwise")
    top, bottom = np.argmax(means.estimate), np.argmin(means.estimate)
    together = means.estimate[top] - table["arrow_low"][top] + table["arrow_high"][bottom] - means.estimate[bottom]
    np.testing.assert_allclose(together, 0.5 * (pair.conf_high - pair.conf_low)[0], rtol=1e-4)


@pytest.mark.parametrize("transform", ["median", "mean"])
def test_arrows_on_the_scale_of_the_response(fit, transform):
    data = fit.model.design.source.table
    logged = flc.lmm("log(e) ~ dose + (1 | g)", data.assign(e=np.exp(data["y"]))).fit()
    plain = plots.emmeans(logged.emmeans("dose"), data=True)
    means = logged.emmeans("dose", transform=transform)
    table = plots.emmeans(means, data=True)
    Z = logged.G["g"][0, 0] + logged.sigma2
    shift = 0.5 * Z * (transform == "mean")
    for name in ("estimate", "conf_low", "conf_high", "arrow_low", "arrow_high"):
        np.testing.assert_allclose(table[name], np.exp(plain[name] + shift), rtol=1e-9)
    assert plots.emmeans(means).get_xlabel() == f"e ({transform})"
    with_comparison = logged.emmeans("dose", transform=transform, contrasts="pairwise")
    pd.testing.assert_frame_equal(plots.emmeans(with_comparison, data=True), table)


def test_means_are_drawn(fit):
    ax = plots.emmeans(fit.emmeans("dose", by="sex"))
    means = fit.emmeans("dose", by="sex")
    np.testing.assert_allclose(ax.lines[0].get_xdata(), means.estimate)
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == [f"{a}, {b}" for a, b in zip(means.labels["dose"], means.labels["sex"], strict=True)]
    assert any("overlap" in text.get_text() for text in ax.get_legend().get_texts())
    plain = plots.emmeans(means, arrows=False)
    assert [text.get_text() for text in plain.get_legend().get_texts()] == ["95 % interval"]
    with pytest.raises(flc.LMMError, match="means must be"):
        plots.emmeans(fit)
    with pytest.raises(flc.LMMError, match="adjust"):
        plots.emmeans(means, adjust="nothing")


def test_coefficients_of_several_models(fit):
    data = flc.datasets.load("sleepstudy")
    first = flc.lmm("Reaction ~ Days + (1 | Subject)", data).fit()
    second = flc.lmm("Reaction ~ Days + I(Days**2) + (Days | Subject)", data).fit()
    table = plots.coefficients(first, second, names=["intercepts", "slopes"], data=True)
    assert list(zip(table["model"], table["term"], strict=True)) == [
        ("intercepts", "Days"), ("slopes", "Days"), ("slopes", "I(Days ** 2)"),
    ] or list(table["model"]) == ["intercepts", "slopes", "slopes"]  # fmt: skip
    expected = pd.concat([first.tidy().iloc[1:], second.tidy().iloc[1:]])
    for name in ("estimate", "std_error", "conf_low", "conf_high"):
        np.testing.assert_allclose(table[name], expected[name])
    ax = plots.coefficients(first, second)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["1", "2"]
    alone = plots.coefficients(first, intercept=True)
    assert [text.get_text() for text in alone.get_yticklabels()] == ["Intercept", "Days"]
    assert alone.get_legend() is None
    with pytest.raises(flc.LMMError, match="one for each"):
        plots.coefficients(first, names=["a", "b"])
    with pytest.raises(flc.LMMError, match="needs a result"):
        plots.coefficients()
    with pytest.raises(flc.LMMError, match="result 2 must be an LMMResult, not of type 'str'"):
        plots.coefficients(first, "second")
