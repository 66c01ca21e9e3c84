"""Many responses with several factors of correlated effects: the lanes against dense matrices and single fits."""

from __future__ import annotations

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core import RandomTerm
from fastlmm_core.covariance.directions import free_directions
from fastlmm_core.covariance.parameters import vech_positions
from fastlmm_core.engines.protocol import CAREFUL, HARD
from fastlmm_core.estimation.fit import Fit
from fastlmm_core.estimation.many import correlated_lanes
from fastlmm_core.estimation.many.batch_fit import BatchFit
from fastlmm_core.estimation.many.looks import in_lanes
from fastlmm_core.estimation.many.one_factor import shared_design
from fastlmm_core.estimation.search import screen_of
from fastlmm_core.kernels.hierarchies import CorrelatedBatch, leaf_products
from fastlmm_core.kernels.records.batches import BatchLook

# Differences where the core explains most of what the leaves leave.
EXACT = 1e-9
# Second derivatives against central differences of exact first ones.
DIFFERENCES = 1e-6
# A certified optimum is within 5e-9 of the minimum of the criterion.
CRITERION = 1e-8

SHAPES = ("maximal", "one slope", "independent", "nested", "three", "mixed", "uneven", "two parts", "leaves of one row")


def codes_of(rng, shape):
    if shape == "nested":
        mid = rng.permutation(np.repeat(np.arange(12), rng.integers(2, 6, 12)))
        return [mid, mid // 3]
    if shape == "three":
        mid = rng.permutation(np.repeat(np.arange(10), 6))
        return [mid, mid // 5, rng.permutation(np.arange(len(mid)) % 4)]
    if shape == "two parts":
        half = np.arange(70) % 2
        codes = [half * 6 + rng.integers(0, 6, 70), half * 3 + rng.integers(0, 3, 70)]
        return [np.unique(code, return_inverse=True)[1] for code in codes]
    if shape == "leaves of one row":
        first = np.concatenate([np.arange(12).repeat(3), np.arange(12, 24)])
        return [first, rng.permutation(np.arange(48) % 7)]
    return list(np.divmod(rng.permutation(9 * 6)[:48], 6))


def design(rng, shape, p=2, weights=False):
    """Sparse, unbalanced, in no order."""
    codes = codes_of(rng, shape)
    n = len(codes[0])
    t, u = rng.uniform(-1.0, 1.0, (2, n))
    one, slope, both = np.ones((n, 1)), np.column_stack([np.ones(n), t]), np.column_stack([np.ones(n), t, u])
    columns, structures = [slope] * len(codes), ["full"] * len(codes)
    if shape == "one slope":
        columns = [slope, one]
    elif shape == "independent":
        structures = ["diagonal"] * len(codes)
    elif shape == "mixed":
        columns, structures = [both, slope], ["full", "diagonal"]
    elif shape == "uneven":
        columns, structures = [one, both], ["full", "diagonal"]
    elif shape == "three":
        columns = [slope, one, slope]
    X = np.column_stack([np.ones(n), t, rng.standard_normal((n, 3))])[:, :p]
    w = rng.uniform(0.3, 3.0, n) if weights else None
    terms = [
        RandomTerm(Z, code, name=f"f{i}", structure=structure)
        for i, (Z, code, structure) in enumerate(zip(columns, codes, structures, strict=True))
    ]
    y = rng.standard_normal(n)
    return flc.LinearMixedModel(y, X, terms=terms, weights=w, offset=rng.standard_normal(n) if weights else None)


def responses(rng, model, count, sd=1.0):
    Y = rng.standard_normal((count, model.nobs))
    for f in model.factors:
        b = sd * rng.standard_normal((count, len(f.grouping.labels), f.stop - f.start))
        Y += np.einsum("rij,ij->ri", b[:, f.grouping.index], model.exog_re[:, f.columns])
    return Y


class Dense:
    """V, its derivatives along free directions of G^ and X_o, whitened, in conditioned units; nothing clever."""

    def __init__(self, model):
        problem, self.structure = model.problem, model.structure
        root = np.ones(model.nobs) if model.weights is None else np.sqrt(model.weights)
        Z = problem.conditioned_z(model.exog_re) * root[:, None]
        q = model.structure.q
        self.pairs = {
            (a, c): np.outer(Z[:, a], Z[:, c]) * (f.grouping.index[:, None] == f.grouping.index)
            for f in model.factors
            for a in range(f.start, f.stop)
            for c in range(f.start, f.stop)
        }
        lower, upper = (part[free_directions(self.structure)] for part in vech_positions(q))
        self.along = [
            self.pairs[a, c] if a == c else self.pairs[a, c] + self.pairs[c, a]
            for a, c in zip(lower.tolist(), upper.tolist(), strict=True)
        ]
        self.X = problem.conditioned_x(model.exog) * root[:, None]
        self.root, self.offset, self.n = root, model.offset, model.nobs

    def inverse(self, theta):
        F = self.structure.factor(theta)
        G = F @ F.T
        return np.linalg.inv(np.eye(self.n) + sum(G[a, c] * D for (a, c), D in self.pairs.items()))

    def along_theta(self, theta):
        """dV / d theta."""
        F, out = self.structure.factor(theta), []
        for row, column in zip(*self.structure.positions, strict=True):
            change = np.zeros_like(F)
            change[row, column] = 1.0
            G = change @ F.T + F @ change.T
            out.append(sum(G[a, c] * D for (a, c), D in self.pairs.items()))
        return out

    def white(self, y):
        return self.root * (y if self.offset is None else y - self.offset)

    def gradient(self, theta, y, reml):
        W, X = self.inverse(theta), self.X
        K = np.linalg.inv(X.T @ W @ X)
        P = W - W @ X @ K @ X.T @ W
        y = self.white(y)
        nu = self.n - X.shape[1] if reml else self.n
        inner = P if reml else W
        return np.array([np.sum(inner * D) - nu * (y @ P @ D @ P @ y) / (y @ P @ y) for D in self.along_theta(theta)])


def close(actual, desired, tolerance=EXACT):
    desired = np.asarray(desired)
    np.testing.assert_allclose(actual, desired, rtol=0.0, atol=tolerance * np.max(np.abs(desired), initial=1e-300))


def thetas(rng, model, count=9):
    """Of sizes at which a dense inverse keeps its digits; some variances zero, some correlations 1."""
    rows, columns = model.structure.positions
    theta = 10.0 ** rng.uniform(-2.0, 0.5, (count, len(rows)))
    theta[:, rows != columns] *= rng.choice([-1.0, 1.0], (count, np.sum(rows != columns)))
    theta[1, columns == 0] = 0.0
    theta[2, columns == model.structure.q - 1] = 0.0
    theta[3] = 0.0
    theta[4, (rows == columns) & (rows > 0)] = 0.0
    return theta


def test_products_of_leaves_are_those_of_dense_columns(rng):
    core, leaves, q, p = np.array([0, 3, 5]), np.array([0, 4, 7]), 2, 3
    leaf = np.sort(np.append(np.arange(7), rng.integers(0, 7, 20)))
    part = (leaf >= 4).astype(int)
    n = len(leaf)
    slots = core[part][:, None] + np.column_stack([rng.integers(0, 2, n), np.full(n, 1) + (part == 0)])
    value, X = rng.normal(size=(n, 2)), rng.normal(size=(n, p))
    Z = np.column_stack([np.ones(n), rng.normal(size=n)])
    Z[leaf == 5, 1] = 3.0  # adds nothing there
    order = rng.permutation(n)
    slots, value, X, Z, leaf = slots[order], value[order], X[order], Z[order], leaf[order]
    start = np.append(0, np.cumsum(np.bincount(leaf)))
    unit, R, of_core, of_x, cc, cx, xx = leaf_products(
        start, np.argsort(leaf, kind="stable"), slots, value, Z, X, core, leaves
    )
    wide = np.zeros((n, 5))
    np.add.at(wide, (np.arange(n)[:, None], slots), value)
    U = np.zeros((n, 7 * q))
    for i in range(7):
        U[leaf == i, q * i : q * (i + 1)] = unit[leaf == i]
        np.testing.assert_allclose(unit[leaf == i] @ R[i], Z[leaf == i], atol=EXACT)
        assert R[i, 1, 0] == 0.0
    np.testing.assert_allclose(U.T @ U, np.diag(np.abs(U).any(axis=0).astype(float)), atol=EXACT)
    assert not unit[leaf == 5, 1].any()
    np.testing.assert_allclose(of_x.reshape(7 * q, p), U.T @ X, atol=EXACT)
    C = U.T @ wide
    expected = [C[: 4 * q, :3].ravel(), C[4 * q :, 3:].ravel()]
    np.testing.assert_allclose(of_core, np.concatenate(expected), atol=EXACT)
    left, x = wide - U @ C, X - U @ (U.T @ X)
    products = left.T @ left
    own = [products[:3, :3][np.tril_indices(3)], products[3:, 3:][np.tril_indices(2)]]
    np.testing.assert_allclose(cc, np.concatenate(own), atol=EXACT)
    np.testing.assert_allclose(cx, left.T @ x, atol=EXACT)
    np.testing.assert_allclose(xx, (x.T @ x)[np.tril_indices(p)], atol=EXACT)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_those_of_dense_matrices(rng, shape, weights):
    model = design(rng, shape, weights=weights)
    batch = shared_design(model)
    assert isinstance(batch, CorrelatedBatch)
    theta = thetas(rng, model)
    half, trace, square, cross, both = batch.moments(theta)
    dense = Dense(model)
    X, along = dense.X, dense.along
    for i, own in enumerate(theta):
        W = dense.inverse(own)
        close(half[i], np.linalg.inv(np.linalg.cholesky(X.T @ W @ X)))
        close(trace[i], [np.sum(W * D) for D in along])
        close(cross[i], [X.T @ W @ D @ W @ X for D in along])
        pairs = [(D, F) for k, D in enumerate(along) for F in along[: k + 1]]
        close(square[i], [np.trace(W @ D @ W @ F) for D, F in pairs])
        products = [X.T @ W @ D @ W @ F @ W @ X for D, F in pairs]
        close(both[i] + both[i].transpose(0, 2, 1), [one + one.T for one in products])


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_contrasts_are_those_of_dense_matrices(rng, shape, reml):
    model = design(rng, shape, p=3, weights=shape in ("maximal", "two parts"))
    theta = thetas(rng, model)
    Y = responses(rng, model, len(theta))
    rows = rng.standard_normal((2, model.problem.rank))
    covariance, slope, shift, hess = shared_design(model).contrasts(Y, reml, theta, rows)
    dense = Dense(model)
    X = dense.X
    for i, own in enumerate(theta):
        W = dense.inverse(own)
        K = np.linalg.inv(X.T @ W @ X)
        close(covariance[i], rows @ K @ rows.T)
        along = dense.along_theta(own)
        close(slope[i], [rows @ K @ X.T @ W @ D @ W @ X @ K @ rows.T for D in along], 1e-8)
        P = W - W @ X @ K @ X.T @ W
        y = dense.white(Y[i])
        close(shift[i], [(y @ P @ D @ P @ y) / (y @ P @ y) for D in along], 1e-8)
        steps = 1e-5 * np.eye(len(own))
        second = [
            (dense.gradient(own + step, Y[i], reml) - dense.gradient(own - step, Y[i], reml)) / 2e-5 for step in steps
        ]
        close(hess[i], second, DIFFERENCES)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_screen_has_the_values_of_the_criterion(rng, shape, reml):
    model = design(rng, shape)
    batch = shared_design(model)
    Y = responses(rng, model, 5)
    into = BatchFit(model, Fit, reml, 5, None)
    screen = batch.screen
    look = BatchLook(np.empty((5, screen.width), dtype=np.intc), np.empty(5), np.empty((5, len(screen.thetas))))
    in_lanes(batch, Y, into, 0, look=look)
    at = rng.integers(0, len(screen.thetas), 12)
    for i, y in enumerate(Y):
        engine = model.with_response(y).problem.criterion()
        engine.reml = reml
        expected = [engine.evaluate(one, 0)[0] for one in screen.thetas[at]]
        np.testing.assert_allclose(look.values[i, at], expected, rtol=1e-6, atol=1e-4)
        if into.status[i] > 0:
            own = engine.evaluate(into.theta_o[i])[0]
            assert into.criterion[i] <= look.values[i].min() + into.criterion[i] - own + 1e-9


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("sd", [1.0, 0.2, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_fits_are_single_fits(rng, shape, sd, reml):
    model = design(rng, shape)
    Y = responses(rng, model, 12, sd)
    batch = model.fit_many(Y, reml=reml)
    for i, y in enumerate(Y):
        try:
            one = model.refit(y, reml=reml)
        except flc.LMMError:  # the fit of so few rows to so many effects has no maximum
            assert batch.status[i] <= 0
            continue
        if not one.converged:
            continue
        assert batch.converged[i]
        assert batch.criterion[i] <= one.criterion + CRITERION * (1.0 + abs(one.criterion))
        if batch.criterion[i] < one.criterion - 1e-7 * (1.0 + abs(one.criterion)):
            continue  # a lower minimum than that of the single fit
        np.testing.assert_allclose(batch.params[i], one.params, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(batch.bse[i], one.bse, rtol=1e-5)


# ---- what comes with fits ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["maximal", "uneven", "nested"])
def test_results_depend_on_neither_neighbours_nor_threads(rng, shape):
    model = design(rng, shape)
    Y = responses(rng, model, 41, 0.5)
    whole = model.fit_many(Y, n_jobs=1)
    order = rng.permutation(41)
    for other, at in (
        (model.fit_many(Y, n_jobs=2), np.arange(41)),
        (model.fit_many(Y[order], n_jobs=1), order),
        (model.fit_many(Y, n_jobs=1, memory=1e-3), np.arange(41)),
    ):
        for name in ("params", "bse", "criterion", "theta", "satterthwaite", "n_evaluations"):
            assert np.array_equal(getattr(other, name), getattr(whole, name)[at], equal_nan=True), name


@pytest.mark.parametrize("sd", [1.0, 0.1])
@pytest.mark.parametrize("shape", ["maximal", "one slope", "independent", "nested", "mixed"])
def test_tests_are_those_of_single_fits(rng, shape, sd):
    model = design(rng, shape, weights=shape == "one slope")
    Y = responses(rng, model, 10, sd)
    batch = model.fit_many(Y)
    row = np.eye(2)[1:]
    assert (~batch.alone).sum() > 5
    for ddf in ("kenward-roger", "satterthwaite"):
        found = batch.test(row, ddf=ddf)
        for i, y in enumerate(Y):
            one = model.refit(y)
            if not one.converged or abs(one.criterion - batch.criterion[i]) > 1e-7:
                continue
            own = one.test(row, ddf=ddf)
            np.testing.assert_allclose(found.statistic[i], own.statistic, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found.df_denom[i], own.df_denom, rtol=1e-3)


def test_variance_components_are_those_of_single_fits(rng):
    model = design(rng, "maximal")
    Y = responses(rng, model, 6)
    found = model.fit_many(Y).variance_components()
    for i, y in enumerate(Y):
        table = model.refit(y).variance_components(method="wald")
        own = dict(zip(table["term"], zip(table["estimate"], table["std_error"], strict=True), strict=True))
        for name, estimate, error in zip(found.names, found.estimate[i], found.std_error[i], strict=True):
            np.testing.assert_allclose([estimate, error], own[name], rtol=1e-4, atol=1e-5)


def test_permutations_keep_the_parameters(rng):
    model = design(rng, "maximal")
    batch = model.fit_many(responses(rng, model, 4))
    found = batch.permute(np.eye(2)[1:], 30, seed=1)
    again = batch.permute(np.eye(2)[1:], 30, seed=1, refit=False, n_jobs=2)
    assert np.array_equal(found.null, again.null)


def test_narrowed_starts_have_one_direction_next_to_none(rng):
    model = design(rng, "maximal")
    batch = shared_design(model)
    unit = np.sqrt(model.problem.levels / model.problem.n)
    theta = np.abs(thetas(rng, model, 5))[:2]
    theta[1] = 3.0
    which, starts = correlated_lanes.narrowed_starts(batch, theta)
    assert sorted(which.tolist()) == [0, 0, 1, 1]
    for i, start in zip(which, starts, strict=True):
        before, after = (model.structure.factor(t) / unit[:, None] for t in (theta[i], start))
        sizes = [np.linalg.svd(F[b, b])[1] for F in (before, after) for b in (slice(0, 2), slice(2, 4))]
        changed = [not np.allclose(one, other) for one, other in zip(sizes[:2], sizes[2:], strict=True)]
        assert sum(changed) == 1
        assert sizes[2 + changed.index(True)].min() == pytest.approx(0.1)


@pytest.mark.parametrize(("shape", "effort"), [("maximal", CAREFUL), ("independent", HARD), ("uneven", HARD)])
def test_effects_that_may_cancel_are_screened_closely(rng, shape, effort):
    model = design(rng, shape)
    points = screen_of(model.problem.criterion(), model.structure, effort).thetas
    unit = np.sqrt(model.problem.levels / model.problem.n)[model.structure.positions[0]]
    np.testing.assert_allclose(shared_design(model).screen.thetas, points * unit)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_columns_of_leaves_that_depend_on_others_have_no_direction(rng, rank):
    sizes = np.array([1, 2, 3, 7])
    n, start = sizes.sum(), np.append(0, np.cumsum(sizes))
    parts = [rng.standard_normal((size, rank)) @ rng.standard_normal((rank, 3)) for size in sizes]
    of_core = np.zeros((n, 1), dtype=np.int64), np.ones((n, 1))
    unit, R, *_ = leaf_products(
        start, np.arange(n), *of_core, np.concatenate(parts), np.ones((n, 1)), np.array([0, 1]), np.array([0, 4])
    )
    for leaf, z in enumerate(parts):
        U, told = unit[start[leaf] : start[leaf + 1]], np.diag(R[leaf]) > 0.0
        np.testing.assert_allclose(U @ R[leaf], z, rtol=0.0, atol=1e-14 * np.abs(z).max())
        assert told.tolist() == [j < min(rank, len(z)) for j in range(3)]
        np.testing.assert_allclose(U.T @ U, np.diag(told.astype(float)), atol=1e-14)


def test_where_one_direction_has_no_variance_it_is_all_in_another(rng):
    model = design(rng, "maximal")
    unit = np.sqrt(model.problem.levels / model.problem.n)
    F = np.zeros((4, 4))
    F[:2, 0], F[2:, 2:] = (2.0, 1.0), [[1.5, 0.0], [0.5, 0.7]]
    theta = model.structure.theta(F * unit[:, None])
    starts = correlated_lanes.narrowed_starts(shared_design(model), theta[None])[1]
    first = next(start for start in starts if not np.allclose(start[:2], theta[:2]))
    G = [(factor @ factor.T)[:2, :2] for factor in (F, model.structure.factor(first) / unit[:, None])]
    along, across = np.array([2.0, 1.0]) / np.sqrt(5.0), np.array([-1.0, 2.0]) / np.sqrt(5.0)
    assert along @ G[0] @ along == pytest.approx(5.0) == across @ G[1] @ across
    assert along @ G[1] @ along == pytest.approx(0.1**2)
    assert along @ G[1] @ across == pytest.approx(0.0, abs=1e-12)


def test_large_variances_and_structures_are_left_to_single_fits(rng):
    model = design(rng, "maximal")
    Y = responses(rng, model, 2, 1e5)
    batch = model.fit_many(Y)
    assert batch.alone.all()
    for i, y in enumerate(Y):
        assert abs(batch.criterion[i] - model.refit(y).criterion) <= 1e-9 * abs(batch.criterion[i])
    five = [
        RandomTerm(rng.standard_normal((60, 5)), np.arange(60) % 12, name="a"),
        RandomTerm(None, np.arange(60) % 7, name="b"),
    ]
    wide = flc.LinearMixedModel(rng.standard_normal(60), np.ones((60, 1)), terms=five)
    assert correlated_lanes.correlated_batch(wide) is None
    at, kind = np.arange(60) % 12, np.arange(60) // 12 % 3
    data = {"y": rng.standard_normal((12, 3))[at, kind] + rng.standard_normal(60), "kind": kind.astype(str), "g": at}
    similar = flc.lmm("y ~ 1 + cs(0 + kind | g) + (1 | h)", data | {"h": np.arange(60) % 7})
    assert correlated_lanes.correlated_batch(similar) is None
    batch = similar.fit_many(np.array([data["y"], data["y"][::-1]]))
    assert batch.criterion[1] == pytest.approx(similar.refit(data["y"][::-1]).criterion, abs=CRITERION)
