"""Details of the plots: lines of reference, limits, legends, labels, and the tables behind them."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import fits

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib.text import Text  # noqa: E402

from fastlmm_core import plots  # noqa: E402
from fastlmm_core.plots._style import smooth  # noqa: E402


@pytest.fixture(scope="module")
def sleep():
    return fits.fitted(fits.SLEEPSTUDY, "sleepstudy")


@pytest.fixture(scope="module")
def words():
    """Crossed, with a condition of two levels as slope of both."""
    rng = np.random.default_rng(1)
    subj, item = np.repeat(np.arange(20), 24), np.tile(np.arange(12), 40)
    cond = np.where((np.arange(480) // 12) % 2, "wrong", "right")
    hit = cond == "wrong"
    y = 6.0 + 0.1 * hit + 0.2 * rng.standard_normal(20)[subj] + 0.1 * rng.standard_normal(12)[item]
    y = y + 0.15 * rng.standard_normal(20)[subj] * hit + 0.2 * rng.standard_normal(480)
    return pd.DataFrame({"subj": subj, "item": item, "cond": cond, "y": y})


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line(ax, label):
    return next(one for one in ax.lines if str(one.get_label()).startswith(label))


@pytest.mark.parametrize("ties", [False, True])
def test_smoother_is_the_weighted_least_squares_fit(ties):
    rng = np.random.default_rng(3)
    x = rng.integers(0, 6, 80).astype(float) if ties else rng.random(80)
    y = np.sin(3.0 * x) + rng.standard_normal(80)
    at, curve = smooth(x, y, share=0.4, points=11)
    for a, value in zip(at, curve, strict=True):
        distance = np.sort(np.abs(x - a))
        width = 1.05 * max(distance[31], np.sort(np.abs(np.unique(x) - a))[1])
        w = np.sqrt(np.maximum(1.0 - (np.abs(x - a) / width) ** 3, 0.0) ** 3)
        found = np.linalg.lstsq(np.column_stack([w, w * (x - a)]), w * y, rcond=None)[0]
        np.testing.assert_allclose(value, found[0], rtol=1e-9)


def test_smoother_keeps_straight_lines_and_constants():
    x = np.random.default_rng(0).random(9000)
    at, curve = smooth(x, 3.0 - 2.0 * x)
    np.testing.assert_allclose(curve, 3.0 - 2.0 * at, atol=1e-12)
    at, curve = smooth(np.ones(5), np.arange(5.0))
    np.testing.assert_allclose([at[0], curve[0]], [1.0, 2.0])


def test_line_of_quantiles_is_the_median_of_simulated_fits(sleep):
    """That of a right model has a slope below 1: conditional residuals vary less than the errors."""
    ax = plots.qq(sleep, n_sim=60, seed=2)
    simulated = [np.sort(sleep.model.refit(y).residuals("pearson")) for y in sleep.simulate(60, 2)]
    middle = line(ax, "their median")
    np.testing.assert_allclose(middle.get_ydata(), np.median(simulated, axis=0), rtol=1e-5, atol=1e-6)
    assert np.polyfit(middle.get_xdata(), middle.get_ydata(), 1)[0] < 0.97
    band = ax.collections[0]
    assert line(ax, "residuals").get_zorder() < band.get_zorder() < middle.get_zorder()
    table = plots.qq(sleep, n_sim=60, seed=2, data=True)
    assert list(table.columns) == ["theoretical", "value", "expected", "low", "high"]
    np.testing.assert_allclose(table["expected"], middle.get_ydata())
    alone = plots.qq(sleep, envelope=False)
    spread = np.sqrt(np.mean(sleep.residuals("pearson") ** 2))
    x, y = line(alone, "normal, SD").get_data()
    np.testing.assert_allclose(y, spread * x)


def test_shrinkage_keeps_to_the_ellipse():
    rng = np.random.default_rng(5)
    g, t = np.repeat(np.arange(400), 3), np.tile(np.arange(3.0), 400)
    t[g == 7] = [0.0, 0.001, 0.002]  # hardly a slope of its own
    b = rng.multivariate_normal([0.0, 0.0], [[4.0, 0.5], [0.5, 0.3]], 400)
    data = pd.DataFrame({"g": g, "t": t, "y": b[g, 0] + (2.0 + b[g, 1]) * t + 0.5 * rng.standard_normal(1200)})
    fit = flc.lmm("y ~ t + (t | g)", data[data["g"] < 100]).fit()
    ax = plots.shrinkage(fit)
    own = line(ax, "own least squares").get_xydata()
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    outside = (own[:, 0] < x0) | (own[:, 0] > x1) | (own[:, 1] < y0) | (own[:, 1] > y1)
    assert outside[7] and np.abs(own[7, 1]) > 20.0 * (y1 - y0) / 2.0
    count = int(outside.sum())
    assert f"{count} arrow{'s start' if count > 1 else ' starts'} outside" in texts(ax)
    curve = line(ax, "G, 95 %").get_xydata()
    assert x0 < curve[:, 0].min() and curve[:, 0].max() < x1 and y0 < curve[:, 1].min() and curve[:, 1].max() < y1
    pooled = line(ax, "partially").get_xydata()
    assert ((pooled > [x0, y0]) & (pooled < [x1, y1])).all()


def test_two_levels_are_an_axis(words):
    crossed = flc.lmm("y ~ cond + (cond | subj) + (1 | item)", words).fit()
    ax = plots.trajectories(crossed)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["right", "wrong"]
    mean = [crossed.params["Intercept"], crossed.params.sum()]
    np.testing.assert_allclose(line(ax, "population").get_ydata(), mean)
    twice = flc.lmm("y ~ cond + (cond | subj) + (cond | item)", words)
    assert plots.trajectories(twice.fit()).get_xlabel() == "cond"


def test_columns_of_nested_factors_by_name():
    data = flc.datasets.load("pastes")
    fit = flc.lmm("strength ~ 1 + (1 | batch/cask)", data).fit()
    table = plots.trajectories(fit, "cask", factor="batch", data=True)
    by_hand = data.sort_values(["batch", "cask"])
    assert sorted(table["cask"]) == sorted(data["cask"])
    np.testing.assert_allclose(np.sort(table["observed"]), np.sort(by_hand["strength"]))
    for row in table.itertuples():
        same = data[(data["batch"] == row.batch) & (data["cask"] == row.cask)]
        assert row.observed in set(same["strength"])
    with pytest.raises(flc.LMMError, match=r"x='cusk' is not a column of the data: did you mean 'cask'\?"):
        plots.trajectories(fit, "cusk")
    lost = pickle.loads(pickle.dumps(fit))
    with pytest.raises(flc.LMMError, match=r"its table is not there.*give its values, x=data\['x'\]"):
        plots.trajectories(lost, "x")


def test_columns_that_the_model_does_not_use():
    data = flc.datasets.load("orthodont").sample(frac=1.0, random_state=3)
    data.loc[data.index[5], "distance"] = np.nan
    fit = flc.lmm("distance ~ age + (age | Subject)", data).fit()
    table = plots.trajectories(fit, "age", by="Sex", facet="Sex", data=True)
    named = plots.trajectories(fit, "age", by=data["Sex"], facet=data["Sex"], data=True)
    pd.testing.assert_frame_equal(table, named)
    sex = data.drop_duplicates("Subject").set_index("Subject")["Sex"]
    assert (table["Sex"].to_numpy() == sex.loc[table["Subject"]].to_numpy()).all()
    # rows that have moved since are not those of the model
    data.index = data.index[::-1]
    with pytest.raises(flc.LMMError, match="its table is not there"):
        plots.trajectories(fit, "age", by="Sex")


def test_trajectories_by_arm():
    data = flc.datasets.load("orthodont")
    fit = flc.lmm("distance ~ age * Sex + (age | Subject)", data).fit()
    ax = plots.trajectories(fit, "age", by="Sex")
    assert texts(ax) == ["Female", "Male"]
    ages = np.unique(data["age"])
    for sex in ("Female", "Male"):
        expected = fit.predict(pd.DataFrame({"age": ages, "Sex": sex}))
        np.testing.assert_allclose(line(ax, sex).get_ydata(), expected)
    colors = {}
    for one in ax.lines:
        colors.setdefault(one.get_color(), []).append(one)
    assert {len(lines) for lines in colors.values()} == {2, 17, 12}  # white edges; 16 boys, 11 girls, a line each
    axes = plots.trajectories(fit, "age", facet="Sex")
    assert [one.get_title() for one in axes] == ["Sex = Female", "Sex = Male"]
    assert [len(one.collections[0].get_offsets()) for one in axes] == [44, 64]
    table = plots.trajectories(fit, "age", by="Sex", data=True)
    assert list(table.columns) == ["Subject", "age", "Sex", "observed", "fitted", "population"]
    np.testing.assert_allclose(np.sort(table["fitted"]), np.sort(fit.fittedvalues))
    given = plots.trajectories(fit, "age", by=data["Sex"])
    assert texts(given) == texts(ax)
    with pytest.raises(flc.LMMError, match="leave by and facet out"):
        plots.trajectories(fit, layout="panels", by="Sex")
    with pytest.raises(flc.LMMError, match="27 levels"):
        plots.trajectories(fit, by="Subject")


def test_population_line_of_continuous_times_is_smooth():
    """Other covariates vary from row to row: the line must not."""
    rng = np.random.default_rng(2)
    g = np.repeat(np.arange(100), 4)
    data = pd.DataFrame({"g": g, "t": rng.random(400), "age": rng.standard_normal(400)})
    data["y"] = 2.0 * data["t"] + 3.0 * data["age"] + rng.standard_normal(100)[g] + rng.standard_normal(400)
    fit = flc.lmm("y ~ t + age + (1 | g)", data).fit()
    x, y = line(plots.trajectories(fit, "t"), "population (mean over other").get_data()
    turns = np.abs(np.diff(y, 2)).max()
    assert len(x) == 61 and turns < 0.1
    alone = flc.lmm("y ~ t + (1 | g)", data).fit()
    x, y = line(plots.trajectories(alone, "t"), "population").get_data()
    np.testing.assert_allclose(y, alone.params["Intercept"] + alone.params["t"] * x)


def test_marginal_variance_of_levels(words):
    fit = flc.lmm("y ~ cond + (cond | subj)", words).fit()
    table = plots.marginal_variance(fit, data=True)
    G = fit.G["subj"]
    expected = [G[0, 0] + fit.sigma2, G.sum() + fit.sigma2]
    assert list(table["cond"]) == ["right", "wrong"]
    np.testing.assert_allclose(table["variance"], expected)
    ax = plots.marginal_variance(fit)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["right", "wrong"]
    np.testing.assert_allclose([p.get_y() + p.get_height() for p in ax.patches[2:]], expected)
    with pytest.raises(flc.LMMError, match="has no level 'left'"):
        plots.marginal_variance(fit, ["left"])
    nested = flc.lmm("y ~ cond + (1 | subj/item)", words).fit()
    with pytest.raises(flc.LMMError, match="are intercepts: the variance is the same everywhere"):
        plots.marginal_variance(nested)


def test_labels_of_influence_do_not_overlap():
    distance = np.full(200, 0.01)
    distance[[100, 101, 102, 103]] = [0.9, 0.89, 0.905, 0.88]
    found = SimpleNamespace(labels=np.arange(19000, 19200), cooks_distance=distance)
    ax = plots.influence_plot(found, top=4)
    ax.figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the line to the point
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert texts(ax) == ["4 / 200"]
    low = plots.influence_plot(SimpleNamespace(labels=np.arange(10), cooks_distance=np.full(10, 0.1)))
    assert low.get_legend() is None and low.get_xlabel() == "left out"


def test_many_groups_have_names_at_the_ends():
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(100), 5)
    fit = flc.LinearMixedModel(rng.standard_normal(100)[g] + rng.standard_normal(500), None, None, g).fit()
    order = np.argsort(fit.blups[0][:, 0])
    shown = plots.caterpillar(fit).texts[0].get_text()
    assert shown == f"highest: {', '.join(map(str, order[:-4:-1]))}\nlowest: {', '.join(map(str, order[:3]))}"


def test_tables_behind_the_plots(sleep, monkeypatch):
    """They need no matplotlib."""
    import sys

    profile, boot = sleep.profile(["sigma"]), sleep.bootstrap(20, seed=1)
    influence = sleep.influence()
    curve = flc.power_curve(sleep, "Days", values=[5, 9], effect=6.0, n_sim=20, seed=1)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    found = plots.caterpillar(sleep, "Days", data=True)
    assert list(found.columns) == ["Subject", "estimate", "conf_low", "conf_high"]
    np.testing.assert_allclose(found["estimate"], np.sort(sleep.random_effects["Days"]))
    found = plots.shrinkage(sleep, data=True)
    assert list(found.columns) == ["Subject", "effect", "own", "partial", "population"]
    np.testing.assert_allclose(found["partial"][18:], sleep.params["Days"] + sleep.random_effects["Days"])
    found = plots.residual_panels(sleep, data=True)
    np.testing.assert_allclose(found["residual"], sleep.residuals("pearson"))
    found = plots.missingness(sleep.model, data=True)
    assert len(found) == 180 and (found["count"] == 1).all()
    found = plots.profile_zeta(profile, data=True)
    np.testing.assert_allclose(found["zeta"], profile.zeta("sigma")[1])
    found = plots.bootstrap_density(boot, "sigma", data=True)
    np.testing.assert_allclose(found["value"], boot.replicates[:, list(boot.names).index("sigma")])
    found = plots.influence_plot(influence, data=True)
    np.testing.assert_allclose(found["cooks_distance"], influence.cooks_distance)
    found = plots.power_curve(curve, data=True)
    np.testing.assert_allclose(found["power"], curve.power)
    found = plots.marginal_variance(sleep, [0.0, 9.0], data=True)
    np.testing.assert_allclose(found["variance"], sleep.marginal_covariance_at([0.0, 9.0]).variance)
    assert len(plots.trajectories(sleep, data=True)) == 180


@pytest.mark.parametrize("facet", [None, "Sex"])
def test_lines_of_legends_are_told_apart_in_grey(facet):
    """Two periods of a dashed and of a dash-dotted line fit in a legend's sample."""
    data = flc.datasets.load("orthodont", "pandas").assign(third=lambda d: d.index % 3)
    data["third"] = data["third"].map({0: "a", 1: "b", 2: "c"})
    result = flc.lmm("distance ~ age * third + Sex + (1 | Subject)", data).fit()
    for draw in (flc.plots.effects, flc.plots.trajectories):
        found = draw(result, "age", by="third", facet=facet)
        legend = found[0].figure.legends[0] if facet else found.get_legend()
        lines = [line for line in legend.get_lines() if line.get_linestyle() != "None"]
        assert len({line.get_linestyle() for line in lines}) == 3
        assert legend.handlelength * legend.get_texts()[0].get_fontsize() > 30.0
