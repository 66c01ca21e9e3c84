"""Group means: plain functions, in formulas, on new data, and the contextual effect."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import fits
from fastlmm_core.diagnostics.context import contextual_effect
from fastlmm_core.formula.group_means import between, group_mean, within

FORMULA = "y ~ within(x, g) + between(x, g) + (1 | g)"


@pytest.fixture(scope="module")
def data():
    """A covariate with the effects 2 within groups and 5 between them, groups of 2 to 8 rows in any order."""
    rng = np.random.default_rng(7)
    g = rng.permutation(np.repeat(np.arange(60), rng.integers(2, 9, 60)))
    n = len(g)
    x = rng.standard_normal(60)[g] + rng.standard_normal(n)
    z = rng.standard_normal(n) + 0.5 * rng.standard_normal(60)[g]
    mean = pd.Series(x).groupby(g).transform("mean").to_numpy()
    y = 1.0 + 2.0 * (x - mean) + 5.0 * mean + z + rng.standard_normal(60)[g] + rng.standard_normal(n)
    site = np.where(g % 3 == 0, "a", "b")
    return pd.DataFrame({"y": y, "x": x, "z": z, "g": [f"s{i}" for i in g], "k": g, "site": site})


# ---- arrays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["g", "k"])
def test_means_of_groups(data, group):
    expected = data.groupby(group)["x"].transform("mean").to_numpy()
    np.testing.assert_allclose(group_mean(data["x"], data[group]), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(between(data["x"], data[group]), group_mean(data["x"], data[group]))
    np.testing.assert_allclose(within(data["x"], data[group]), data["x"] - expected, atol=1e-15)


def test_groups_by_several_columns(data):
    half = np.arange(len(data)) % 2
    expected = data.groupby([data["site"], half])["x"].transform("mean")
    np.testing.assert_allclose(group_mean(data["x"], data["site"], half), expected, rtol=1e-13)


def test_a_large_offset_costs_no_digits():
    rng = np.random.default_rng(1)
    g = rng.integers(0, 50, 20_000)
    x = rng.integers(-512, 512, 20_000) / 8.0
    expected = within(x, g)
    np.testing.assert_allclose(within(x + 2.0**40, g), expected, atol=2.0**-12)
    np.testing.assert_array_equal(within(np.full(9, 0.1), np.arange(9) % 3), np.zeros(9))


def test_groups_that_cannot_be_used():
    with pytest.raises(flc.LMMError, match="groups are missing"):
        within([1.0, 2.0])
    with pytest.raises(flc.LMMError, match="2 values"):
        between([1.0, 2.0], ["a", "b", "c"])
    with pytest.raises(flc.LMMError, match="no label in row 1"):
        between([1.0, 2.0], np.array(["a", None], dtype=object))
    with pytest.raises(flc.LMMError, match="numbers"):
        between(["u", "v"], ["a", "b"])


# ---- formulas ------------------------------------------------------------------------------------------------------


def test_the_design_of_a_formula(data):
    model = flc.lmm("y ~ within(x, g) + between(x, g) + (within(x, g) | g)", data)
    assert model.exog_names == ("Intercept", "within(x, g)", "between(x, g)")
    means = data.groupby("g")["x"].transform("mean")
    np.testing.assert_allclose(model.exog, np.column_stack([np.ones(len(data)), data["x"] - means, means]), atol=1e-14)
    np.testing.assert_array_equal(model.exog_re, model.exog[:, :2])


def test_reparametrisation_changes_nothing(data):
    """within + between and x + between are the same model, by ML and in the fitted values."""
    one = flc.lmm(FORMULA, data).fit(reml=False)
    other = flc.lmm("y ~ x + between(x, g) + (1 | g)", data).fit(reml=False)
    np.testing.assert_allclose(one.criterion, other.criterion, rtol=1e-12)
    np.testing.assert_allclose(one.fittedvalues, other.fittedvalues, rtol=1e-10)
    a, b = one.params.to_numpy(), other.params.to_numpy()
    np.testing.assert_allclose([a[1], a[2] - a[1]], b[1:], rtol=1e-9)


def test_the_within_effect_is_that_of_fixed_intercepts(data):
    """Mundlak 1978: with the group mean in the model GLS within groups is least squares with a dummy per group."""
    found = flc.lmm("y ~ x + between(x, g) + (1 | g)", data).fit().params["x"]
    x, y = (within(data[name], data["g"]) for name in ("x", "y"))
    np.testing.assert_allclose(found, (x @ y) / (x @ x), rtol=1e-9)


@pytest.mark.parametrize("group", ["g", "k"])
def test_new_data(data, group):
    model = flc.lmm(FORMULA.replace("g)", f"{group})"), data)
    known = data[group].iloc[0]
    mean = data.loc[data[group] == known, "x"].mean()
    other = "new" if group == "g" else 999
    new = pd.DataFrame({"x": [0.0, 10.0, 1.0, 2.0], group: [known, known, other, other]})
    expected = [[1.0, -mean, mean], [1.0, 10.0 - mean, mean], [1.0, -0.5, 1.5], [1.0, 0.5, 1.5]]
    np.testing.assert_allclose(model.spec.fixed(new), expected, rtol=1e-13)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(model)).spec.fixed(new), expected, rtol=1e-13)
    result = model.fit()
    again = result.predict(data, effects="all")
    np.testing.assert_allclose(again, result.fittedvalues, rtol=1e-12)
    shuffled = data.sample(frac=0.3, random_state=1)
    np.testing.assert_allclose(result.predict(shuffled, effects="all"), result.fittedvalues[shuffled.index], rtol=1e-12)


@pytest.mark.parametrize("library", ["polars", "pyarrow", "dict"])
def test_every_library(data, library):
    expected = flc.lmm(FORMULA, data).fit()
    columns = {name: data[name].to_numpy() for name in ("y", "x", "g")}
    if library == "dict":
        table = columns
    else:
        module = pytest.importorskip(library)
        columns["g"] = columns["g"].tolist()
        table = module.table(columns) if library == "pyarrow" else module.DataFrame(columns)
    found = flc.lmm(FORMULA, table).fit()
    np.testing.assert_allclose(list(found.params.values()), expected.params.to_numpy(), rtol=1e-10)


def test_categories_and_missing_values(data):
    expected = flc.lmm(FORMULA, data.iloc[5:]).fit().params
    gaps = data.assign(g=data["g"].astype("category"))
    gaps.loc[gaps.index[:3], "x"] = np.nan
    gaps.loc[gaps.index[3:5], "g"] = None
    model = flc.lmm(FORMULA, gaps)
    assert model.n_dropped == 5
    np.testing.assert_allclose(model.fit().params, expected, rtol=1e-10)


# ---- contextual effects --------------------------------------------------------------------------------------------


def test_contextual_effect(data):
    result = flc.lmm("y ~ x + z + (1 | g)", data).fit()
    found = contextual_effect(result, "x")
    larger = flc.lmm("y ~ x + z + between(x, g) + (1 | g)", data).fit()
    np.testing.assert_allclose(found.estimate, larger.params["between(x, g)"], rtol=1e-8)
    np.testing.assert_allclose(found.std_error, larger.bse["between(x, g)"], rtol=1e-8)
    np.testing.assert_allclose(found.within, larger.params["x"], rtol=1e-8)
    separate = flc.lmm("y ~ within(x, g) + z + between(x, g) + (1 | g)", data).fit()
    np.testing.assert_allclose(found.between, separate.params["between(x, g)"], rtol=1e-8)
    assert found.names == ("x",) and found.pvalues[0] < 1e-6
    assert 40.0 < found.df[0] < 80.0  # a comparison between 60 groups
    assert found.result.reml and found.result.criterion < result.criterion
    frame = found.to_frame()
    assert list(frame.columns) == ["term", "within", "between", "contextual", "std_error", "df", "p_value"]
    shown = [f"{value[0]:.4g}" for value in (found.within, found.between, found.estimate)]
    assert repr(found).splitlines()[3].split()[:4] == ["x", *shown]


def test_all_covariates_together(data):
    result = flc.lmm("y ~ x + z + site + (1 | g)", data).fit()
    found = contextual_effect(result)
    assert found.names == ("x", "z")  # site is constant within groups
    assert found.pvalues[0] < 1e-6 < found.pvalues[1]
    wald = found.estimate @ np.linalg.solve(found.result.cov[-2:, -2:], found.estimate)
    np.testing.assert_allclose(found.test.statistic, wald / 2.0, rtol=1e-6)
    normal = contextual_effect(result, ddf="normal")
    np.testing.assert_allclose(normal.test.statistic, wald, rtol=1e-10)
    assert np.isinf(normal.df).all()


def test_weights_weigh_the_means(data):
    rng = np.random.default_rng(2)
    w = rng.uniform(0.5, 2.0, len(data))
    result = flc.lmm("y ~ x + (1 | g)", data, weights=w).fit()
    found = contextual_effect(result, "x")
    dummies = pd.get_dummies(data["g"], dtype=float).to_numpy()
    X = np.column_stack([data["x"], dummies]) * np.sqrt(w)[:, None]
    expected = np.linalg.lstsq(X, data["y"] * np.sqrt(w), rcond=None)[0][0]
    np.testing.assert_allclose(found.within, expected, rtol=1e-9)


def test_covariates_without_two_effects(data):
    balanced = fits.fitted("Reaction ~ Days + (1 | Subject)", "sleepstudy")
    with pytest.raises(flc.LMMError, match="'Days' is of the same mean in every group"):
        contextual_effect(balanced, "Days")
    with pytest.raises(flc.LMMError, match="no column of X varies both"):
        contextual_effect(balanced)
    result = flc.lmm("y ~ x + site + (1 | g)", data).fit()
    with pytest.raises(flc.LMMError, match="constant within groups"):
        contextual_effect(result, "site[T.b]")
    with pytest.raises(flc.LMMError, match=r"'w' is not a column of X; choose of Intercept, x"):
        contextual_effect(result, "w")
    with pytest.raises(flc.LMMError, match="group means already"):
        contextual_effect(flc.lmm("y ~ x + between(x, g) + (1 | g)", data).fit(), "x")
    # boys and girls of the same ages: the mean of age times sex is sex times a constant
    ortho = fits.fitted("distance ~ age * Sex + (age | Subject)", "orthodont")
    with pytest.raises(flc.LMMError, match=r"no column of X varies both .* in a way that the other columns do not"):
        contextual_effect(ortho)
    with pytest.raises(flc.LMMError, match=r"means of 'age:Sex\[T.Male\]' over levels of 'Subject' are combinations"):
        contextual_effect(ortho, "age:Sex[T.Male]")
    with pytest.raises(flc.LMMError, match="not a grouping factor"):
        contextual_effect(result, "x", factor="school")


def test_units_and_origin_do_not_matter(data):
    far = data.assign(x=data["x"] * 1e-6 + 7e3)
    one = contextual_effect(flc.lmm("y ~ x + (1 | g)", data).fit(), "x")
    other = contextual_effect(flc.lmm("y ~ x + (1 | g)", far).fit(), "x")
    np.testing.assert_allclose(other.estimate * 1e-6, one.estimate, rtol=1e-4)
    np.testing.assert_allclose(other.pvalues, one.pvalues, rtol=1e-2)
