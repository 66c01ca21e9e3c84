"""Responses with observations, weights, an offset or covariates of their own: every one is the single fit."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.estimation.many import masks

# Both searches end within 4e-9 of a standard error of theta; coefficients are flat there, variances are not.
AGREE, VARIANCES = 1e-8, 3e-7


@pytest.fixture
def arrays(rng):
    """X, Z, groups, and twelve responses."""
    groups = np.repeat(np.arange(14), 6)
    n = len(groups)
    age = rng.uniform(20.0, 60.0, n)
    X = np.column_stack([np.ones(n), age])
    Z = np.column_stack([np.ones(n), (age - 40.0) / 10.0])
    b = rng.standard_normal((12, 14, 2))
    Y = 0.1 * age + np.einsum("rij,ij->ri", b[:, groups], Z) + rng.standard_normal((12, n))
    return X, Z, groups, Y


def same(batch, i, one):
    """Response i of a batch is a single fit."""
    kept = ~np.isnan(one.params)
    np.testing.assert_array_equal(np.isnan(batch.params[i]), ~kept)
    np.testing.assert_allclose(batch.params[i, kept], one.params[kept], rtol=0.0, atol=AGREE * np.nanmax(one.bse))
    np.testing.assert_allclose(batch.bse[i, kept], one.bse[kept], rtol=VARIANCES)
    np.testing.assert_allclose(batch.df[i, kept], one.df[kept], rtol=1e-5)
    assert batch.sigma2[i] == pytest.approx(one.sigma2, rel=VARIANCES)
    assert batch.criterion[i] == pytest.approx(one.criterion, rel=1e-10)
    assert batch.nobs[i] == one.nobs
    assert batch.n_groups[i] == one.n_groups["group"]


@pytest.mark.parametrize("reml", [True, False])
def test_weights_offset_and_covariates(rng, arrays, reml):
    X, Z, groups, Y = arrays
    W, shift, C = rng.uniform(0.2, 3.0, Y.shape), rng.standard_normal(Y.shape), rng.standard_normal(Y.shape)
    Y += 0.5 * C
    C[3] = 0.0
    model = flc.LinearMixedModel(Y[0], X, Z, groups, exog_names=["one", "age"])
    batch = model.fit_many(Y, reml, weights=W, offset=shift, covariates={"gm": C, "gm:age": C})
    assert batch.exog_names == ("one", "age", "gm", "gm:age")
    # single fits would hide what the lanes take wrongly
    assert batch.by_lanes.all()
    joint = batch.test(["gm = 0", "gm:age = 0"])
    for i in range(12):
        wide = np.column_stack([X, C[i], C[i] * X[:, 1]])
        one = flc.LinearMixedModel(Y[i], wide, Z, groups, weights=W[i], offset=shift[i]).fit(reml)
        same(batch, i, one)
        assert batch[i].criterion == pytest.approx(one.criterion, rel=1e-12)
        if i != 3:
            assert joint.pvalues[i] == pytest.approx(one.test(["x2 = 0", "x3 = 0"]).pvalue, rel=1e-5)
    assert np.isnan(joint.pvalues[3])
    assert np.isnan(batch.params[3, 2:]).all()


def test_missing_values_of_any_of_them(rng, arrays):
    X, Z, groups, Y = arrays
    W, C = rng.uniform(0.2, 3.0, Y.shape), rng.standard_normal(Y.shape)
    for values in (Y, W, C):
        values[rng.uniform(size=Y.shape) < 0.08] = np.nan
    Y[4, groups == 3] = np.nan
    model = flc.LinearMixedModel(np.nan_to_num(Y[0]), X, Z, groups)
    batch = model.fit_many(Y, missing="drop", weights=W, covariates={"gm": C})
    assert batch.by_lanes.all()
    for i in range(12):
        at = ~np.isnan(Y[i] + W[i] + C[i])
        wide = np.column_stack([X, C[i]])[at]
        same(batch, i, flc.LinearMixedModel(Y[i, at], wide, Z[at], groups[at], weights=W[i, at]).fit())

    def masked(values):
        return np.ma.array(np.nan_to_num(values, nan=1.0), mask=np.isnan(values))

    again = model.fit_many(masked(Y), missing="drop", weights=masked(W), covariates={"gm": masked(C)})
    np.testing.assert_array_equal(again.criterion, batch.criterion)
    with pytest.raises(flc.LMMError, match=r"weights is nan at response \d+, observation \d+: give finite"):
        model.fit_many(Y, weights=W)


def test_those_of_the_model_hold_where_none_are_given(rng, arrays):
    X, Z, groups, Y = arrays
    w, o = rng.uniform(0.2, 3.0, len(groups)), rng.standard_normal(len(groups))
    C = rng.standard_normal(len(groups))
    model = flc.LinearMixedModel(Y[0], X, Z, groups, weights=w, offset=o)
    batch = model.fit_many(Y, covariates={"gm": C})
    for i in range(0, 12, 3):
        same(batch, i, flc.LinearMixedModel(Y[i], np.column_stack([X, C]), Z, groups, weights=w, offset=o).fit())


def test_results_with_and_without_weights_are_joined(rng, arrays):
    """Weights that one of them lacks are one, and an offset is zero."""
    X, Z, groups, Y = arrays
    W, shift = rng.uniform(0.2, 3.0, Y.shape), rng.standard_normal(Y.shape)
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    parts = model.fit_many(Y[:2], weights=W[:2]), model.fit_many(Y[2:4], offset=shift[2:4])
    joined = type(parts[0]).concat(parts)
    for i, given in ((1, {"weights": W[1]}), (3, {"offset": shift[3]})):
        one = flc.LinearMixedModel(Y[i], X, Z, groups, **given).fit()
        same(joined, i, one)
        # made once more from the rows
        assert joined[i].criterion == pytest.approx(one.criterion, rel=1e-12)


def test_rows_of_some_of_the_responses(rng, arrays):
    X, Z, groups, Y = arrays
    W, C = rng.uniform(0.2, 3.0, Y.shape), rng.standard_normal(Y.shape)
    Y[1, 5], W[1, 7], C[3, 40], C[1, 5], C[0, :60] = np.nan, np.nan, np.nan, np.nan, np.nan
    model = flc.LinearMixedModel(np.nan_to_num(Y[0]), X, Z, groups, exog_names=["one", "age"])
    stack = model.fit_many(Y[:4], weights=W[:4], covariates={"gm:age": C[:4]}, missing="drop").stack
    flat = stack.flat(np.array([3, 1]))
    rows = [np.delete(np.arange(84), 40), np.delete(np.arange(84), [5, 7])]
    for name, values in (("y", Y), ("weights", W)):
        np.testing.assert_array_equal(getattr(flat, name), np.concatenate([values[3, rows[0]], values[1, rows[1]]]))
    product = np.concatenate([C[i, at] * X[at, 1] for i, at in zip((3, 1), rows, strict=True)])
    np.testing.assert_array_equal(flat.X, np.column_stack([X[np.concatenate(rows)], product]))
    np.testing.assert_array_equal(flat.problem, np.repeat([0, 1], [83, 82]))
    np.testing.assert_array_equal(flat.row, np.concatenate(rows))
    # what all have in common is taken from the response that has most
    assert stack.whole().nobs == 84


def test_scattered_masks(rng, arrays, monkeypatch):
    monkeypatch.setattr(masks, "FEW", 16)
    # so many masks that they are not fitted one by one, beside one that many responses share
    X, Z, groups, _ = arrays
    b = rng.standard_normal((80, 14, 2))
    Y = np.einsum("rij,ij->ri", b[:, groups], Z) + rng.standard_normal((80, len(groups)))
    Y[30:][rng.uniform(size=(50, len(groups))) < 0.15] = np.nan
    Y[:30, 7] = np.nan
    Y[79] = np.nan
    wide = np.column_stack([X, X[:, 1] ** 2])
    batch = flc.LinearMixedModel(None, wide, Z, groups).fit_many(Y, missing="drop")
    assert len(batch.masks) == 1
    assert len(batch.scattered[0]) == 50
    np.testing.assert_array_equal(batch.invalid, [79])
    table, test = batch.tidy(), batch.test(["x1 = 0", "x2 = 0"])
    for i in [0, 29, *range(30, 79, 6)]:
        at = ~np.isnan(Y[i])
        one = flc.LinearMixedModel(Y[i, at], wide[at], Z[at], groups[at]).fit()
        same(batch, i, one)
        np.testing.assert_allclose(batch.covariance[i], one.covariance, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(table["p_value"][3 * i : 3 * i + 3], one.pvalues, rtol=1e-5)
        assert test.pvalues[i] == pytest.approx(one.test(["x1 = 0", "x2 = 0"]).pvalue, rel=1e-5)
        assert batch[i].nobs == one.nobs
    with pytest.raises(flc.LMMError, match="could not be fitted: all observations are missing"):
        batch[79]


@pytest.mark.parametrize("q", [1, 2, 3])
@pytest.mark.parametrize("reml", [True, False])
def test_random_effects_of_all_columns_of_X(rng, arrays, q, reml):
    """Sums over groups are shared by X and Z, and the columns are scaled once for all responses."""
    X, _, groups, Y = arrays
    X = np.column_stack([X, rng.standard_normal(len(groups)) + 1e3])[:, :q]
    order = rng.permutation(len(groups))
    X, groups, Y = np.ascontiguousarray(X[order]), groups[order], Y[:, order] + 100.0
    W, shift, C = (
        rng.uniform(0.2, 3.0, Y.shape) * 1e-70,
        rng.standard_normal(Y.shape),
        1e5 + rng.standard_normal(Y.shape),
    )
    Y[rng.uniform(size=Y.shape) < 0.1] = np.nan
    C[4, 7], shift[4, 9], W[5, 8] = np.nan, np.nan, np.nan
    Y[6, groups == groups[0]] = np.nan
    model = flc.LinearMixedModel(np.nan_to_num(Y[0]), X, X, groups)
    factor = "gm:x1" if q > 1 else "gm"
    for given in (
        {},
        {"offset": shift},
        {"weights": W},
        {"weights": W, "covariates": {factor: C}},
        {"covariates": {"gm": C}},
    ):
        batch = model.fit_many(Y, reml, missing="drop", **given)
        for i in range(12):
            values = [given[name][i] for name in ("weights", "offset") if name in given]
            extra = [c[i] * (X[:, 1] if ":" in name else 1.0) for name, c in given.get("covariates", {}).items()]
            at = ~np.isnan(np.sum([Y[i], *values, *extra], axis=0))
            own = {name: given[name][i, at] for name in ("weights", "offset") if name in given}
            wide = np.column_stack([X, *extra])[at]
            same(batch, i, flc.LinearMixedModel(Y[i, at], wide, X[at], groups[at], **own).fit(reml))


def test_columns_that_do_not_vary_in_the_rows_that_are_there(rng, arrays):
    X, _, groups, Y = arrays
    X[:, 1] = np.arange(len(groups)) % 6 == 5
    C = rng.standard_normal(Y.shape)
    Y[3, X[:, 1] == 1.0] = np.nan
    Y[4, 1:], C[6] = np.nan, 2.0
    Y[5], Y[5, 2] = 7.0, np.nan
    model = flc.LinearMixedModel(Y[0], X, X, groups)
    batch = model.fit_many(Y, missing="drop", weights=np.ones_like(Y), covariates={"gm": C})
    np.testing.assert_array_equal(batch.invalid, [3, 4, 5])
    assert batch.nobs[[3, 4, 5]].tolist() == [70, 1, 83]
    assert np.isnan(batch.params[6, 2]) and batch.rank[6] == 2
    for i in (0, 6, 11):
        same(batch, i, flc.LinearMixedModel(Y[i], np.column_stack([X, C[i]]), X, groups).fit())


def test_infinite_values_are_observations(rng, arrays):
    """They cannot be fitted, but only NaN is missing."""
    X, Z, groups, Y = arrays
    Y[2, 3], Y[2, 4] = np.inf, np.nan
    W = rng.uniform(0.5, 2.0, Y.shape)
    for random in (X, Z):
        model = flc.LinearMixedModel(Y[0], X, random, groups)
        for given in ({}, {"weights": W}):
            batch = model.fit_many(Y, missing="drop", **given)
            np.testing.assert_array_equal(batch.invalid, [2])
            assert batch.nobs[[0, 2]].tolist() == [84, 83]


@pytest.mark.parametrize("missing", ["drop", "invalid"])
@pytest.mark.parametrize("given", ["weights", "offset", "covariates"])
def test_why_infinite_values_are_not_fitted(rng, arrays, given, missing):
    """By lanes and one by one; what is left out with an observation does not count."""
    X, Z, groups, Y = arrays
    Y[2, 3], Y[9, 5] = np.inf, -np.inf
    own = rng.uniform(0.5, 2.0, Y.shape)
    if missing == "drop":
        own[9, 5] = np.nan
    for random in (X, Z):
        model = flc.LinearMixedModel(Y[0], X, random, groups)
        batch = model.fit_many(Y, missing=missing, **{given: {"c": own} if given == "covariates" else own})
        np.testing.assert_array_equal(batch.invalid, [2] if missing == "drop" else [2, 9])
        assert set(batch.reasons.values()) == {"it has infinite values"}
        with pytest.raises(flc.LMMError, match="could not be fitted: it has infinite values"):
            batch[2]


def test_nothing_depends_on_threads_or_neighbours(rng, arrays):
    X, Z, groups, _ = arrays
    Y = rng.standard_normal((300, len(groups)))
    Y[rng.uniform(size=Y.shape) < 0.1] = np.nan
    W = rng.uniform(0.5, 2.0, Y.shape)
    turned = rng.permutation(300)
    for random in (Z, X):
        model = flc.LinearMixedModel(None, X, random, groups)
        first = model.fit_many(Y, missing="drop", weights=W, n_jobs=1)
        other = model.fit_many(Y[turned], missing="drop", weights=W[turned], n_jobs=2)
        few = model.fit_many(Y[270:283], missing="drop", weights=W[270:283], n_jobs=1)
        for name in ("params", "bse", "theta", "criterion", "satterthwaite", "n_evaluations"):
            np.testing.assert_array_equal(getattr(first, name)[turned], getattr(other, name), err_msg=name)
            np.testing.assert_array_equal(getattr(first, name)[270:283], getattr(few, name), err_msg=name)


def test_what_is_not_fitted(rng, arrays):
    X, Z, groups, Y = arrays
    Y[2, :70] = np.nan
    Y[5, 3] = np.inf
    Y[7, 3] = np.nan
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch = model.fit_many(Y, missing="drop", min_obs=20)
    np.testing.assert_array_equal(batch.invalid, [2, 5])
    assert batch.reasons[2] == "it has 14 observations, fewer than min_obs=20"
    assert batch.nobs[7] == 83
    batch = model.fit_many(Y, weights=np.ones_like(Y))
    np.testing.assert_array_equal(batch.invalid, [2, 5, 7])
    assert batch.reasons[5] == "it has infinite values"
    with pytest.raises(flc.LMMError, match="problem 7 could not be fitted: it has missing"):
        batch[7]


def test_tables_and_labels(rng, arrays):
    pd = pytest.importorskip("pandas")
    X, Z, groups, Y = arrays
    W = rng.uniform(0.5, 2.0, Y.shape)
    names = [f"gene{i}" for i in range(12)]
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch = model.fit_many(pd.DataFrame(Y.T, columns=names), weights=pd.DataFrame(W.T, columns=names))
    assert batch.labels.tolist() == names
    same(batch, 4, flc.LinearMixedModel(Y[4], X, Z, groups, weights=W[4]).fit())
    assert batch["gene4"].nobs == len(groups)


def test_blocks_are_put_together(rng, arrays):
    X, Z, groups, Y = arrays
    W, C = rng.uniform(0.5, 2.0, Y.shape), rng.standard_normal(Y.shape)
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    whole = model.fit_many(Y, weights=W, covariates={"gm": C})
    blocks = model.fit_many(
        iter([Y[:5], Y[5:]]), weights=(part for part in (W[:3], W[3:])), covariates={"gm": [C[:7], C[7:]]}
    )
    for name in ("params", "bse", "criterion"):
        np.testing.assert_array_equal(getattr(blocks, name), getattr(whole, name), err_msg=name)
    with pytest.raises(flc.LMMError, match=r"weights has the shape \(7, 84\)"):
        model.fit_many(iter([Y]), weights=iter([W[:3], W[3:7]]))


def test_values_that_do_not_fit_are_refused(rng, arrays):
    X, Z, groups, Y = arrays
    model = flc.LinearMixedModel(Y[0], X, Z, groups, exog_names=["one", "age"])
    ones = np.ones_like(Y)
    cases = [
        ({"weights": ones[:3]}, r"weights has the shape \(3, 84\)"),
        ({"weights": -ones}, "weights must be positive, and is -1.0 at response 0, observation 0"),
        ({"covariates": {"gm:sex": ones}}, "'gm:sex' is a product with 'sex', and X has the columns one, age"),
        ({"covariates": {"age": ones}}, "X has a column 'age' already"),
        ({"offset": np.full(Y.shape, np.inf)}, "offset is inf at response 0, observation 0"),
    ]
    for given, said in cases:
        with pytest.raises(flc.LMMError, match=said):
            model.fit_many(Y, **given)
    residual = flc.Residual("ar1", np.arange(84) // 6, np.arange(84) % 6)
    structured = flc.LinearMixedModel(Y[0], X, Z, groups, residual=residual)
    with pytest.raises(flc.LMMError, match="independent residuals"):
        structured.fit_many(Y, weights=np.ones_like(Y))


@pytest.mark.parametrize("formula", ["y ~ x + (1 | a) + (1 | b)", "y ~ x + (x | a) + (1 | b)"])
def test_several_factors(rng, formula):
    """Responses with values of their own are fitted, and tested, by themselves."""
    a, b = np.repeat(np.arange(10), 8), np.tile(np.arange(8), 10)
    data = {"x": rng.standard_normal(80), "a": a, "b": b, "y": rng.standard_normal(80)}
    Y = rng.standard_normal((5, 10))[:, a] * (1.0 + data["x"]) + rng.standard_normal((5, 8))[:, b]
    Y += rng.standard_normal((5, 80))
    W, C = rng.uniform(0.5, 2.0, Y.shape), rng.standard_normal(Y.shape)
    Y[2, [3, 40, 41]] = np.nan
    batch = flc.lmm(formula, data).fit_many(Y, weights=W, covariates={"gm": C}, missing="drop")
    found = {ddf: batch.test(["x = 0.1", "gm = 0"], ddf=ddf) for ddf in ("satterthwaite", "kenward-roger", "residual")}
    tables, shares, anova = batch.variance_components(), batch.icc(), batch.anova()
    covariance = batch.cov_params()
    effects = batch.random_effect_test(null="mixture")
    for i in range(5):
        there = ~np.isnan(Y[i])
        own = {name: v[there] for name, v in data.items()} | {"y": Y[i, there], "gm": C[i, there]}
        one = flc.lmm(formula.replace("x +", "x + gm +", 1), own, weights=W[i, there]).fit()
        order = [list(one.model.exog_names).index(name) for name in batch.exog_names]
        np.testing.assert_allclose(batch.params[i], one.beta[order], atol=1e-7)
        assert batch.criterion[i] == pytest.approx(one.criterion, rel=1e-10)
        assert batch.nobs[i] == there.sum() and batch.n_groups[i] == 10 and batch.rank[i] == 3
        for ddf, test in found.items():
            assert test.pvalues[i] == pytest.approx(one.test(["x = 0.1", "gm = 0"], ddf=ddf).pvalue, rel=1e-5)
        np.testing.assert_allclose(covariance[i], one.cov[np.ix_(order, order)], rtol=1e-5, atol=1e-9)
        wanted = one.variance_components(method="wald")
        places = [list(wanted["term"]).index(name) for name in tables.names]
        np.testing.assert_allclose(tables.std_error[i], np.asarray(wanted["std_error"], float)[places], rtol=1e-4)
        for name, value in one.icc().items():
            assert shares[name][i] == pytest.approx(value, rel=1e-5, abs=1e-8)
        assert anova["gm"].pvalues[i] == pytest.approx(one.test("gm").pvalue, rel=1e-5)
        rows = one.random_effect_test(null="mixture").rows[1:]
        for test, row in zip(effects.values(), rows, strict=True):
            assert test.statistic[i] == pytest.approx(row.statistic, rel=1e-5, abs=1e-5)
    np.testing.assert_array_equal(batch[[2, 0]].criterion, batch.criterion[[2, 0]])
    with pytest.raises(flc.LMMError, match="one grouping factor"):
        batch.permute("x", 5)
