"""Tests of fixed effects for many responses: every one is that of the single fit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core.covariance.directions import inverse_hessian
from fastlmm_core.estimation.many import pieces
from fastlmm_core.inference import wald as inference
from fastlmm_core.inference.many import tests as batch_inference

# Both paths stop within 1e-8 standard errors of the optimum (see many/). Derivatives of the variances follow
# theta, and near the boundary they change fast.
AGREE = 1e-6
# Where theta is the same to its last digits.
TIGHT = 1e-8


def made(rng, q, p, structure="full", weights=False, offset=False, m=14, visits="own"):
    sizes = np.full(m, 6) if visits == "shared" else rng.integers(q + 2, 10, m)
    groups = np.repeat(np.arange(m), sizes)
    n = len(groups)
    t = np.tile(np.linspace(-1.0, 1.0, 6), m) if visits == "shared" else rng.uniform(-1.0, 1.0, n)
    Z = t[:, None] ** np.arange(q)
    X = np.column_stack([np.ones(n), t, rng.standard_normal(n), rng.standard_normal(m)[groups]])[:, :p]
    return flc.LinearMixedModel(
        rng.standard_normal(n), X, Z, groups, structure=structure,
        weights=rng.uniform(0.3, 3.0, n) if weights else None, offset=rng.standard_normal(n) if offset else None,
    )  # fmt: skip


def responses(rng, model, count, between):
    b = between * rng.standard_normal((count, model.problem.m, model.structure.q))
    return np.einsum("rij,ij->ri", b[:, model.grouping.index], model.exog_re) + 0.7 * rng.standard_normal(
        (count, model.nobs)
    )


def same(actual, desired, tolerance):
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=0.0)


INFORMATION = ("auto", "expected", "observed")
SHAPES = [(1, "full"), (2, "full"), (2, "diagonal"), (3, "full"), (3, "diagonal")]


@pytest.mark.parametrize("visits", ["own", "shared"])
@pytest.mark.parametrize("p", [0, 1, 2, 4])
@pytest.mark.parametrize(("q", "structure"), SHAPES)
def test_coefficients(rng, q, structure, p, visits):
    odd = (p + q) % 2 == 1
    model = made(rng, q, p, structure, weights=odd, offset=odd, visits=visits)
    Y = np.concatenate([responses(rng, model, 9, 2.0), responses(rng, model, 6, 0.3)])
    for reml in (True, False):
        batch = model.fit_many(Y, reml=reml, n_jobs=1)
        singles = [batch[i] for i in range(15)]
        df, pvalues = batch_inference.df(batch), batch_inference.pvalues(batch)
        assert df.shape == pvalues.shape == (15, p)
        for i in range(15):
            single = inference.coefficient_table(singles[i])
            same(df[i], single["df"], AGREE)
            assert np.all(np.abs(pvalues[i] / single["p_value"] - 1.0) < 1e-6 * (10.0 + single["statistic"] ** 2))
        if not reml:
            continue
        for information in INFORMATION:
            df = batch_inference.df(batch, "kenward-roger", information)
            pvalues = batch_inference.pvalues(batch, "kenward-roger", information)
            for i in range(15):
                single = inference.coefficient_table(singles[i], "kenward-roger", information)
                same(df[i], single["df"], AGREE)
                assert np.all(np.abs(pvalues[i] / single["p_value"] - 1.0) < 1e-6 * (10.0 + single["statistic"] ** 2))
        assert (batch_inference.df(batch, "residual") == model.df_resid).all()
        assert np.isinf(batch_inference.df(batch, "normal")).all()


@pytest.mark.parametrize("name", oracle.SINGLE_FACTOR)
def test_references(name):
    # the response of the reference among others, whose degrees of freedom lmerTest gave
    ref = oracle.reference(name)
    model = flc.LinearMixedModel(*ref.arrays, structure=ref.structure)
    result = model.fit()
    Y = np.vstack([ref.y, result.simulate(20, seed=1)])
    batch = model.fit_many(Y)
    df = batch_inference.df(batch)
    same(df[0], inference.coefficient_df(result), TIGHT)
    same(batch_inference.df(batch, "kenward-roger")[0], inference.coefficient_df(result, "kenward-roger"), TIGHT)
    for i in range(1, 21):
        same(df[i], inference.coefficient_df(batch[i]), AGREE)


L = np.array([[0.0, 1.0, -2.0, 0.0], [0.0, 0.3, 1.0, 4.0]])


@pytest.mark.parametrize(
    ("ddf", "information"),
    [(ddf, "auto") for ddf in batch_inference.DDF] + [("kenward-roger", "expected"), ("kenward-roger", "observed")],
)
@pytest.mark.parametrize(("q", "structure"), SHAPES)
def test_hypotheses(rng, q, structure, ddf, information):
    model = made(rng, q, 4, structure, weights=q == 2, offset=q == 2, visits="shared" if q == 1 else "own")
    Y = np.concatenate([responses(rng, model, 9, 2.0), responses(rng, model, 6, 0.3)])
    rhs = np.array([0.1, -0.2])
    for reml in (True, False):
        if ddf == "kenward-roger" and not reml:
            continue
        batch = model.fit_many(Y, reml=reml, n_jobs=1)
        singles = [batch[i] for i in range(15)]
        for rows, right in ((L, rhs), (L[:1], rhs[:1]), (3.0 * np.eye(4)[2:3], rhs[:1]), (np.eye(4), np.zeros(4))):
            found = batch_inference.test(batch, rows, right, ddf, information)
            assert len(found) == 15
            for i in range(15):
                single = inference.wald(singles[i], rows, right, ddf, information)
                same(found.estimate[i], single.estimate, 1e-5)
                same(found.std_error[i], single.std_error, AGREE)
                same(found.statistic[i], single.statistic, 1e-5)
                same(found.df_denom[i], single.df_denom, 10 * AGREE)
                assert found.df_num == single.df_num
                assert abs(found.pvalues[i] / single.pvalue - 1.0) < 1e-5 * (10.0 + single.statistic**2)


def test_dependent_rows(rng):
    model = made(rng, 2, 4)
    batch = model.fit_many(responses(rng, model, 8, 2.0))
    more, rhs = np.vstack([L, L[0] - L[1]]), np.array([0.1, -0.2, 0.3])
    for ddf in batch_inference.DDF:
        plain, found = batch_inference.test(batch, L, rhs[:2], ddf), batch_inference.test(batch, more, rhs, ddf)
        assert found.df_num == 2
        same(found.statistic, plain.statistic, 1e-9)
        with pytest.raises(flc.LMMError, match="contradicting"):
            batch_inference.test(batch, more, np.array([0.1, -0.2, 0.4]), ddf)


def test_what_the_lanes_did_not_fit(rng):
    # nearly all variation between groups: the single-fit path takes over, and its degrees of freedom too
    model = made(rng, 2, 4)
    Y = responses(rng, model, 12, 2.0)
    Y[3] = responses(rng, model, 1, 1e4)[0]
    Y[5] = np.nan
    Y[7] = 3.0
    batch = model.fit_many(Y)
    assert batch.alone[3]
    assert batch.invalid.tolist() == [5, 7]
    for ddf in ("satterthwaite", "kenward-roger", "residual", "normal"):
        df, pvalues = batch_inference.df(batch, ddf), batch_inference.pvalues(batch, ddf)
        found = batch_inference.test(batch, L, None, ddf)
        for i in (5, 7):
            for values in (df[i], pvalues[i], found.statistic[i], found.pvalues[i], found.std_error[i]):
                assert np.isnan(values).all()
        same(df[3], inference.coefficient_df(batch[3], ddf), 1e-5)
        single = inference.wald(batch[3], L, None, ddf)
        same([found.statistic[3], found.df_denom[3]], [single.statistic, single.df_denom], 1e-5)
        assert np.isfinite(found.pvalues[[0, 1, 2, 3, 4, 6, 8]]).all()


def test_dropped_columns(rng):
    base = made(rng, 2, 3)
    X = np.column_stack([base.exog, base.exog[:, 1] + base.exog[:, 2]])
    model = flc.LinearMixedModel(base.endog, X, base.exog_re, base.grouping.index)
    Y = responses(rng, base, 6, 2.0)
    batch, plain = model.fit_many(Y), base.fit_many(Y)
    for ddf in batch_inference.DDF:
        df = batch_inference.df(batch, ddf)
        assert np.isnan(df[:, 3]).all()
        same(df[:, :3], batch_inference.df(plain, ddf), AGREE)
        assert np.isnan(batch_inference.pvalues(batch, ddf)[:, 3]).all()
        with pytest.raises(flc.LMMError, match="not estimable"):
            batch_inference.test(batch, "x3", None, ddf)
        found = batch_inference.test(batch, X[2] - X[9], None, ddf)
        same(found.df_denom, batch_inference.test(plain, base.exog[2] - base.exog[9], None, ddf).df_denom, AGREE)


def test_streams(rng):
    model = made(rng, 2, 4)
    Y = responses(rng, model, 20, 2.0)
    whole, stream = model.fit_many(Y), model.fit_many(iter([Y[:7], Y[7:]]))
    np.testing.assert_array_equal(batch_inference.df(stream), batch_inference.df(whole))
    for ddf in batch_inference.DDF:
        one, other = (batch_inference.test(b, "x2 = 0.1", None, ddf) for b in (whole, stream))
        np.testing.assert_array_equal(one.pvalues, other.pvalues)
    np.testing.assert_array_equal(
        batch_inference.test(stream, L, None, "kenward-roger").pvalues,
        batch_inference.test(whole, L, None, "kenward-roger").pvalues,
    )
    for found in (stream, stream[[13, 2]], stream[:4].concat([stream[:4], stream[4:]])):
        at = slice(None) if len(found) == 20 else [13, 2]
        for information in ("auto", "observed"):
            ddf = "satterthwaite" if information == "auto" else "kenward-roger"
            one, other = (batch_inference.test(b, L, None, ddf, information) for b in (whole, found))
            np.testing.assert_array_equal(one.pvalues[at], other.pvalues)
            np.testing.assert_array_equal(one.df_denom[at], other.df_denom)
    with pytest.raises(flc.LMMError, match="responses are not part of a pickle"):
        batch_inference.test(pickle.loads(pickle.dumps(whole)), L)
    again = pickle.loads(pickle.dumps(stream))
    np.testing.assert_array_equal(batch_inference.test(again, L).pvalues, batch_inference.test(whole, L).pvalues)
    drawn = model.fit().simulate_fit(50, seed=1)
    assert np.isfinite(batch_inference.pvalues(drawn)).all()


@pytest.mark.parametrize("factors", [1, 2])
def test_streams_keep_what_was_fitted_by_itself(rng, monkeypatch, factors):
    table = {"y": rng.normal(size=60), "x": rng.normal(size=60), "g": np.repeat(np.arange(12), 5)}
    table["h"] = np.tile(np.arange(5), 12)
    model = flc.lmm("y ~ x + (1 | g)" + " + (1 | h)" * (factors - 1), table)
    Y = rng.normal(size=(9, 60)) + rng.normal(size=(9, 12))[:, table["g"]]
    whole = model.fit_many(Y)
    original = pieces.fit_together

    def leaves_two(shared, Y, into, first, *more):
        original(shared, Y, into, first, *more)
        into.status[first + 2], into.status[first + 4] = 0, 0

    monkeypatch.setattr(pieces, "fit_together", leaves_two)
    stream = model.fit_many(iter([Y]), n_jobs=1)
    assert np.flatnonzero(stream.alone).tolist() == [2, 4]
    both = ["Intercept = 0", "x = 0"]
    # a fit by itself ends within 1e-6 of the same optimum, and is singular where the other is
    same(batch_inference.test(stream, both).df_denom, batch_inference.test(whole, both).df_denom, 1e-4)
    same(stream.variance_components().std_error, whole.variance_components().std_error, 1e-4)
    assert stream[3:6][1].criterion == pytest.approx(whole[4].criterion, rel=1e-12)


def test_threads_and_pieces_do_not_matter(rng):
    model = made(rng, 2, 2)
    Y = responses(rng, model, 61, 0.6)
    one, two = model.fit_many(Y, n_jobs=1), model.fit_many(Y, n_jobs=2, memory=0.02)
    np.testing.assert_array_equal(batch_inference.df(one), batch_inference.df(two))
    some = model.fit_many(Y[17:40])
    np.testing.assert_array_equal(batch_inference.df(some), batch_inference.df(one)[17:40])


def test_units(rng):
    ref = oracle.reference("sleepstudy_slope")
    model = flc.LinearMixedModel(*ref.arrays)
    scaled = flc.LinearMixedModel(ref.y * 1e-6, ref.X * [1.0, 1e6], ref.Z * [1.0, 1e6], ref.groups)
    Y = model.fit().simulate(30, seed=3)
    for ddf in ("satterthwaite", "kenward-roger"):
        a, b = (batch_inference.df(m.fit_many(y), ddf) for m, y in ((model, Y), (scaled, Y * 1e-6)))
        same(a, b, 1e-7)


def test_refusals_and_presentation(rng):
    model = made(rng, 1, 4)
    batch = model.fit_many(responses(rng, model, 5, 1.0), reml=False)
    for call in (batch_inference.df, batch_inference.pvalues):
        with pytest.raises(flc.LMMError, match="ddf='t' is unknown"):
            call(batch, "t")
        with pytest.raises(flc.LMMError, match="fit with reml=True"):
            call(batch, "kenward-roger")
    with pytest.raises(flc.LMMError, match="fit with reml=True"):
        batch_inference.test(batch, "x1", None, "kenward-roger")
    with pytest.raises(flc.LMMError, match="no coefficient 'x7'"):
        batch_inference.test(batch, "x7")
    found = batch_inference.test(batch, "x1 = 1")
    assert repr(found).startswith("<BatchTest: x1 = 1; 5 responses, ")
    assert list(found.to_frame()) == ["statistic", "df_num", "df_denom", "p_value"]


def test_size_of_the_test(rng):
    # three groups per arm: z tests reject far too often, t tests do not
    groups = np.repeat(np.arange(6), 4)
    X = np.column_stack([np.ones(24), groups % 2])
    model = flc.LinearMixedModel(rng.standard_normal(24), X, None, groups)
    Y = rng.standard_normal((4000, 24)) + 1.5 * rng.standard_normal((4000, 6))[:, groups]
    batch = model.fit_many(Y)
    share = {ddf: np.mean(batch_inference.pvalues(batch, ddf)[:, 1] < 0.05) for ddf in batch_inference.DDF}
    assert share["normal"] > 0.08
    assert abs(share["kenward-roger"] - 0.05) < 0.015
    assert abs(share["satterthwaite"] - 0.05) < 0.02


def test_elements_at_the_boundary_need_no_curvature(rng):
    # a zero column of Lambda is no parameter, be the criterion flat in it or not
    model = made(rng, 2, 1)
    hess = np.zeros((1, 3, 3))
    hess[0, :2, :2] = [[2.0, 0.5], [0.5, 1.0]]
    found = inverse_hessian(model.structure, np.array([[0.5, 0.3, 0.0]]), hess)[0]
    same(found[:2, :2], np.linalg.inv(hess[0, :2, :2]), 1e-14)
    assert not found[2].any()
    assert not found[:, 2].any()
