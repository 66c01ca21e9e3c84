"""Responses with covariates of their own, fitted by what their design says without: dense algebra, and single fits."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core.estimation.many import covariate_lanes
from own_covariates import EXACT, SLOPE, drawn, same, single, together


@pytest.fixture(autouse=True)
def few_responses(monkeypatch):
    monkeypatch.setattr(covariate_lanes, "FEWEST", 1)


def design(q, p, seed=1):
    """Groups of three patterns, several of which have the same Z'Z, in no order, and one that is alone with its own."""
    rng = np.random.default_rng(seed)
    sizes = np.repeat([8, 6, 7, 9], [14, 9, 12, 1])
    groups = np.repeat(np.arange(36), sizes)
    t = np.concatenate([np.arange(size) / 2.0 for size in sizes])
    X = np.column_stack([np.ones(len(t)), t, rng.normal(size=(len(t), 3))])[:, :p]
    order = rng.permutation(len(t))
    return X[order], (t[:, None] ** np.arange(q))[order], groups[order]


def fitted(model, Y, covariates, reml=True):
    """Fits, and how many of them were found by what the responses share."""
    batch = model.fit_many(Y, reml, covariates=covariates)
    return batch, together(batch, reml)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(
    ("q", "p", "given"),
    [(1, 1, ""), (1, 2, "weights"), (2, 2, ""), (2, 2, "both"), (2, 4, "offset"), (3, 3, ""), (2, 1, "weights")],
)
def test_optimum_of_the_dense_criterion(q, p, given, reml):
    X, Z, groups = design(q, p)
    Y, C = drawn(Z, groups, 11)
    rng = np.random.default_rng(3)
    weights = rng.uniform(0.5, 2.0, len(X)) if given in ("weights", "both") else None
    offset = rng.normal(size=len(X)) if given in ("offset", "both") else None
    model = flc.LinearMixedModel(Y[0], X, Z, groups, weights=weights, offset=offset)
    batch, count = fitted(model, Y, {"c": C}, reml)
    # of three effects more have a minimum next to the boundary, which is left to single fits
    assert count >= (8 if q < 3 else 6)
    for i in np.flatnonzero(~batch.singular)[:5]:
        wide = np.column_stack([X, C[i]])
        G = batch.G["group"][i] / batch.sigma2[i]
        data = (Y[i], wide, Z, groups, G)
        rest = (weights, offset)
        assert batch.criterion[i] == pytest.approx(oracle.criterion(*data, reml, *rest), rel=EXACT)
        assert np.abs(batch.params[i] - oracle.beta(*data, *rest)).max() < 1e-9 * np.abs(batch.params[i]).max()
        assert batch.sigma2[i] == pytest.approx(oracle.sigma2(*data, reml, *rest), rel=1e-9)
        bse = np.sqrt(batch.sigma2[i] * np.diag(oracle.cov_unscaled(wide, Z, groups, G, weights)))
        np.testing.assert_allclose(batch.bse[i], bse, rtol=1e-9)
        scale = np.sqrt(np.diag(G))
        assert np.abs(oracle.gradient_ghat(*data, reml, *rest) * np.outer(scale, scale)).max() < SLOPE


@pytest.mark.parametrize("sizes", [(1.0, 0.6, 0.3), (0.15, 0.02, 0.0), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize(("q", "p"), [(1, 2), (2, 2), (3, 4)])
def test_each_is_the_single_fit(q, p, sizes):
    X, Z, groups = design(q, p)
    Y, C = drawn(Z, groups, 14, sizes)
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch = model.fit_many(Y, covariates={"c": C})
    for i in range(14):
        same(batch, i, single(model, Y[i], [C[i]]))


def test_several_covariates_and_products():
    X, Z, groups = design(2, 3)
    Y, C = drawn(Z, groups, 12)
    D = np.random.default_rng(5).normal(size=Y.shape)
    model = flc.LinearMixedModel(Y[0], X, Z, groups, exog_names=["one", "t", "x"])
    batch, count = fitted(model, Y, {"c:t": C, "c": C, "d": D})
    assert count == 12
    for i in range(0, 12, 3):
        one = single(model, Y[i], [C[i] * X[:, 1], C[i], D[i]])
        same(batch, i, one)
        G = one.covariance
        np.testing.assert_allclose(batch.G["group"][i], G, rtol=1e-4, atol=1e-5 * np.abs(G).max())
    for ddf in ("satterthwaite", "kenward-roger"):
        found = batch.test(["c = 0", "c:t = d"], ddf=ddf)
        wanted = single(model, Y[3], [C[3] * X[:, 1], C[3], D[3]]).test(["x4 = 0", "x3 = x5"], ddf=ddf)
        assert found.pvalues[3] == pytest.approx(wanted.pvalue, rel=1e-5)


def test_covariates_between_groups():
    # all of it lies in the span of the random intercepts
    X, Z, groups = design(2, 2)
    Y, _ = drawn(Z, groups, 12)
    C = np.random.default_rng(6).normal(size=(12, 36))[:, groups]
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch, count = fitted(model, Y, {"c": C})
    assert count == 12
    for i in range(0, 12, 4):
        same(batch, i, single(model, Y[i], [C[i]]))


@pytest.mark.parametrize("effects", [(0,), (1,), (0, 1), (1, 0)])
@pytest.mark.parametrize("columns", [(1,), (1, 0), (0, 1)])
def test_designs_whose_first_column_is_no_constant(columns, effects):
    X, Z, groups = design(2, 2)
    Y, C = drawn(Z, groups, 10)
    Y -= 0.5 * C
    Z = np.ascontiguousarray(Z[:, list(effects)])
    model = flc.LinearMixedModel(Y[0], X[:, list(columns)], Z, groups)
    batch = model.fit_many(Y, covariates={"c": C})
    assert (batch.stack.lines() is None) == (effects == (1, 0))
    L = np.eye(len(columns) + 1)[-1:]
    found = batch.test(L)
    for i in range(0, 10, 3):
        one = single(model, Y[i], [C[i]])
        same(batch, i, one)
        np.testing.assert_allclose(batch.G["group"][i], one.covariance, rtol=1e-4, atol=1e-6)
        # made again from the rows, in the coordinates of problems
        assert found.pvalues[i] == pytest.approx(one.test(L).pvalue, rel=1e-5)


def test_what_takes_a_second_look_and_those_beside_it():
    X, Z, groups = design(2, 2)
    Y, C = drawn(Z, groups, 24)
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    plain = model.fit_many(Y, covariates={"c": C})
    odd, own = Y.copy(), C.copy()
    own[1], own[2], own[3] = 2.0, 5.0 - 2.0 * X[:, 1], X[:, 1] + 1e-9 * C[3]
    own[4] *= 1e-170
    own[5] *= 1e130
    own[6] += 1e7
    own[7, 3] = np.nan
    odd[8] = own[8] + X[:, 1] + 1e-7 * odd[8]
    odd[9], odd[10] = 1.5, 2.0 * own[10]
    odd[11] += 1e6
    batch = model.fit_many(odd, missing="drop", covariates={"c": own})
    assert sorted(batch.reasons) == [9, 10]
    for i in (1, 2, 4, 5, 6, 8, 11):
        one = single(model, odd[i], [own[i]])
        assert batch.criterion[i] == pytest.approx(one.criterion, rel=1e-8)
        np.testing.assert_array_equal(np.isnan(batch.params[i]), np.isnan(one.params))
        np.testing.assert_allclose(batch.params[i, 2:] / one.bse[2:], one.params[2:] / one.bse[2:], atol=1e-5)
    assert np.isnan(batch.params[[1, 2], 2]).all()
    assert batch.nobs[7] == len(X) - 1
    for name in ("criterion", "params", "bse", "df", "sigma2"):
        np.testing.assert_array_equal(getattr(batch, name)[12:], getattr(plain, name)[12:])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 0), (5, 7), (19, 300)])
def test_values_that_are_not_finite(place, value):
    X, Z, groups = design(2, 2)
    Y, C = drawn(Z, groups, 20)
    place = (place[0], min(place[1], len(X) - 1))
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    plain = model.fit_many(Y, covariates={"c": C})
    wrong = C.copy()
    wrong[place] = value
    match = rf"covariates\['c'\] is {value} at response {place[0]}, observation {place[1]}"
    for given in (wrong, wrong[place[0]][None]):
        where = match if given is wrong else match.replace(f"response {place[0]}", "response 0")
        with pytest.raises(flc.LMMError, match=where):
            model.fit_many(Y, covariates={"c": given})
    wrong = Y.copy()
    wrong[place] = value
    batch = model.fit_many(wrong, covariates={"c": C})
    said = "it has missing values" if np.isnan(value) else "it has infinite values"
    assert batch.reasons == {place[0]: said}
    others = np.delete(np.arange(20), place[0])
    np.testing.assert_array_equal(batch.params[others], plain.params[others])
    assert np.isnan(batch.params[place[0]]).all()


def test_order_and_threads_do_not_matter():
    X, Z, groups = design(2, 2)
    Y, C = drawn(Z, groups, 37, (0.4, 0.15))
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch = model.fit_many(Y, covariates={"c": C}, n_jobs=1)
    turned = model.fit_many(Y[::-1], covariates={"c": C[::-1]}, n_jobs=2)
    for name in ("criterion", "params", "bse", "df", "sigma2", "n_evaluations"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(turned, name)[::-1], err_msg=name)


def test_units_and_origins_of_covariates():
    X, Z, groups = design(2, 2)
    Y, C = drawn(Z, groups, 16)
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch = model.fit_many(Y, covariates={"c": C})
    moved = model.fit_many(Y, covariates={"c": 1e-40 * C - 5e-40})
    np.testing.assert_allclose(moved.params[:, 2] * 1e-40, batch.params[:, 2], rtol=1e-9)
    np.testing.assert_allclose(moved.params[:, 1], batch.params[:, 1], rtol=1e-9)
    np.testing.assert_allclose(moved.params[:, 0], batch.params[:, 0] + 5.0 * batch.params[:, 2], atol=1e-9)
    np.testing.assert_allclose(moved.bse[:, 1:] * [1.0, 1e-40], batch.bse[:, 1:], rtol=1e-8)
    # by REML X counts with its units
    np.testing.assert_allclose(moved.criterion + 80.0 * np.log(10.0), batch.criterion, rtol=1e-11)


def test_one_covariate_of_all_responses():
    X, Z, groups = design(1, 2)
    Y, C = drawn(Z, groups, 9)
    model = flc.LinearMixedModel(Y[0], X, Z, groups)
    batch, count = fitted(model, Y, {"c": C[:1]})
    assert count == 9
    same(batch, 5, single(model, Y[5], [C[0]]))


def test_a_constant_response_that_no_column_explains_is_refused():
    X, Z, groups = design(2, 2)
    Y, C = drawn(Z, groups, 9)
    Y[4] = 3.0
    offset = np.random.default_rng(7).normal(size=len(X))
    for given in ({"offset": offset}, {}):
        columns = X if given else X[:, 1:]
        batch = flc.LinearMixedModel(Y[0], columns, Z, groups, **given).fit_many(Y, covariates={"c": C})
        assert list(batch.reasons) == [4]


def test_who_shares_and_who_does_not():
    X, Z, groups = design(2, 2)
    Y, C = drawn(Z, groups, 6)
    model = flc.LinearMixedModel(Y[0], X, Z, groups)

    def shares(model, covariates, **given):
        return model.fit_many(Y, covariates=covariates, **given).stack.lines() is not None

    assert shares(model, {"c": C})
    assert not shares(model, {"c": C}, weights=np.ones_like(Y))
    assert not shares(model, {f"c{i}": C**i for i in range(1, 5)})
    aliased = flc.LinearMixedModel(Y[0], np.column_stack([X, X[:, 1]]), Z, groups)
    assert not shares(aliased, {"c": C})
    apart = flc.LinearMixedModel(Y[0], X, Z, groups, structure="diagonal")
    assert not shares(apart, {"c": C})
    # few groups take another search
    assert not shares(flc.LinearMixedModel(Y[0], X, Z, groups % 11), {"c": C})
