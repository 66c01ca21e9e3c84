"""The kernels behind the batch engine and the bootstrap, against the same in numpy, in every lane variant."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core import kernels
from fastlmm_core.estimation.many.one_factor import shared_design as design
from fastlmm_core.kernels import variants
from fastlmm_core.kernels.records.batches import BatchCriterion, BatchResults
from fastlmm_core.kernels.records.rows import RowColumns, Rows

LANES = kernels.lanes()

# Sums of some hundred products in double precision, in another order.
SUMS = 1e-12


def packed_triangle(A):
    """Lower triangle by rows."""
    return A[np.tril_indices(len(A))]


def close(actual, desired, tolerance=SUMS):
    desired = np.asarray(desired)
    scale = max(np.max(np.abs(desired), initial=0.0), 1e-300)
    np.testing.assert_allclose(actual, desired, rtol=0.0, atol=tolerance * scale)


def unit_scales(k):
    return np.vstack([np.zeros(k), np.ones(k)])


# ------------------------------------------------------------------------------------------------------------
# rows


def factored(xy, Z, index, m, w=None):
    """Groups as the kernels pack them: the triangle R of Z'WZ, R^-T Z'W[X y] and a count, LANES groups to a block."""
    q, k = Z.shape[1], xy.shape[1]
    w = np.ones(len(Z)) if w is None else w
    lines = np.zeros((-(-m // LANES) * LANES, q * (q + 1) // 2 + q * k + 1))
    for g in range(m):
        at = index == g
        R = np.linalg.cholesky((w[at, None] * Z[at]).T @ Z[at]).T
        c = np.linalg.solve(R.T, (w[at, None] * Z[at]).T @ xy[at])
        lines[g] = np.r_[R[np.triu_indices(q)], c.ravel(), 1.0]
    return np.ascontiguousarray(lines.reshape(-1, LANES, lines.shape[1]).transpose(0, 2, 1))


@pytest.mark.parametrize("extras", ["plain", "weights", "offset", "all"])
@pytest.mark.parametrize(("p", "q", "m"), [(0, 1, 3), (1, 1, 8), (2, 2, 9), (3, 1, 20), (4, 3, 17)])
def test_within_rows(rng, p, q, m, extras):
    n_slots, base = 2 * m + 1, -4
    sizes = rng.integers(q, q + 6, m)
    index = rng.permutation(np.repeat(np.arange(m), sizes))
    n = len(index)
    X, y, Z = rng.standard_normal((n, p)), rng.standard_normal(n), rng.standard_normal((n, q))
    w = rng.uniform(0.2, 5.0, n) if extras in ("weights", "all") else None
    o = rng.standard_normal(n) if extras in ("offset", "all") else None
    full = extras == "all"
    xs = np.vstack([rng.standard_normal(p), rng.uniform(0.5, 2.0, p)]) if full else unit_scales(p)
    zs = np.vstack([rng.standard_normal(q), rng.uniform(0.5, 2.0, q)]) if full else unit_scales(q)
    beta0 = rng.standard_normal(p) if full else np.zeros(p)
    to_xy = np.triu(rng.uniform(0.5, 1.5, (p + 1, p + 1))) if full else np.eye(p + 1)
    to_z = np.triu(rng.uniform(0.5, 1.5, (q, q))) if full else np.eye(q)
    # the same in numpy: conditioned rows, then a weighted regression of each group's rows on its Z
    x = (X - xs[0]) * xs[1]
    xy = np.column_stack([x, y - (0.0 if o is None else o) - x @ beta0]) @ to_xy
    z = (Z - zs[0]) * zs[1] @ to_z
    root = np.ones(n) if w is None else np.sqrt(w)
    expected = np.zeros((m, (p + 1) * (p + 2) // 2))
    for g in range(m):
        at = index == g
        left, right = root[at, None] * z[at], root[at, None] * xy[at]
        e = right - left @ np.linalg.lstsq(left, right, rcond=None)[0]
        expected[g] = packed_triangle(e.T @ e)
    # groups stand in the slots in an order of their own, with empty slots between them
    slots = rng.permutation(n_slots)[:m]
    position = np.zeros(n_slots, dtype=np.int64)
    position[slots] = np.arange(m)
    packed = factored(xy, z, index, m, w)
    for codes in ((slots[index] + base).astype(np.int32), (slots[index] + base).astype(np.int64)):
        columns = RowColumns(xs, zs, beta0, x_transform=to_xy, z_transform=to_z)
        arguments = (Rows(X, y, Z, codes, base, n_slots, w, o), columns, position, packed)
        found = kernels.within_rows(*arguments)
        assert found.shape == ((p + 1) * (p + 2) // 2,)
        close(found, expected.sum(axis=0), 1e-10)
        own = kernels.within_rows(*arguments, True)
        assert own.shape == (-(-m // LANES) * LANES, (p + 1) * (p + 2) // 2)
        close(own[:m], expected, 1e-10)
        assert not own[m:].any()
    # any layout
    strided = np.repeat(X, 2, axis=1)[:, ::2] if p else X
    read = Rows(strided, np.repeat(y, 2)[::2], np.asfortranarray(Z), codes, base, n_slots, w, o)
    again = kernels.within_rows(read, columns, position, packed, True)
    np.testing.assert_array_equal(again, own)


def test_within_rows_keeps_what_sums_lose(rng):
    # a variance of 1e12 between groups: S - sum c'c has four digits of the part within, the rows have nearly all
    m, n_i = 30, 5
    index = np.repeat(np.arange(m), n_i)
    e = rng.standard_normal(m * n_i)
    y = 1e6 * rng.standard_normal(m)[index] + e
    ones = np.ones((len(y), 1))
    packed = factored(y[:, None], ones, index, m)
    read = Rows(np.empty((len(y), 0)), y, ones, index, 0, m, None, None)
    columns = RowColumns(unit_scales(0), unit_scales(1), np.empty(0), x_transform=np.eye(1), z_transform=np.eye(1))
    found = kernels.within_rows(read, columns, np.arange(m), packed)
    means = np.bincount(index, e) / n_i
    # y itself is rounded at 1e-10
    assert found[0] == pytest.approx(np.sum((e - means[index]) ** 2), rel=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 6, 80])
def test_within_regression(rng, k):
    F = rng.standard_normal((30 + 10 * k, k))
    slope, rest = kernels.within_regression(packed_triangle(F.T @ F), k, 1e-12)
    expected = np.linalg.lstsq(F[:, :-1], F[:, -1], rcond=None)[0]
    np.testing.assert_allclose(slope, expected, rtol=1e-10, atol=1e-12)
    assert rest == pytest.approx(np.sum((F[:, -1] - F[:, :-1] @ expected) ** 2), rel=1e-11)


@pytest.mark.parametrize("k", [5, 70])
@pytest.mark.parametrize("combination", [True, False])
def test_within_regression_leaves_out_what_does_not_vary_within(rng, k, combination):
    F = rng.standard_normal((30 + 10 * k, k))
    F[:, 1] = 0.0
    left = [1]
    if combination:
        F[:, 3] = 2.0 * F[:, 0] - F[:, 2]
        left.append(3)
    slope, rest = kernels.within_regression(packed_triangle(F.T @ F), k, 1e-10)
    assert (slope[left] == 0.0).all()
    kept = np.setdiff1d(np.arange(k - 1), left)
    expected = np.linalg.lstsq(F[:, kept], F[:, -1], rcond=None)[0]
    np.testing.assert_allclose(slope[kept], expected, rtol=1e-10, atol=1e-12)
    assert rest == pytest.approx(np.sum((F[:, -1] - F[:, kept] @ expected) ** 2), rel=1e-11)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("may_shift", [True, False])
@pytest.mark.parametrize("constant", [None, 0, 2])
def test_column_scales(rng, constant, may_shift, coarse):
    columns = rng.standard_normal((50, 3)) * [1.0, 1e6, 1e-6] + [3.0, 0.0, 1e-3]
    if constant is not None:
        columns[:, constant] = -4.0
    scales, found = kernels.column_scales(columns, 1000, may_shift, coarse)
    shifted = constant is not None and may_shift
    assert found == (constant if shifted else -1)
    assert scales.shape == (2, 3)
    scaled = (columns - scales[0]) * scales[1]
    for j in range(3):
        if shifted and j == constant:
            np.testing.assert_array_equal(scaled[:, j], 1.0)
            continue
        if shifted:
            mean, size = scaled[:, j].mean(), scaled[:, j].std()
        else:
            mean, size = scales[0, j], np.sqrt(np.mean(scaled[:, j] ** 2))
        if coarse:
            # powers of two, and shifts of few digits: whole numbers stay whole
            assert math.frexp(scales[1, j])[0] == 0.5
            assert (scales[0, j] * scales[1, j] * 16.0).is_integer()
            assert abs(mean) <= 1 / 32 and 0.5 <= size < 1.0
        else:
            assert abs(mean) < 1e-12
            assert size == pytest.approx(1.0, rel=1e-12)


def test_column_scales_of_special_columns(rng):
    # of two constant columns the first is the one; zero is not a constant to shift by
    columns = np.column_stack([np.zeros(20), np.full(20, 5.0), np.full(20, 7.0), rng.standard_normal(20)])
    scales, found = kernels.column_scales(columns, 1000, True)
    assert found == 1
    np.testing.assert_array_equal(scales[:, 0], [0.0, 1.0])
    np.testing.assert_allclose(scales[:, 1], [0.0, 0.2])
    assert np.isfinite(scales).all()
    assert kernels.column_scales(columns[:, [0, 3]], 1000, True)[1] == -1
    # a sample of every hundredth row
    long = np.ones((10_000, 1))
    long[1] = 2.0
    assert kernels.column_scales(long, 100, True)[1] == 0
    assert kernels.column_scales(np.empty((5, 0)), 100, True)[0].shape == (2, 0)


# ------------------------------------------------------------------------------------------------------------
# patterns


@pytest.mark.parametrize(("m", "kinds"), [(1, 1), (8, 1), (50, 3), (700, 40), (2000, 2)])
@pytest.mark.parametrize("q", [1, 2, 3])
def test_pattern_labels(rng, q, m, kinds):
    designs = [rng.standard_normal((q + 2, q)) for _ in range(kinds)]
    label = rng.integers(0, kinds, m)
    Z, index = np.concatenate([designs[k] for k in label]), np.repeat(np.arange(m), q + 2)
    packed = factored(rng.standard_normal((len(Z), 2)), Z, index, m)
    # numbers in order of appearance
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    expected = np.argsort(np.argsort(first))[inverse]
    found = kernels.pattern_labels(packed, m, q)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_pattern_labels_of_designs_that_differ(rng):
    m = 600
    Z, index = rng.standard_normal((3 * m, 2)), np.repeat(np.arange(m), 3)
    packed = factored(np.ones((3 * m, 1)), Z, index, m)
    assert kernels.pattern_labels(packed, m, 2) is None
    # too few to give up on
    np.testing.assert_array_equal(kernels.pattern_labels(packed, 100, 2), np.arange(100))
    # a difference of 1e-9 of the size is a difference, one of rounding is not
    one = rng.standard_normal((4, 2))
    for change, same in ((1e-9, False), (1e-15, True)):
        Z = np.concatenate([one, one * (1.0 + change), one])
        found = kernels.pattern_labels(factored(np.ones((12, 1)), Z, np.repeat(np.arange(3), 4), 3), 3, 2)
        np.testing.assert_array_equal(found, [0, 0, 0] if same else [0, 1, 0])


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("counts", [[1], [5], [1, 40, 3, 1], [2, 2, 2], [100, 1, 1, 9]])
@pytest.mark.parametrize(("q", "p"), [(1, 0), (1, 1), (2, 2), (3, 4)])
def test_pattern_bases(rng, q, p, counts, constant):
    m = sum(counts)
    groups = np.r_[0, np.cumsum(counts)].astype(np.int64)
    cx = rng.standard_normal((m, q, p))
    if constant and p:
        # the usual case: a part of c_x is the same in all groups of a pattern, and another depends on it
        cx[:, :, 0] = np.repeat(rng.standard_normal((len(counts), q)), counts, axis=0)
        cx[:, :, -1] = 2.0 * cx[:, :, 0]
    columns, loading, rotated = kernels.pattern_bases(cx, groups)
    assert columns[0] == 0
    assert columns[-1] == len(rotated)
    for k, count in enumerate(counts):
        own = cx[groups[k] : groups[k + 1]]
        mine = rotated[columns[k] : columns[k + 1]]
        if count == 1:
            np.testing.assert_array_equal(mine, own)
            continue
        rank = np.linalg.matrix_rank(own.reshape(count, -1)) if p else 0
        assert len(mine) == rank
        L = loading[groups[k] : groups[k + 1], :rank]
        close(L.T @ L, np.eye(rank), 1e-13)
        assert not loading[groups[k] : groups[k + 1], rank:].any()
        close(mine, np.einsum("gc,gij->cij", L, own))
        # nothing of c_x is left outside the columns: its Gram matrix is theirs
        v, u = own.reshape(count, q * p), mine.reshape(rank, q * p)
        close(u.T @ u, v.T @ v, 1e-11)


# ------------------------------------------------------------------------------------------------------------
# the batch kernel in every variant


BATCH_SCRIPT = textwrap.dedent(
    """
    import sys
    import numpy as np
    import fastlmm_core as flc
    from fastlmm_core import kernels
    out = {}
    rng = np.random.default_rng(7)
    # the shapes of which the sweeps are compiled with constant sizes, and others
    for q, p, visits in ((1, 1, "same"), (1, 2, "own"), (1, 4, "mixed"), (2, 2, "same"), (2, 3, "mixed"),
                         (2, 4, "own"), (2, 0, "mixed"), (2, 6, "own"), (3, 2, "mixed"), (3, 3, "mixed"), (3, 4, "own"),
                         (3, 6, "own"), (4, 5, "own")):
        m = 20
        sizes = {"same": np.full(m, 6), "mixed": np.array([5, 7])[np.arange(m) % 2],
                 "own": rng.integers(q + 2, 9, m)}[visits]
        groups = rng.permutation(np.repeat(np.arange(m), sizes))
        n = len(groups)
        place = np.empty(n, dtype=int)
        for g in range(m):
            place[groups == g] = np.arange((groups == g).sum())
        t = rng.uniform(-1, 1, n) if visits == "own" else place / 4.0 - 1.0
        Z = t[:, None] ** np.arange(q)
        X = np.column_stack([np.ones(n), rng.standard_normal((n, max(p - 1, 0)))])[:, :p]
        model = flc.LinearMixedModel(rng.standard_normal(n), X, Z, groups, weights=rng.uniform(0.5, 2, n))
        Y = rng.standard_normal((29, n)) + np.einsum("rij,ij->ri", rng.standard_normal((29, m, q))[:, groups], Z)
        Y[3, 0] = np.nan
        Y[4] = 1.0
        Y[20:] = rng.standard_normal((9, n))
        for reml in (True, False):
            batch = model.fit_many(Y, reml=reml, n_jobs=1)
            for name in ("params", "bse", "sigma2", "criterion", "converged", "singular", "gradient_norm"):
                out[f"{q} {p} {visits} {reml} {name}"] = getattr(batch, name)
            (G,) = batch.G.values()
            out[f"{q} {p} {visits} {reml} G"] = G
    assert kernels.VARIANT == sys.argv[2]
    np.savez(sys.argv[1], **out)
    """
)


def run_with(variant, *arguments, script=BATCH_SCRIPT):
    env = {**os.environ, "FASTLMM_KERNELS": variant, "OPENBLAS_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(flc.__file__).parents[1]), env.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], env=env, capture_output=True, text=True, check=False
    )


def test_variants_agree(tmp_path):
    found = {}
    for variant in variants():
        done = run_with(variant, str(tmp_path / f"{variant}.npz"), variant)
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / f"{variant}.npz") as file:
            found[variant] = dict(file)
    base = found.pop("base")
    assert len(base) == 13 * 2 * 8
    for values in base.values():
        assert len(values) == 29
    for variant, values in found.items():
        assert values.keys() == base.keys()
        for name, expected in base.items():
            label = f"{variant}: {name}"
            got = values[name]
            design_of, what = name.rsplit(" ", 1)
            if what in ("converged", "singular"):
                np.testing.assert_array_equal(got, expected, err_msg=label)
                continue
            if what == "gradient_norm":
                # where rounding ends the search differs from variant to variant; certified it is in all
                assert np.all(got[base[f"{design_of} converged"]] <= 1e-4), label
                continue
            # each stops within 1e-8 standard errors of its optimum; boundaries are snapped to at the accuracy of G
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected), err_msg=label)
            se = base[f"{design_of} bse"]
            if what == "criterion":
                size = np.abs(expected) + 100.0
                tolerance = 1e-12
            elif what == "params":
                size, tolerance = se, 1e-8
            elif what == "G":
                size = np.max(np.abs(expected), axis=(1, 2), keepdims=True) + base[f"{design_of} sigma2"][:, None, None]
                tolerance = 1e-7
            else:
                size, tolerance = np.abs(expected), 1e-8
            if expected.size:
                assert np.nanmax(np.abs(got - expected) / size) <= tolerance, label


def fields_of(count, n_par, p):
    return dict(
        theta=np.full((count, n_par), -9.0), params=np.full((count, p), -9.0), bse=np.full((count, p), -9.0),
        sigma2=np.full(count, -9.0), value=np.full(count, -9.0), decrement=np.full(count, -9.0),
        status=np.full(count, -9, dtype=np.intc), evaluations=np.full(count, -9, dtype=np.intc),
        df=np.full((count, p), -9.0),
    )  # fmt: skip


def small_model(rng, m=12):
    groups = np.repeat(np.arange(m), rng.integers(4, 8, m))
    X = np.column_stack([np.ones(len(groups)), rng.uniform(-1.0, 1.0, len(groups))])
    b = rng.standard_normal((m, 2))[groups]
    return flc.LinearMixedModel(rng.standard_normal(len(groups)) + np.sum(b * X, axis=1), X, X, groups)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 24])
def test_fit_writes_its_own_rows_only(rng, count):
    model = small_model(rng)
    shared = design(model)
    assert (shared.n, shared.n_par, shared.p_full) == (model.nobs, 3, 2)
    Y = np.array([model.endog + 0.3 * rng.standard_normal(model.nobs) for _ in range(count)])
    out = fields_of(count + 10, 3, 2)
    shared.fit(Y, 4, BatchCriterion(True, 0.0), None, BatchResults(*out.values()))
    for name, values in out.items():
        assert (values[:4] == -9).all(), name
        assert (values[4 + count :] == -9).all(), name
        assert (values[4 : 4 + count] != -9).all(), name
    # a second start, from a multiple of the identity, leads to the same optimum
    again = fields_of(count, 3, 2)
    shared.fit(Y, 0, BatchCriterion(True, 0.0), np.array([1.0, 0.0, 1.0]), BatchResults(*again.values()))
    both = (again["status"] == 1) & (out["status"][4 : 4 + count] == 1)
    assert both.any()
    np.testing.assert_allclose(again["value"][both], out["value"][4 : 4 + count][both], rtol=1e-12)
    np.testing.assert_allclose(again["params"][both], out["params"][4 : 4 + count][both], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("singular", [False, True])
def test_searches_end_where_they_go_to_a_known_minimum(rng, singular):
    """The minimum is told as it is known, evaluations are saved; where another point is given, the search goes on."""
    model = small_model(rng, 20)
    shared, count = design(model), 40
    sd = np.array([1.0, 0.0 if singular else 0.7])
    b = rng.standard_normal((count, 20, 2)) * sd
    Y = np.einsum("rij,ij->ri", b[:, model.grouping.index], model.exog_re) + rng.standard_normal((count, model.nobs))
    ml = BatchCriterion(False, 3.0)

    def search(start, known=None):
        out = fields_of(count, 3, 2)
        shared.fit(Y, 0, ml, start, BatchResults(*out.values()), known=known)
        return out["theta"], out["value"], out["status"], out["evaluations"]

    theta, value, status, _ = search(None)
    assert set(status) == {1, 2}
    for start in ([2.0, 0.0, 2.0], [0.6, 0.0, 0.6], [0.8, 1.3, 0.02], [3.0, -5.0, 0.05]):
        plain, told = search(np.array(start)), search(np.array(start), (theta, value))
        arrived = told[2] == 1
        same = np.abs(plain[1] - value) < 1e-8
        # where both end at the minimum that is known it is told to the bit
        np.testing.assert_array_equal(told[0][arrived & same & (told[1] == value)],
                                      theta[arrived & same & (told[1] == value)])  # fmt: skip
        np.testing.assert_allclose(told[1][plain[2] > 0], plain[1][plain[2] > 0], rtol=0.0, atol=1e-7)
        assert (told[3] <= plain[3]).all() and told[3].sum() < 0.85 * plain[3].sum()
        # neither a point beside the minimum nor the minimum at another height is where the search ends
        for other in ((1.2 * theta, value), (theta, value + 0.1), (theta, value - 0.1), (np.nan * theta, value)):
            found = search(np.array(start), other)
            np.testing.assert_allclose(found[1][plain[2] > 0], plain[1][plain[2] > 0], rtol=0.0, atol=1e-7)
            np.testing.assert_array_equal(found[3], plain[3])


def test_fit_checks_its_arrays(rng):
    model = small_model(rng)
    shared = design(model)
    out = fields_of(5, 3, 2)
    with pytest.raises(ValueError, match="columns"):
        shared.fit(np.zeros((2, model.nobs + 1)), 0, BatchCriterion(True, 0.0), None, BatchResults(*out.values()))
    for first in (-1, 4):
        with pytest.raises(IndexError):
            shared.fit(np.zeros((2, model.nobs)), first, BatchCriterion(True, 0.0), None, BatchResults(*out.values()))
    shared.fit(np.zeros((0, model.nobs)), 5, BatchCriterion(True, 0.0), None, BatchResults(*out.values()))
    with pytest.raises(ValueError, match="known minima of other responses"):
        shared.fit(
            np.ones((3, model.nobs)), 0, BatchCriterion(True, 0.0), np.ones(3), BatchResults(*out.values()),
            known=(np.zeros((2, 3)), np.zeros(2)),
        )  # fmt: skip
    assert all((values == -9).all() for values in out.values())


def dense_sums(model, y):
    """What a line of sums holds, from rows, groups and patterns in full."""
    shared = design(model)
    rows, patterns = shared.rows, shared.patterns
    order = np.arange(model.nobs) if rows.order is None else rows.order
    counts, ends = np.diff(patterns.groups), list(itertools.pairwise(rows.start))
    X = model.problem.conditioned_x(model.exog)[order]
    v = (y - y[0] if rows.centre else y)[order]
    c = np.array([rows.basis[a:b].T @ v[a:b] for a, b in ends])
    beta = X.T @ v
    residual = v - X @ beta
    left = np.array([rows.basis[a:b].T @ residual[a:b] for a, b in ends])
    columns, rest = [], []
    for k, count in enumerate(counts):
        own = slice(patterns.groups[k], patterns.groups[k + 1])
        if count == 1:
            columns.append(left[own])
            continue
        loading = patterns.loading[own, : patterns.columns[k + 1] - patterns.columns[k]]
        columns.append(np.einsum("gk,ga->ka", loading, left[own]))
        outside = c[own] - loading @ (loading.T @ c[own])
        rest.append(packed_triangle(outside.T @ outside))
    between = np.concatenate(columns)
    within_y = residual @ residual - (left**2).sum()
    within_x = X.T @ residual - np.einsum("kaj,ka->j", patterns.cx, between)
    return np.concatenate(
        [between.ravel(), *rest, within_x * (1 - patterns.exact), [within_y], beta, [residual @ residual],
         [y[0] if rows.centre else 0.0]]
    )  # fmt: skip


@pytest.mark.parametrize("schedule", ["same", "own", "sorted"])
@pytest.mark.parametrize("q", [1, 2, 3])
def test_sums_of_some_columns(rng, q, schedule):
    """Lines of sums are those of dense algebra, and where the columns stand does not matter to a bit."""
    m, n = 9, 45
    groups = np.repeat(np.arange(m), 5)
    t = np.tile(np.linspace(-1.0, 1.0, 5), m) if schedule != "own" else rng.uniform(-1, 1, n)
    if schedule != "sorted":
        turn = rng.permutation(n)
        groups, t = groups[turn], t[turn]
    X = np.column_stack([np.ones(n), t, rng.standard_normal(n)])
    model = flc.LinearMixedModel(rng.standard_normal(n), X, t[:, None] ** np.arange(q), groups)
    shared, Y = design(model), 3.0 + rng.standard_normal((11, n))
    lines = shared.sums(Y)
    for y, line in zip(Y, lines, strict=True):
        wanted = dense_sums(model, y)
        assert line.shape == wanted.shape
        np.testing.assert_allclose(line, wanted, rtol=0.0, atol=1e-12 * np.abs(wanted).max())
    # among other columns, in runs of any length, at the very end of the array, and in pieces of eight of long rows
    for places in (
        np.arange(n) + 7,
        np.sort(rng.choice(n + 20, n, replace=False)),
        2 * np.arange(n),
        np.arange(n) + 4_000,
    ):
        wide = np.full((25, places[-1] + 1), np.nan)
        which = rng.permutation(25)[:11]
        wide[np.ix_(which, places)] = Y
        np.testing.assert_array_equal(shared.sums(wide, places, which), lines)
        seals = np.zeros((11, 2), dtype=np.uint64)
        np.testing.assert_array_equal(shared.sums(wide, places, which, seals), lines)
        np.testing.assert_array_equal(seals, kernels.line_seals(Y))
    assert shared.sums(Y[:0]).shape == (0, lines.shape[1])


def test_sums_check_their_arrays(rng):
    model = small_model(rng)
    shared, n = design(model), model.nobs
    Y = np.zeros((3, n + 1))
    with pytest.raises(ValueError, match=f"Y has {n + 1} columns"):
        shared.sums(Y)
    for columns in (np.arange(n) + 2, np.arange(n) - 1, np.arange(n - 1)):
        with pytest.raises(ValueError, match="the columns are not those of the design"):
            shared.sums(Y, columns)
    for which in ([0, 3], [-1]):
        with pytest.raises(IndexError, match="which"):
            shared.sums(Y, np.arange(n), np.array(which))
    seals = np.zeros((3, 2), dtype=np.uint64)
    for asked in ((None, None), (np.arange(n), np.arange(2)), (np.arange(n), None)):
        with pytest.raises(ValueError, match="seals are those of"):
            shared.sums(Y[:, :n].copy(), *asked, seals)


@pytest.mark.parametrize("k", [0, 1, 63, 64, 65, 180])
def test_mask_labels(rng, k):
    Y = rng.standard_normal((300, k))
    kinds = rng.random((7, k)) < 0.3
    kind = rng.integers(7, size=300)
    Y[kinds[kind]] = np.nan
    Y[0, : k // 2] = np.inf  # is there
    _, first, known = np.unique(np.isnan(Y), axis=0, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=int)
    rank[np.argsort(first)] = np.arange(len(first))
    np.testing.assert_array_equal(kernels.mask_labels(Y), rank[known.ravel()] if k else np.zeros(300))
    assert len(kernels.mask_labels(Y[:0])) == 0


def test_mask_labels_of_many_masks(rng):
    Y = np.where(rng.random((1000, 70)) < 0.5, np.nan, 1.0)
    np.testing.assert_array_equal(kernels.mask_labels(Y), np.arange(1000))


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 40])
def test_seals_of_some_columns(rng, n):
    Y = rng.standard_normal((6, 60))
    which = np.array([4, 1, 1])
    for columns in (np.arange(n) + 3, np.sort(rng.choice(60, n, replace=False))):
        some = np.ascontiguousarray(Y[np.ix_(which, columns)])
        np.testing.assert_array_equal(kernels.line_seals(Y, columns, which), kernels.line_seals(some))
    for columns, lines in (([58, 60], [0]), ([-1], [0]), ([0], [6]), ([0], [-1])):
        with pytest.raises(IndexError):
            kernels.line_seals(Y, np.array(columns), np.array(lines))


def test_memory_does_not_grow(rng):
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc/self/statm")
    model = small_model(rng, m=500)
    shared, Y, out = design(model), np.tile(model.endog, (8, 1)), fields_of(8, 3, 2)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def once():
        shared.fit(Y, 0, BatchCriterion(True, 0.0), None, BatchResults(*out.values()))
        design(model)

    for _ in range(5):
        once()
    before = resident()
    # a fit takes some 600 kB of work space
    for _ in range(60):
        once()
    assert resident() - before < 8e6


# ------------------------------------------------------------------------------------------------------------
# the logarithm of the lanes


LOG_SCRIPT = textwrap.dedent(
    """
    import sys
    import numpy as np
    import fastlmm_core as flc
    from fastlmm_core import kernels
    # the determinants that the criterion takes logarithms of run over what a double can hold
    out = {}
    rng = np.random.default_rng(3)
    for m in (12, 200):
        sizes = np.full(m, 5) if m == 200 else rng.integers(3, 8, m)
        groups = np.repeat(np.arange(m), sizes)
        t = np.tile(np.linspace(-1, 1, 5), m) if m == 200 else rng.uniform(-1, 1, len(groups))
        X = np.column_stack([np.ones(len(t)), t])
        model = flc.LinearMixedModel(rng.standard_normal(len(t)), X, X, groups)
        criterion = model.problem.criterion()
        factors = np.r_[0.0, 10.0 ** np.linspace(-12.0, 9.0, 400)]
        for reml in (True, False):
            criterion.reml = reml
            out[f"{m} {reml}"] = np.array([criterion.evaluate([f, 0.3 * f, 0.7 * f], 0)[0] for f in factors])
            lines = model.problem.packed.transpose(0, 2, 1).reshape(-1, model.problem.packed.shape[1])
            R, rest, counts = lines[:, :3], lines[:, 3:-1].reshape(-1, 2, 3), lines[:, -1]
            within = kernels.unpack(model.problem.within, 3)
            expected = []
            for f in factors:
                L = np.array([[f, 0.0], [0.3 * f, 0.7 * f]])
                U = np.zeros((len(R), 2, 2))
                U[:, 0, 0], U[:, 0, 1], U[:, 1, 1] = R.T
                U = U @ L
                # lambda^2 of 1e18: I + UU' has to be factored, not expanded
                W = np.eye(2) + U @ U.transpose(0, 2, 1)
                chol = np.linalg.cholesky(W)
                D = np.linalg.solve(chol, rest)
                H = within + np.einsum("gai,gaj->ij", D, D)
                C = np.linalg.cholesky(H)
                nu = model.nobs - 2 if reml else model.nobs
                logdet = 2.0 * np.sum(counts * np.log(np.diagonal(chol, axis1=1, axis2=2)).sum(axis=1))
                value = logdet + nu * (1.0 + np.log(2.0 * np.pi * C[2, 2] ** 2 / nu))
                expected.append(value + (2.0 * np.log(np.diag(C)[:2]).sum() if reml else 0.0))
            out[f"{m} {reml} expected"] = np.array(expected)
    np.savez(sys.argv[1], **out)
    """
)


@pytest.mark.parametrize("variant", variants())
def test_logarithms_are_accurate(tmp_path, variant):
    done = run_with(variant, str(tmp_path / "log.npz"), script=LOG_SCRIPT)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "log.npz") as found:
        for name in ("12 True", "12 False", "200 True", "200 False"):
            expected = found[f"{name} expected"]
            assert np.isfinite(expected).all()
            # relative to the terms, of which the criterion is a difference
            size = np.abs(expected) + 5.0 * float(name.split()[0])
            assert np.max(np.abs(found[name] - expected) / size) <= 1e-12, name


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("schedule", ["same", "own"])
def test_criteria_of_the_batch_are_those_of_single_fits(rng, schedule, reml):
    # ratios of the standard deviation between groups to that within from 1e-8 to 1e8
    m = 24
    groups = np.repeat(np.arange(m), 5)
    n = len(groups)
    t = np.tile(np.linspace(-1.0, 1.0, 5), m) if schedule == "same" else rng.uniform(-1.0, 1.0, n)
    X = np.column_stack([np.ones(n), t])
    model = flc.LinearMixedModel(rng.standard_normal(n), X, X, groups)
    ratios = 10.0 ** np.linspace(-8.0, 8.0, 65)
    b = rng.standard_normal((len(ratios), m, 2))[:, groups]
    Y = rng.standard_normal((len(ratios), n)) + ratios[:, None] * np.einsum("rij,ij->ri", b, X)
    batch = model.fit_many(Y, reml=reml, n_jobs=1)
    for i, y in enumerate(Y):
        single = model.refit(y, reml=reml)
        assert batch.converged[i] and single.converged
        # the part within groups is a difference of sums `ratio` squared as large, up to 1e6 (then the rows are read)
        lost = 1e-15 * min(ratios[i] ** 2, 1e6) if ratios[i] > 1.0 else 0.0
        assert batch.criterion[i] == pytest.approx(single.criterion, rel=1e-12 + 3.0 * lost), ratios[i]


@pytest.mark.parametrize("scale", [1e-140, 1e-30, 1.0, 1e30, 1e140])
def test_the_scale_of_the_response_enters_by_its_logarithm(rng, scale):
    ref = oracle.reference("sleepstudy_slope")
    model = flc.LinearMixedModel(*ref.arrays)
    y = model.endog
    batch = model.fit_many(np.array([y, scale * y]))
    expected = batch.criterion[0] + 2.0 * (model.nobs - 2) * np.log(scale)
    assert batch.criterion[1] == pytest.approx(expected, rel=1e-13)
    assert batch.sigma2[1] == pytest.approx(scale**2 * batch.sigma2[0], rel=1e-8)
