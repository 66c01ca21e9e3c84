"""Plots of predictions: curves are X beta by hand, bands its standard errors, points the rows of the data."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

import fastlmm_core as flc

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from fastlmm_core import plots  # noqa: E402
from fastlmm_core.formula.response_scale import back_transform  # noqa: E402


@pytest.fixture(scope="module")
def trial():
    rng = np.random.default_rng(1)
    m = 45
    g, week = np.repeat(np.arange(m), 4), np.tile([0.0, 1.0, 3.0, 7.0], m)
    arm = np.array(["drug", "control", "placebo"])[g % 3]
    sex, age = np.where(rng.random(m) < 0.4, "f", "m")[g], rng.normal(45.0, 10.0, m)[g]
    log = 1.0 + 0.05 * week * (arm == "drug") + 0.01 * age + 0.3 * rng.standard_normal(m)[g]
    log = log + 0.03 * rng.standard_normal(m)[g] * week + 0.2 * rng.standard_normal(4 * m)
    return pd.DataFrame({"id": g, "week": week, "arm": arm, "sex": sex, "age": age, "log": log, "y": np.exp(log)})


@pytest.fixture(scope="module")
def fit(trial):
    return flc.lmm("log ~ week * arm + sex + age + (week | id)", trial).fit()


def by_hand(fit, trial, week, arm, sex=None):
    """The row of X whose product with beta is the mean: age at its mean, sexes with equal weights."""
    names = list(fit.model.exog_names)
    row = dict.fromkeys(names, 0.0) | {"Intercept": 1.0, "week": week, "age": trial["age"].mean()}
    row["sex[T.m]"] = 0.5 if sex is None else float(sex == "m")
    if arm != "control":
        row |= {f"arm[T.{arm}]": 1.0, f"week:arm[T.{arm}]": week}
    return np.array([row[name] for name in names])


def test_curves_and_bands(fit, trial):
    ax = plots.effects(fit, "week", by="arm")
    lines = {text.get_text(): one for text, one in zip(ax.get_legend().get_texts(), ax.lines, strict=True)}
    assert list(lines) == ["control", "drug", "placebo"]
    table = plots.effects(fit, "week", by="arm", data=True)
    table = table[table["part"] == "prediction"]
    for arm, one in lines.items():
        x = one.get_xdata()
        assert (x[0], x[-1], len(x)) == (0.0, 7.0, 101)
        rows = np.array([by_hand(fit, trial, week, arm) for week in x])
        np.testing.assert_allclose(one.get_ydata(), rows @ fit.params, rtol=1e-10)
        mine = table[table["arm"] == arm]
        half = (mine["conf_high"] - mine["conf_low"]).to_numpy() / 2.0
        error = np.sqrt(np.einsum("ij,jk,ik->i", rows, fit.cov_params(), rows))
        df = [fit.test(row).row_df[0] for row in rows[[0, 50, 100]]]
        np.testing.assert_allclose(half[[0, 50, 100]], student.ppf(0.975, df) * error[[0, 50, 100]], rtol=1e-6)
        np.testing.assert_allclose(mine["estimate"], one.get_ydata())
    assert ax.get_ylabel() == "log"
    assert "Averaged over sex" in ax.get_xlabel() and "age = " in ax.get_xlabel()


def test_band_of_new_observations(fit, trial):
    table = plots.effects(fit, "week", by="arm", facet="sex", interval="prediction", points=None, data=True)
    assert list(table["sex"].unique()) == ["f", "m"]
    G = fit.G["id"]
    for at in (0, 100, 303, 500):
        row = table.iloc[at]
        x = by_hand(fit, trial, row["week"], row["arm"], row["sex"])
        z = np.array([1.0, row["week"]])
        total = x @ fit.cov_params() @ x + z @ G @ z + fit.sigma2
        half = (row["pred_high"] - row["pred_low"]) / 2.0
        df = fit.predict(trial.iloc[:1].assign(**row[["week", "arm", "sex"]], age=trial["age"].mean()),
                         interval="prediction")["df"].iloc[0]  # fmt: skip
        np.testing.assert_allclose(half, student.ppf(0.975, df) * np.sqrt(total), rtol=1e-8)
        assert row["pred_low"] < row["conf_low"] < row["estimate"] < row["conf_high"] < row["pred_high"]


def test_averaged_new_observations_have_the_mean_variance(fit):
    """Averaging sexes changes the error of the mean, and not what an observation has around it."""
    table = plots.effects(fit, "week", interval="prediction", at={"week": [0.0, 7.0]}, points=None, data=True)
    G = fit.G["id"]
    half = (table["pred_high"] - table["pred_low"]).to_numpy() / 2.0
    means = fit.emmeans("week", at={"week": [0.0, 7.0]})
    around = np.array([G[0, 0], G[0, 0] + 14.0 * G[0, 1] + 49.0 * G[1, 1]]) + fit.sigma2
    ratio = half / np.sqrt(means.std_error**2 + around)
    assert ((ratio > 1.96) & (ratio < 2.1)).all()


def test_points_are_the_data_or_partial_residuals(fit, trial):
    table = plots.effects(fit, "week", by="arm", data=True)
    points = table[table["part"] == "data"]
    np.testing.assert_array_equal(points["week"], trial["week"])
    np.testing.assert_array_equal(points["arm"], trial["arm"])
    np.testing.assert_allclose(points["observed"], trial["log"], rtol=1e-12)
    table = plots.effects(fit, "week", by="arm", points="residuals", data=True)
    points = table[table["part"] == "residuals"]
    mean = [by_hand(fit, trial, *row) @ fit.params for row in zip(trial["week"], trial["arm"], strict=True)]
    np.testing.assert_allclose(points["observed"], mean + fit.resid.to_numpy(), rtol=1e-10)
    ax = plots.effects(fit, "week", by="arm")
    drawn = np.concatenate([c.get_offsets() for c in ax.collections if len(c.get_offsets()) == 60])
    expected = trial[["week", "log"]].to_numpy()
    np.testing.assert_allclose(sorted(map(tuple, drawn)), sorted(map(tuple, expected)))
    some = plots.effects(fit, "week", by="arm", at={"arm": ["drug"]}, data=True)
    assert set(some["arm"]) == {"drug"} and (some["part"] == "data").sum() == 60


def test_axes_of_factors_have_levels(fit, trial):
    ax = plots.effects(fit, "arm", by="sex", points="residuals")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["control", "drug", "placebo"]
    means = fit.emmeans(["arm", "sex"])
    for sex, one in zip(("f", "m"), ax.lines, strict=True):
        mine = np.array(means.labels["sex"]) == sex
        np.testing.assert_allclose(one.get_ydata(), means.estimate[mine])
        assert np.abs(one.get_xdata() - np.arange(3)).max() < 0.3
    table = plots.effects(fit, "arm", points="residuals", data=True)
    points = table[table["part"] == "residuals"]
    expected = [by_hand(fit, trial, trial["week"].mean(), arm) @ fit.params for arm in trial["arm"]]
    np.testing.assert_allclose(points["observed"], expected + fit.resid.to_numpy(), rtol=1e-10)


def test_responses_are_drawn_on_their_own_scale(fit, trial):
    logged = flc.lmm("np.log(y) ~ week * arm + sex + age + (week | id)", trial).fit()
    same = plots.effects(fit, "week", by="arm", interval="prediction", data=True)
    back = plots.effects(logged, "week", by="arm", interval="prediction", data=True)
    for name in ("estimate", "conf_low", "pred_high", "observed"):
        np.testing.assert_allclose(back[name], np.exp(same[name]), rtol=1e-6)
    assert plots.effects(logged, "week").get_ylabel() == "y (median)"
    left = plots.effects(logged, "week", transform="none")
    assert left.get_ylabel() == "np.log(y)"
    np.testing.assert_allclose(left.lines[0].get_ydata(), plots.effects(fit, "week").lines[0].get_ydata(), rtol=1e-6)


@pytest.mark.parametrize(
    ("response", "name", "value"),
    [("log(y)", "y", np.e), ("np.log10(rt)", "rt", 10.0), ("log1p(n)", "n", np.e - 1.0), ("sqrt(a+b)", "a + b", 1.0)],
)
def test_inverses(response, name, value):
    found = back_transform(response)
    assert found is not None
    assert (found[0], float(found[1](1.0))) == (name, pytest.approx(value))
    assert back_transform("log(a) - log(b)") is None and back_transform("y") is None


def test_numeric_colours_and_offset(trial):
    known = 3.0 * np.random.default_rng(2).random(len(trial))
    model = flc.lmm("y ~ week * age + (1 | id)", trial.assign(y=trial["log"] + known), offset=known)
    table = plots.effects(model.fit(), "week", by="age", data=True)
    mean, sd = trial["age"].mean(), trial["age"].std()
    lines = table[table["part"] == "prediction"]
    np.testing.assert_allclose(lines["age"].unique(), [mean - sd, mean, mean + sd])
    points = table[table["part"] == "data"]
    np.testing.assert_allclose(points["observed"], trial["log"] + known.mean())
    nearest = np.array([mean - sd, mean, mean + sd])[
        np.abs(trial["age"].to_numpy()[:, None] - [mean - sd, mean, mean + sd]).argmin(axis=1)
    ]
    np.testing.assert_allclose(points["age"].astype(float), nearest)


def test_splines_take_their_data_from_the_table_of_the_model(trial):
    curved = flc.lmm("log ~ bs(age, df=4) + arm + (1 | id)", trial).fit()
    for points, expected in (("data", trial["age"]), ("residuals", trial["age"])):
        table = plots.effects(curved, "age", points=points, data=True)
        np.testing.assert_array_equal(table[table["part"] == points]["age"], expected)
    # one from a pickle has lost it
    lost = pickle.loads(pickle.dumps(curved))
    assert "part" not in plots.effects(lost, "age", data=True).columns
    with pytest.raises(flc.LMMError, match="frame=data"):
        plots.effects(lost, "age", points="residuals")
    table = plots.effects(lost, "age", frame=trial, data=True)
    np.testing.assert_array_equal(table[table["part"] == "data"]["age"], trial["age"])


def test_other_codings_and_missing_rows(trial):
    holes = trial.copy()
    holes.loc[[3, 50], "log"] = np.nan
    fit = flc.lmm("log ~ C(arm, contr.sum) * week + (1 | id)", holes).fit()
    table = plots.effects(fit, "week", by="arm", data=True)
    kept = holes.dropna()
    np.testing.assert_array_equal(table[table["part"] == "data"]["arm"], kept["arm"])


def test_what_cannot_be_drawn(fit, trial):
    with pytest.raises(flc.LMMError, match="by='id' is not a variable of the fixed part, which uses 'week'"):
        plots.effects(fit, "week", by="id")
    with pytest.raises(flc.LMMError, match="different variables"):
        plots.effects(fit, "week", by="week")
    with pytest.raises(flc.LMMError, match="leave ax out"):
        plots.effects(fit, "week", facet="arm", ax=plt.gca())
    with pytest.raises(flc.LMMError, match="select some by at="):
        plots.effects(fit, "arm", by="week", at={"week": list(range(9))})
    arrays = flc.LinearMixedModel(trial["log"].to_numpy(), None, None, trial["id"].to_numpy()).fit()
    with pytest.raises(flc.LMMError, match="from a formula"):
        plots.effects(arrays, "week")


def test_many_groups_and_a_facet_each(fit):
    axes = plots.effects(fit, "week", facet="arm")
    assert [ax.get_title() for ax in axes] == ["arm = control", "arm = drug", "arm = placebo"]
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(2000), 3)
    big = pd.DataFrame({"g": g, "x": rng.random(6000), "y": rng.standard_normal(2000)[g] + rng.standard_normal(6000)})
    table = plots.effects(flc.lmm("y ~ x + (1 | g)", big).fit(), "x", data=True)
    assert (table["part"] == "data").sum() == 3000


def test_intervals_of_hardly_any_degrees_of_freedom_leave_the_picture():
    rng = np.random.default_rng(2)
    g, week = np.repeat(np.arange(5), 6), np.tile(np.arange(6) * 2.0, 5)
    b = rng.standard_normal((5, 2)) * [2.0, 0.4]
    arm = np.array(["placebo", "low", "high"])[g % 3]
    y = 20.0 + b[g, 0] + (b[g, 1] - 0.3 * (g % 3)) * week + rng.standard_normal(30)
    data = {"y": y, "week": week, "arm": arm, "g": g, "site": np.array(["North", "South"])[(g // 3) % 2]}
    fit = flc.lmm("y ~ arm * week + site + (week | g)", data).fit()
    drawn = plots.effects(fit, "week", by="arm", data=True)
    assert np.nanmax(np.asarray(drawn["conf_high"], dtype=float)) > 10.0 * np.ptp(y)
    ax = plots.effects(fit, "week", by="arm")
    low, high = ax.get_ylim()
    assert low <= y.min() and high >= y.max() and high - low <= 4.0 * np.ptp(y)
    assert "Intervals leave the picture." in ax.get_xlabel()
    plt.close("all")
