"""What is told of a model from its sums alone is what is told of it from its rows; the rest is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from streamed import FORMULA, close, cut, same_bits, simulated


@pytest.fixture(scope="module")
def data():
    return simulated(4000).assign(o=lambda d: 0.1 * d["x"], w=lambda d: 1.0 + d["x"] / 40.0)


@pytest.fixture(scope="module")
def fits(data):
    formula = "y ~ arm * z + x + (x | g)"
    return flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(cut(data, 700))).fit()


def test_the_summary_is_the_same(fits):
    one, other = fits
    assert str(other.summary()) == str(one.summary())
    assert "4000" in repr(other.model)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual"])
def test_tests(fits, ddf):
    one, other = fits
    a, b = one.test("arm[T.b] = arm[T.c] = 0", ddf=ddf), other.test("arm[T.b] = arm[T.c] = 0", ddf=ddf)
    np.testing.assert_allclose([b.statistic, b.pvalue], [a.statistic, a.pvalue], rtol=1e-8)
    np.testing.assert_allclose(other.conf_int(ddf=ddf), one.conf_int(ddf=ddf), rtol=1e-8)


@pytest.mark.parametrize("type", ["I", "II", "III"])
def test_anova(fits, type):
    one, other = (fit.anova(type=type).to_frame() for fit in fits)
    for name in one:
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(other[name], one[name], rtol=1e-7)


def test_marginal_means_and_profiles(fits):
    one, other = fits
    a, b = one.emmeans("arm"), other.emmeans("arm")
    np.testing.assert_allclose(b.estimate, a.estimate, rtol=1e-10)
    np.testing.assert_allclose(b.std_error, a.std_error, rtol=1e-8)
    a, b = one.profile().to_frame(), other.profile().to_frame()
    for name in a.select_dtypes(float):
        np.testing.assert_allclose(b[name], a[name], rtol=1e-6, atol=1e-8)
    a, b = one.variance_components(), other.variance_components()
    np.testing.assert_allclose(b.std_error, a.std_error, rtol=1e-7)


def test_explained_variance(fits):
    one, other = fits
    assert other.icc() == pytest.approx(one.icc(), rel=1e-10)
    assert other.r2() == pytest.approx(one.r2(), rel=1e-10)


def test_random_effects_and_new_rows(fits, data):
    one, other = fits
    np.testing.assert_allclose(other.random_effects["g"], one.random_effects["g"], rtol=1e-8)
    new = data.iloc[100:130]
    for effects in ("all", "population"):
        np.testing.assert_allclose(
            np.asarray(other.predict(new, effects=effects)), np.asarray(one.predict(new, effects=effects)), rtol=1e-9
        )


def test_the_criterion_anywhere(fits):
    one, other = fits
    theta = np.array([0.5, 0.1, 0.4])
    a, b = one.model.evaluate(theta, order=2), other.model.evaluate(theta, order=2)
    assert a.value == b.value
    np.testing.assert_array_equal(a.hessian, b.hessian)


def test_an_offset_and_weights(data):
    one = flc.lmm("y ~ arm + (1 | g)", data, weights="w", offset="o").fit()
    other = flc.lmm("y ~ arm + (1 | g)", flc.scan(cut(data, 700)), weights="w", offset="o").fit()
    np.testing.assert_allclose(other.emmeans("arm").estimate, one.emmeans("arm").estimate, rtol=1e-10)
    text = str(other.summary())
    assert "weighted" in text and "with offset" in text and "R2" not in text
    with pytest.raises(flc.LMMError, match="without the weights"):
        other.r2()


def test_dropped_columns(data):
    data = data.assign(v=2.0 * data["x"] - data["z"])
    formula = "y ~ x + z + v + arm + (1 | g)"
    one, other = flc.lmm(formula, data).fit(), flc.lmm(formula, flc.scan(cut(data, 700))).fit()
    for type in ("I", "II"):
        a, b = one.anova(type=type).to_frame(), other.anova(type=type).to_frame()
        np.testing.assert_allclose(b["statistic"], a["statistic"], rtol=1e-6)
    with pytest.raises(flc.LMMError, match="not estimable"):
        other.test("v")


def test_the_fit_by_maximum_likelihood_travels(data):
    model = flc.lmm(FORMULA, flc.scan(cut(data, 700)))
    close(model.fit(reml=False), flc.lmm(FORMULA, data).fit(reml=False))
    result = model.fit()
    same_bits(result, pickle.loads(pickle.dumps(result)))


@pytest.mark.parametrize(
    "use",
    [
        lambda r: r.resid, lambda r: r.fittedvalues, lambda r: r.model.exog, lambda r: r.model.exog_re,
        lambda r: r.model.endog, lambda r: r.model.weights, lambda r: r.model.rows_used, lambda r: r.predict(),
        lambda r: r.model.refit(np.zeros(4000)), lambda r: r.model.factors[0].grouping.index,
        lambda r: r.bootstrap(5, kind="cases", seed=1), lambda r: r.influence("observation")
    ],
)  # fmt: skip
def test_what_needs_rows_says_what_to_do(fits, use):
    with pytest.raises(
        flc.LMMError, match=r"rows of this model were read in pieces and summed, not held; result\.augment\(source\)"
    ):
        use(fits[1])


def test_arguments_that_need_rows(data):
    for wrong in ({"residual": "ar1(z | g)"}, {"variance": "power(x)"}):
        with pytest.raises(
            flc.LMMError, match=r"needs the rows, which a scan does not hold; fit a table .* power\(\) takes"
        ):
            flc.lmm(FORMULA, flc.scan(data), **wrong)
    with pytest.raises(flc.LMMError, match="the name of a column"):
        flc.lmm(FORMULA, flc.scan(data), weights=np.ones(4000))
    with pytest.raises(flc.LMMError, match="one level"):
        flc.lmm("y ~ x + (1 | g)", flc.scan(data.assign(g=1)))


def test_fitted_values_piece_by_piece(tmp_path, data):
    data = data.assign(extra=np.arange(len(data)))
    data.loc[[5, 900], "y"] = np.nan
    one = flc.lmm(FORMULA, data, offset="o").fit()
    parts = cut(data, 700)
    parts.insert(3, data.iloc[:3].assign(y=np.nan))
    other = flc.lmm(FORMULA, flc.scan(parts), offset="o").fit()
    assert other.augment(parts, tmp_path / "out.parquet") is None
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert len(found) == len(data) + 3 and found["extra"].iloc[-1] == len(data) - 1
    assert found["fitted"].isna().sum() == 5 and list(np.flatnonzero(found["resid"].isna())[:1]) == [5]
    complete = found.dropna()
    np.testing.assert_allclose(complete["fitted"], one.fittedvalues, rtol=1e-9)
    np.testing.assert_allclose(complete["resid"], one.resid, rtol=0, atol=1e-9)
    np.testing.assert_allclose(complete["fitted_population"], one.model.endog - one.marginal_rest, rtol=1e-9)
    tables = list(other.augment(parts, prefix="."))
    assert sum(table.num_rows for table in tables) == len(found) and ".resid" in tables[0].schema.names
    with pytest.raises(flc.LMMError, match="has the level -1 of 'g', which the fit does not know"):
        list(other.augment(data.assign(g=-1)))
    with pytest.raises(flc.LMMError, match="a column 'fitted' already"):
        list(other.augment(data.assign(fitted=1.0)))
    with pytest.raises(flc.LMMError, match="rows of this model were read in pieces"):
        other.augment()
    with pytest.raises(flc.LMMError, match="path is for rows that are not held"):
        one.augment(data, tmp_path / "x.parquet")


PAIRS = [
    ("y ~ x + (1 | g)", "y ~ x + z + (1 | g)"), ("y ~ x + z + (1 | g)", "y ~ x + z + (x | g)"),
    ("y ~ x + (x || g)", "y ~ x + (x | g)"), ("y ~ arm + (1 | g)", "y ~ arm * z + (z | g)"),
    ("y ~ x + (1 | g)", "y ~ x + (1 | g) + (1 | arm)"),
]  # fmt: skip


@pytest.mark.parametrize(("small", "large"), PAIRS)
@pytest.mark.parametrize("reml", [True, False])
def test_comparisons(data, small, large, reml):
    one = flc.compare(*(flc.lmm(f, data).fit(reml=reml) for f in (small, large)))
    other = flc.compare(*(flc.lmm(f, flc.scan(cut(data, 700))).fit(reml=reml) for f in (small, large)))
    for a, b in zip(one.rows, other.rows, strict=True):
        np.testing.assert_allclose([b.deviance, b.aic], [a.deviance, a.aic], rtol=1e-10)
        assert b.null == a.null
        assert (b.df, b.pvalue is None) == (a.df, a.pvalue is None)
        if a.pvalue is not None:
            np.testing.assert_allclose([b.statistic, b.pvalue], [a.statistic, a.pvalue], rtol=1e-6, atol=1e-8)


def test_what_cannot_be_compared(data):
    fit = flc.lmm("y ~ x + (1 | g)", flc.scan(data)).fit()
    changed = data["y"].to_numpy().copy()
    changed[7] += 3.0
    for wrong, words in (
        ({"data": flc.scan(data.assign(y=changed))}, "differ in the response"),
        ({"data": flc.scan(data.assign(y=data["y"] + 100.0))}, "differ in the response"),
        ({"data": flc.scan(data), "weights": "w"}, "differ in the weights"),
        ({"data": flc.scan(data), "offset": "o"}, "differ in the offset"),
        ({"data": data}, "rows are held by one of them only"),
        ({"data": flc.scan(data.iloc[1:])}, "use 4000 and 3999 observations"),
    ):
        with pytest.raises(flc.LMMError, match=words):
            flc.compare(fit, flc.lmm("y ~ x + z + (1 | g)", **wrong).fit())
    other = flc.lmm("y ~ z + (1 | g)", flc.scan(data)).fit(reml=False)
    assert (
        "not nested"
        in flc.compare(flc.lmm("y ~ x + arm + (1 | g)", flc.scan(data)).fit(reml=False), other).rows[1].null
    )


def test_a_client_without_dask(data):
    for source in (data, flc.scan(data)):
        with pytest.raises(flc.LMMError, match="client is for a data frame of Dask"):
            flc.lmm("y ~ x + (1 | g)", source, client=object())


def test_what_fits_other_models_says_how_to_compare_them():
    fit = flc.lmm(FORMULA, flc.scan([simulated()])).fit()
    for use, name in (
        (fit.random_effect_test, "random_effect_test"), (fit.step, "step"), (fit.simplify, "simplify"),
    ):  # fmt: skip
        with pytest.raises(flc.LMMError, match=rf"^{name}\(\) fits models of other columns.*compare\(\) the results"):
            use()
    with pytest.raises(flc.LMMError, match=r"save\(\) writes the rows.*pickle the result"):
        fit.save("nowhere.flc")
    with pytest.raises(flc.LMMError, match="data is missing: the rows of this model were read in pieces"):
        fit.update(". ~ . - z")
    other = fit.update(". ~ . - z", flc.scan([simulated()]))
    assert other.criterion == flc.lmm("y ~ x + (x | g)", flc.scan([simulated()])).fit().criterion
