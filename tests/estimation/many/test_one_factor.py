"""Many responses on one design: every fit is the single fit, however the responses come."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core.estimation.many import pieces as batch_module
from fastlmm_core.estimation.many.one_factor import shared_design
from fastlmm_core.simulation.draws import STREAM, draws, parametric
from fastlmm_core.support.seeds import key_of

# Both paths stop at a decrement of at most 1e-9 sqrt(m) or where rounding of the gradient ends the search; a decrement
# is the distance to the optimum in standard errors of theta, so 1e-8 of a standard error is what agreement can mean.
AGREE = 1e-8
# The criterion is flat at its optimum: what is left is the rounding of its sums, taken in another order.
CRITERION = 1e-11

FIELDS = (
    "params",
    "bse",
    "sigma2",
    "criterion",
    "llf",
    "theta",
    "gradient_norm",
    "converged",
    "singular",
    "n_evaluations",
)


@pytest.fixture(autouse=True)
def _threads_for_little(monkeypatch):
    """Few responses are divided among threads too."""
    monkeypatch.setattr(batch_module, "WORTH_A_THREAD", 1)


def identical(a, b):
    """Equal to the last bit."""
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for term, G in a.G.items():
        np.testing.assert_array_equal(G, b.G[term])
    np.testing.assert_array_equal(a.invalid, b.invalid)


def like(a, b):
    """Equal but for the rounding of sums: fits of scores, and of the responses that have these scores."""
    np.testing.assert_array_equal(a.status, b.status)
    for name in ("params", "bse", "sigma2", "criterion", "satterthwaite"):
        found, wanted = getattr(a, name), getattr(b, name)
        size = np.nanmax(np.abs(wanted), axis=0, initial=1e-300)
        np.testing.assert_allclose(found / size, wanted / size, rtol=AGREE, atol=AGREE, err_msg=name)


def subset(batch, rows):
    """The fields of some responses."""
    return {name: getattr(batch, name)[rows] for name in FIELDS}


def agrees(model, batch, Y, reml=True, rows=None, tolerance=AGREE, criterion=CRITERION):
    """Each response of the batch against `refit`; returns how many fits were singular."""
    n_singular = 0
    per_group = model.nobs / model.problem.m
    mean_square = np.mean(model.exog_re**2 * (1.0 if model.weights is None else model.weights[:, None]), axis=0)
    for i in range(len(Y)) if rows is None else rows:
        single = model.refit(np.asarray(Y[i], dtype=float), reml=reml)
        assert single.converged and batch.converged[i], i
        assert single.singular == batch.singular[i], i
        n_singular += single.singular
        assert abs(batch.criterion[i] - single.criterion) <= criterion * (abs(single.criterion) + model.nobs), i
        assert batch.llf[i] == -0.5 * batch.criterion[i]
        se = np.sqrt(np.diag(single.cov))
        np.testing.assert_array_equal(np.isnan(batch.params[i]), np.isnan(single.beta))
        np.testing.assert_allclose(batch.bse[i], se, rtol=tolerance)
        # nothing can be known to better than the last digits of y
        floor = 4e-16 * np.max(np.abs(single.beta[np.isfinite(single.beta)]), initial=0.0)
        off = np.abs(batch.params[i] - single.beta) / (tolerance * se + floor)
        assert not np.any(off > 1.0), (i, off)
        assert batch.sigma2[i] == pytest.approx(single.sigma2, rel=tolerance)
        # G on the scale on which it matters: its own size, or the share of the residual in a group's effects
        G = oracle.covariance_blocks(single)
        found = np.zeros_like(G)
        for block, own in zip(model.structure.blocks, batch.G.values(), strict=True):
            found[block.start : block.stop, block.start : block.stop] = own[i]
        size = np.sqrt(np.diag(G) + single.sigma2 / (per_group * mean_square))
        # a factor at the boundary is known to the root of the accuracy of the criterion only
        at_boundary = 1e-6 if single.singular else 10.0 * tolerance
        assert np.max(np.abs(found - G) / np.outer(size, size)) <= at_boundary, (i, found, G)
        if not single.singular:
            # in the metric of the Hessian: the distance in standard errors
            delta = batch.theta[i] - single.theta
            hessian = single.model.evaluate(single.theta, reml=reml, order=2).hessian
            assert np.sqrt(abs(delta @ hessian @ delta)) <= 10.0 * tolerance, i
    return n_singular


def made(rng, q, p, visits="unbalanced", structure="full", weights=False, offset=False, m=12):
    """A model with random slopes and curves over time; what its response is does not matter."""
    sizes = {
        "balanced": np.full(m, 6),
        "mixed": np.array([4, 6, 9])[np.arange(m) % 3],
        "unbalanced": rng.integers(q + 2, 10, m),
        "shuffled": rng.integers(q + 2, 10, m),
        "small": rng.integers(q + 1, 10, m),
    }[visits]
    if visits == "small":
        sizes[: m // 3] = 1
    groups = np.repeat(np.arange(m), sizes)
    n = len(groups)
    if visits in ("balanced", "mixed"):
        t = np.concatenate([np.linspace(-1.0, 1.0, size) for size in sizes])
    else:
        t = rng.uniform(-1.0, 1.0, n)
    Z = t[:, None] ** np.arange(q)
    X = np.column_stack([np.ones(n), t, rng.standard_normal(n), rng.standard_normal(m)[groups]])[:, :p]
    if visits in ("shuffled", "mixed"):
        at = rng.permutation(n)
        groups, Z, X = groups[at], Z[at], X[at]
    return flc.LinearMixedModel(
        rng.standard_normal(n), X, Z, groups, structure=structure,
        weights=rng.uniform(0.3, 3.0, n) if weights else None, offset=rng.standard_normal(n) if offset else None,
    )  # fmt: skip


def responses(rng, model, count, between=1.0, within=0.7):
    """Responses with random effects of variance about `between` squared."""
    b = between * rng.standard_normal((count, model.problem.m, model.structure.q))
    Y = within * rng.standard_normal((count, model.nobs))
    return Y + np.einsum("rij,ij->ri", b[:, model.grouping.index], model.exog_re)


def sleepstudy_model(**options):
    ref = oracle.reference("sleepstudy_slope")
    return flc.LinearMixedModel(*ref.arrays, **options)


VISITS = ["balanced", "mixed", "unbalanced", "shuffled", "small"]


# ------------------------------------------------------------------------------------------------------------
# agreement with single fits


@pytest.mark.parametrize("visits", VISITS)
@pytest.mark.parametrize("p", [0, 1, 2, 4])
@pytest.mark.parametrize(("q", "structure"), [(1, "full"), (2, "full"), (2, "diagonal"), (3, "full"), (3, "diagonal")])
def test_each_fit_is_the_single_fit(rng, q, structure, p, visits):
    # weights and offset in all four combinations over the designs
    which = p + q + VISITS.index(visits)
    model = made(rng, q, p, visits, structure, weights=which % 2 == 0, offset=which % 4 > 1)
    signal, weak = responses(rng, model, 6, 2.0), responses(rng, model, 6, 0.4)
    Y = np.concatenate([signal, weak, rng.standard_normal((6, model.nobs))])
    for reml in (True, False):
        batch = model.fit_many(Y, reml=reml, n_jobs=1)
        assert batch.reml is reml
        agrees(model, batch, Y, reml)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("visits", ["balanced", "mixed", "unbalanced"])
def test_weights_and_offset(rng, visits, offset, weights):
    model = made(rng, 2, 2, visits, weights=weights, offset=offset, m=30)
    Y = responses(rng, model, 20)
    assert agrees(model, model.fit_many(Y, n_jobs=1), Y) < 20


def test_patterns_with_many_groups_and_patterns_with_one(rng):
    # forty groups of one schedule, three of another, and five that are alone: together in one design
    sizes = np.r_[np.full(40, 5), np.full(3, 8), [3, 4, 6, 7, 9]]
    order = rng.permutation(len(sizes))
    groups = np.repeat(np.arange(len(sizes)), sizes[order])
    t = np.concatenate([np.linspace(0.0, 2.0, s) for s in sizes[order]])
    X = np.column_stack([np.ones(len(t)), t, rng.standard_normal(len(sizes))[groups], rng.standard_normal(len(t))])
    model = flc.LinearMixedModel(rng.standard_normal(len(t)), X, X[:, :2], groups)
    Y = responses(rng, model, 30)
    assert agrees(model, model.fit_many(Y, n_jobs=1), Y) < 30


@pytest.mark.parametrize("reml", [True, False])
def test_balanced_data_start_at_their_optimum(reml):
    """Moments solve the likelihood equations where X = Z is the same in every group: one evaluation certifies."""
    model = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy"))
    Y = model.fit().simulate(200, seed=3)
    batch = model.fit_many(Y, reml=reml, n_jobs=1)
    inside = ~batch.singular
    assert inside.sum() > 180
    assert (batch.n_evaluations[inside] == 1).mean() > 0.9
    # by hand, from the least-squares lines of the subjects
    codes, days = model.grouping.index, model.exog[:, 1]
    lines = np.array([np.polynomial.polynomial.polyfit(days[codes == g], Y[:, codes == g].T, 1) for g in range(18)])
    T = np.column_stack([np.ones(10), np.arange(10.0)])
    fitted = np.einsum("ta,gai->git", T, lines)
    rest = np.array([Y[:, codes == g].T for g in range(18)]).transpose(0, 2, 1) - fitted
    sigma2 = (rest**2).sum(axis=(0, 2)) / (18 * 8)
    away = lines - lines.mean(axis=0)
    G = np.einsum("gai,gbi->iab", away, away) / (17 if reml else 18) - sigma2[:, None, None] * np.linalg.inv(T.T @ T)
    regular = inside & (np.linalg.eigvalsh(G)[:, 0] > 0.0)
    np.testing.assert_allclose(batch.G["Subject"][regular], G[regular], rtol=1e-6, atol=1e-6 * np.abs(G).max())
    np.testing.assert_allclose(batch.sigma2[regular], sigma2[regular], rtol=1e-9)


@pytest.mark.parametrize("visits", ["mixed", "unbalanced", "small"])
@pytest.mark.parametrize(("q", "p"), [(1, 0), (1, 2), (2, 4), (3, 2)])
def test_expected_derivatives_at_the_common_start(rng, q, p, visits):
    """Information and third traces of sigma^2 and the elements of G^, by dense algebra."""
    model = made(rng, q, p, visits, weights=True)
    start = shared_design(model).search.start
    n, codes = model.nobs, model.grouping.index
    root = np.sqrt(model.weights)[:, None]
    X, z = root * model.exog, root * model.problem.conditioned_z(model.exog_re)
    incidence = codes[:, None] == codes
    directions = [np.eye(n)]
    for a, b in zip(*np.tril_indices(q), strict=True):
        outer = np.outer(z[:, a], z[:, b])
        directions.append((outer if a == b else outer + outer.T) * incidence)
    V = np.eye(n) + (z @ start.first @ start.first.T @ z.T) * incidence
    inverse = np.linalg.inv(V)
    projected = inverse - inverse @ X @ np.linalg.solve(X.T @ inverse @ X, X.T @ inverse)
    assert start.bend is not None
    for P, scoring, bend in zip((projected, inverse), start.scoring, start.bend, strict=True):
        turned = [P @ D for D in directions]
        information = np.array([[np.trace(A @ B) for B in turned] for A in turned])
        third = np.array([[[np.trace(A @ B @ C) for C in turned] for B in turned] for A in turned])
        np.testing.assert_allclose(scoring @ information, np.eye(len(turned)), atol=1e-9)
        np.testing.assert_allclose(bend, third, rtol=1e-9, atol=1e-12 * np.abs(third).max())


@pytest.mark.parametrize("reml", [True, False])
def test_unbalanced_data_start_near_their_optimum(rng, reml):
    """Scoring, and what the next terms of the expansion leave: errors in the start are of third order."""
    model = made(rng, 2, 4, m=100)
    drawn = flc.LinearMixedModel(responses(rng, model, 1, 2.0)[0], model.exog, model.exog_re, model.grouping.index)
    batch = drawn.fit_many(drawn.fit().simulate(200, seed=3), reml=reml, n_jobs=1)
    # by scoring alone four for most of them
    assert (batch.n_evaluations <= 3).mean() > 0.8


@pytest.mark.parametrize("reml", [True, False])
def test_pure_noise(rng, reml):
    model = sleepstudy_model()
    Y = rng.standard_normal((150, model.nobs))
    # most fits of pure noise lie on the boundary, and each of the lanes does something else
    assert agrees(model, model.fit_many(Y, reml=reml, n_jobs=1), Y, reml) > 75


@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("q", [1, 2, 3, 4])
def test_lanes_settle_singular_optima_of_every_rank(rng, q, structure):
    # effects of one direction that is none of the columns', so that no order of the columns keeps all pivots large
    m, n = 60, q + 3
    codes = np.repeat(np.arange(m), n)
    Z = rng.uniform(-1.0, 1.0, m * n)[:, None] ** np.arange(q)
    model = flc.LinearMixedModel(rng.standard_normal(m * n), Z, Z, codes, structure=structure)
    along = rng.standard_normal(q) * np.append(1e-3, np.ones(q - 1)) if q > 1 else np.zeros(1)
    between = rng.standard_normal((80, m))[:, codes] * (Z @ along)
    Y = rng.standard_normal((80, m * n)) + np.repeat([0.0, 1.0], 40)[:, None] * between
    batch = model.fit_many(Y, n_jobs=1)
    assert not batch.alone.any()
    assert agrees(model, batch, Y) > 20
    last = model.fit_many(Y[::-1][:7], n_jobs=1)
    np.testing.assert_array_equal(last.theta, batch.theta[::-1][:7])


def test_all_fits_to_pure_noise_are_certified():
    model = sleepstudy_model()
    Y = np.random.default_rng(1).standard_normal((20_000, model.nobs))
    batch = model.fit_many(Y)
    assert len(batch.invalid) == 0
    np.testing.assert_array_equal(np.flatnonzero(~batch.converged), [])


@pytest.mark.parametrize("reml", [True, False])
def test_reference_data(rng, reml):
    for name in ("sleepstudy_slope", "orthodont_slope", "machines_q3"):
        ref = oracle.reference(name)
        model = flc.LinearMixedModel(*ref.arrays, structure=ref.structure)
        batch = model.fit_many(ref.arrays[0], reml=reml)
        assert len(batch) == 1
        assert batch.criterion[0] == pytest.approx(ref.blocks[reml].criterion, rel=1e-9)
        agrees(model, batch, [ref.arrays[0]], reml)


@pytest.mark.parametrize(
    ("origin", "scale"), [(1e6, 1.0), (0.0, 1e-6), (0.0, 1e12), (-1e6, 1e-3), (0.0, 1e-150), (0.0, 1e150)]
)
@pytest.mark.parametrize("visits", ["balanced", "unbalanced"])
def test_units_of_the_responses(rng, visits, origin, scale):
    model = made(rng, 2, 2, visits, m=20)
    Y = origin + scale * responses(rng, model, 12)
    # y has lost origin / scale digits before it came here; single fits centre it at another number
    lost = abs(origin) / scale * 1e-15
    agrees(model, model.fit_many(Y, n_jobs=1), Y, tolerance=AGREE + 10.0 * lost, criterion=CRITERION + lost)


@pytest.mark.parametrize("ratio", [1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("visits", ["balanced", "unbalanced"])
def test_nearly_all_variation_between_groups(rng, visits, ratio):
    # variances of `ratio` squared between groups: from 1e6 on the sums lose digits and the rows have to be read again
    model = made(rng, 2, 2, visits, m=20)
    Y = responses(rng, model, 12, between=ratio, within=1.0)
    # the part within groups is a difference of sums 1e6 times as large before the single path takes over
    lost = 1e-9 if ratio <= 1e3 else 0.0
    agrees(model, model.fit_many(Y, n_jobs=1), Y, tolerance=AGREE + 10.0 * lost, criterion=CRITERION + 10.0 * lost)


def test_dropped_columns_are_nan(rng):
    base = made(rng, 2, 2, m=20)
    x = base.exog
    X = np.column_stack([x[:, 0], x[:, 1], 2.0 * x[:, 1] - 3.0, x[:, 1] ** 2, x[:, 0]])
    model = flc.LinearMixedModel(base.endog, X, base.exog_re, base.grouping.index)
    assert list(model.fit().dropped_columns) == ["x2", "x4"]
    Y = responses(rng, model, 10)
    batch = model.fit_many(Y, n_jobs=1)
    for values in (batch.params, batch.bse, batch.tvalues, batch.pvalues):
        np.testing.assert_array_equal(np.isnan(values), np.tile([False, False, True, False, True], (10, 1)))
    agrees(model, batch, Y)


@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_years_as_time(rng, structure):
    groups = np.repeat(np.arange(25), 6)
    year = np.tile(np.arange(2015.0, 2021.0), 25)
    X = np.column_stack([np.ones(150), year])
    model = flc.LinearMixedModel(rng.standard_normal(150), X, X, groups, structure=structure)
    b = rng.standard_normal((15, 25, 2)) * [2.0, 0.5]
    Y = rng.standard_normal((15, 150)) + b[:, groups, 0] + b[:, groups, 1] * (year - 2017.0)
    # with independent effects about the year 0 the intercept and the year are all but collinear: six digits less
    lost = 1e-10 if structure == "diagonal" else 0.0
    agrees(model, model.fit_many(Y, n_jobs=1), Y, criterion=CRITERION + lost)


def test_several_terms_of_a_formula(rng):
    data = flc.datasets.load("sleepstudy")
    for formula in ("Reaction ~ Days + (Days || Subject)", "Reaction ~ Days + (1 | Subject) + (0 + Days | Subject)"):
        model = flc.lmm(formula, data)
        Y = model.fit().simulate(20, seed=1)
        batch = model.fit_many(Y)
        assert list(batch.G) == list(model.fit().G)
        assert sum(G.shape[1] for G in batch.G.values()) == 2
        agrees(model, batch, Y)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(("structure", "visits"), [("full", "mixed"), ("diagonal", "unbalanced"), ("full", "shuffled")])
def test_the_gradient_vanishes_by_the_oracle(rng, structure, visits, reml):
    model = made(rng, 2, 2, visits, structure, weights=True, offset=True)
    Y = responses(rng, model, 4)
    batch = model.fit_many(Y, reml=reml)
    for y, theta, singular, value in zip(Y, batch.theta, batch.singular, batch.criterion, strict=True):
        data = (y, model.exog, model.exog_re, model.grouping.index, reml, model.weights, model.offset, structure)
        assert oracle.criterion_theta(theta, *data) == pytest.approx(value, rel=1e-11)
        gradient, hessian = oracle.gradient_theta(theta, *data), oracle.hessian_theta(theta, *data)
        # what a Newton step would still gain; 1e-6 of it is a rounding error of the dense oracle's gradient
        moved = np.linalg.lstsq(hessian, gradient, rcond=1e-8)[0]
        assert np.sqrt(abs(gradient @ moved)) < 1e-6
        assert singular or np.linalg.eigvalsh(hessian)[0] > 0.0


# ------------------------------------------------------------------------------------------------------------
# the same bits however the responses come


@pytest.fixture(scope="module", params=["mixed", "unbalanced"])
def crowd(request):
    """A model, and responses of every kind: interior, boundary, single-path, invalid; and their fits."""
    rng = np.random.default_rng(20)
    # enough groups that the product of their determinants passes any threshold in some lanes and not in others
    model = made(rng, 2, 2, request.param, m=18 if request.param == "mixed" else 60)
    kinds = [responses(rng, model, 100), responses(rng, model, 50, 100.0), responses(rng, model, 9, 1e5)]
    Y = np.concatenate([*kinds, rng.standard_normal((150, model.nobs))])
    Y = Y[rng.permutation(len(Y))]
    Y[[5, 77]] = 2.5
    Y[6, 3] = np.nan
    Y[130, 0] = np.inf
    return model, Y, model.fit_many(Y, n_jobs=1)


@pytest.mark.parametrize("n_jobs", [1, 2, 3, None])
def test_threads_do_not_matter(crowd, n_jobs):
    model, Y, batch = crowd
    # a small memory makes many pieces of eight
    identical(batch, model.fit_many(Y, n_jobs=n_jobs, memory=0.03))
    identical(batch, model.fit_many(Y, n_jobs=n_jobs))


@pytest.mark.parametrize("memory", [1e-6, 0.05, 0.3, 1000.0])
def test_the_size_of_the_pieces_does_not_matter(crowd, memory):
    model, Y, batch = crowd
    identical(batch, model.fit_many(Y, n_jobs=2, memory=memory))


def test_neighbours_do_not_matter(crowd):
    model, Y, batch = crowd
    order = np.random.default_rng(1).permutation(len(Y))
    moved = model.fit_many(Y[order])
    for name, values in subset(batch, order).items():
        np.testing.assert_array_equal(getattr(moved, name), values, err_msg=name)
    for size in (1, 7, 100):
        found = [model.fit_many(Y[i : i + size]) for i in range(0, 2 * size + 20, size)]
        count = sum(map(len, found))
        for name in FIELDS:
            joined = np.concatenate([getattr(part, name) for part in found])
            np.testing.assert_array_equal(joined, getattr(batch, name)[:count], err_msg=name)
    for a, b in zip(model.fit_many(Y[:40]).G.values(), batch.G.values(), strict=True):
        np.testing.assert_array_equal(a, b[:40])


def test_layouts(crowd, tmp_path):
    model, Y, batch = crowd
    identical(batch, model.fit_many(np.asfortranarray(Y)))
    identical(batch, model.fit_many(np.repeat(np.repeat(Y, 2, axis=0), 3, axis=1)[::2, ::3]))
    identical(batch, model.fit_many(np.ascontiguousarray(Y[::-1, ::-1])[::-1, ::-1]))
    readonly = Y.copy()
    readonly.flags.writeable = False
    identical(batch, model.fit_many(readonly))
    np.testing.assert_array_equal(readonly, Y)
    path = tmp_path / "y.npy"
    np.save(path, Y)
    mapped = np.load(path, mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    found = model.fit_many(mapped)
    identical(batch, found)
    ok = int(np.flatnonzero(batch.converged)[0])
    assert found[ok].criterion == pytest.approx(batch.criterion[ok], rel=1e-12)


def test_narrow_numbers(crowd):
    model, Y, _ = crowd
    for dtype in (np.float32, np.float16):
        narrow = np.clip(Y, -6e4, 6e4).astype(dtype)
        identical(model.fit_many(narrow.astype(float)), model.fit_many(narrow))
    whole = np.clip(np.nan_to_num(100.0 * Y), -1e6, 1e6).astype(np.int32)
    identical(model.fit_many(whole.astype(float)), model.fit_many(whole))
    single = np.asarray(Y[7], dtype=np.float32)
    assert model.fit_many(single[None]).sigma2[0] == pytest.approx(model.refit(single.astype(float)).sigma2, rel=AGREE)


def test_streams(crowd):
    model, Y, batch = crowd
    pieces = [Y[:5], Y[5:6], Y[6:130], Y[130], Y[131:]]
    identical(batch, model.fit_many(pieces))
    identical(batch, model.fit_many((piece for piece in pieces), n_jobs=3))
    identical(batch, model.fit_many(iter([Y]), memory=0.05))
    identical(batch, model.fit_many(list(Y)))
    ok = int(np.flatnonzero(batch.converged)[0])
    with pytest.raises(flc.LMMError, match=r"stream"):
        model.fit_many(iter(pieces))[ok]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_blocks_of_a_stream_are_not_kept(crowd, n_jobs):
    model, Y, _ = crowd
    seen, alive = [], []

    def blocks():
        for _ in range(60):
            block = Y[20:28].copy()
            seen.append(weakref.ref(block))
            alive.append(sum(ref() is not None for ref in seen))
            yield block
            del block

    assert len(model.fit_many(blocks(), n_jobs=n_jobs)) == 480
    # two for each thread are under way, and one or two more are on their way in and out
    assert max(alive) <= 2 * n_jobs + 3


def test_nothing_to_fit(crowd):
    model, Y, _ = crowd
    for none in (Y[:0], iter([]), iter([Y[:0]])):
        batch = model.fit_many(none)
        assert len(batch) == 0
        assert batch.params.shape == batch.bse.shape == (0, 2)
        assert batch.theta.shape == (0, 3)
        assert len(batch.to_frame()["sigma"]) == 0


def test_one_response(crowd):
    model, Y, batch = crowd
    for one in (Y[8], Y[8:9], [Y[8]]):
        found = model.fit_many(one)
        assert len(found) == 1
        np.testing.assert_array_equal(found.params[0], batch.params[8])


def test_the_response_of_the_model_does_not_matter(crowd):
    # what all responses share is made from the design; the model's own response gives but a common start
    model, Y, batch = crowd
    other = model.refit(Y[8]).model
    good = np.flatnonzero(batch.converged)[:40]
    again = other.fit_many(Y[good])
    np.testing.assert_allclose(again.criterion, batch.criterion[good], rtol=1e-11)
    np.testing.assert_allclose(again.params, batch.params[good], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"weights": True, "offset": True}, {"structure": "diagonal"}])
def test_random_effects_on_request(rng, options):
    model = made(rng, 2, 2, "shuffled", **options)
    Y = np.concatenate([responses(rng, model, 6), rng.standard_normal((3, model.nobs))])
    Y[4, 3] = np.nan
    batch = model.fit_many(Y)
    effects = batch.random_effects()
    assert effects.shape == (9, model.problem.m, 2)
    assert np.isnan(effects[4]).all()
    for i in (0, 1, 2, 3, 5, 6, 7, 8):
        single = model.refit(Y[i])
        # BLUPs move with the root of the accuracy of theta at the boundary
        tolerance = (1e-5 if single.singular else 1e-7) * np.max(np.abs(Y[i]))
        np.testing.assert_allclose(effects[i], single.random_effects, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(batch.random_effects([5, 0]), effects[[5, 0]])
    np.testing.assert_array_equal(batch.random_effects(slice(0, 2)), effects[:2])
    with pytest.raises(flc.LMMError, match="stream"):
        model.fit_many(iter([Y])).random_effects()


# ------------------------------------------------------------------------------------------------------------
# responses that cannot be fitted


@pytest.mark.parametrize("options", [{}, {"offset": True}, {"weights": True}])
@pytest.mark.parametrize("p", [0, 1, 2])
def test_responses_that_cannot_be_fitted(rng, p, options):
    model = made(rng, 2, p, "unbalanced", **options)
    good = responses(rng, model, 30)
    clean = model.fit_many(good)
    Y = good.copy()
    bad = {0: np.nan, 1: np.inf, 9: -np.inf, 15: np.nan}
    for i, value in bad.items():
        Y[i, (7 * i) % model.nobs] = value
    Y[3] = 0.1
    Y[16:24] = 1e7 / 3.0  # eight lanes with nothing in them
    Y[29] = 0.0
    batch = model.fit_many(Y)
    lost = sorted({*bad, 3, *range(16, 24), 29})
    np.testing.assert_array_equal(batch.invalid, lost)
    assert not batch.converged[lost].any()
    assert not batch.singular[lost].any()
    for name in ("params", "bse", "sigma2", "criterion", "llf", "theta", "gradient_norm"):
        assert np.isnan(getattr(batch, name)[lost]).all(), name
    for G in batch.G.values():
        assert np.isnan(G[lost]).all()
    kept = np.setdiff1d(np.arange(30), lost)
    for name, values in subset(clean, kept).items():
        np.testing.assert_array_equal(getattr(batch, name)[kept], values, err_msg=name)
    assert f"{len(lost)} not fitted" in repr(batch)
    for i in lost:
        with pytest.raises(flc.LMMError):
            batch[i]


def test_constant_responses_where_no_column_is_constant(rng):
    base = made(rng, 2, 2, "balanced")
    x = base.exog[:, 1:]
    model = flc.LinearMixedModel(base.endog, x, x, base.grouping.index)
    Y = responses(rng, model, 3)
    Y[1] = 5.0
    with pytest.raises(flc.LMMError, match="y is constant"):
        model.refit(Y[1])
    np.testing.assert_array_equal(model.fit_many(Y).invalid, [1])


def test_responses_in_the_span_of_x(rng):
    model = made(rng, 1, 2, "balanced")
    # by construction without rounding: small integers times columns of ones and of multiples of 1/2
    X = np.column_stack([np.ones(model.nobs), rng.integers(-4, 5, model.nobs) / 2.0])
    model = flc.LinearMixedModel(model.endog, X, None, model.grouping.index)
    Y = responses(rng, model, 4)
    Y[2] = X @ [3.0, -2.0]
    with pytest.raises(flc.LMMError, match="reproduced exactly"):
        model.refit(Y[2])
    batch = model.fit_many(Y)
    np.testing.assert_array_equal(batch.invalid, [2])
    agrees(model, batch, Y, rows=[0, 1, 3])


# ------------------------------------------------------------------------------------------------------------
# results


@pytest.mark.parametrize("reml", [True, False])
def test_a_full_result_of_one_response(crowd, reml):
    model, Y, _ = crowd
    batch = model.fit_many(Y[20:40], reml=reml)
    for i in (0, 3, 19, -1, np.int64(4)):
        full = batch[i]
        assert isinstance(full, flc.LMMResult)
        assert full.reml is reml
        np.testing.assert_array_equal(full.model.endog, Y[20:40][i])
        assert full.criterion == pytest.approx(batch.criterion[i], rel=1e-11)
        np.testing.assert_allclose(full.tvalues, batch.tvalues[i], rtol=1e-7)
        np.testing.assert_allclose(full.pvalues, batch.pvalues[i], rtol=1e-6, atol=1e-12)
    for i in (20, -21, 1000):
        with pytest.raises(IndexError):
            batch[i]


def test_a_full_result_from_rows_of_a_list(crowd):
    model, Y, batch = crowd
    found = model.fit_many(Y[20:23].tolist())
    np.testing.assert_array_equal(found.params, batch.params[20:23])


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict", "arrays"])
def test_to_frame(library):
    data = flc.datasets.load("sleepstudy")
    ref = oracle.reference("sleepstudy_slope")
    if library == "arrays":
        model = flc.LinearMixedModel(*ref.arrays, exog_names=ref.coef_names, exog_re_names=ref.effect_names)
    else:
        if library == "polars":
            data = pytest.importorskip("polars").from_pandas(data)
        elif library == "pyarrow":
            data = pytest.importorskip("pyarrow").Table.from_pandas(data)
        elif library == "dict":
            data = {name: data[name].to_numpy() for name in data.columns}
        model = flc.lmm("Reaction ~ Days + (Days | Subject)", data)
    Y = model.fit().simulate(12, seed=3)
    Y[4] = 1.0
    batch = model.fit_many(Y)
    frame = batch.to_frame()
    assert type(frame) is (dict if library in ("dict", "arrays") else type(data))
    (term,) = batch.G
    a, b = model.exog_re_names
    x0, x1 = model.exog_names
    expected = {
        x0: batch.params[:, 0],
        x1: batch.params[:, 1],
        f"std_error_{x0}": batch.bse[:, 0],
        f"std_error_{x1}": batch.bse[:, 1],
        f"sd_{a}|{term}": np.sqrt(batch.G[term][:, 0, 0]),
        f"sd_{b}|{term}": np.sqrt(batch.G[term][:, 1, 1]),
        f"cor_{a}.{b}|{term}": batch.G[term][:, 0, 1] / np.sqrt(batch.G[term][:, 0, 0] * batch.G[term][:, 1, 1]),
        "sigma": np.sqrt(batch.sigma2),
        "criterion": batch.criterion,
        "converged": batch.converged,
        "singular": batch.singular,
    }
    names = frame if isinstance(frame, dict) else frame.column_names if library == "pyarrow" else frame.columns
    assert sorted(names) == sorted(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(np.asarray(frame[name], dtype=float), np.asarray(values, dtype=float), rtol=1e-12)


def test_repr(crowd):
    model, Y, batch = crowd
    assert repr(batch) == (
        f"<BatchResult: {len(Y)} REML fits, {batch.converged.sum()} certified, {batch.singular.sum()} singular, "
        "4 not fitted>"
    )
    assert " ML fits" in repr(model.fit_many(Y[:8], reml=False))


# ------------------------------------------------------------------------------------------------------------
# errors


def test_shapes_are_checked(crowd):
    model, Y, _ = crowd
    n = model.nobs
    for wrong in (Y.T, Y[:, :-1], Y[None], np.zeros(n + 1), np.zeros((0, n - 1)), 3.0, None):
        with pytest.raises(flc.LMMError, match=r"^(a block of )?Y ") as caught:
            model.fit_many(wrong)
        assert str(n) in str(caught.value) or "n_obs" in str(caught.value)
    with pytest.raises(flc.LMMError, match="block of Y"):
        model.fit_many(iter([Y[:3], Y[:3, 1:]]))


@pytest.mark.parametrize("kind", ["text", "complex", "object", "dates"])
@pytest.mark.parametrize("way", ["array", "blocks"])
def test_types_are_checked(crowd, way, kind):
    model, Y, _ = crowd
    wrong = {
        "text": Y[:2].astype(str),
        "complex": Y[:2] + 1j,
        "object": np.full((2, model.nobs), None, dtype=object),
        "dates": np.zeros((2, model.nobs), dtype="datetime64[s]"),
    }[kind]
    with pytest.raises(flc.LMMError, match="numbers"):
        model.fit_many(wrong if way == "array" else iter([Y[:8], wrong]))


def test_options_are_checked(crowd):
    model, Y, _ = crowd
    for n_jobs in (0, -2):
        with pytest.raises(flc.LMMError, match=f"n_jobs={n_jobs}"):
            model.fit_many(Y, n_jobs=n_jobs)
    for memory in (0, -1.0, float("nan")):
        with pytest.raises(flc.LMMError, match="memory="):
            model.fit_many(Y, memory=memory)


@pytest.mark.skipif(importlib.util.find_spec("tqdm") is not None, reason="tqdm is installed")
def test_progress_needs_tqdm(crowd):
    model, Y, _ = crowd
    with pytest.raises(flc.LMMError, match=r"pip install 'fastlmm-core\[progress\]'"):
        model.fit_many(Y, progress=True)


def test_progress(crowd, monkeypatch):
    model, Y, batch = crowd
    bars = []

    class Bar:
        def __init__(self, total, **options):
            self.total, self.done, self.closed = total, 0, False
            bars.append(self)

        def update(self, count):
            self.done += count

        def close(self):
            self.closed = True

    class Module:
        tqdm = Bar

    monkeypatch.setitem(sys.modules, "tqdm", Module)
    monkeypatch.setitem(sys.modules, "tqdm.auto", Module)
    for n_jobs in (1, 2):
        identical(batch, model.fit_many(Y, progress=True, n_jobs=n_jobs, memory=0.05))
        identical(batch, model.fit_many(iter([Y]), progress=True, n_jobs=n_jobs))
    assert [bar.total for bar in bars] == [len(Y), None, len(Y), None]
    assert all(bar.done == len(Y) and bar.closed for bar in bars)


def test_an_error_in_a_stream_reaches_the_caller(crowd):
    model, Y, _ = crowd

    def blocks():
        yield Y[:16]
        raise RuntimeError("the disk is gone")

    for n_jobs in (1, 2):
        with pytest.raises(RuntimeError, match="the disk is gone"):
            model.fit_many(blocks(), n_jobs=n_jobs)


# ------------------------------------------------------------------------------------------------------------
# processes of their own


def child(script, *arguments, **options):
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(flc.__file__).parents[1]), env.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


INTERRUPTED = """
    import sys, time
    import numpy as np
    import fastlmm_core as flc
    way, n_jobs = sys.argv[1], int(sys.argv[2])
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(100), 10)
    X = np.column_stack([np.ones(1000), rng.uniform(0.0, 9.0, 1000)])
    model = flc.LinearMixedModel(rng.standard_normal(1000), X, X, groups)
    block = rng.standard_normal((100, 1000))
    model.fit_many(block, n_jobs=n_jobs)
    def endless():
        while True:
            yield block
    # minutes of work: one noisy response two million times over takes no memory
    Y = endless() if way == "stream" else np.broadcast_to(block[0], (2_000_000, 1000))
    try:
        print("ready", flush=True)
        if way == "simulate":
            model.fit().simulate_fit(20_000_000, 1, n_jobs=n_jobs)
        else:
            model.fit_many(Y, n_jobs=n_jobs)
    except KeyboardInterrupt:
        print("interrupted at", time.monotonic(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a child")
@pytest.mark.parametrize("n_jobs", ["1", "2"])
@pytest.mark.parametrize("way", ["array", "stream", "simulate"])
def test_an_interrupt_ends_a_long_fit(way, n_jobs):
    process = child(INTERRUPTED, way, n_jobs)
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        assert process.poll() is None
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30.0)
    finally:
        process.kill()
    assert out.startswith("interrupted at ")
    assert err == ""
    assert process.returncode == 0
    # a piece under way takes milliseconds, all of it minutes; both processes read the same clock
    assert float(out.split()[-1]) - sent < 10.0


MEMORY = """
    import resource, sys, threading, time
    import numpy as np
    import fastlmm_core as flc
    way, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(18), 10)
    X = np.column_stack([np.ones(180), np.tile(np.arange(10.0), 18)])
    model = flc.LinearMixedModel(rng.standard_normal(180), X, X, groups)
    model.fit_many(rng.standard_normal((2000, 180)), n_jobs=2)

    def private():
        # pages of a mapped file are not the process's own: the system takes them back when it needs them
        for line in open("/proc/self/status"):
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024

    peak, stop = [private()], False
    def watch():
        while not stop:
            peak.append(private())
            time.sleep(0.002)
    before = peak[0]
    if way == "mapped":
        thread = threading.Thread(target=watch)
        thread.start()
        batch = model.fit_many(np.load(path, mmap_mode="r"), n_jobs=2)
        stop = True
        thread.join()
        used = max(peak) - before
    else:
        mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if way == "stream":
            blocks = (rng.standard_normal((1000, 180)) for _ in range(count // 1000))
            batch = model.fit_many(blocks, n_jobs=2)
        else:
            batch = model.fit().simulate_fit(count, 1, n_jobs=2)
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - mark) * 1024
    assert batch.converged.mean() > 0.99
    print(len(batch), used)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and ru_maxrss in kilobytes")
@pytest.mark.parametrize("way", ["mapped", "stream", "simulate"])
def test_memory_stays_bounded(tmp_path, way):
    # 100,000 responses of 180 observations are 144 MB; the file of float32 becomes float64 piece by piece
    path, count = tmp_path / "y.npy", 100_000 if way != "mapped" else 120_000
    if way == "mapped":
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, 180))
        rng = np.random.default_rng(2)
        for i in range(0, count, 10_000):
            # like subjects that differ, so that few fits are singular
            file[i : i + 10_000] = rng.standard_normal((10_000, 180), dtype=np.float32)
            file[i : i + 10_000] += np.repeat(2.0 * rng.standard_normal((10_000, 18), dtype=np.float32), 10, axis=1)
            slopes = np.repeat(rng.standard_normal((10_000, 18), dtype=np.float32), 10, axis=1)
            file[i : i + 10_000] += slopes * np.tile(np.arange(10, dtype=np.float32), 18)
        file.flush()
        del file
    process = child(MEMORY, way, str(path), str(count))
    out, err = process.communicate(timeout=120.0)
    assert process.returncode == 0, err
    fitted, used = map(int, out.split())
    assert fitted == count
    # 12 numbers a response are kept, twice over while the pieces of a stream are joined; then the pieces under way
    assert used < 2 * count * 12 * 8 + 64e6


# ------------------------------------------------------------------------------------------------------------
# drawn and fitted


def drawn(result, n, seed):
    return np.concatenate([block() for block in draws(parametric(result), n, key_of(seed))])


@pytest.mark.parametrize("options", [{}, {"weights": True}, {"offset": True}])
def test_simulate_fit_is_fit_many_of_the_draws(rng, options):
    result = made(rng, 2, 2, "unbalanced", **options).fit()
    n = 2 * STREAM + 44
    Y = drawn(result, n, 5)
    assert Y.shape == (n, result.nobs)
    batch = result.simulate_fit(n, 5, n_jobs=1)
    like(batch, result.model.fit_many(Y))
    for n_jobs in (2, 3, None):
        identical(batch, result.simulate_fit(n, 5, n_jobs=n_jobs))
    assert batch.reml
    like(result.simulate_fit(n, 5, reml=False), result.model.fit_many(Y, reml=False))
    assert not result.model.fit(reml=False).simulate_fit(8, 5).reml


def test_a_reduced_model_sees_the_same_draws(rng):
    model = made(rng, 2, 2, "unbalanced")
    result = model.fit()
    reduced = flc.LinearMixedModel(model.endog, model.exog[:, :1], None, model.grouping.index)
    seen, given = result.simulate_fit(300, 8, fit=reduced, n_jobs=2), reduced.fit_many(drawn(result, 300, 8))
    identical(seen, result.simulate_fit(300, 8, fit=reduced, n_jobs=1))
    # it sees their sums (tests/simulation/test_nested.py), which differ from those of the rows by rounding
    np.testing.assert_array_equal(seen.status, given.status)
    np.testing.assert_allclose(seen.criterion, given.criterion, rtol=1e-11)
    full = result.simulate_fit(300, 8, reml=False)
    small = result.simulate_fit(300, 8, reml=False, fit=reduced)
    assert small.model is reduced
    # the same responses, so the smaller model never has the larger likelihood
    assert (small.llf <= full.llf + 1e-8).all()


def test_seeds(rng):
    result = made(rng, 1, 1, "unbalanced").fit()
    a, b = result.simulate_fit(300, 1), result.simulate_fit(300, 1)
    identical(a, b)
    other = result.simulate_fit(300, 2)
    assert not np.any(a.params == other.params)
    # no response is drawn twice
    assert len(np.unique(a.sigma2)) == 300
    free = result.simulate_fit(300)
    assert not np.any(free.sigma2 == result.simulate_fit(300).sigma2)
    identical(result.simulate_fit(200, np.random.default_rng(3)), result.simulate_fit(200, np.random.default_rng(3)))
    generator = np.random.default_rng(3)
    first, second = result.simulate_fit(200, generator), result.simulate_fit(200, generator)
    assert not np.any(first.sigma2 == second.sigma2)
    # whole streams do not depend on how many come after them
    longer = result.simulate_fit(3 * STREAM, 1)
    np.testing.assert_array_equal(result.simulate_fit(2 * STREAM, 1).sigma2, longer.sigma2[: 2 * STREAM])


def test_moments_of_the_estimates(rng):
    # Balanced and X = Z: beta is the mean of the groups' own coefficients, whatever theta is, so its covariance is
    # (G + sigma^2 (Z'Z)^-1) / m; sigma^2 is the mean square within, and G by REML is then unbiased.
    m, n_i = 40, 6
    t = np.linspace(-1.0, 1.0, n_i)
    X = np.tile(np.column_stack([np.ones(n_i), t]), (m, 1))
    groups = np.repeat(np.arange(m), n_i)
    b = rng.standard_normal((m, 2)) @ np.array([[2.0, 0.9], [0.0, 2.0]])
    y = X @ [5.0, -2.0] + b[groups, 0] + b[groups, 1] * X[:, 1] + 0.8 * rng.standard_normal(m * n_i)
    result = flc.LinearMixedModel(y, X, X, groups).fit()
    n = 20_000
    batch = result.simulate_fit(n, 11)
    assert not batch.singular.any()
    G, sigma2 = oracle.covariance_blocks(result), result.sigma2
    expected = (G + sigma2 * np.linalg.inv(X[:n_i].T @ X[:n_i])) / m
    root = np.linalg.cholesky(expected)
    z = np.linalg.solve(root, (batch.params - result.params).T)
    # standard normal numbers: five standard errors of their moments
    assert np.all(np.abs(z.mean(axis=1)) < 5.0 / np.sqrt(n))
    assert np.all(np.abs(np.cov(z) - np.eye(2)) < 5.0 * np.sqrt(np.array([[2.0, 1.0], [1.0, 2.0]]) / n))
    df = m * (n_i - 2)
    chi2 = df * batch.sigma2 / sigma2
    assert abs(chi2.mean() - df) < 5.0 * np.sqrt(2.0 * df / n)
    assert abs(chi2.var() / (2.0 * df) - 1.0) < 5.0 * np.sqrt((2.0 + 12.0 / df) / n)
    (found,) = batch.G.values()
    error = found.std(axis=0, ddof=1) / np.sqrt(n)
    assert np.all(np.abs(found.mean(axis=0) - G) < 5.0 * error)
    # and their spread is that of Wishart matrices
    of_means = m * expected
    wishart = np.sqrt((of_means[0, 0] * of_means[1, 1] + of_means[0, 1] ** 2) / (m - 1))
    within = sigma2 * np.linalg.inv(X[:n_i].T @ X[:n_i])[0, 1] * np.sqrt(2.0 / df)
    assert found[:, 0, 1].std() == pytest.approx(np.hypot(wishart, within), rel=0.04)


def test_simulate_fit_errors(rng):
    result = made(rng, 1, 1, "unbalanced").fit()
    other = made(rng, 1, 1, "balanced", m=5)
    for n in (0, -1):
        with pytest.raises(flc.LMMError, match=f"n={n}"):
            result.simulate_fit(n)
    with pytest.raises(flc.LMMError, match="n_jobs=0"):
        result.simulate_fit(10, n_jobs=0)
    with pytest.raises(flc.LMMError, match=r"fit"):
        result.simulate_fit(10, fit=other)
