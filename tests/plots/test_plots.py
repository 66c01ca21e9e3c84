"""Plots: what is drawn is what the fit says, for few and for many groups, from frames and from arrays."""

from __future__ import annotations

import builtins
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import ndtri

import fastlmm_core as flc
import fits

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.quiver import Quiver  # noqa: E402

from fastlmm_core import plots  # noqa: E402
from fastlmm_core.diagnostics.pooling import pooling  # noqa: E402


@pytest.fixture(scope="module")
def sleep():
    return fits.fitted(fits.SLEEPSTUDY, "sleepstudy")


@pytest.fixture(scope="module")
def many():
    """700 groups of 1 to 6 occasions from arrays, with a covariate of the group."""
    rng = np.random.default_rng(4)
    m = 700
    g, t = np.repeat(np.arange(m), 6), np.tile(np.arange(6.0), m)
    keep = rng.random(6 * m) > 0.2
    g, t = g[keep], t[keep]
    h = (g % 2).astype(float)
    b = rng.multivariate_normal([0.0, 0.0], [[4.0, 0.5], [0.5, 0.3]], m)
    y = 10.0 + 2.0 * t + 3.0 * h + b[g, 0] + b[g, 1] * t + rng.standard_normal(len(g))
    one = np.ones(len(g))
    model = flc.LinearMixedModel(
        y, np.column_stack([one, t, h]), np.column_stack([one, t]), g, exog_names=["one", "time", "arm"],
        exog_re_names=["one", "time"], group_name="subject",
    )  # fmt: skip
    return model.fit()


def line(ax, label):
    found = [one for one in ax.lines if str(one.get_label()).startswith(label)]
    assert len(found) == 1, label
    return found[0]


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# ---- trajectories --------------------------------------------------------------------------------------------------


def test_lines_are_predictions(sleep):
    ax = plots.trajectories(sleep)
    population = line(ax, "population")
    days = np.arange(10)
    np.testing.assert_array_equal(population.get_xdata(), days)
    expected = sleep.params["Intercept"] + sleep.params["Days"] * days
    np.testing.assert_allclose(population.get_ydata(), expected, rtol=1e-12)
    own = [one for one in ax.lines if one is not population]
    assert len(own) == 18
    for one, label in zip(own, sleep.group_labels, strict=True):
        new = {"Days": days, "Subject": np.full(10, label)}
        np.testing.assert_allclose(one.get_ydata(), sleep.predict(new, effects="all"), rtol=1e-12)
    points = ax.collections[0].get_offsets()
    expected = np.column_stack([sleep.model.exog[:, 1], sleep.model.endog])
    np.testing.assert_allclose(sorted(map(tuple, points)), sorted(map(tuple, expected)))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Days", "Reaction")


def test_chosen_subjects(sleep):
    ax = plots.trajectories(sleep, subjects=["335", "308"])
    assert len(ax.lines) == 3 and len(ax.collections[0].get_offsets()) == 20
    assert len(plots.trajectories(sleep, subjects=4).lines) == 5
    assert "(4 of 18)" in " ".join(legend_texts(plots.trajectories(sleep, subjects=4)))
    with pytest.raises(flc.LMMError, match="'nobody'"):
        plots.trajectories(sleep, subjects=["nobody"])
    with pytest.raises(flc.LMMError, match="at least 1"):
        plots.trajectories(sleep, subjects=0)


def test_panels(sleep):
    axes = plots.trajectories(sleep, layout="panels")
    assert [ax.get_title() for ax in axes] == list(sleep.group_labels)
    rows = sleep.model.grouping.index == 3
    np.testing.assert_allclose(line(axes[3], "own line").get_ydata(), sleep.fittedvalues[rows])
    np.testing.assert_allclose(line(axes[3], "population").get_ydata(), sleep.marginal_mean[rows])
    np.testing.assert_allclose(line(axes[3], "data").get_ydata(), sleep.model.endog[rows])


def test_other_covariates_are_averaged(many):
    """The population line at t is the mean of X beta over the rows at t; its label says so."""
    ax = plots.trajectories(many, "time")
    found = line(ax, "population (mean over other covariates)")
    t = many.model.exog[:, 1]
    expected = [many.marginal_mean[t == at].mean() for at in range(6)]
    np.testing.assert_allclose(found.get_ydata(), expected, rtol=1e-12)
    assert "subject: own lines (100 of 700)" in legend_texts(ax)
    assert len(plots.trajectories(many, layout="panels")) == 20


def test_other_axes(sleep):
    given = plots.trajectories(sleep, sleep.model.exog[:, 1] * 24.0)
    assert given.get_xlabel() == "x"
    assert line(given, "population").get_xdata().max() == 216.0
    with pytest.raises(flc.LMMError, match=r"'Day' is not a column of the data: did you mean 'Days'"):
        plots.trajectories(sleep, "Day")
    with pytest.raises(flc.LMMError, match="3 values"):
        plots.trajectories(sleep, [1.0, 2.0, 3.0])
    dyestuff = fits.fitted("Yield ~ 1 + (1 | Batch)", "dyestuff")
    with pytest.raises(flc.LMMError, match="intercept only"):
        plots.trajectories(dyestuff)
    data = flc.datasets.load("machines")
    machines = flc.lmm("score ~ Machine + (0 + Machine | Worker)", data).fit()
    for labelled in (plots.trajectories(machines), plots.trajectories(machines, data["Machine"])):
        assert labelled.get_xlabel() == "Machine"
        assert [text.get_text() for text in labelled.get_xticklabels()] == ["A", "B", "C"]
        means = data.groupby("Machine")["score"].mean()
        np.testing.assert_allclose(line(labelled, "population").get_ydata(), means, rtol=1e-12)
    with pytest.raises(flc.LMMError, match="'lattice' is unknown"):
        plots.trajectories(sleep, layout="lattice")
    with pytest.raises(flc.LMMError, match="leave ax out"):
        plots.trajectories(sleep, layout="panels", ax=plt.gca())
    with pytest.raises(flc.LMMError, match="not a grouping factor"):
        plots.trajectories(sleep, factor="School")


# ---- random effects ------------------------------------------------------------------------------------------------


def segments(ax):
    parts = [c.get_segments() for c in ax.collections if hasattr(c, "get_segments")]
    return np.array([segment for part in parts for segment in part])


@pytest.mark.parametrize("effect", ["Intercept", "Days"])
def test_caterpillar(sleep, effect):
    ax = plots.caterpillar(sleep, effect, level=0.9)
    blup = sleep.random_effects[effect].to_numpy()
    j = ["Intercept", "Days"].index(effect)
    sd = np.sqrt(sleep.random_effects_covariance("prediction")[:, j, j])
    drawn = segments(ax)
    drawn = drawn[np.argsort(drawn[:, 0, 1])]
    order = np.argsort(blup)
    np.testing.assert_allclose(drawn[:, :, 0].mean(axis=1), blup[order], rtol=1e-9)
    np.testing.assert_allclose(np.ptp(drawn[:, :, 0], axis=1), 2.0 * ndtri(0.95) * sd[order], rtol=1e-12)
    assert [text.get_text() for text in ax.get_yticklabels()] == list(sleep.group_labels[order])
    away = line(ax, "does not")
    assert len(away.get_xdata()) == (np.abs(blup) > ndtri(0.95) * sd).sum()


def test_caterpillar_of_many(many):
    ax = plots.caterpillar(many, "time")
    assert len(segments(ax)) == 700
    assert ax.get_ylabel() == "subject, in order (700)"
    with pytest.raises(flc.LMMError, match=r"effect='slope' is not a random effect; choose of one \| subject, time"):
        plots.caterpillar(many, "slope")
    with pytest.raises(flc.LMMError, match="level"):
        plots.caterpillar(many, level=95)


def test_arrows_go_from_least_squares_to_blups(sleep):
    ax = plots.shrinkage(sleep)
    found = pooling(sleep)
    arrows = next(c for c in ax.collections if isinstance(c, Quiver))
    np.testing.assert_allclose(arrows.XY, found.no_pooling)
    np.testing.assert_allclose(arrows.XY + np.column_stack([arrows.U, arrows.V]), found.partial_pooling)
    np.testing.assert_allclose(line(ax, "own least squares").get_xydata(), found.no_pooling)
    np.testing.assert_allclose(line(ax, "partially pooled").get_xydata(), found.partial_pooling)
    np.testing.assert_allclose(line(ax, "population").get_xydata()[0], sleep.params)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Intercept", "Days")


def test_axes_of_the_ellipses_are_eigenvalues(sleep):
    ax = plots.shrinkage(sleep, levels=(0.5, 0.9))
    G = sleep.G["Subject"]
    for level in (0.5, 0.9):
        curve = line(ax, f"G, {100 * level:g} %").get_xydata() - sleep.params.to_numpy()
        # every point has the Mahalanobis distance that holds the level of a bivariate normal distribution
        distance = np.einsum("ij,jk,ik->i", curve, np.linalg.inv(G), curve)
        np.testing.assert_allclose(distance, -2.0 * np.log(1.0 - level), rtol=1e-9)
        axes = np.linalg.norm(curve, axis=1)
        size = np.sqrt(-2.0 * np.log(1.0 - level) * np.linalg.eigvalsh(G))
        np.testing.assert_allclose([axes.min(), axes.max()], size, rtol=1e-6)


def test_shrinkage_of_a_singular_fit_and_of_one_coefficient():
    data = flc.datasets.load("sleepstudy")
    single = flc.lmm("Reaction ~ Days + (1 | Subject)", data).fit()
    ax = plots.shrinkage(single)
    found = pooling(single)
    order = np.argsort(found.no_pooling[:, 0])
    np.testing.assert_allclose(line(ax, "own").get_xdata(), found.no_pooling[order, 0])
    np.testing.assert_allclose(line(ax, "partially").get_xdata(), found.partial_pooling[order, 0])
    rng = np.random.default_rng(2)
    g, t = np.repeat(np.arange(12), 4), np.tile(np.arange(4.0), 12)
    Z = np.column_stack([np.ones(48), t])
    flat = flc.LinearMixedModel(t + 3.0 * rng.standard_normal(12)[g] + rng.standard_normal(48), Z, Z, g)
    for seed in range(30):
        y = t + 3.0 * np.random.default_rng(seed).standard_normal(12)[g] + np.random.default_rng(seed).normal(size=48)
        result = flat.refit(y)
        if result.singular:
            break
    assert result.singular
    curve = line(plots.shrinkage(result), "G, 95 %").get_xydata()
    assert np.isfinite(curve).all()


def test_shrinkage_of_many(many):
    ax = plots.shrinkage(many, ["time", "one"])
    assert "own least squares (150 of 700)" in legend_texts(ax)
    assert ax.get_xlabel() == "time"
    with pytest.raises(flc.LMMError, match="one or two of one, time, not slope"):
        plots.shrinkage(many, "slope")


# ---- residuals -----------------------------------------------------------------------------------------------------


def test_residual_panels(sleep, many):
    axes = plots.residual_panels(sleep)
    drawn = axes[0, 0].collections[0].get_offsets()
    np.testing.assert_allclose(drawn, np.column_stack([sleep.fittedvalues, sleep.residuals("pearson")]))
    drawn = axes[0, 1].collections[0].get_offsets()
    np.testing.assert_allclose(drawn[:, 1], np.sqrt(np.abs(sleep.resid) / sleep.sigma))
    medians = [float(np.median(sleep.residuals("pearson")[sleep.model.grouping.index == i])) for i in range(18)]
    lines = [one for one in axes[1, 1].lines if one.get_color() == "#D55E00"]
    np.testing.assert_allclose([one.get_ydata()[0] for one in lines], medians, rtol=1e-10)
    axes = plots.residual_panels(many)
    index, residual = many.model.grouping.index, many.residuals("pearson")
    sd = np.sort([residual[index == i].std(ddof=1) for i in range(700) if (index == i).sum() > 1])
    np.testing.assert_allclose(axes[1, 1].lines[0].get_ydata(), sd, rtol=1e-9)


def test_quantiles(sleep):
    ax = plots.qq(sleep, envelope=False)
    drawn = line(ax, "residuals")
    np.testing.assert_allclose(drawn.get_ydata(), np.sort(sleep.residuals("pearson")))
    np.testing.assert_allclose(drawn.get_xdata(), ndtri((np.arange(1, 181) - 0.375) / 180.25))
    ax = plots.qq(sleep, "blups", effect="Days", envelope=False)
    np.testing.assert_allclose(line(ax, "BLUPs").get_ydata(), np.sort(sleep.random_effects["Days"]))
    assert ax.get_ylabel() == "BLUP of Days"


@pytest.mark.parametrize("what", ["residuals", "blups"])
def test_envelope_is_that_of_refitted_simulations(sleep, what):
    ax = plots.qq(sleep, what, n_sim=40, level=0.8, seed=9)
    simulated = []
    for y in sleep.simulate(40, 9):
        fit = sleep.model.refit(y)
        values = fit.residuals("pearson") if what == "residuals" else fit.random_effects["Intercept"].to_numpy()
        simulated.append(np.sort(values))
    low, high = np.quantile(simulated, [0.1, 0.9], axis=0)
    outline = ax.collections[0].get_paths()[0].vertices
    x = line(ax, "residuals" if what == "residuals" else "BLUPs").get_xdata()
    for at, a, b in zip(x[1:-1], low[1:-1], high[1:-1], strict=True):
        edge = outline[np.isclose(outline[:, 0], at, rtol=0, atol=1e-12), 1]
        np.testing.assert_allclose([edge.min(), edge.max()], [a, b], rtol=1e-5, atol=1e-6)


def test_envelope_of_several_factors_is_that_of_refitted_simulations(several):
    table = plots.qq(several, n_sim=30, level=0.8, seed=4, data=True)
    simulated = [np.sort(several.model.refit(y).residuals("pearson")) for y in several.simulate(30, 4)]
    low, middle, high = np.quantile(simulated, [0.1, 0.5, 0.9], axis=0)
    for name, expected in (("low", low), ("expected", middle), ("high", high)):
        np.testing.assert_allclose(table[name], expected, rtol=1e-5, atol=1e-6)


def test_envelope_with_weights_and_offset():
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(15), 6)
    w, offset = rng.uniform(0.5, 4.0, 90), 5.0 * rng.standard_normal(90)
    y = offset + rng.standard_normal(15)[g] + rng.standard_normal(90) / np.sqrt(w)
    result = flc.LinearMixedModel(y, None, None, g, weights=w, offset=offset).fit()
    ax = plots.qq(result, n_sim=50, seed=1)
    sims = [np.sort(result.model.refit(y).residuals("pearson")) for y in result.simulate(50, 1)]
    outline = ax.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(outline[:, 1].max(), np.quantile(sims, 0.975, axis=0).max(), rtol=1e-6)
    np.testing.assert_allclose(outline[:, 1].min(), np.quantile(sims, 0.025, axis=0).min(), rtol=1e-6)


def test_simulations_of_large_models_come_in_pieces(sleep, monkeypatch):
    from fastlmm_core.plots import residuals

    ranks = np.arange(180)
    whole = residuals._ordered(sleep, "residuals", 0, 0, 300, 9, ranks)
    monkeypatch.setattr(residuals, "HELD", 180 * 100)
    pieces = residuals._ordered(sleep, "residuals", 0, 0, 300, 9, ranks)
    assert pieces.shape == (300, 180)
    np.testing.assert_array_equal(pieces[:100], residuals._ordered(sleep, "residuals", 0, 0, 100, 9, ranks))
    assert len(np.unique(pieces[:, 90])) == 300  # no piece repeats another
    np.testing.assert_allclose(pieces.mean(axis=0), whole.mean(axis=0), atol=0.1)
    np.testing.assert_array_equal(pieces, residuals._ordered(sleep, "residuals", 0, 0, 300, 9, ranks))


def test_quantiles_of_very_many_are_thinned():
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(3000), 3)
    result = flc.LinearMixedModel(rng.standard_normal(3000)[g] + rng.standard_normal(9000), None, None, g).fit()
    ax = plots.qq(result, envelope=False)
    drawn, every = line(ax, "residuals").get_ydata(), np.sort(result.residuals("pearson"))
    assert 3000 < len(drawn) <= 4001
    np.testing.assert_array_equal(drawn[[0, 1, -2, -1]], every[[0, 1, -2, -1]])
    with pytest.raises(flc.LMMError, match="'scores' is unknown"):
        plots.qq(result, "scores")
    with pytest.raises(flc.LMMError, match="at least 19"):
        plots.qq(result, n_sim=10)


# ---- covariance and design -----------------------------------------------------------------------------------------


def test_marginal_variance(sleep):
    ax = plots.marginal_variance(sleep, np.arange(-2.0, 10.0))
    found = line(ax, "total variance")
    np.testing.assert_allclose(found.get_ydata()[2:], np.diag(sleep.marginal_covariance("308")), rtol=1e-12)
    G = sleep.G["Subject"]
    least = line(ax, "smallest")
    np.testing.assert_allclose(least.get_xdata()[0], -G[0, 1] / G[1, 1], rtol=1e-9)
    np.testing.assert_allclose(least.get_ydata()[0], G[0, 0] - G[0, 1] ** 2 / G[1, 1] + sleep.sigma2, rtol=1e-9)
    assert not [one for one in plots.marginal_variance(sleep).lines if "smallest" in str(one.get_label())]


def test_missingness_by_group():
    data = flc.datasets.load("sleepstudy").drop(index=[3, 14, 15, 16, 17, 18, 19])
    model = flc.lmm("Reaction ~ Days + (Days | Subject)", data)
    ax = plots.missingness(model)
    shown = np.asarray(ax.collections[0].get_array()).reshape(18, 10)
    table = data.groupby(["Subject", "Days"]).size().unstack(fill_value=0)
    labels = [text.get_text() for text in ax.get_yticklabels()]
    np.testing.assert_array_equal(shown, table.loc[labels].to_numpy())
    assert labels[-2:] == ["308", "309"]
    assert legend_texts(ax) == ["not observed", "observed"]


def test_missingness_by_pattern(many):
    ax = plots.missingness(many.model)
    shown = np.asarray(ax.collections[0].get_array()).reshape(-1, 6)
    counts = [int(text.get_text().replace(",", "")) for text in ax.get_yticklabels()]
    seen = np.zeros((700, 6), dtype=bool)
    seen[many.model.grouping.index, many.model.exog[:, 1].astype(int)] = True
    assert len(counts) == len(shown) == 25 and counts == sorted(counts, reverse=True)
    for pattern, count in zip(shown, counts, strict=True):
        assert (seen == pattern.astype(bool)).all(axis=1).sum() == count
    assert "more patterns" in ax.get_ylabel()
    twice = flc.LinearMixedModel(many.model.endog, None, None, many.model.grouping.index % 20)
    ax = plots.missingness(twice, many.model.exog[:, 1])
    assert ax.collections[0].get_array().size == 20 * 6 and "more than once" in legend_texts(ax)


def test_missingness_in_continuous_time(many):
    """Groups from their first to their last row, those observed longest on top."""
    index = many.model.grouping.index % 20
    twenty = flc.LinearMixedModel(many.model.endog, None, None, index)
    times = np.random.default_rng(1).random(twenty.nobs)
    ax = plots.missingness(twenty, times)
    ends = [[segment[0][0], segment[1][0]] for segment in ax.collections[0].get_segments()]
    labels = [int(text.get_text()) for text in ax.get_yticklabels()]
    expected = [[times[index == label].min(), times[index == label].max()] for label in labels]
    np.testing.assert_allclose(ends, expected)
    assert sorted(labels) == list(range(20)) and np.all(np.diff([last for _, last in expected]) <= 0.0)
    marks = ax.lines[0].get_xydata()
    assert len(marks) == twenty.nobs
    np.testing.assert_array_equal(np.bincount(marks[:, 1].astype(int)), np.bincount(index)[labels])
    assert plots.missingness(many.model, np.arange(many.nobs)).get_ylabel().endswith("(150 of 700)")
    table = plots.missingness(twenty, times, data=True)
    assert all(len(column) == twenty.nobs for column in table.values())


# ---- inference -----------------------------------------------------------------------------------------------------


def test_profile_zeta():
    grid = np.linspace(0.5, 8.0, 61)
    profile = SimpleNamespace(names=("a", "b"), zeta=lambda name: (grid, (np.log(grid) - 1.0) * 2.0))
    axes = plots.profile_zeta(profile, level=0.9)
    assert [ax.get_xlabel() for ax in axes] == ["a", "b"]
    curve = max(axes[0].lines, key=lambda one: len(one.get_xdata()))
    at = np.isin(curve.get_xdata(), grid)
    np.testing.assert_allclose(curve.get_ydata()[at], (np.log(grid) - 1.0) * 2.0)
    marks = [one.get_xydata()[0] for one in axes[0].lines if one.get_marker() == "o"]
    expected = np.exp(1.0 + np.array([-1.0, 0.0, 1.0]) * ndtri(0.95) / 2.0)
    np.testing.assert_allclose([x for x, _ in marks], expected, rtol=1e-3)
    one = plots.profile_zeta(profile, "b", ax=plt.figure().add_subplot())
    assert one.get_xlabel() == "b"
    with pytest.raises(flc.LMMError, match="'c' is not there; choose of a, b"):
        plots.profile_zeta(profile, "c")
    with pytest.raises(flc.LMMError, match="name it"):
        plots.profile_zeta(profile, ax=plt.gca())


def test_profile_zeta_of_a_fit(sleep):
    profile = sleep.profile(["sigma"])
    ax = plots.profile_zeta(profile, ax=plt.figure().add_subplot())
    marks = [one.get_xydata()[0] for one in ax.lines if one.get_marker() == "o"]
    np.testing.assert_allclose(marks[1][0], sleep.model.fit(reml=False).sigma, rtol=0.01)


def test_bootstrap_density(sleep):
    boot = sleep.bootstrap(200, seed=3)
    axes = plots.bootstrap_density(boot)
    assert [ax.get_xlabel() for ax in axes] == list(boot.names)
    np.testing.assert_allclose(line(axes[1], "estimate").get_xdata(), sleep.params["Days"])
    curve = max(axes[1].lines, key=lambda one: len(one.get_xdata())).get_xydata()
    assert 0.9 < np.trapezoid(curve[:, 1], curve[:, 0]) <= 1.0
    span = next(patch for patch in axes[1].patches if patch.get_label() == "95 % interval")
    bounds = span.get_x(), span.get_x() + span.get_width()
    np.testing.assert_allclose(bounds, boot.conf_int().iloc[1], rtol=1e-9)
    ax = plots.bootstrap_density(boot, "sigma", ax=plt.figure().add_subplot())
    assert ax.get_xlabel() == "sigma"


def test_power_curve(sleep):
    curve = flc.power_curve(sleep, "Days", values=[3, 5, 9], effect=6.0, n_sim=60, seed=1)
    ax = plots.power_curve(curve, target=0.5)
    np.testing.assert_array_equal(line(ax, "power").get_xydata(), np.column_stack([curve.values, curve.power]))
    outline = ax.collections[0].get_paths()[0].vertices
    for value, low, high in zip(curve.values, curve.conf_low, curve.conf_high, strict=True):
        edge = outline[outline[:, 0] == value, 1]
        np.testing.assert_allclose([edge.min(), edge.max()], [low, high])
    assert (ax.get_xlabel(), ax.get_ylim()[0]) == ("number of subjects", 0.0)
    assert np.isnan(curve.target(0.5)) or f"0.5 at {curve.target(0.5):g} subjects" in legend_texts(ax)
    effects = flc.power_curve(sleep, "Days", along="effect", values=[-8.0, 0.0, 8.0], n_sim=40, seed=1)
    assert plots.power_curve(effects).get_xlabel() == "effect"


@pytest.mark.parametrize(("along", "label"), [("subjects", "number of subjects"), ("icc", "intraclass correlation")])
def test_legend_of_a_power_curve_is_within_the_picture(sleep, along, label):
    values = [4, 8, 12] if along == "subjects" else [0.3, 0.6, 0.9]
    ax = plots.power_curve(flc.power_curve(sleep, "Days", along=along, values=values, n_sim=60, seed=1), target=0.7)
    ax.figure.canvas.draw()
    box, whole = ax.get_legend().get_window_extent(), ax.figure.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1
    assert ax.get_xlabel() == label


def test_influence_plot():
    distance = np.array([0.01, 0.9, np.nan, 0.3, 0.02])
    found = SimpleNamespace(labels=np.array(["a", "b", "c", "d", "e"]), cooks_distance=distance)
    ax = plots.influence_plot(found, top=2)
    assert [text.get_text() for text in ax.texts] == ["b", "d"]
    assert legend_texts(ax) == ["4 / 5"]
    heights = np.sort(segments(ax)[:, 1, 1])
    np.testing.assert_allclose(heights[np.isfinite(heights)], [0.01, 0.02, 0.3, 0.9])


# ---- all of them ---------------------------------------------------------------------------------------------------


def test_axes_of_the_caller_are_used(sleep):
    _, (left, right) = plt.subplots(1, 2)
    for plot in (plots.trajectories, plots.caterpillar, plots.shrinkage, plots.marginal_variance):
        assert plot(sleep, ax=left) is left
    assert plots.missingness(sleep.model, ax=right) is right
    assert plots.qq(sleep, envelope=False, ax=right) is right
    assert len(plt.get_fignums()) == 1


def test_five_groups():
    data = flc.datasets.load("sleepstudy")
    result = flc.lmm("Reaction ~ Days + (Days | Subject)", data[data["Subject"] < "331.5"]).fit()
    assert len(result.group_labels) == 5
    for plot in (plots.trajectories, plots.caterpillar, plots.shrinkage, plots.residual_panels):
        plot(result)


def test_without_matplotlib(sleep, monkeypatch):
    import sys

    real = builtins.__import__
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setattr(builtins, "__import__", real)
    for plot in (plots.trajectories, plots.caterpillar, plots.shrinkage, plots.qq, plots.residual_panels):
        with pytest.raises(flc.LMMError, match=r"pip install 'fastlmm-core\[plot\]'"):
            plot(sleep)


# ---- several grouping factors --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["crossed", "nested"])
def several(request):
    if request.param == "crossed":
        return fits.fitted("diameter ~ 1 + (1 | plate) + (1 | sample)", "penicillin")
    return fits.fitted("score ~ Machine + (1 | Worker/Machine)", "machines")


def test_effects_of_each_factor(several):
    for term, factor in zip(several.model.term_names, several.model.factors, strict=True):
        b = np.sort(several.blups[several.model.factors.index(factor)][:, 0])
        ax = plots.caterpillar(several, term=term)
        drawn = np.sort(np.concatenate([one.get_xdata() for one in ax.lines if len(one.get_xdata()) > 2 or
                                        str(one.get_label()) in ("interval covers 0", "does not")]))  # fmt: skip
        np.testing.assert_allclose(drawn, b)
        assert ax.get_ylabel() == factor.grouping.name
        ax = plots.shrinkage(several, term=term)
        found = pooling(several, term)
        np.testing.assert_allclose(np.sort(line(ax, "own").get_xdata()), np.sort(found.no_pooling[:, 0]))
        np.testing.assert_allclose(np.sort(line(ax, "partially").get_xdata()), np.sort(found.partial_pooling[:, 0]))
        ax = plots.qq(several, "blups", term=term, n_sim=19)
        np.testing.assert_allclose(line(ax, "BLUPs").get_ydata(), b)
        assert ax.get_ylabel() == f"BLUP of Intercept ({factor.grouping.name})"
        influence = several.influence(by=factor.grouping.name)
        ax = plots.influence_plot(influence)
        assert [text.get_text() for text in ax.get_xticklabels()] == [str(a) for a in influence.labels] or len(b) > 30


def test_views_by_factor(several):
    names = [f.grouping.name for f in several.model.factors]
    codes = np.arange(several.nobs) % 3
    assert plots.residual_panels(several, factor=names[1])[1, 1].get_xlabel() == names[1]
    for name, factor in zip(names, several.model.factors, strict=True):
        ax = plots.missingness(several.model, codes, factor=name)
        assert ax.get_ylabel() == name
        shown = np.asarray(ax.collections[0].get_array()).reshape(len(factor.grouping.labels), 3)
        assert (shown > 0).sum() == len(set(zip(factor.grouping.index.tolist(), codes.tolist(), strict=True)))
    panels = plots.trajectories(several, codes, "panels", factor=names[1])
    assert len(panels) == len(several.model.factors[1].grouping.labels) == 6
    for call in (plots.residual_panels, lambda r, factor: plots.missingness(r.model, codes, factor=factor)):
        with pytest.raises(flc.LMMError, match="factor='x' is not a grouping factor: use '"):
            call(several, factor="x")


def test_groups_at_one_place_are_points(several):
    """A level all of whose rows have one x has no line to be seen."""
    places = several.model.factors[0].grouping.index.astype(float)
    ax = plots.trajectories(several, places)
    assert all(one.get_marker() == "o" for one in ax.lines if one.get_label() != "population")
