"""Refits after deletions against refits from the rows left, and measures of influence against their formulas."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import pytest

import fastlmm_core as flc
import fits
from fastlmm_core.diagnostics.influence import Influence, influence
from fastlmm_core.diagnostics.leverage import leverage
from fastlmm_core.errors import LMMError
from fastlmm_core.estimation.deletion import groups as deletion
from fastlmm_core.estimation.deletion import rows as refits
from fastlmm_core.estimation.deletion.polynomials import n_nodes
from several import Study


def data(seed, m=30, q=2, p=3, sizes=(3, 8), spread=1.0, noise=1.0, weights=False, offset=False):
    rng = np.random.default_rng(seed)
    counts = rng.integers(sizes[0], sizes[1] + 1, m)
    codes = np.repeat(np.arange(m), counts)
    n = len(codes)
    t = rng.uniform(-1.0, 1.0, n)
    Z = np.column_stack([np.ones(n), t, t**2 + rng.normal(0, 0.3, n)])[:, :q]
    X = np.column_stack([np.ones(n), t, rng.normal(size=n), rng.normal(size=m)[codes]])[:, :p]
    b = spread * rng.normal(size=(m, q))
    w = rng.uniform(0.5, 3.0, n) if weights else None
    o = rng.normal(size=n) if offset else None
    e = noise * rng.normal(size=n) / (1.0 if w is None else np.sqrt(w))
    y = X @ np.linspace(1.0, -1.0, p) + np.sum(Z * b[codes], axis=1) + e + (0.0 if o is None else o)
    perm = rng.permutation(n)
    pick = lambda v: None if v is None else v[perm]  # noqa: E731
    return {"y": y[perm], "X": X[perm], "Z": Z[perm], "groups": codes[perm], "weights": pick(w), "offset": pick(o)}


def without(d, keep):
    return {name: None if v is None else v[keep] for name, v in d.items()}


def refit(d, keep, reml, **options):
    return flc.LinearMixedModel(**without(d, keep), **options).fit(reml=reml)


def keeps(d, by, i, labels):
    return d["groups"] != labels[i] if by == "group" else np.arange(len(d["y"])) != i


def check(d, inf, by, reml, which=None, tol=1e-7, **options):
    which = range(len(inf)) if which is None else which
    for i in which:
        fit = refit(d, keeps(d, by, i, inf.labels), reml, **options)
        se = np.asarray(fit.bse)
        assert inf.converged[i] and fit.converged
        assert inf.nobs[i] == fit.nobs
        # a criterion that is lower is no error, only a better minimum
        assert abs(inf.criterion[i] - fit.criterion) < tol * (1 + abs(fit.criterion) * 1e-2), (i, fit.criterion)
        np.testing.assert_allclose(inf.params[i] / se, fit.params / se, rtol=0, atol=tol)
        np.testing.assert_allclose(inf.bse[i], se, rtol=tol)
        np.testing.assert_allclose(
            inf.cov_params()[i] / np.outer(se, se), fit.cov_params() / np.outer(se, se), atol=tol
        )
        assert abs(inf.sigma2[i] / fit.sigma2 - 1) < tol
        assert inf.singular[i] == fit.singular
        np.testing.assert_allclose(inf.theta[i], fit.theta, rtol=tol, atol=tol * max(1.0, np.abs(fit.theta).max()))
        np.testing.assert_allclose(inf.G[next(iter(inf.G))][i], next(iter(fit.G.values())), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("by", ["group", "observation"])
@pytest.mark.parametrize("q", [1, 2, 3])
@pytest.mark.parametrize("reml", [True, False])
def test_a_deletion_is_a_refit(by, q, reml):
    d = data(q, m=40, q=q, sizes=(4, 9), noise=0.7)
    result = flc.LinearMixedModel(**d).fit(reml=reml)
    inf = influence(result, by)
    which = range(0, len(inf), 1 if by == "group" else 11)
    check(d, inf, by, reml, which)


@pytest.mark.parametrize("by", ["group", "observation"])
def test_weights_and_offset(by):
    d = data(5, m=60, weights=True, offset=True)
    result = flc.LinearMixedModel(**d).fit()
    check(d, influence(result, by), by, True, range(0, 60, 3))


@pytest.mark.parametrize("by", ["group", "observation"])
@pytest.mark.parametrize("q", [1, 2, 3])
def test_many_deletions_go_by_polynomials(by, q, monkeypatch):
    d = data(10 + q, m=600, q=q, p=4, sizes=(4, 7) if q < 3 else (10, 16), spread=2.0)
    result = flc.LinearMixedModel(**d).fit()
    singly = []
    exact = deletion._Refits._exact
    monkeypatch.setattr(deletion._Refits, "_exact", lambda self, i, *rest: (singly.append(i), exact(self, i, *rest)))
    inf = influence(result, by)
    assert len(singly) < (0.1 if q < 3 else 0.5) * len(inf)
    worst = inf.most_influential(4)
    far = np.argsort(-np.linalg.norm(inf.theta - result.theta, axis=1))[:4]
    check(d, inf, by, True, {*worst.tolist(), *far.tolist(), 7, 300})


@pytest.mark.parametrize("by", ["group", "observation"])
@pytest.mark.parametrize(
    ("q", "p", "reml", "weights", "structure"),
    [
        (1, 3, True, False, "full"),
        (2, 4, False, True, "full"),
        (3, 1, True, True, "full"),
        (3, 0, True, False, "diagonal"),
    ],
)
def test_polynomials_lead_where_all_groups_lead(by, q, p, reml, weights, structure, monkeypatch):
    d = data(20 + q, m=250, q=q, p=p, sizes=(4, 7), weights=weights)
    result = flc.LinearMixedModel(**d, structure=structure).fit(reml=reml)
    assert result.converged and not result.singular
    singly = []
    exact = deletion._Refits._exact
    monkeypatch.setattr(deletion._Refits, "_exact", lambda self, i, *rest: (singly.append(i), exact(self, i, *rest)))
    fast = influence(result, by)
    by_polynomials = np.setdiff1d(np.arange(len(fast)), singly)
    assert len(by_polynomials) > 60
    monkeypatch.setattr(deletion, "DEGREES", {})
    slow = influence(result, by)
    assert len(singly) - len(np.unique(singly)) == len(fast) - len(by_polynomials)
    at = by_polynomials
    np.testing.assert_allclose(fast.criterion[at], slow.criterion[at], rtol=1e-12)
    np.testing.assert_allclose(fast.params[at] / slow.bse[at], slow.params[at] / slow.bse[at], rtol=0, atol=1e-8)
    np.testing.assert_allclose(fast.cov_params()[at], slow.cov_params()[at], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(fast.sigma2[at], slow.sigma2[at], rtol=1e-9)
    np.testing.assert_allclose(fast.theta[at], slow.theta[at], rtol=0, atol=1e-8)


@pytest.mark.parametrize("by", ["group", "observation"])
def test_a_deletion_does_not_depend_on_the_others(by, monkeypatch):
    """Neither on the order, nor on their number, nor on the threads: to the last bit."""
    d = data(31, m=203, sizes=(4, 7))
    result = flc.LinearMixedModel(**d).fit()
    calls = []
    kernel = deletion.refit_deletions
    monkeypatch.setattr(deletion, "refit_deletions", lambda *a: (calls.append(a), kernel(*a))[1])
    monkeypatch.setattr(deletion, "processors", lambda: 1)
    whole = influence(result, by)
    assert len(calls) == 2
    names = list(inspect.signature(kernel).parameters)
    for call in calls:
        inputs = dict(zip(names, call, strict=True))
        lines = inputs["lines"]
        expected = kernel(*call)
        for chosen in (np.random.default_rng(0).permutation(len(lines.owner)), np.arange(3), np.array([5])):
            some = lines._replace(
                owner=lines.owner[chosen],
                more=None if lines.more is None else lines.more[chosen],
                removed=lines.removed[chosen],
            )
            found = kernel(**inputs | {"lines": some, "start": inputs["start"][chosen]})
            for one, all_ in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, all_[chosen])
    monkeypatch.setattr(deletion, "processors", lambda: 3)
    monkeypatch.setattr(deletion, "PER_THREAD", 50)
    calls.clear()
    shared = influence(result, by)
    assert len(calls) == 6
    for name in ("params", "theta", "sigma2", "criterion", "gradient_norm", "bse"):
        np.testing.assert_array_equal(getattr(shared, name), getattr(whole, name))


def test_the_degree_is_chosen_by_cost():
    reach = {degree: deletion.EXPANSION_ERROR ** (1 / degree) for degree in range(3, 7)}
    assert deletion._degrees(3, np.full(500, 1e-5)) == list(reach.items())
    # nodes are added where they cost less than the deletions that stay outside
    some = np.full(500, 1e-5)
    some[:2] = 1.5 * reach[3]
    assert deletion._degrees(3, some)[0][0] == (4 if n_nodes(3, 4) < n_nodes(3, 3) + 2 * deletion.SINGLY else 3)
    some[:100] = 0.9 * reach[6]
    assert deletion._degrees(3, some) == [(6, reach[6])]
    assert deletion._degrees(3, np.full(500, 0.1)) == []
    assert deletion._degrees(3, np.full(1, 1e-5)) == []
    assert deletion._degrees(3, np.empty(0)) == []


def test_compressed_designs():
    rng = np.random.default_rng(3)
    m, t = 400, np.arange(6.0)
    codes, times = np.repeat(np.arange(m), 6), np.tile(t, m)
    X = np.column_stack([np.ones(6 * m), times])
    b = rng.normal(size=(m, 2)) * [2.0, 0.5]
    y = 10 + times + b[codes, 0] + b[codes, 1] * times + rng.normal(size=6 * m)
    d = {"y": y, "X": X, "Z": X.copy(), "groups": codes, "weights": None, "offset": None}
    model = flc.LinearMixedModel(**d)
    assert not model.problem.uniform
    result = model.fit()
    for by in ("group", "observation"):
        inf = influence(result, by)
        check(d, inf, by, True, [*inf.most_influential(3), 0, 5, 399])


def test_diagonal_structure():
    d = data(8, m=200, q=2)
    result = flc.LinearMixedModel(**d, structure="diagonal").fit()
    for by in ("group", "observation"):
        inf = influence(result, by)
        check(d, inf, by, True, range(0, 200, 23), structure="diagonal")


def test_badly_scaled_data():
    d = data(9, m=150)
    d = {**d, "y": 1e9 + 1e-3 * d["y"], "X": d["X"] * [1, 1e6, 1], "Z": d["Z"] * [1, 1e6]}
    d["X"][:, 1] += 2e7
    d["Z"] = d["Z"].copy()
    result = flc.LinearMixedModel(**d).fit()
    inf = influence(result, "group")
    for i in (0, 50, int(inf.most_influential(1)[0])):
        fit = refit(d, keeps(d, "group", i, inf.labels), True)
        assert abs(inf.criterion[i] - fit.criterion) < 1e-5
        np.testing.assert_allclose(inf.params[i], fit.params, atol=1e-6 * np.abs(fit.bse).max() + 1e-5 * fit.bse.min())
        np.testing.assert_allclose(inf.bse[i], fit.bse, rtol=1e-6)


def test_nearly_all_variation_between_groups():
    d = data(14, m=200, q=1)
    d["y"] = 1e-5 * d["y"] + 100.0 * np.random.default_rng(0).normal(size=200)[d["groups"]]
    result = flc.LinearMixedModel(**d).fit()
    for by in ("group", "observation"):
        inf = influence(result, by)
        for i in (0, 50, int(inf.most_influential(1)[0])):
            fit = refit(d, keeps(d, by, i, inf.labels), True)
            assert abs(inf.criterion[i] - fit.criterion) < 1e-5
            np.testing.assert_allclose(inf.params[i] / fit.bse, fit.params / fit.bse, atol=1e-6)
            assert abs(inf.sigma2[i] / fit.sigma2 - 1) < 1e-7


def test_a_gross_outlier_leaves_without_a_trace():
    d = data(15, m=100)
    d["y"][17] = 1e4
    result = flc.LinearMixedModel(**d).fit()
    for by in ("group", "observation"):
        inf = influence(result, by)
        i = 17 if by == "observation" else int(np.flatnonzero(inf.labels == d["groups"][17])[0])
        fit = refit(d, keeps(d, by, i, inf.labels), True)
        assert abs(inf.criterion[i] - fit.criterion) < 1e-6
        np.testing.assert_allclose(inf.params[i], fit.params, rtol=1e-7)
        np.testing.assert_allclose(inf.theta[i], fit.theta, rtol=1e-6)


def test_singular_fits_and_deletions():
    d = data(2, m=25, q=2, spread=0.15, sizes=(3, 5))
    result = flc.LinearMixedModel(**d).fit()
    assert result.singular
    for by in ("group", "observation"):
        inf = influence(result, by)
        assert inf.singular.any()
        for i in range(0, len(inf), 1 if by == "group" else 7):
            fit = refit(d, keeps(d, by, i, inf.labels), True)
            assert inf.converged[i]
            assert inf.criterion[i] < fit.criterion + 1e-7
            if inf.criterion[i] > fit.criterion - 1e-7:
                np.testing.assert_allclose(inf.params[i] / fit.bse, fit.params / fit.bse, atol=1e-5)
                np.testing.assert_allclose(inf.G["group"][i], fit.G["group"], atol=1e-5)


def test_deletions_cross_the_boundary():
    """One group alone carries the variance."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(20), 5)
    y = rng.normal(size=100)
    y -= np.repeat(y.reshape(20, 5).mean(axis=1), 5)
    y[:5] += 5.0
    result = flc.LinearMixedModel(y, None, None, codes).fit()
    assert not result.singular
    inf = influence(result)
    assert inf.singular[0] and not inf.singular[1:].any()
    assert inf.theta[0, 0] == 0.0
    assert inf.rvc[0, 0] == -1.0


def test_groups_of_one_row():
    d = data(4, m=40, q=1, sizes=(1, 5))
    sizes = np.bincount(d["groups"])
    alone = np.flatnonzero(sizes[d["groups"]] == 1)
    assert len(alone) >= 3
    result = flc.LinearMixedModel(**d).fit()
    rows, groups = influence(result, "observation"), influence(result, "group")
    check(d, rows, "observation", True, [*alone, 0, 1])
    check(d, groups, "group", True)
    for i in alone:
        g = int(np.flatnonzero(groups.labels == d["groups"][i])[0])
        np.testing.assert_allclose(rows.params[i], groups.params[g], rtol=1e-8)
        np.testing.assert_allclose(rows.criterion[i], groups.criterion[g], rtol=1e-10)


@pytest.mark.parametrize("reml", [True, False])
def test_x_loses_rank(reml):
    d = data(6, m=80, q=1, p=3)
    own = (d["groups"] == 7) * 1.0
    one = np.zeros(len(own))
    one[13] = 1.0
    d["X"] = np.column_stack([d["X"], own, one])
    names = ["a", "b", "c", "group7", "row13"]
    result = flc.LinearMixedModel(**d, exog_names=names).fit(reml=reml)
    for by, i, j in (("group", 7, 3), ("observation", 13, 4)):
        inf = influence(result, by)
        assert np.isnan(inf.params[i, j]) and np.isfinite(np.delete(inf.params[i], j)).all()
        assert np.isnan(inf.bse[i, j])
        assert names[j] in inf.notes[inf.labels[i]]
        unaffected = (
            np.isin(inf.labels, [7, d["groups"][13]], invert=True) if by == "group" else np.arange(len(inf)) != 13
        )
        assert np.isfinite(inf.params[unaffected]).all()
        fit = refit(d, keeps(d, by, i, inf.labels), reml)
        keep = np.isfinite(fit.params)
        assert (keep == np.isfinite(inf.params[i])).all()
        np.testing.assert_allclose(inf.params[i][keep], fit.params[keep], rtol=1e-7)
        np.testing.assert_allclose(inf.bse[i][keep], fit.bse[keep], rtol=1e-7)
        np.testing.assert_allclose(inf.theta[i], fit.theta, rtol=1e-7)
        assert abs(inf.criterion[i] - fit.criterion) < 1e-7
        assert abs(inf.sigma2[i] / fit.sigma2 - 1) < 1e-7


def test_columns_dropped_from_the_full_data_stay_nan():
    d = data(6, m=70, q=1, p=3)
    d["X"] = np.column_stack([d["X"], d["X"][:, 1] * 2.0])
    result = flc.LinearMixedModel(**d).fit()
    inf = influence(result)
    assert np.isnan(inf.params[:, 3]).all() and np.isfinite(inf.params[:, :3]).all()
    assert np.isfinite(inf.cooks_distance).all() and np.isfinite(inf.covratio).all()
    smaller = influence(flc.LinearMixedModel(**{**d, "X": d["X"][:, :3]}).fit())
    np.testing.assert_allclose(inf.cooks_distance, smaller.cooks_distance, rtol=1e-6)


def test_z_loses_rank():
    """Only one group varies in the slope variable."""
    rng = np.random.default_rng(1)
    codes = np.repeat(np.arange(12), 6)
    t = np.where(codes == 4, np.tile(np.arange(6.0), 12), 1.0)
    y = rng.normal(size=72) + rng.normal(size=12)[codes] + 0.3 * t
    Z = np.column_stack([np.ones(72), t])
    result = flc.LinearMixedModel(y, np.ones((72, 1)), Z, codes).fit()
    inf = influence(result)
    assert np.isnan(inf.params[4]).all() and not inf.converged[4]
    assert "combination" in inf.notes[4]
    assert np.isfinite(np.delete(inf.params, 4)).all()
    with pytest.raises(LMMError, match="linear combination"):
        keep = codes != 4
        flc.LinearMixedModel(y[keep], np.ones((66, 1)), Z[keep], codes[keep])


def test_too_few_left():
    rng = np.random.default_rng(1)
    codes = np.repeat([0, 1], 5)
    result = flc.LinearMixedModel(rng.normal(size=10) + codes, None, None, codes).fit()
    inf = influence(result)
    assert np.isnan(inf.params).all() and not inf.converged.any()
    assert "one level" in inf.notes[0]
    assert "Influence" in repr(inf)


@pytest.mark.parametrize("by", ["group", "observation"])
def test_hardly_more_observations_than_random_effects(rng, by):
    # one row more than random effects: without one row, or a group of three, there are as many of either
    sizes = np.array([1, 3] * 6 + [3])
    codes = np.repeat(np.arange(13), sizes)
    t = rng.uniform(-1.0, 1.0, len(codes))
    Z = np.column_stack([np.ones(len(codes)), t])
    y = rng.standard_normal(13)[codes] + 0.5 * rng.standard_normal(len(codes))
    result = flc.LinearMixedModel(y, Z[:, :1], Z, codes).fit()
    assert len(codes) == 2 * 13 + 1
    found = influence(result, by)
    for i, label in enumerate(found.labels):
        keep = codes != label if by == "group" else np.arange(len(codes)) != i
        expected = flc.LinearMixedModel(y[keep], Z[keep, :1], Z[keep], codes[keep]).fit()
        assert found.criterion[i] == pytest.approx(expected.criterion, abs=1e-6)


@pytest.fixture(scope="module")
def sleep():
    frame = flc.datasets.load("sleepstudy")
    return frame, flc.lmm("Reaction ~ Days + (Days | Subject)", frame).fit()


@pytest.mark.parametrize("by", ["group", "observation"])
def test_measures_against_their_formulas(sleep, by):
    frame, result = sleep
    inf = influence(result, by)
    b, cov = np.asarray(result.params), np.asarray(result.cov_params())
    labels = np.asarray(frame["Subject"]).astype(str)
    for i in range(0, len(inf), 5):
        keep = labels != str(inf.labels[i]) if by == "group" else np.arange(len(labels)) != i
        fit = flc.lmm("Reaction ~ Days + (Days | Subject)", frame[keep]).fit()
        b_i, cov_i = np.asarray(fit.params), np.asarray(fit.cov_params())
        change = b - b_i
        np.testing.assert_allclose(inf.cooks_distance[i], change @ np.linalg.solve(cov, change) / 2, rtol=1e-5)
        np.testing.assert_allclose(inf.mdffits[i], change @ np.linalg.solve(cov_i, change) / 2, rtol=1e-5)
        np.testing.assert_allclose(inf.dfbetas[i], change / np.sqrt(np.diag(cov_i)), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(inf.covratio[i], np.linalg.det(cov_i) / np.linalg.det(cov), rtol=1e-5)
        expected = abs(np.trace(np.linalg.solve(cov, cov_i)) - 2)
        np.testing.assert_allclose(inf.covtrace[i], expected, rtol=1e-5, atol=1e-7)
        G, G_i = result.G["Subject"], fit.G["Subject"]
        lower = np.tril_indices(2)
        rvc = np.append(G_i[lower] / G[lower], fit.sigma2 / result.sigma2) - 1
        np.testing.assert_allclose(inf.rvc[i], rvc, rtol=1e-5, atol=1e-6)
    names = ("var_Intercept|Subject", "cov_Intercept.Days|Subject", "var_Days|Subject", "sigma2")
    assert inf.rvc_names == names


def test_leverage_of_groups_is_the_mean_of_their_rows(sleep):
    frame, result = sleep
    groups, rows = influence(result), influence(result, "observation")
    labels = np.asarray(frame["Subject"]).astype(str)
    for name in ("fixed", "random", "overall"):
        means = [rows.leverage[name][labels == str(label)].mean() for label in groups.labels]
        np.testing.assert_allclose(groups.leverage[name], means)


def test_presentation(sleep):
    _, result = sleep
    inf = influence(result)
    frame = inf.to_frame()
    assert len(frame) == 18 and frame.columns[0] == "Subject"
    assert {"cooks_distance", "mdffits", "dfbetas_Days", "rvc_sigma2", "leverage_fixed"} <= set(frame.columns)
    text = repr(inf)
    worst = inf.most_influential(3)
    assert list(worst) == list(np.argsort(-inf.cooks_distance)[:3])
    assert all(str(inf.labels[i]) in text for i in worst)
    assert isinstance(inf, Influence)
    rows = influence(result, "observation").to_frame()
    assert list(rows.index) == list(range(180))


def test_row_labels_skip_dropped_rows(sleep):
    frame, _ = sleep
    frame = frame.copy()
    frame.loc[3, "Reaction"] = np.nan
    inf = influence(flc.lmm("Reaction ~ Days + (Days | Subject)", frame).fit(), "observation")
    assert len(inf) == 179 and 3 not in inf.labels and inf.labels[3] == 4


def test_errors(sleep):
    _, result = sleep
    with pytest.raises(LMMError, match="'group' or 'observation'"):
        influence(result, "row")
    for by in ("group", "Subject"):
        assert influence(result, by).labels[0] == "308"


# ---- several grouping factors --------------------------------------------------------------------------------------


def agree(inf, i, fit):
    se = np.asarray(fit.bse)
    assert inf.converged[i] and inf.singular[i] == fit.singular and inf.nobs[i] == fit.nobs
    assert abs(inf.criterion[i] - fit.criterion) < 1e-7 * (1 + abs(fit.criterion) * 1e-2)
    np.testing.assert_allclose(inf.params[i] / se, fit.params / se, rtol=0, atol=1e-6)
    np.testing.assert_allclose(inf.bse[i], se, rtol=1e-6)
    np.testing.assert_allclose(inf.cov_params()[i], fit.cov_params(), rtol=0, atol=1e-6 * se.max() ** 2)
    np.testing.assert_allclose(inf.sigma2[i], fit.sigma2, rtol=1e-6)
    for name, G in fit.G.items():
        np.testing.assert_allclose(inf.G[name][i], G, rtol=0, atol=1e-5 * max(1.0, np.abs(G).max()))


@pytest.mark.parametrize(
    ("kind", "weighted"), [("nested", False), ("crossed", True), ("mixed", True), ("apart", False)]
)
def test_several_factors_against_refits(rng, kind, weighted):
    study = Study(rng, kind, weighted)
    rows = np.arange(len(study.y))
    result = study.model(rows).fit()
    names = list(study.terms)
    for by in names:
        inf = influence(result, by)
        assert inf.by == by and len(inf) == len(np.unique(study.terms[by][1]))
        for i in range(0, len(inf), 4):
            agree(inf, i, study.model(rows[study.terms[by][1] != inf.labels[i]]).fit())
        assert inf.to_frame()[by] is inf.labels
        fixed = leverage(result)["fixed"]
        means = [np.mean(fixed[study.terms[by][1] == label]) for label in inf.labels]
        np.testing.assert_allclose(inf.leverage["fixed"], means)
    if kind == "nested":
        whole = influence(result)
        np.testing.assert_allclose(whole.params, influence(result, "school").params)
        assert list(whole.labels) == list(np.unique(study.terms["school"][1]))
        b, b_i = np.asarray(result.params), whole.params[2]
        change = b - b_i
        np.testing.assert_allclose(
            whole.cooks_distance[2], change @ np.linalg.solve(result.cov_params(), change) / len(b), rtol=1e-6
        )
        assert "Influence of each school: 5 exact refits" in repr(whole)
        assert len(whole.rvc_names) == whole.rvc.shape[1] == 7
    else:
        with pytest.raises(LMMError, match="the grouping factors are crossed: say which levels are deleted, by='"):
            influence(result)


def test_several_factors_by_observation(rng, monkeypatch):
    study = Study(rng, "crossed", True, n=70)
    rows = np.arange(70)
    result = study.model(rows).fit(reml=False)
    inf = influence(result, "observation")
    assert len(inf) == 70 and list(inf.labels) == list(rows)
    for i in range(0, 70, 9):
        agree(inf, i, study.model(np.delete(rows, i)).fit(reml=False))
    monkeypatch.setattr(refits, "MOST", 60)
    with pytest.raises(LMMError, match=r"each of up to 60 observations, this one has 70.*by="):
        influence(result, "observation")


def test_several_factors_what_cannot_be_fitted(rng):
    study = Study(rng, "crossed", n=60)
    a = study.terms["a"][1]
    study.terms["b"] = (np.ones((60, 1)), (a == a[0]) | (a == a[1]))
    study.X[:, 2] = a == a[0]
    result = study.model(np.arange(60)).fit()
    by_a, by_b = influence(result, "a"), influence(result, "b")
    assert by_b.notes and all("one level" in note for note in by_b.notes.values())
    assert np.isnan(by_b.params).all() and not by_b.converged.any()
    i = int(np.flatnonzero(by_a.labels == a[0])[0])
    assert "X loses rank: no estimate of x2" in by_a.notes[a[0]]
    assert np.isnan(by_a.params[i, 2]) and np.isfinite(by_a.params[i, :2]).all()
    assert np.isnan(by_a.bse[i, 2]) and np.isfinite(by_a.bse[i, :2]).all()
    assert np.isnan(by_a.cooks_distance[i])


def test_several_factors_singular_fit(rng):
    study = Study(rng, "crossed", n=80)
    study.y = study.X[:, 1] + np.tile([1.0, -1.0], 40) + 1e-3 * rng.standard_normal(80)
    study.terms = {"a": (np.ones((80, 1)), np.repeat(np.arange(20), 4)), "b": (np.ones((80, 1)), np.arange(80) % 8)}
    result = study.model(np.arange(80)).fit()
    assert result.singular
    inf = influence(result, "a")
    for i in range(0, 20, 5):
        agree(inf, i, study.model(np.flatnonzero(study.terms["a"][1] != i)).fit())


@pytest.mark.parametrize("formula, residual", [("y ~ arm + visit", "us(visit | id)"),
                                               ("y ~ arm + visit", "ar1h(visit | id, by=arm)"),
                                               ("y ~ arm + visit + (1 | site)", "ar1(visit | id)")])  # fmt: skip
def test_subjects_of_structured_residuals(formula, residual):
    rng = np.random.default_rng(7)
    id_, visit = np.repeat(np.arange(24), 3), np.tile(np.arange(3), 24)
    y = rng.normal(size=24)[id_] + rng.normal(size=72) + 0.3 * rng.normal(size=6)[id_ % 6]
    data = pd.DataFrame({"id": id_, "visit": visit, "arm": np.array(["A", "B"])[id_ // 12], "site": id_ % 6, "y": y})
    data = data[rng.random(72) > 0.1]
    fit = flc.lmm(formula, data, residual=residual).fit()
    found = fit.influence("id")
    assert len(found) == 24 and found.converged.all()
    precision = np.linalg.inv(fit.cov_params())
    for i in (0, 5, 23):
        one = flc.lmm(formula, data[data.id != found.labels[i]], residual=residual).fit()
        np.testing.assert_allclose(found.params[i], one.params, atol=1e-5 * np.max(one.bse))
        np.testing.assert_allclose(found.bse[i], one.bse, rtol=1e-5)
        np.testing.assert_allclose(found.residual[i], one.residual_parameters()["estimate"], rtol=1e-4, atol=1e-5)
        assert found.criterion[i] == pytest.approx(one.criterion, abs=1e-7)
        assert found.nobs[i] == one.nobs
        change = np.asarray(fit.params) - np.asarray(one.params)
        assert found.cooks_distance[i] == pytest.approx(change @ precision @ change / len(change), rel=1e-4)
    base = fit.residual_parameters()
    assert found.rvc_names[-len(base) :] == tuple(base["term"])
    np.testing.assert_allclose(
        found.rvc[:, -len(base) :], found.residual / base["estimate"].to_numpy() - 1.0, rtol=1e-10
    )
    assert "leverage_overall" not in found.to_frame()
    with pytest.raises(flc.LMMError, match="leverage takes residuals that are independent"):
        _ = found.leverage
    if "site" not in formula:
        assert found.by == "id" and np.array_equal(fit.influence().params, found.params)


def test_sets_of_rows_that_are_chosen():
    """Labels of the rows: those with the same one are left out together, as by fits to the others."""
    data = flc.datasets.load("orthodont")
    fit = fits.fitted("distance ~ age * Sex + (age | Subject)", "orthodont")
    site = pd.Series(np.where(data["Subject"] < "F06", "one", np.where(data["age"] > 12, "late", "rest")), name="site")
    found = fit.influence(site)
    assert found.labels.tolist() == ["late", "one", "rest"] and found.by == "site"
    for i, label in enumerate(found.labels):
        left = flc.lmm("distance ~ age * Sex + (age | Subject)", data[(site != label).to_numpy()]).fit()
        np.testing.assert_allclose(found.params[i], left.params, rtol=1e-6)
        assert found.criterion[i] == pytest.approx(left.criterion, abs=1e-6) and found.nobs[i] == left.nobs
    rows = leverage(fit)["overall"].groupby(site.to_numpy()).mean()
    np.testing.assert_allclose(found.leverage["overall"], rows)
    assert list(found.to_frame()["site"]) == ["late", "one", "rest"]
    same = fit.influence(data["Subject"])
    np.testing.assert_allclose(same.params, fit.influence().params, rtol=1e-6)
    with pytest.raises(flc.LMMError, match="by has one label, 'a'"):
        fit.influence(["a"] * 108)
    with pytest.raises(flc.LMMError, match="by has 3 values"):
        fit.influence([1, 2, 3])


# ---- random effects and fitted values of the deleted fits ----------------------------------------


@pytest.mark.parametrize("by", ["group", "observation", "sites"])
@pytest.mark.parametrize("weights", [False, True])
def test_effects_and_fitted_values_are_those_of_the_refits(by, weights):
    d = data(5, m=8, weights=weights, offset=weights)
    result = flc.LinearMixedModel(**d).fit()
    sites = d["groups"] % 3
    found = result.influence(sites if by == "sites" else by)
    labels = np.unique(d["groups"])
    for i in range(0, len(found), 5 if by == "observation" else 1):
        keep = sites != found.labels[i] if by == "sites" else keeps(d, by, i, found.labels)
        fit = refit(d, keep, True)
        here = np.isin(labels, d["groups"][keep])
        assert found.random_effects[i, here] == pytest.approx(np.asarray(fit.random_effects), abs=1e-6)
        assert np.isnan(found.random_effects[i, ~here]).all()
        rows = {"X": d["X"], "Z": d["Z"], "groups": d["groups"]}
        expected = fit.predict(rows, "all", "population", offset=d["offset"])
        assert found.fittedvalues[i] == pytest.approx(expected, abs=1e-6)
        own = found.without(found.labels[i])
        assert own.nobs == keep.sum()
        assert np.asarray(own.params) == pytest.approx(np.asarray(fit.params), abs=1e-6)
        assert np.asarray(own.bse) == pytest.approx(found.bse[i], rel=1e-5)


def test_effects_of_several_factors_and_of_structured_residuals():
    data = flc.datasets.load("penicillin", "pandas")
    result = flc.lmm("diameter ~ 1 + (1 | plate) + (1 | sample)", data).fit()
    found = result.influence("sample")
    fit = found.without("C")
    blups = {name: np.asarray(table.iloc[:, 1]) for name, table in fit.random_effects.items()}
    assert found.random_effects["plate"][2, :, 0] == pytest.approx(blups["plate"], abs=1e-6)
    assert np.isnan(found.random_effects["sample"][2, 2, 0])
    predicted = fit.predict(data, "all", "population")
    assert found.fittedvalues[2] == pytest.approx(predicted.to_numpy(), abs=1e-6)
    teeth = flc.datasets.load("orthodont", "pandas")
    structured = flc.lmm("distance ~ age + (1 | Subject)", teeth, residual="ar1(age | Subject)").fit()
    deleted = structured.influence()
    one = deleted.without("M01")
    here = [i for i, label in enumerate(deleted.labels) if label != "M01"]
    at = list(deleted.labels).index("M01")
    assert deleted.random_effects[at, here, 0] == pytest.approx(np.asarray(one.random_effects.iloc[:, 1]), abs=1e-5)


def test_what_the_rest_does_not_determine_has_no_prediction():
    d = data(9, m=6)
    d["X"] = np.column_stack([d["X"], d["groups"] == 2])
    found = flc.LinearMixedModel(**d).fit().influence()
    assert np.isnan(found.params[2, -1])
    assert (np.isnan(found.fittedvalues[2]) == (d["groups"] == 2)).all()
    with pytest.raises(LMMError, match="is no unit"):
        found.without("nobody")
