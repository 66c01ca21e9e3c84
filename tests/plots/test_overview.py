"""Four plots of a fit: which are chosen, and that they are those of the functions that draw them alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import fits

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from fastlmm_core import plots  # noqa: E402


def labels(axes):
    return [(ax.get_xlabel().split("\n")[0], ax.get_ylabel()) for ax in axes.flat[:2]]


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_random_slope():
    fit = fits.fitted(fits.SLEEPSTUDY, "sleepstudy")
    axes = fit.plot()
    assert axes.shape == (2, 2)
    assert labels(axes) == [("Days", "Reaction"), ("Intercept", "Days")]
    alone = plots.trajectories(fit)
    for one, other in zip(axes[0, 0].lines, alone.lines, strict=True):
        np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())
    np.testing.assert_allclose(axes[1, 0].collections[0].get_offsets()[:, 0], fit.fittedvalues)
    np.testing.assert_allclose(axes[1, 1].lines[0].get_ydata(), np.sort(fit.residuals("pearson")))


def test_what_is_chosen():
    load = flc.datasets.load
    growth = flc.lmm("distance ~ age * Sex + (1 | Subject)", load("orthodont")).fit()
    axes = growth.plot()
    assert labels(axes)[0] == ("age", "distance") and texts(axes[0, 0]) == ["Female", "Male"]
    assert labels(axes)[1][1] == "Subject"  # one random effect: a caterpillar
    assert labels(growth.plot("Sex"))[0] == ("Sex", "distance")
    # a covariate of the groups has no line within one
    of_groups = flc.lmm(
        "distance ~ birth + (1 | Subject)", load("orthodont").assign(birth=lambda d: d["Subject"].str[1:].astype(float))
    )
    drawn = of_groups.fit().plot(data=True)["Data and fit"]
    assert drawn.columns.equals(plots.effects(of_groups.fit(), "birth", points="data", data=True).columns)
    batches = fits.fitted("Yield ~ 1 + (1 | Batch)", "dyestuff")
    assert labels(batches.plot()) == [
        ("Intercept", "Batch"), ("Intercept: deviation from the population, 95 % interval", "Batch"),
    ]  # fmt: skip
    machines = flc.lmm("score ~ Machine + (Machine | Worker)", load("machines")).fit()
    assert labels(machines.plot()) == [("Machine", "score"), ("Intercept", "Machine[T.B]")]
    crossed = flc.lmm("diameter ~ 1 + (1 | plate) + (1 | sample)", load("penicillin")).fit()
    assert labels(crossed.plot())[0] == ("Intercept", "plate")
    visits = flc.mmrm("FEV1 ~ RACE + ARMCD * AVISIT + us(AVISIT | USUBJID)", load("fev")).fit()
    axes = visits.plot()
    assert labels(axes)[0] == ("AVISIT", "FEV1") and texts(axes[0, 0]) == ["PBO", "TRT"]
    assert axes[0, 1].get_title(loc="left") == "Groups"


def test_arrays_and_functions_of_columns():
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(5), 8)
    t = rng.random(40)
    data = pd.DataFrame({"g": g, "t": t, "y": np.exp(t + 0.3 * rng.standard_normal(5)[g] + 0.1 * rng.random(40))})
    fit = flc.lmm("log(y) ~ I(t ** 2) + (1 | g)", data).fit()
    assert labels(fit.plot())[0] == ("t", "y (median)")
    arrays = flc.LinearMixedModel(data["y"].to_numpy(), np.column_stack([np.ones(40), t]), None, g)
    assert labels(arrays.fit().plot())[0][0] == "x1"
    alone = flc.LinearMixedModel(data["y"].to_numpy(), None, None, g)
    assert labels(alone.fit().plot())[0] == ("Intercept", "group")


def test_titles_stand_clear_of_legends():
    axes = fits.fitted("distance ~ age * Sex + (age | Subject)", "orthodont").plot()
    axes[0, 0].figure.canvas.draw()
    for ax in axes[0]:
        assert ax._left_title.get_window_extent().y0 >= ax.get_legend().get_window_extent().y1 - 2.0


def test_no_response_no_plot():
    design = flc.assume("y ~ t + (1 | g)", {"t": [0.0, 1.0] * 4, "g": list("aabbccdd")}, [0.0, 1.0], {"g": 1.0}, 1.0)
    with pytest.raises(flc.LMMError):
        design.plot()


def test_line_of_very_many_residuals_has_their_standard_deviation():
    """The points are thinned in the middle, the standard deviation is of all."""
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(2000), 5)
    fit = flc.LinearMixedModel(rng.standard_normal(2000)[g] + rng.standard_normal(10_000), None, None, g).fit()
    x, y = plots.qq(fit, envelope=False).lines[1].get_data()
    np.testing.assert_allclose(y[1] / x[1], np.sqrt(np.mean(fit.residuals("pearson") ** 2)))


def test_data_of_each_plot():
    fit = fits.fitted(fits.SLEEPSTUDY, "sleepstudy")
    drawn = fit.plot(data=True)
    assert list(drawn) == [ax.get_title(loc="left") for ax in fit.plot().flat]
    alone = plots.trajectories(fit, data=True), plots.shrinkage(fit, data=True), plots.residual_panels(fit, data=True)
    for one, other in zip(drawn.values(), (*alone, plots.qq(fit, data=True)), strict=True):
        pd.testing.assert_frame_equal(one, other)
    visits = flc.mmrm("FEV1 ~ RACE + ARMCD * AVISIT + us(AVISIT | USUBJID)", flc.datasets.load("fev")).fit()
    tables = visits.plot("AVISIT", "ARMCD", data=True)
    assert list(tables)[1] == "Groups" and list(tables["Groups"].columns) == ["fitted", "residual", "USUBJID"]
    batches = fits.fitted("Yield ~ 1 + (1 | Batch)", "dyestuff")
    pd.testing.assert_frame_equal(batches.plot(data=True)["Random effects"], plots.caterpillar(batches, data=True))
    # nothing is drawn, and no figure is left open
    assert all(not isinstance(table, np.ndarray) for table in drawn.values())


@pytest.mark.parametrize("formula", ["y ~ x + (1 | g)", "y ~ 1 + (1 | g)"])
def test_names_of_many_groups_do_not_overlap(formula):
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(55), 4)
    data = {
        "y": rng.standard_normal(55)[g] + rng.standard_normal(220),
        "x": rng.random(220),
        "g": [f"g{k:02d}" for k in g],
    }
    fit = flc.lmm(formula, data).fit()
    axes = [*fit.plot().ravel(), plots.caterpillar(fit), plots.shrinkage(fit)]
    for figure in {ax.figure for ax in axes}:
        figure.canvas.draw()
    for ax in axes:
        boxes = [label.get_window_extent() for label in ax.get_yticklabels() if label.get_text()]
        ends = sorted((box.y0, box.y1) for box in boxes)
        assert all(low[1] <= high[0] + 1.0 for low, high in pairwise(ends))
    # 55 have names where a figure of their own has room for them
    assert sum(label.get_text().startswith("g") for label in axes[4].get_yticklabels()) == 55
