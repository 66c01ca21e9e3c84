"""Inference on fits of which each has a design of its own: everything is that of the single fit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.linalg

import fastlmm_core as flc
from fastlmm_core import LMMError
from fastlmm_core.estimation.many import masks
from fastlmm_core.support.seeds import key_of, stream

ERRORS = 1e-5
"""Standard errors and degrees of freedom follow theta, which both searches leave at 1e-8 standard errors."""
EDGE = 1e-3
"""Near the boundary the standard error of a logarithm changes fast."""


def parts():
    """A table of eight parts of different sizes: one without variance between groups, one that lacks a level."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(90, 120, 8)
    gene = np.repeat(np.array([f"g{k}" for k in range(8)]), sizes)
    n = len(gene)
    k = np.repeat(np.arange(8), sizes)
    g = rng.integers(0, 18, n)
    x, arm = rng.normal(size=n), np.array(["a", "b", "c"])[rng.integers(0, 3, n)]
    arm[(k == 5) & (arm == "c")] = "a"
    u = rng.normal(size=(8, 18, 2)) * [1.0, 0.6]
    u[3] = 0.0
    table = {"gene": gene, "g": g, "x": x, "arm": arm, "w": rng.uniform(0.5, 2.0, n), "o": rng.normal(size=n)}
    table["y"] = 0.4 * x + (arm == "b") + u[k, g, 0] + u[k, g, 1] * x + table["o"] + rng.normal(size=n)
    return table


TABLE = parts()


def by_gene(formula="y ~ x * arm + (x | g)", **options):
    return flc.fit_by(formula, TABLE, by="gene", weights="w", offset="o", **options)


def responses(count=72):
    """Responses on one design with shared and scattered holes, values of their own, and a model."""
    rng = np.random.default_rng(9)
    g = np.repeat(np.arange(16), 6)
    table = {"y": rng.normal(size=96), "x": rng.normal(size=96), "arm": np.array(["a", "b"])[g % 2], "g": g}
    Y = rng.normal(size=(count, 16))[:, g] + 0.3 * table["x"] + rng.normal(size=(count, 96))
    Y[: count // 2, 7] = np.nan
    for i in range(count // 2, count):
        Y[i, rng.choice(96, 6, replace=False)] = np.nan
    return flc.lmm("y ~ x + arm + (1 | g)", table), Y, rng.uniform(0.5, 2.0, Y.shape)


def results():
    yield "parts", by_gene()
    model, Y, W = responses()
    yield "weighted", model.fit_many(Y, weights=W, offset=0.1 * W, missing="drop")
    yield "scattered", model.fit_many(np.concatenate([Y[:2], Y]), missing="drop")


with pytest.MonkeyPatch.context() as patch:
    patch.setattr(masks, "FEW", 16)
    RESULTS = dict(results())


@pytest.fixture(params=RESULTS)
def result(request):
    return RESULTS[request.param]


def some(result):
    return range(len(result)) if len(result) < 10 else (0, 3, 21, 44, len(result) - 1)[: 5 if len(result) > 50 else 3]


def test_the_cases_are_what_they_are_for():
    assert RESULTS["scattered"].scattered is not None and RESULTS["scattered"].masks
    assert RESULTS["parts"].singular[3] and not RESULTS["parts"].singular.all()
    assert RESULTS["parts"].rank.tolist().count(6) == 7 and RESULTS["parts"].rank[5] == 4


def test_variance_components(result):
    found = result.variance_components()
    for i in some(result):
        wanted = result[i].variance_components(0.95, method="wald")
        at = [list(wanted["term"]).index(name) for name in found.names]
        close = EDGE if result.singular[i] else ERRORS
        np.testing.assert_allclose(found.estimate[i], np.asarray(wanted["estimate"])[at], rtol=close, atol=1e-7)
        np.testing.assert_allclose(found.std_error[i], np.asarray(wanted["std_error"])[at], rtol=close)
        limits = np.asarray(wanted["conf_high"], dtype=float)[at]
        np.testing.assert_allclose(found.conf_int()[i, :, 1], limits, rtol=10 * close, atol=1e-6)
    assert np.isfinite(found.std_error).all(axis=1).any()
    assert next(iter(found.to_frame())) == result._one


def test_shares(result):
    icc, r2, parts = result.icc(), result.r2(), result.variance_fractions()
    for i in some(result):
        assert icc[i] == pytest.approx(result[i].icc(), rel=ERRORS, abs=1e-8)
        for name, value in result[i].r2().items():
            assert r2[name][i] == pytest.approx(value, rel=ERRORS)
    np.testing.assert_allclose(parts.fractions.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(1.0 - parts.fractions[:, -1], r2["conditional"], rtol=1e-12)


@pytest.mark.parametrize("type", ["I", "II", "III"])
@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_anova(result, type, ddf):
    found = result.anova(type, ddf=ddf)
    for i in some(result):
        if result[i].model.problem.rank < result.params.shape[1]:
            continue  # its own hypotheses are others
        wanted = result[i].anova(type, ddf=ddf).to_frame()
        for k, term in enumerate(wanted["term"]):
            assert found[term].pvalues[i] == pytest.approx(wanted["p_value"][k], rel=1e-4)
            assert found[term].df_denom[i] == pytest.approx(wanted["df_denom"][k], rel=1e-4)
    assert next(iter(found.to_frame())) == result._one
    with pytest.raises(LMMError, match="'I', 'II' or 'III'"):
        result.anova("IV")


@pytest.mark.parametrize("ddf", ["residual", "normal"])
def test_degrees_of_freedom_that_no_variances_tell(ddf):
    """Of rows less columns, each fit's own; of coefficients that a part has: one lacks a level."""
    result = RESULTS["parts"]
    table = {name: np.asarray(column) for name, column in result.tidy(ddf=ddf).items()}
    df, error = (table[name].reshape(result.params.shape) for name in ("df", "std_error"))
    lost = np.isnan(result.params)
    assert lost.any() and (np.isnan(df) == lost).all()
    expected = np.inf if ddf == "normal" else (result.nobs - (~lost).sum(axis=1))[:, None]
    np.testing.assert_array_equal(df[~lost], np.broadcast_to(expected, df.shape)[~lost])
    np.testing.assert_array_equal(error, result.bse)


def test_a_term_of_which_a_part_knows_nothing():
    found = RESULTS["parts"].anova()
    assert np.isnan(found["x:arm"].pvalues[5]) and np.isfinite(np.delete(found["x:arm"].pvalues, 5)).all()
    # of types I and II its hypothesis of two degrees of freedom has one
    for kind in ("I", "II"):
        found = RESULTS["parts"].anova(kind)
        assert found["arm"].df_num == 2 and np.isfinite(found["x"].pvalues).all()
        assert np.isnan(found["arm"].pvalues[5]) and np.isnan(found["arm"].estimate[5]).all()
        assert np.isfinite(np.delete(found["arm"].pvalues, 5)).all()


@pytest.mark.parametrize("ddf", ["satterthwaite", "residual"])
def test_means_and_slopes(result, ddf):
    means = result.emmeans("arm", contrasts="pairwise", ddf=ddf)
    slopes = result.slopes("x", "arm", ddf=ddf)
    for found, offset in ((means, True), (means.comparison, False), (slopes, False)):
        for i in some(result):
            one = result[i]
            shift = one.model.offset.mean() if offset and one.model.offset is not None else 0.0
            for j, row in enumerate(found.L):
                try:
                    wanted = one.test(row, ddf=ddf)
                except LMMError:
                    assert np.isnan(found.estimate[i, j])
                    continue
                assert found.estimate[i, j] == pytest.approx(wanted.estimate[0] + shift, rel=1e-6, abs=1e-7)
                assert found.std_error[i, j] == pytest.approx(wanted.std_error[0], rel=ERRORS)
                assert found.df[i, j] == pytest.approx(wanted.df_denom, rel=1e-4)
                assert found.pvalues[i, j] == pytest.approx(
                    wanted.pvalue if not shift else found.pvalues[i, j], rel=1e-3
                )
    assert list(means.labels) == ["arm"] and next(iter(means.to_frame())) == result._one
    # the linear functions are those of all rows
    fit = result._whole().fittable().fit()
    np.testing.assert_allclose(means.L, fit.emmeans("arm").L)
    np.testing.assert_allclose(slopes.L, fit.slopes("x", "arm").L)


@pytest.mark.parametrize(
    ("large", "small", "reml", "null"),
    [
        ("y ~ x + arm + (x | g)", "y ~ x + arm + (1 | g)", True, "auto"),
        ("y ~ x + arm + (x || g)", "y ~ x + arm + (1 | g)", True, "exact"),
        ("y ~ x + arm + (x || g)", "y ~ x + arm + (1 | g)", True, "mixture"),
        ("y ~ x * arm + (1 | g)", "y ~ x + (1 | g)", False, "auto"),
        ("y ~ x * arm + (x | g)", "y ~ x + (1 | g)", False, "auto"),
    ],
)
def test_comparisons_of_parts(large, small, reml, null):
    over, under = (by_gene(formula, reml=reml) for formula in (large, small))
    found = over.compare(under, null=null, n_sim=500, seed=5)
    for i in range(8):
        row = flc.compare(under[i], over[i], null=null, n_sim=500, seed=5).rows[1]
        assert found.statistic[i] == pytest.approx(row.statistic, rel=1e-6, abs=1e-6)
        assert found.pvalues[i] == pytest.approx(row.pvalue, rel=1e-4)
        assert found.p_std_error[i] == pytest.approx(row.p_std_error, rel=1e-3, abs=1e-12)
        assert np.broadcast_to(found.df, 8)[i] == row.df
    assert len(np.unique(np.broadcast_to(found.df, 8))) == (2 if "*" in large else 1)
    assert found.to_frame()["problem"][0] == "g0"


def test_comparisons_of_responses():
    model, Y, W = responses()
    small = flc.lmm("y ~ arm + (1 | g)", model.design.source.table)
    for options in ({"weights": W}, {}):
        over, under = (one.fit_many(Y, reml=False, missing="drop", **options) for one in (model, small))
        found = over.compare(under)
        for i in (0, 41, 71):
            row = flc.compare(under[i], over[i]).rows[1]
            assert found.pvalues[i] == pytest.approx(row.pvalue, rel=1e-5)
        with pytest.raises(LMMError, match="not nested"):
            under.compare(over)
        with pytest.raises(LMMError, match="of the same rows"):
            over.compare(under[:4])


def test_random_effects(result):
    found = result.random_effect_test(null="mixture")
    exact = result.random_effect_test(n_sim=300, seed=4) if len(found) == 1 and len(result) < 10 else found
    for i in some(result):
        for null, one in (("mixture", found), ("auto", exact)):
            if one is found and null == "auto":
                continue
            wanted = result[i].random_effect_test(null=null, n_sim=300, seed=4)
            assert [f"without {name}" for name in one] == [row.name for row in wanted.rows[1:]]
            for own, row in zip(one.values(), wanted.rows[1:], strict=True):
                assert own.statistic[i] == pytest.approx(row.statistic, rel=1e-6, abs=1e-6)
                assert own.pvalues[i] == pytest.approx(row.pvalue, rel=1e-4)


def test_draws_of_random_effects_follow_the_seed():
    model, Y, _ = responses(4)
    batch = model.fit_many(Y, missing="drop")
    found = [
        batch.random_effect_test(n_sim=400, seed=seed)["Intercept | g"].pvalues
        for seed in (np.random.default_rng(1), np.random.default_rng(1), np.random.default_rng(2), 5, np.int64(5))
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()
    np.testing.assert_array_equal(found[3], found[4])


# ---- permutations ------------------------------------------------------------------------------


def dense(model, L, rhs):
    """V^(1/2) under the null hypothesis, its residuals and what a response in their place gives, by full matrices."""
    X, w = model.exog, np.ones(model.nobs) if model.weights is None else model.weights
    offset = 0.0 if model.offset is None else model.offset
    null = scipy.linalg.null_space(L)
    beta0 = np.linalg.lstsq(L, rhs, rcond=None)[0]
    y = model.endog - X @ beta0 - offset
    under = flc.LinearMixedModel(y, X @ null, model.exog_re, model.grouping.index, weights=model.weights).fit()
    index = model.grouping.index
    Zb = (model.exog_re @ (under.covariance / under.sigma2) @ model.exog_re.T) * (index[:, None] == index)
    white = np.eye(len(y)) + Zb * np.sqrt(np.outer(w, w))
    e = (y - X @ null @ under.beta) * np.sqrt(w)

    def statistic(star):
        """Of residuals of unit weight."""
        inverse = np.linalg.inv(white)
        Xw = X * np.sqrt(w)[:, None]
        C = np.linalg.inv(Xw.T @ inverse @ Xw)
        beta = C @ Xw.T @ inverse @ star
        rest = star - Xw @ beta
        K = rest @ inverse @ rest / (len(star) - X.shape[1]) * L @ C @ L.T
        gap = L @ beta
        return gap[0] / np.sqrt(K[0, 0]) if len(L) == 1 else gap @ np.linalg.solve(K, gap) / len(L)

    return np.real(scipy.linalg.sqrtm(white)), e, statistic


def rearranged(scheme, rng, e, places, count, group):
    """e* from the random numbers of a permutation, by loops."""
    out = e.copy()
    groups = np.unique(group)
    if scheme == "sign-flip":
        signs = 2.0 * rng.integers(0, 2, count) - 1.0
        for k, one in enumerate(groups):
            out[group == one] *= signs[k]
    elif scheme == "freedman-lane":
        keys = rng.permutation(count)[places]
        for k, row in enumerate(np.argsort(keys)):
            out[row] = e[k]
    else:
        keys = rng.random(count)[places]
        for one in groups:
            rows = np.flatnonzero(group == one)
            out[rows] = e[rows[np.argsort(keys[rows])]]
    return out


@pytest.mark.parametrize("hypothesis", ["x = 1", ["x = 1", "arm[T.b] = 0.5"]])
@pytest.mark.parametrize("scheme", ["freedman-lane", "sign-flip", "within"])
@pytest.mark.parametrize("case", ["parts", "weighted", "scattered"])
def test_maps_are_those_of_dense_matrices(case, scheme, hypothesis):
    if case == "parts":
        batch = by_gene("y ~ x + arm + (x | g)")
        count = int(batch.nobs.max())
    else:
        batch, count = RESULTS[case], 96
    maps = []
    found = batch.permute(hypothesis, 4, scheme=scheme, seed=8, reduce=lambda t: maps.append(t) or 0.0)
    rhs = np.array([1.0]) if isinstance(hypothesis, str) else np.array([1.0, 0.5])
    for i in (0, 4, len(batch) - 1):
        model = batch[i].model
        if case == "parts":
            places = np.arange(model.nobs)
        else:
            lines = responses()[1]
            places = np.flatnonzero(~np.isnan((lines if case == "weighted" else np.concatenate([lines[:2], lines]))[i]))
        L = np.zeros((len(rhs), model.exog.shape[1]))
        L[0, model.exog_names.index("x")] = 1.0
        if len(rhs) == 2:
            L[1, model.exog_names.index("arm[T.b]")] = 1.0
        half, e, statistic = dense(model, L, rhs)
        assert found.statistic[i] == pytest.approx(statistic(e), rel=1e-5)
        white = np.linalg.solve(half, e)
        for k in range(4):
            rng = stream(key_of(8), k)
            if scheme == "freedman-lane":
                star = half @ rearranged(scheme, rng, white, places, count, model.grouping.index)
            else:
                blocks = batch.n_groups.max() if scheme == "sign-flip" else count
                star = rearranged(scheme, rng, e, places, int(blocks), model.grouping.index)
            assert maps[k + 1][i] == pytest.approx(statistic(star), rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("scheme", ["freedman-lane", "sign-flip", "within", "whole"])
@pytest.mark.parametrize("refit", [False, True])
def test_complete_responses_are_permuted_as_a_batch(scheme, refit):
    model, Y, _ = responses(6)
    Y, name = np.nan_to_num(Y), "arm[T.b]" if scheme == "whole" else "x"
    options = {"scheme": scheme, "seed": 2, "refit": refit}
    batch = model.fit_many(Y).permute(name, 12, **options)
    own = model.fit_many(Y, weights=np.ones_like(Y)).permute(name, 12, **options)
    np.testing.assert_allclose(own.statistic, batch.statistic, rtol=1e-5)
    np.testing.assert_allclose(own.null, batch.null, rtol=1e-5)
    np.testing.assert_array_equal(own.pvalues, batch.pvalues)
    # and as problems of the same rows
    n = len(Y)
    X, g = model.exog, model.grouping.index
    each = flc.fit_each(
        Y.ravel(), np.tile(X, (n, 1)), None, np.tile(g, n), np.repeat(np.arange(n), 96), exog_names=model.exog_names
    ).permute(name, 12, blocks=None if scheme == "freedman-lane" else np.tile(g, n), **options)
    np.testing.assert_allclose(each.null, batch.null, rtol=1e-5)


def test_whole_blocks_of_one_size_change_places():
    rng = np.random.default_rng(2)
    sizes = [4, 4, 4, 6, 6, 5]
    g = np.repeat(np.arange(6), sizes)
    n = len(g)
    each, groups = np.repeat([0, 1], n), np.concatenate([g, g[::-1]])
    x = np.concatenate([(g % 2) * 1.0, (g[::-1] % 2) * 1.0])
    y = rng.normal(size=2 * n)
    result = flc.fit_each(y, np.column_stack([np.ones(2 * n), x]), None, groups, each)
    seen = set()
    result.permute("x1", 50, scheme="whole", seed=1, reduce=lambda t: seen.add(np.round(t[0], 9)) or 0.0)
    assert 2 < len(seen) <= 6 * 2 + 1
    with pytest.raises(LMMError, match="no two of these have the same"):
        result.permute("x1", 5, scheme="whole", blocks=np.concatenate([np.minimum(g, 1), np.minimum(g, 1)]))


def test_levels_of_permutations():
    """Where the null hypothesis holds 5 % are rejected at 5 %."""
    rng = np.random.default_rng(6)
    each, g = np.repeat(np.arange(400), 60), np.tile(np.repeat(np.arange(12), 5), 400)
    x = rng.normal(size=len(each))
    y = rng.normal(size=(400, 12))[each, g] + rng.normal(size=len(each)) / 2.0
    result = flc.fit_each(y, np.column_stack([np.ones(len(x)), x]), None, g, each)
    for scheme in ("freedman-lane", "within", "sign-flip"):
        found = result.permute("x1", 199, scheme=scheme, seed=3)
        assert (found.pvalues <= 0.05).mean() == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 400))


# ---- parts and files ---------------------------------------------------------------------------


def test_parts_and_pickles(result):
    chosen = np.flatnonzero(result.converged)[[2, 0, 3]]
    mask = np.zeros(len(result), dtype=bool)
    mask[chosen] = True
    wanted = result.test("x", ddf="kenward-roger").pvalues
    for part, places in ((result[chosen], chosen), (result[mask], np.sort(chosen)), (result[1:4], np.arange(1, 4))):
        assert type(part) is type(result) and len(part) == len(places)
        np.testing.assert_array_equal(part.params, result.params[places])
        np.testing.assert_allclose(part.test("x", ddf="kenward-roger").pvalues, wanted[places], rtol=1e-9)
        assert part[1].criterion == pytest.approx(result[places[1]].criterion, rel=1e-12)
    again = type(result).concat([result[:3], result[3:]])
    np.testing.assert_array_equal(again.criterion, result.criterion)
    np.testing.assert_allclose(again.test("x", ddf="kenward-roger").pvalues, wanted, rtol=1e-9)
    np.testing.assert_array_equal(again._labels, result._labels)
    same = pickle.loads(pickle.dumps(result[chosen]))
    np.testing.assert_array_equal(same.params, result.params[chosen])
    if same._one == "problem" or result is RESULTS["weighted"]:
        assert same.variance_components().std_error.shape[0] == 3
    else:
        with pytest.raises(LMMError, match="not part of a pickle"):
            same.variance_components()
    with pytest.raises(LMMError, match="which must be"):
        result[np.array([99])]
    with pytest.raises(LMMError, match="at least one"):
        type(result).concat([])
    for index in (len(result), -len(result) - 1):
        with pytest.raises(IndexError):
            result[index]


def test_labels_choose_parts():
    result = RESULTS["parts"]
    np.testing.assert_array_equal(result[["g6", "g1"]].labels, ["g6", "g1"])
    with pytest.raises(LMMError, match="no problem has the label 'g9'"):
        result[["g6", "g9"]]
    with pytest.raises(LMMError, match="fit both alike"):
        type(result).concat([result, by_gene(reml=False)])
    with pytest.raises(LMMError, match="other columns"):
        type(result).concat([result, by_gene("y ~ x + (x | g)")])


def test_what_is_refused():
    model, Y, W = responses()
    batch = model.fit_many(Y, covariates={"gm": W}, missing="drop")
    with pytest.raises(LMMError, match="shares a design; compare it with fits on that design"):
        model.fit_many(Y, weights=W, missing="drop").compare(model.fit_many(Y))
    with pytest.raises(LMMError, match="models from a formula"):
        flc.fit_each(np.arange(20.0) % 7, None, None, np.arange(20) // 4, np.zeros(20, int)).slopes("x")
    with pytest.raises(LMMError, match="fit both with reml=False"):
        batch.compare(model.fit_many(Y, weights=np.ones_like(Y), missing="drop"))
    assert list(batch.anova()) == ["x", "arm", "gm"]
    with pytest.raises(LMMError, match=r"weights has the shape .*; transpose it"):
        model.fit_many(Y, weights=W.T, missing="drop")


def test_blocks_by_the_name_of_a_column():
    model, Y, _ = responses(4)
    Y = np.nan_to_num(Y)
    batch, own = model.fit_many(Y), model.fit_many(Y, weights=np.ones_like(Y))
    g = model.grouping.index
    half = np.where(np.asarray(model.design.source.table["arm"]) == "a", "u", "v")
    for name, labels in (("g", g), ("arm", half)):
        wanted = batch.permute("x", 8, scheme="within", blocks=labels, seed=3).null
        for result in (batch, own):
            np.testing.assert_allclose(
                result.permute("x", 8, scheme="within", blocks=name, seed=3).null, wanted, rtol=1e-5
            )
    found = by_gene().permute("x", 8, scheme="within", blocks="arm", seed=3)
    labels = by_gene().permute("x", 8, scheme="within", blocks=TABLE["arm"], seed=3)
    np.testing.assert_array_equal(found.null, labels.null)
    arrays = flc.LinearMixedModel(Y[0], model.exog, None, g, group_name="g").fit_many(Y)
    np.testing.assert_array_equal(
        arrays.permute("x1", 8, scheme="within", blocks="g", seed=3).null,
        arrays.permute("x1", 8, scheme="within", blocks=g, seed=3).null,
    )
    with pytest.raises(LMMError, match="blocks='arm' is no grouping factor"):
        arrays.permute("x1", 8, scheme="within", blocks="arm")
    with pytest.raises(LMMError, match="site"):
        batch.permute("x", 8, scheme="within", blocks="site")


@pytest.mark.parametrize("missing", ["invalid", "drop"])
def test_names_of_dimensions(missing):
    pytest.importorskip("xarray")
    model, Y, W = responses(6)
    own = {"weights": W} if missing == "invalid" else {}
    batch = model.fit_many(np.nan_to_num(Y) if own else Y, missing=missing, **own)
    found = batch.to_xarray()
    assert found.params.dims == ("response", "term")
    np.testing.assert_array_equal(found.nobs, batch.nobs)
    np.testing.assert_array_equal(found.df.sel(term="x"), batch.df[:, 1])
    np.testing.assert_array_equal(found.covariance, batch.covariance)
    np.testing.assert_array_equal(batch.llf, -0.5 * batch.criterion)
    np.testing.assert_array_equal(np.concatenate(list(batch.G.values()), axis=1)[:, 0, 0], batch.covariance[:, 0, 0])


def test_weights_that_are_stored_elsewhere():
    anndata = pytest.importorskip("anndata")
    model, Y, W = responses(6)
    Y = np.nan_to_num(Y)
    wanted = model.fit_many(Y, weights=W)
    found = model.fit_many(anndata.AnnData(Y.T), weights=anndata.AnnData(W.T))
    np.testing.assert_array_equal(found.params, wanted.params)
    with pytest.raises(LMMError, match=r"weights must have the shape"):
        model.fit_many(Y, weights=anndata.AnnData(W.T[:-1]))


def test_the_response_with_most_observations_need_not_be_fittable():
    model, Y, _ = responses(40)
    c = np.random.default_rng(2).normal(size=Y.shape)
    Y[3] = 2.0
    fits = model.fit_many(Y, covariates={"c": c}, missing="drop")
    assert list(fits.reasons) == [3]
    some = np.delete(np.arange(40), 3)
    others = fits[some]
    for kind in ("II", "III"):
        found, wanted = fits.anova(kind), others.anova(kind)
        for name in wanted:
            np.testing.assert_allclose(found[name].pvalues[some], wanted[name].pvalues, rtol=1e-9)
            assert np.isnan(found[name].pvalues[3])
    found, wanted = (one.random_effect_test(null="mixture")["Intercept | g"] for one in (fits, others))
    np.testing.assert_allclose(found.pvalues[some], wanted.pvalues, rtol=1e-9)


@pytest.mark.parametrize("own", [{}, {"missing": "drop"}, {"weights": 1}, {"covariates": {"c": 1}}])
def test_no_responses(own):
    model, Y, _ = responses(40)
    none = np.empty((0, Y.shape[1]))
    given = {name: none if name == "weights" else {"c": none} if name == "covariates" else own[name] for name in own}
    fits = model.fit_many(none, **given)
    assert len(fits.variance_components().to_frame()["term"]) == 0
    assert len(fits.test("x").pvalues) == 0 and fits.random_effects().shape == (0, 16, 1)
    if "missing" in own:
        with pytest.raises(LMMError, match="none of the responses could be fitted"):
            fits.emmeans("arm")
    else:
        assert len(fits.emmeans("arm").to_frame()["estimate"]) == 0


def test_responses_in_the_order_of_fortran():
    model, Y, W = responses(40)
    for own in ({}, {"weights": W}):
        found = model.fit_many(np.asfortranarray(Y), missing="drop", **own)
        np.testing.assert_array_equal(found.params, model.fit_many(Y, missing="drop", **own).params)
        columns = np.ascontiguousarray(Y.T)
        np.testing.assert_array_equal(model.fit_many(columns.T, missing="drop", **own).params, found.params)


def test_tables_say_what_their_rows_are_of():
    result = by_gene()
    tables = [
        result.test("x").to_frame(), result.tests({"x": "x"}).to_frame(), result.anova().to_frame(),
        result.moderate().to_frame(), result.tidy(), result.to_frame(), result.variance_components().to_frame(),
        result.emmeans("arm").to_frame(), result.variance_fractions().to_frame(), result.random_effects(),
    ]  # fmt: skip
    for table in tables:
        assert next(iter(table)) == "problem" and set(table["problem"]) <= set(TABLE["gene"])
    shown = result.moderate()
    assert "t tests of 8 problems with moderated variances" in str(shown)
    assert "<table" in shown._repr_html_() and "prior df" in shown.as_markdown()


def test_columns_that_depend_on_others_in_all_fits():
    model, Y, W = responses(12)
    table = {"y": Y[0], "x": model.exog[:, 1], "double": 2.0 * model.exog[:, 1], "g": np.repeat(np.arange(16), 6)}
    table["y"] = np.random.default_rng(1).normal(size=96)
    aliased = flc.lmm("y ~ x + double + (1 | g)", table)
    fits = aliased.fit_many(Y, weights=W, missing="drop")
    found = fits.anova()
    assert len(found) == 0 and "double: none of its hypotheses can be estimated" in found.notes[1]
    assert np.isnan(fits.test("double").pvalues).all() and np.isfinite(fits.test("x + 2 * double").pvalues).all()


def test_infinite_values_among_masks():
    model, Y, _ = responses(72)
    Y[3] = np.inf
    Y[4, 5] = -np.inf
    fits = model.fit_many(Y, missing="drop")
    assert set(fits.invalid) == {3, 4} and (fits.rank[[3, 4]] == 0).all() and fits.rank[5] == 3
    found = fits.random_effect_test(null="mixture")["Intercept | g"]
    assert np.isnan(found.pvalues[[3, 4]]).all() and np.isfinite(found.pvalues[5:]).all()
