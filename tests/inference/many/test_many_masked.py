"""Responses with missing observations: every one is the single fit of the observations that it has."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
from fastlmm_core.estimation.many import masks

AGREE = 1e-8
"""Of estimates: both stop within 1e-8 standard errors of the optimum."""


@pytest.fixture
def arrays(rng):
    groups = np.repeat(np.arange(12), 6)
    t = np.tile(np.linspace(-1.0, 1.0, 6), 12)
    X = np.column_stack([np.ones(72), t, rng.standard_normal(72), groups % 2])
    Z = np.column_stack([np.ones(72), t])
    b = 1.5 * rng.standard_normal((10, 12, 2))
    Y = np.einsum("rij,ij->ri", b[:, groups], Z) + rng.standard_normal((10, 72))
    return X, Z, groups, rng.uniform(0.5, 2.0, 72), rng.standard_normal(72), Y


def holes(rng, Y, groups):
    """No holes, two masks that are shared, one each, and a group that is missing as a whole."""
    Y[2:5, [3, 17, 40]] = np.nan
    Y[5, rng.choice(72, 15, replace=False)] = np.nan
    Y[6:8, groups == 4] = np.nan
    Y[8, rng.choice(72, 5, replace=False)] = np.nan
    return Y


def single(arrays, i, reml=True):
    X, Z, groups, weights, offset, Y = arrays
    there = ~np.isnan(Y[i])
    model = flc.LinearMixedModel(
        Y[i, there], X[there], Z[there], groups[there], weights=weights[there], offset=offset[there]
    )
    return model.fit(reml=reml)


@pytest.mark.parametrize("reml", [True, False])
def test_single_fits(rng, arrays, reml):
    X, Z, groups, weights, offset, Y = arrays
    holes(rng, Y, groups)
    model = flc.LinearMixedModel(Y[0], X, Z, groups, weights=weights, offset=offset)
    batch = model.fit_many(Y, reml=reml, missing="drop")
    assert len(batch.masks) == 5 and len(batch) == 10 and not len(batch.invalid)
    test, joint = batch.test("x1 - x3 = 0.1"), batch.test(np.eye(4)[1:], ddf="residual")
    limits = batch.tidy(0.9)
    for i in range(10):
        one = single(arrays, i, reml)
        assert batch.nobs[i] == one.nobs and batch.n_groups[i] == (11 if i in (6, 7) else 12)
        error = one.bse
        assert np.max(np.abs(batch.params[i] - one.params) / error) < AGREE
        np.testing.assert_allclose(batch.criterion[i], one.criterion, rtol=AGREE)
        np.testing.assert_allclose([batch.aic[i], batch.bic[i]], [one.aic, one.bic], rtol=AGREE)
        np.testing.assert_allclose(batch.bse[i], error, rtol=1e-7)
        np.testing.assert_allclose(batch.sigma2[i], one.sigma2, rtol=1e-7)
        np.testing.assert_allclose(batch.covariance[i], one.covariance, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(batch.df[i], one.df, rtol=1e-5)
        np.testing.assert_allclose(batch.pvalues[i], one.pvalues, rtol=1e-4)
        found, other = one.test("x1 - x3 = 0.1"), one.test(np.eye(4)[1:], ddf="residual")
        np.testing.assert_allclose(test.df_denom[i], found.df_denom, rtol=1e-5)
        np.testing.assert_allclose(test.pvalues[i], found.pvalue, rtol=1e-4)
        np.testing.assert_allclose(joint.statistic[i], other.statistic, rtol=1e-5)
        assert joint.df_denom[i] == other.df_denom
        np.testing.assert_allclose(
            np.asarray(limits["conf_low"])[4 * i : 4 * i + 4], one.conf_int(0.9)[:, 0], rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(batch[i].criterion, one.criterion, rtol=1e-10)
        assert batch.converged[i] == one.converged and batch.singular[i] == one.singular


def test_runs_of_observations_that_are_there(rng):
    """Masks that leave out whole stretches and single observations, at both ends and in the middle."""
    groups = np.repeat(np.arange(12), 10)
    X = np.column_stack([np.ones(120), rng.standard_normal(120)])
    Y = X.sum(axis=1) + rng.standard_normal((6, 12))[:, groups] + rng.standard_normal((6, 120))
    Y[1, :30] = Y[2, 95:] = Y[3, 41] = Y[4, [0, 50, 51, 119]] = Y[5, ::3] = np.nan
    model = flc.LinearMixedModel(Y[0], X, np.ones((120, 1)), groups)
    batch = model.fit_many(Y, missing="drop")
    for i in range(6):
        at = ~np.isnan(Y[i])
        one = flc.LinearMixedModel(Y[i, at], X[at], np.ones((at.sum(), 1)), groups[at]).fit()
        np.testing.assert_allclose(batch.params[i], one.params, rtol=1e-8)
        assert batch.criterion[i] == pytest.approx(one.criterion, rel=1e-10)
        assert (batch.aic[i], batch.bic[i]) == pytest.approx((one.aic, one.bic), rel=1e-10)
        np.testing.assert_allclose(batch.theta[i], one.theta, rtol=1e-6)
        np.testing.assert_allclose(batch.covariance[i], one.G["group"], rtol=1e-6)
    again = pickle.loads(pickle.dumps(batch))
    np.testing.assert_array_equal(again.theta, batch.theta)


def test_rows_of_a_hypothesis_that_depend_on_others(rng, arrays):
    X, Z, groups, *_, Y = arrays
    batch = flc.LinearMixedModel(Y[0], X, Z, groups).fit_many(holes(rng, Y, groups)[:4], missing="drop")
    asked = ["x1 = 0", "x3 = 0", "x1 - x3 = 0"]
    found, wanted = (batch.test(rows, ddf="residual") for rows in (asked, asked[:2]))
    assert found.df_num == wanted.df_num == 2
    np.testing.assert_allclose(found.pvalues, wanted.pvalues, rtol=1e-9)


def test_means_hold_the_mean_offset_of_the_observations(rng, arrays):
    _, _, groups, _, offset, Y = arrays
    data = {"y": Y[0], "arm": np.array(["a", "b"])[groups % 2], "g": groups, "o": offset + 5.0}
    Y[1, offset > 0.5] = np.nan
    batch = flc.lmm("y ~ arm + (1 | g)", data, offset="o").fit_many(Y[:2], missing="drop")
    found = batch.emmeans("arm")
    for i in range(2):
        there = ~np.isnan(Y[i])
        own = {name: values[there] for name, values in data.items()} | {"y": Y[i, there]}
        one = flc.lmm("y ~ arm + (1 | g)", own, offset="o").fit()
        by_hand = one.beta[0] + own["o"].mean() + np.array([0.0, one.beta[1]])
        np.testing.assert_allclose(found.estimate[i], by_hand, rtol=1e-7)


def test_order_and_threads_do_not_matter(rng, arrays):
    X, Z, groups, *_, Y = arrays
    holes(rng, Y, groups)
    model = flc.LinearMixedModel(None, X, Z, groups)
    one, two = model.fit_many(Y, missing="drop"), model.fit_many(Y[::-1], missing="drop", n_jobs=2)
    np.testing.assert_array_equal(one.params, two.params[::-1])
    np.testing.assert_array_equal(one.pvalues, two.pvalues[::-1])


def test_responses_that_are_changed_are_noticed(rng, arrays):
    """Responses are read where they stand; what is missing in them is not theirs."""
    X, Z, groups, *_, Y = arrays
    holes(rng, Y, groups)
    batch = flc.LinearMixedModel(None, X, Z, groups).fit_many(Y, missing="drop")
    before = batch.test([[0.0, 1.0, 0.0, 0.0]]).pvalues
    Y[2, 17] = 8.0  # was missing
    np.testing.assert_array_equal(batch.random_effects([2]), batch.random_effects([2]))
    Y[3, 18] += 1.0
    np.testing.assert_array_equal(batch.random_effects([2, 4]), batch.random_effects([2, 4]))
    with pytest.raises(flc.LMMError, match="Y has been changed since it was fitted"):
        batch.random_effects([3])
    Y[3, 18] -= 1.0
    np.testing.assert_allclose(batch.test([[0.0, 1.0, 0.0, 0.0]]).pvalues, before, rtol=1e-12)


def test_infinite_values_among_scattered_masks(rng, arrays):
    X, Z, groups, *_ = arrays
    Y = rng.standard_normal((40, 72))
    Y[rng.uniform(size=Y.shape) < 0.1] = np.nan
    Y[4, np.flatnonzero(~np.isnan(Y[4]))[:2]] = np.inf, -np.inf
    batch = flc.LinearMixedModel(None, X, Z, groups).fit_many(Y, missing="drop")
    assert batch.scattered is not None and batch.invalid.tolist() == [4]
    assert batch.scattered[1].reasons == {4: "it has infinite values"}


def test_what_is_not_determined(rng, arrays):
    X, Z, groups, *_, Y = arrays
    Y[1] = np.nan
    Y[2, 5:] = np.nan
    Y[3, groups % 2 == 1] = np.nan  # x3 is zero in what is left
    Y[4, 7] = np.inf
    Y[6] = 2.0
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch = model.fit_many(Y, missing="drop")
    assert batch.invalid.tolist() == [1, 2, 4, 6] and not batch.converged[[1, 2, 4, 6]].any()
    assert batch.nobs.tolist()[:4] == [72, 0, 5, 36]
    assert np.isnan(batch.params[[1, 2, 4, 6]]).all()
    assert np.isnan(batch.params[3, 3]) and np.isfinite(batch.params[3, :3]).all()
    found = batch.test("x3")
    assert np.isnan(found.pvalues[[1, 2, 3, 4, 6]]).all() and np.isfinite(found.pvalues[[0, 5, 7, 8, 9]]).all()
    assert np.isfinite(batch.test("x1").pvalues[3])
    with pytest.raises(flc.LMMError, match="response 1 could not be fitted: all observations are missing"):
        batch[1]
    with pytest.raises(flc.LMMError, match="response 2 could not be fitted: "):
        batch[2]
    with pytest.raises(flc.LMMError, match="no coefficient 'x9'"):
        batch.test("x9")
    with pytest.raises(IndexError):
        batch[10]
    with pytest.raises(flc.LMMError, match="iterable of such blocks"):
        model.fit_many(3.0, missing="drop")
    blocks = model.fit_many(iter([Y[:4], Y[4], Y[5:].tolist()]), missing="drop")
    np.testing.assert_array_equal(blocks.criterion, batch.criterion)
    assert blocks.labels is None
    named = model.fit_many(iter([pd.DataFrame(Y[:1].T, columns=["a"]), Y[1:]]), missing="drop")
    assert named.labels is None and len(named) == 10
    with pytest.raises(flc.LMMError, match="transpose"):
        model.fit_many(Y.T, missing="drop")
    with pytest.raises(flc.LMMError, match="missing"):
        model.fit_many(Y, missing="omit")
    assert repr(batch).startswith("<MaskedBatch: 10 fits on 4 sets of observations, 6 certified")


def test_tables(rng, arrays):
    X, _, groups, *_, Y = arrays
    data = pd.DataFrame({"y": Y[0], "t": X[:, 1], "g": groups})
    genes = pd.DataFrame(Y[:3].T, columns=["a", "b", "c"])
    genes.loc[[4, 9], "b"] = np.nan
    batch = flc.lmm("y ~ t + (1 | g)", data).fit_many(genes, missing="drop")
    there = data.assign(y=genes["b"]).dropna()
    one = flc.lmm("y ~ t + (1 | g)", there).fit()
    assert batch.labels.tolist() == ["a", "b", "c"]
    frame = batch.to_frame()
    assert frame.loc["b", "nobs"] == 70 and frame.index.tolist() == ["a", "b", "c"]
    assert abs(frame.loc["b", "t"] - one.params["t"]) < AGREE * one.bse["t"]
    assert batch.test("t").to_frame().index.tolist() == ["a", "b", "c"]
    assert batch[1].resid.index.equals(there.index)
    plain = batch.model.fit_many(genes.to_numpy().T, missing="drop")
    both = type(batch).concat([batch, plain])
    assert both.labels is None and type(batch).concat([batch, batch]).labels.tolist() == ["a", "b", "c"] * 2
    np.testing.assert_array_equal(both.criterion, np.tile(batch.criterion, 2))


def test_several_factors(rng):
    a, b = np.repeat(np.arange(10), 8), np.tile(np.arange(8), 10)
    X = np.column_stack([np.ones(80), rng.standard_normal(80)])
    terms = [flc.RandomTerm(None, a, "a"), flc.RandomTerm(None, b, "b")]
    Y = rng.standard_normal((4, 10))[:, a] + rng.standard_normal((4, 8))[:, b] + rng.standard_normal((4, 80))
    Y[1:3, 5:12] = np.nan
    model = flc.LinearMixedModel(Y[0], X, terms=terms)
    batch = model.fit_many(Y, missing="drop")
    there = ~np.isnan(Y[1])
    some = [flc.RandomTerm(None, a[there], "a"), flc.RandomTerm(None, b[there], "b")]
    one = flc.LinearMixedModel(Y[1, there], X[there], terms=some).fit()
    assert np.max(np.abs(batch.params[1] - one.params) / one.bse) < AGREE
    np.testing.assert_allclose(batch.df[1], one.df, rtol=1e-5)


@pytest.mark.parametrize("formula", ["y ~ x + (1 | a) + (1 | b)", "y ~ x + (x | a) + (1 | b)"])
def test_masks_of_several_factors(rng, formula):
    """Every mask is another: as the single fits, and so are their tests."""
    a, b = np.repeat(np.arange(12), 8), np.tile(np.arange(8), 12)
    x = rng.standard_normal(96)
    Y = (
        rng.standard_normal((5, 12))[:, a] * (1.0 + x)
        + rng.standard_normal((5, 8))[:, b]
        + rng.standard_normal((5, 96))
    )
    Y[4] = rng.standard_normal(96)
    for i in range(5):
        Y[i, rng.choice(96, 8, replace=False)] = np.nan
    data = {"x": x, "a": a, "b": b}
    model = flc.lmm(formula, data | {"y": np.nan_to_num(Y[0])})
    batch = model.fit_many(Y, missing="drop")
    assert batch.converged.all()
    found = [batch.test(["Intercept = 0.5", "x = 1"], ddf=ddf) for ddf in ("satterthwaite", "kenward-roger")]
    for i in range(5):
        there = ~np.isnan(Y[i])
        one = flc.lmm(formula, {name: v[there] for name, v in data.items()} | {"y": Y[i, there]}).fit()
        assert np.max(np.abs(batch.params[i] - one.beta) / np.sqrt(np.diag(one.cov))) < AGREE
        assert batch.criterion[i] == pytest.approx(one.criterion, rel=1e-10)
        assert batch.singular[i] == one.singular
        for test, ddf in zip(found, ("satterthwaite", "kenward-roger"), strict=True):
            wanted = one.test(["Intercept = 0.5", "x = 1"], ddf=ddf)
            assert test.pvalues[i] == pytest.approx(wanted.pvalue, rel=1e-4)
            assert test.df_denom[i] == pytest.approx(wanted.df_denom, rel=1e-4)


def test_responses_of_small_masks_are_problems_of_their_own(rng, arrays, monkeypatch):
    """To the same estimates as on a design that they share."""
    X, Z, groups, *_, Y = arrays
    Y = np.tile(Y, (8, 1)) + 0.3 * rng.standard_normal((80, 72))
    Y[:40, 3:9] = Y[40:, 50] = np.nan
    model = flc.LinearMixedModel(None, X, Z, groups)
    own = model.fit_many(Y, missing="drop")
    monkeypatch.setattr(masks, "FEW", 16)
    shared = model.fit_many(Y, missing="drop")
    assert len(own.masks) == 0 and len(own.scattered[0]) == 80
    assert len(shared.masks) == 2 and shared.scattered is None
    np.testing.assert_allclose(own.criterion, shared.criterion, rtol=1e-10)
    assert np.max(np.abs(own.params - shared.params) / own.bse) < AGREE


def test_terms_covariances_and_pickles(rng, monkeypatch):
    """Of masks that many responses share, and of scattered ones: as the single fits have them."""
    monkeypatch.setattr(masks, "FEW", 16)
    m = 20
    g = np.repeat(np.arange(m), 6)
    data = {"arm": np.array(["a", "b", "c"])[g % 3], "t": np.tile(np.arange(6.0), m), "g": g}
    Y = rng.standard_normal((80, len(g))) + rng.standard_normal((80, m))[:, g]
    Y[:20, 7] = np.nan
    for i in range(20, 60):
        Y[i, rng.integers(0, len(g), 9)] = np.nan
    model = flc.lmm("y ~ arm * t + (1 | g)", data | {"y": Y[79]})
    batch = model.fit_many(Y, missing="drop")
    assert batch.scattered is not None and len(batch.scattered[0]) == 40
    found, covariance = batch.anova(ddf="kenward-roger"), batch.cov_params()
    for i in (3, 25, 50, 70):
        kept = ~np.isnan(Y[i])
        one = flc.lmm("y ~ arm * t + (1 | g)", {k: v[kept] for k, v in data.items()} | {"y": Y[i, kept]}).fit()
        table = one.anova("III", ddf="kenward-roger").to_frame()
        np.testing.assert_allclose(covariance[i], one.cov, rtol=1e-5, atol=1e-8)
        for term, wanted in zip(table["term"], table["p_value"], strict=True):
            assert found[term].pvalues[i] == pytest.approx(wanted, rel=1e-4)
    again = pickle.loads(pickle.dumps(batch))
    same, wanted = (one.test("t", ddf="kenward-roger").pvalues for one in (again, batch))
    np.testing.assert_array_equal(same[20:60], wanted[20:60])
    assert again[25].criterion == batch[25].criterion
    weighted = model.fit_many(np.nan_to_num(Y[:5]), weights=np.ones_like(Y[:5]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(weighted)).cov_params(), weighted.cov_params())
    with pytest.raises(flc.LMMError, match="no response has this label"):
        batch["TP53"]


@pytest.mark.parametrize("formula", ["y ~ x + (1 | g)", "y ~ x + (1 | g) + (1 | h)"])
def test_missing_values_that_are_not_expected(rng, formula):
    g, h = np.repeat(np.arange(12), 6), np.tile(np.arange(6), 12)
    Y = rng.standard_normal((30, 12))[:, g] + rng.standard_normal((30, 72))
    model = flc.lmm(formula, {"y": Y[0], "x": rng.standard_normal(72), "g": g, "h": h})
    assert model.fit_many(Y, missing="raise").converged.all()
    Y[4] = 1.0  # constant, but there
    assert model.fit_many(Y, missing="raise").invalid.tolist() == [4]
    Y[7, 11] = np.nan
    with pytest.raises(flc.LMMError, match="response 7, observation 11; missing='drop'"):
        model.fit_many(Y, missing="raise")
    with pytest.raises(flc.LMMError, match="response 7; missing='drop'"):
        model.fit_many(iter([Y[:5], Y[5:]]), missing="raise")
    if "h" not in formula:
        with pytest.raises(flc.LMMError, match="response 7, observation 11; missing='drop'"):
            model.fit_many(Y, missing="raise", weights=np.ones_like(Y))
    few = model.fit_many(Y, missing="drop", min_obs=72)
    assert few.invalid.tolist() == [4, 7]
    with pytest.raises(flc.LMMError, match="it has 71 observations, fewer than min_obs=72"):
        few[7]


def test_ranks_of_responses_that_lose_a_column(rng):
    g = np.repeat(np.arange(12), 6)
    once = (np.arange(72) == 5) * 1.0
    Y = rng.standard_normal((3, 12))[:, g] + rng.standard_normal((3, 72))
    Y[1, 5] = Y[2, :] = np.nan
    batch = flc.LinearMixedModel(Y[0], np.column_stack([np.ones(72), once]), None, g).fit_many(Y, missing="drop")
    assert batch.rank.tolist() == [2, 1, 0]
