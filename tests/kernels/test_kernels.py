"""The compiled kernels one by one, against the same in numpy, and what they promise to threads and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from scipy import sparse

import fastlmm_core as flc
import oracle
from fastlmm_core import kernels
from fastlmm_core.engines.scaling import criterion_offset
from fastlmm_core.kernels import variants
from fastlmm_core.kernels._newton import eigensystem
from fastlmm_core.kernels.records.rows import RowColumns, Rows

LANES = kernels.lanes()
"""Groups that the chosen variant works on at a time: 2, 4 or 8."""

# Sums of some hundred products in double precision, in another order.
SUMS = 1e-12


def packed_triangle(A):
    """Lower triangle by rows."""
    return A[np.tril_indices(len(A))]


def close(actual, desired, tolerance=SUMS):
    desired = np.asarray(desired)
    scale = max(np.max(np.abs(desired), initial=0.0), 1e-300)
    np.testing.assert_allclose(actual, desired, rtol=0.0, atol=tolerance * scale)


# ------------------------------------------------------------------------------------------------------------
# rows


def rows_in_numpy(X, y, Z, index, m, w=None, o=None, xs=None, zs=None, beta0=None, x_transform=None, z_transform=None):
    """raw, S and gram of `accumulate`, by masks."""
    n = len(X)
    x = X if xs is None else (X - xs[0]) * xs[1]
    z = Z if zs is None else (Z - zs[0]) * zs[1]
    x = x if x_transform is None else x @ x_transform
    z = z if z_transform is None else z @ z_transform
    w = np.ones(n) if w is None else w
    r = y - (0.0 if o is None else o) - (x @ beta0 if beta0 is not None else 0.0)
    xr = np.column_stack([x, r])
    raw = []
    for g in range(m):
        at = index == g
        A = (w[at, None] * z[at]).T @ z[at]
        raw.append(np.r_[packed_triangle(A), ((w[at, None] * z[at]).T @ xr[at]).ravel(), at.sum()])
    S = (w[:, None] * xr).T @ xr
    return np.array(raw), packed_triangle(S), packed_triangle((w[:, None] * z).T @ z)


def unit_scales(k):
    return np.vstack([np.zeros(k), np.ones(k)])


def accumulate(X, y, Z, codes, base, m, w=None, o=None, xs=None, zs=None, beta0=None, xt=None, zt=None, xc=-1, zc=-1):
    p, q = X.shape[1], Z.shape[1]
    columns = RowColumns(
        unit_scales(p) if xs is None else xs, unit_scales(q) if zs is None else zs,
        np.zeros(p) if beta0 is None else beta0, xc, zc, xt, zt,
    )  # fmt: skip
    return kernels.accumulate(Rows(X, y, Z, codes, base, m, w, o), columns)


def rows(rng, n, p, q, m):
    return rng.standard_normal((n, p)), rng.standard_normal(n), rng.standard_normal((n, q)), rng.integers(0, m, n)


@pytest.mark.parametrize("extras", ["plain", "weights", "offset", "transforms", "all"])
@pytest.mark.parametrize(
    ("p", "q"),
    [(0, 1), (1, 1), (2, 1), (2, 2), (1, 2), (3, 1), (4, 1), (5, 1), (3, 2), (4, 2), (5, 2), (5, 4), (2, 8), (70, 2)],
)
def test_accumulate(rng, p, q, extras):
    n, m = 5000, 37  # more rows than are summed before a flush
    X, y, Z, index = rows(rng, n, p, q, m)
    full = extras == "all"
    w = rng.uniform(0.1, 4.0, n) if full or extras == "weights" else None
    o = rng.standard_normal(n) if full or extras == "offset" else None
    transforms = full or extras == "transforms"
    xt = np.triu(rng.standard_normal((p, p))) if transforms else None
    zt = np.triu(rng.standard_normal((q, q))) if transforms else None
    xs = np.vstack([rng.standard_normal(p), rng.uniform(0.5, 2.0, p)])
    zs = np.vstack([rng.standard_normal(q), rng.uniform(0.5, 2.0, q)])
    beta0 = rng.standard_normal(p)
    raw, S, gram, constant, varies, finite = accumulate(X, y, Z, index, 0, m, w, o, xs, zs, beta0, xt, zt)
    assert finite
    expected = rows_in_numpy(X, y, Z, index, m, w, o, xs, zs, beta0, xt, zt)
    for got, want in zip((raw, S, gram), expected, strict=True):
        close(got, want)
    assert constant is True
    assert varies is True


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("base", [-7, 0, 1000])
def test_accumulate_takes_codes_of_both_widths_from_any_base(rng, base, dtype):
    X, y, Z, index = rows(rng, 300, 2, 2, 9)
    codes = (index + base).astype(dtype)
    expected = rows_in_numpy(X, y, Z, index, 9)
    for got, want in zip(accumulate(X, y, Z, codes, base, 9)[:3], expected, strict=True):
        close(got, want)
    # every other element of a longer array
    wide = np.zeros((300, 2), dtype=dtype)
    wide[:, 0] = codes
    wide[:, 1] = base
    for got, want in zip(accumulate(X, y, Z, wide[:, 0], base, 9)[:3], expected, strict=True):
        close(got, want)


@pytest.mark.parametrize("order", ["random", "sorted", "reversed", "interleaved"])
@pytest.mark.parametrize(("p", "q"), [(2, 2), (2, 1), (5, 2), (70, 2)])
def test_accumulate_takes_rows_in_any_order(rng, p, q, order):
    X, y, Z, index = rows(rng, 3000, p, q, 50)
    at = {
        "random": np.arange(3000),
        "sorted": np.argsort(index, kind="stable"),
        "reversed": np.argsort(index, kind="stable")[::-1],
        "interleaved": np.argsort(np.arange(3000) % 7, kind="stable"),
    }[order]
    expected = rows_in_numpy(X, y, Z, index, 50)
    found = accumulate(X[at], y[at], Z[at], index[at], 0, 50)
    for got, want in zip(found[:3], expected, strict=True):
        close(got, want)


@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "views"])
@pytest.mark.parametrize(("p", "q"), [(2, 2), (2, 1), (4, 3), (64, 2)])
def test_accumulate_takes_arrays_of_any_layout(rng, p, q, layout):
    X, y, Z, index = rows(rng, 400, p, q, 12)
    w, o = rng.uniform(0.5, 2.0, 400), rng.standard_normal(400)
    expected = rows_in_numpy(X, y, Z, index, 12, w, o)
    if layout == "fortran":
        X, Z = np.asfortranarray(X), np.asfortranarray(Z)
    elif layout == "strided":
        X, Z = np.repeat(np.repeat(X, 2, axis=0), 3, axis=1)[::2, ::3], np.repeat(Z, 5, axis=0)[::5]
        y, w, o = np.repeat(y, 2)[::2], np.repeat(w, 3)[::3], np.repeat(o, 4)[::4]
    elif layout == "reversed":
        X, y, Z, w, o = (np.ascontiguousarray(a[::-1])[::-1] for a in (X, y, Z, w, o))
    else:
        table = np.column_stack([y, X, w, Z, o])
        y, X, w, Z, o = table[:, 0], table[:, 1 : p + 1], table[:, p + 1], table[:, p + 2 : p + 2 + q], table[:, -1]
    for got, want in zip(accumulate(X, y, Z, index, 0, 12, w, o)[:3], expected, strict=True):
        close(got, want)
    for got, want in zip(accumulate(X, y, Z, index, 0, 12)[:3], rows_in_numpy(X, y, Z, index, 12), strict=True):
        close(got, want)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_one_array_for_x_and_z_gives_what_two_give(rng, k, weighted):
    n, m = 4500, 61
    X, y, _, index = rows(rng, n, k, 1, m)
    X[:, 0] = 1.0
    w = rng.uniform(0.5, 2.0, n) if weighted else None
    s = np.vstack([np.r_[0.0, rng.standard_normal(k - 1)], rng.uniform(0.5, 2.0, k)])
    beta0 = rng.standard_normal(k)
    shared = accumulate(X, y, X, index, 0, m, w, None, s, s, beta0, xc=0, zc=0)
    apart = accumulate(X, y, X.copy(), index, 0, m, w, None, s, s, beta0, xc=0, zc=0)
    expected = rows_in_numpy(X, y, X, index, m, w, None, s, s, beta0)
    for a, b, want in zip(shared[:3], apart[:3], expected, strict=True):
        close(a, want)
        close(b, want)
    assert shared[3:] == apart[3:] == (True, True, True)
    # one array, but scaled in two ways, is not one design
    other = s * np.array([[1.0], [2.0]])
    found = accumulate(X, y, X, index, 0, m, w, None, s, other, beta0, xc=0, zc=0)
    for got, want in zip(found[:3], rows_in_numpy(X, y, X, index, m, w, None, s, other, beta0), strict=True):
        close(got, want)


@pytest.mark.parametrize(("shared", "p"), [(False, 2), (True, 2), (False, 64)])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_in_pieces_have_the_sums_of_all_at_once(rng, shared, p, weighted):
    n, m = 9001, 61
    X, y, Z, index = rows(rng, n, p, 2, m)
    Z = X if shared else Z
    w = rng.uniform(0.5, 2.0, n) if weighted else None
    columns = RowColumns(unit_scales(p), unit_scales(2), np.zeros(p))
    whole = kernels.accumulate(Rows(X, y, Z, index, 0, m, w, None), columns)
    raw, sums = np.zeros((m + 3, whole[0].shape[1])), np.zeros(len(whole[1]) + 3)
    for start in range(0, n, 4096):
        at = slice(start, start + 4096)
        x, z = X[at], X[at] if shared else Z[at]
        z = x if shared else z
        piece = Rows(x, y[at], z, index[at], 0, m + 3, None if w is None else w[at], None)
        assert kernels.add_rows(piece, columns, raw, sums) == (True, True)
    for got, want in zip((raw[:m], sums[:-3], sums[-3:]), whole[:3], strict=True):
        np.testing.assert_array_equal(got, want)


ORDERS = {
    "small groups": lambda n: np.arange(n) // 7,
    "groups longer than blocks": lambda n: np.arange(n) // 5003,
    "groups that are blocks": lambda n: np.arange(n) // 2048,
    "groups longer than pieces": lambda n: np.searchsorted([11, n // 3, n // 3 + 1, n - 2], np.arange(n)),
    "one group": np.zeros,
    "one row out of order": lambda n: np.r_[np.arange(n - 70_000), 5, np.arange(n - 70_000, n - 1)] // 9,
    "last row out of order": lambda n: np.r_[np.arange(n - 1) // 9, 3],
    "any order": lambda n: np.random.default_rng(5).integers(0, 900, n),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("p", "q", "kind"), [(2, 2, "shared"), (2, 1, ""), (3, 2, ""), (3, 3, "shared"), (2, 2, "weighted")]
)
def test_threads_have_the_sums_of_one_thread(rng, p, q, kind, order):
    n = 140_001
    X, y, Z, _ = rows(rng, n, p, q, 1)
    codes = ORDERS[order](n).astype(np.int32 if q == 1 else np.int64)
    Z = X if kind == "shared" else Z
    w, o = (rng.uniform(0.5, 2.0, n), rng.standard_normal(n)) if kind == "weighted" else (None, None)
    columns = RowColumns(unit_scales(p), unit_scales(q), rng.standard_normal(p))
    read = Rows(X, y, Z, codes - 4, -4, int(codes.max()) + 3, w, o)
    alone = kernels.accumulate(read, columns)
    xr = np.column_stack([X, y - (0.0 if o is None else o) - X @ columns.beta0])
    weighted = xr if w is None else w[:, None] * xr
    np.testing.assert_allclose(alone[1], packed_triangle(weighted.T @ xr), rtol=1e-11, atol=1e-8)
    np.testing.assert_array_equal(alone[0][:, -1], np.bincount(codes, minlength=read.n_slots))
    for jobs in (2, 3, 8):
        found = kernels.accumulate(read, columns, jobs)
        for got, want in zip(found[:3], alone[:3], strict=True):
            np.testing.assert_array_equal(got, want)
        assert found[3:] == alone[3:] == (True, True, True)


def test_threads_tell_what_varies():
    n = 140_001
    X, y, codes = np.ones((n, 1)), np.zeros(n), np.arange(n) // 7
    read = Rows(X, y, np.ones((n, 1)), codes, 0, int(codes[-1]) + 1, None, None)
    columns = RowColumns(unit_scales(1), unit_scales(1), np.zeros(1), 0, 0)
    assert kernels.accumulate(read, columns, 2)[3:] == (True, False, True)
    y[70_001] = 1.0
    assert kernels.accumulate(read, columns, 2)[3:] == (True, True, True)
    X[-1] = 2.0
    assert kernels.accumulate(read, columns, 2)[3:] == (False, True, True)


def test_threads_leave_rows_that_are_out_of_order_anywhere_to_one():
    """Also where one piece of the rows ends and another begins, at any of the places where a block of sums may end."""
    n = 140_001
    X, columns = np.ones((n, 1)), RowColumns(unit_scales(1), unit_scales(1), np.zeros(1), 0, 0)
    for at in range(2048, n, 2048):
        codes = np.arange(n) // 7
        codes[at:] -= 5
        read = Rows(X, X[:, 0], X, codes, 0, int(codes[-1]) + 1, None, None)
        for jobs in (2, 8):
            found = kernels.accumulate(read, columns, jobs)[0]
            np.testing.assert_array_equal(found[:, -1], np.bincount(codes))


@pytest.mark.parametrize("n_sample", [10_000, 700, 50])
@pytest.mark.parametrize("may_shift", [True, False])
def test_scales_of_columns_do_not_depend_on_their_layout(rng, may_shift, n_sample):
    X = rng.standard_normal((700, 6)) * 10.0 ** np.arange(6) + 50.0
    X[:, 2], X[:, 4] = 0.0, 7.0
    X[699, 2] = 1.0 if n_sample > 700 else 0.0
    by_rows, constant = kernels.column_scales(X, n_sample, may_shift)
    by_columns = kernels.column_scales(np.asfortranarray(X), n_sample, may_shift)
    np.testing.assert_array_equal(by_rows, by_columns[0])
    assert constant == by_columns[1] == (4 if may_shift else -1)
    sample = X[:: max(1, -(-700 // n_sample))]
    size = sample.std(axis=0) if may_shift else np.sqrt(np.mean(sample**2, axis=0))
    held = np.setdiff1d(np.arange(6), [2, 4])
    np.testing.assert_allclose(by_rows[1, held], 1.0 / size[held], rtol=1e-12)


@pytest.mark.parametrize("p", [2, 66])
def test_accumulate_tells_what_varies(rng, p):
    X, y, Z, index = rows(rng, 200, p, 2, 5)
    X[:, 1] = 3.0
    Z[:, 0] = -2.0
    assert accumulate(X, y, Z, index, 0, 5, xc=1, zc=0)[3] is True
    for array, where in ((X, (199, 1)), (Z, (0, 0)), (Z, (117, 0))):
        kept = array[where]
        array[where] += 1e-9
        assert accumulate(X, y, Z, index, 0, 5, xc=1, zc=0)[3] is False
        array[where] = kept
    assert accumulate(X, np.full(200, 0.1), Z, index, 0, 5)[4] is False
    assert accumulate(X, np.r_[np.full(199, 0.1), 0.1 + 2e-17], Z, index, 0, 5)[4] is True


def test_groups_without_rows_are_zero(rng):
    X, y, Z, index = rows(rng, 100, 2, 2, 4)
    raw = accumulate(X, y, Z, 3 * index, 0, 12)[0]
    assert not raw[[1, 2, 4, 5, 7, 8, 10, 11]].any()
    close(raw[::3], rows_in_numpy(X, y, Z, index, 4)[0])


def test_groups_after_the_last_one_with_rows_are_zero(rng):
    X, y, Z, index = rows(rng, 100, 2, 2, 4)
    found = accumulate(X, y, Z, index, 0, 1000)[0]
    for _ in range(20):
        # what is freed is handed out again
        used = [np.full_like(found, 7.0) for _ in range(4)]
        del used
        found = accumulate(X, y, Z, index, 0, 1000)[0]
        assert not found[4:].any()
    close(found[:4], rows_in_numpy(X, y, Z, index, 4)[0])


def test_sums_of_many_rows_stay_accurate():
    # 400,000 rows of 0.1 and 1 + 1e-9: a running sum would be off by some 1e-12
    n = 400_000
    X = np.full((n, 1), 0.1)
    y = np.where(np.arange(n) % 2, 1.0 + 1e-9, 1.0)
    raw, S, _, _, _, _ = accumulate(X, y, X.copy(), np.zeros(n, dtype=np.int64), 0, 1)
    expected = n * np.array([0.01, 0.1 * (1.0 + 0.5e-9), 1.0 + 1e-9 + 0.5e-18])
    np.testing.assert_allclose(S, expected, rtol=1e-13)
    np.testing.assert_allclose(raw[0, :3], expected[[0, 0, 1]], rtol=1e-13)


# ------------------------------------------------------------------------------------------------------------
# groups


def unpacked(packed, m, q, k):
    """R (m, q, q), c (m, q, k) and counts (m,) from blocks of as many groups as there are lanes."""
    lines = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:m]
    R = np.zeros((m, q, q))
    R[:, *np.triu_indices(q)] = lines[:, : q * (q + 1) // 2]
    return R, lines[:, q * (q + 1) // 2 : -1].reshape(m, q, k), lines[:, -1]


def groups_of(rng, m, q, p, sizes=None):
    """Raw cross-products of groups, with A and C as arrays."""
    sizes = rng.integers(1, q + 5, m) if sizes is None else sizes
    index = np.repeat(np.arange(m), sizes)
    X, y, Z, _ = rows(rng, len(index), p, q, m)
    raw = rows_in_numpy(X, y, Z, index, m)[0]
    xy = np.column_stack([X, y])
    A = np.array([Z[index == g].T @ Z[index == g] for g in range(m)])
    C = np.array([Z[index == g].T @ xy[index == g] for g in range(m)])
    return raw, A, C


SHAPES = [(1, 1), (1, 0), (2, 2), (2, 0), (3, 4), (5, 1), (8, 3), (2, 66)]


@pytest.mark.parametrize("m", [1, 7, 8, 9, 33])
@pytest.mark.parametrize(("q", "p"), SHAPES)
def test_factor_groups(rng, q, p, m):
    raw, A, C = groups_of(rng, m, q, p)
    Tz = np.triu(rng.standard_normal((q, q))) + 2.0 * np.eye(q)
    Tx = np.triu(rng.standard_normal((p + 1, p + 1))) + 2.0 * np.eye(p + 1)
    packed, between = kernels.factor_groups(raw, Tz, Tx)
    assert packed.shape == (-(-m // LANES), raw.shape[1], LANES)
    R, c, count = unpacked(packed, m, q, p + 1)
    A, C = Tz.T @ A @ Tz, Tz.T @ C @ Tx
    Rt = R.transpose(0, 2, 1)
    full = raw[:, -1] >= q + 2
    for own, tolerance in (
        (full, 1e-11),
        # In a group with fewer rows than columns what the rows before leave is rounding: kept or set to zero at 2e-14
        # of the squares, of which c sees the root.
        (~full, 1e-6),
    ):
        if own.any():
            np.testing.assert_allclose((Rt @ R)[own], A[own], rtol=0.0, atol=tolerance * np.max(np.abs(A)))
            np.testing.assert_allclose((Rt @ c)[own], C[own], rtol=0.0, atol=tolerance * np.max(np.abs(C)))
    np.testing.assert_array_equal(count, 1.0)
    close(between, packed_triangle(np.einsum("gai,gaj->ij", c, c)))
    # the padding adds nothing
    rest = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[m:]
    assert not rest.any()


def test_groups_with_fewer_rows_than_columns_have_rows_of_zero(rng):
    raw, _, _ = groups_of(rng, 16, 3, 1, sizes=np.tile([1, 2, 3, 6], 4))
    R, c, _ = unpacked(kernels.factor_groups(raw, np.eye(3), np.eye(2))[0], 16, 3, 2)
    rank = np.sum(np.diagonal(R, axis1=1, axis2=2) > 0.0, axis=1)
    np.testing.assert_array_equal(rank, np.tile([1, 2, 3, 3], 4))
    dead = np.diagonal(R, axis1=1, axis2=2) == 0.0
    assert not R[dead].any()
    assert not c[dead].any()


@pytest.mark.parametrize("covariance", [True, False])
@pytest.mark.parametrize("m", [1, 8, 13])
@pytest.mark.parametrize(("q", "p"), SHAPES)
def test_group_effects(rng, q, p, m, covariance):
    raw, A, C = groups_of(rng, m, q, p)
    packed, _ = kernels.factor_groups(raw, np.eye(q), np.eye(p + 1))
    Lam = np.tril(rng.standard_normal((q, q)))
    contrast = rng.standard_normal(p + 1)
    e, N = kernels.group_effects(packed, m, Lam, contrast, covariance)
    # Z'V^-1 = (I + A G)^-1 Z'
    left = np.linalg.inv(np.eye(q) + A @ Lam @ Lam.T)
    np.testing.assert_allclose(e, left @ C @ contrast, rtol=0.0, atol=1e-10 * np.max(np.abs(C)))
    if covariance:
        np.testing.assert_allclose(N, left @ A, rtol=0.0, atol=1e-10 * np.max(np.abs(A)))
    else:
        assert N is None


@pytest.mark.parametrize("theta", [1e2, 1e5, 1e12, 1e25, 1e50])
@pytest.mark.parametrize("reml", [True, False])
def test_large_determinants_do_not_overflow(rng, theta, reml):
    # groups around one mean, all different: |V_i| is 1 + (sum of weights) theta^2 but for a constant, the rest follows
    m, n = 280, 1400
    groups = np.repeat(np.arange(m), 5)
    w = rng.uniform(0.3, 3.0, n)
    y = rng.standard_normal(m)[groups] + rng.standard_normal(n)
    problem = flc.LinearMixedModel(y, None, None, groups, weights=w).problem
    assert problem.uniform
    criterion = problem.criterion()
    criterion.reml = reml
    total = np.bincount(groups, w)
    means = np.bincount(groups, w * y) / total

    def exact(theta):
        det = 1.0 + total * theta**2
        u = total / det
        r2 = np.sum(w * (y - means[groups]) ** 2) + np.sum(u * (means - np.sum(u * means) / np.sum(u)) ** 2)
        return np.sum(np.log(det)) + (n - reml) * np.log(r2) + (np.log(np.sum(u)) if reml else 0.0)

    value, base = (criterion.evaluate(np.array([t]) / problem.z_map[0, 0], 0)[0] for t in (theta, 1.0))
    assert value - base == pytest.approx(exact(theta) - exact(1.0), rel=1e-10)


def schedules(rng, m, q, p, n_patterns):
    """Groups of which each has one of a few Z, with X and y of its own."""
    designs = [rng.standard_normal((q + 3, q)) for _ in range(n_patterns)]
    label = rng.integers(0, n_patterns, m)
    Z = np.concatenate([designs[k] for k in label])
    index = np.repeat(np.arange(m), q + 3)
    X, y = rng.standard_normal((len(index), p)), rng.standard_normal(len(index))
    return rows_in_numpy(X, y, Z, index, m)[0], label


@pytest.mark.parametrize("n_patterns", [1, 2, 5])
@pytest.mark.parametrize(("q", "p"), [(1, 0), (1, 2), (2, 1), (2, 3), (3, 2)])
def test_compress_keeps_counts_and_gram_matrices(rng, q, p, n_patterns):
    k, m = p + 1, 400
    raw, label = schedules(rng, m, q, p, n_patterns)
    packed, _ = kernels.factor_groups(raw, np.eye(q), np.eye(k))
    smaller = kernels.compress(packed, m, q, k)
    assert smaller is not None
    assert len(smaller) <= -(-n_patterns * q * k // LANES)
    R, c, _ = unpacked(packed, m, q, k)
    total = len(smaller) * LANES
    Rs, cs, counts = unpacked(smaller, total, q, k)
    assert counts.sum() == m
    for kind in range(n_patterns):
        own = label == kind
        same = np.all(np.abs(Rs - R[own][0]) < 1e-10, axis=(1, 2))
        assert counts[same].sum() == own.sum()
        v, vs = c[own].reshape(-1, q * k), cs[same].reshape(-1, q * k)
        close(vs.T @ vs, v.T @ v)
    # what belongs to no pattern is padding
    used = np.any(Rs != 0.0, axis=(1, 2))
    assert not cs[~used].any()
    assert not counts[~used].any()


def test_compress_of_rare_patterns_keeps_their_groups(rng):
    # patterns with fewer groups than q k stand for themselves
    raw, label = schedules(rng, 300, 2, 3, 1)
    rare, _ = schedules(rng, 3, 2, 3, 1)
    packed, _ = kernels.factor_groups(np.concatenate([raw[:150], rare, raw[150:]]), np.eye(2), np.eye(4))
    smaller = kernels.compress(packed, 303, 2, 4)
    # the eight that stand for the 300, and three
    assert len(smaller) == -(-11 // LANES)
    _, cs, counts = unpacked(smaller, len(smaller) * LANES, 2, 4)
    assert sorted(counts[counts > 0.0].tolist()) == [1.0, 1.0, 1.0, 300.0]
    _, c, _ = unpacked(packed, 303, 2, 4)
    v, vs = c.reshape(-1, 8), cs.reshape(-1, 8)
    close(vs.T @ vs, v.T @ v)
    assert label.max() == 0


def test_compress_of_a_deficient_gram_matrix(rng):
    # X is constant within groups and equal to the column of Z: the columns of c repeat
    m = 200
    index = np.repeat(np.arange(m), 4)
    X = np.column_stack([np.ones(4 * m), np.ones(4 * m)])
    raw = rows_in_numpy(X, rng.standard_normal(4 * m), np.ones((4 * m, 1)), index, m)[0]
    packed, _ = kernels.factor_groups(raw, np.eye(1), np.eye(3))
    smaller = kernels.compress(packed, m, 1, 3)
    _, c, _ = unpacked(packed, m, 1, 3)
    _, cs, counts = unpacked(smaller, len(smaller) * LANES, 1, 3)
    close(cs[:, 0].T @ cs[:, 0], c[:, 0].T @ c[:, 0])
    assert counts.sum() == m
    assert np.count_nonzero(np.any(cs[:, 0] != 0.0, axis=1)) == 2


def test_compress_declines_where_it_does_not_pay(rng):
    raw, _, _ = groups_of(rng, 400, 2, 1)
    packed, _ = kernels.factor_groups(raw, np.eye(2), np.eye(2))
    assert kernels.compress(packed, 400, 2, 2) is None
    # four groups of one pattern become q k = 4
    raw, _ = schedules(rng, 4, 2, 1, 1)
    assert kernels.compress(kernels.factor_groups(raw, np.eye(2), np.eye(2))[0], 4, 2, 2) is None
    raw, _ = schedules(rng, 1, 2, 1, 1)
    assert kernels.compress(kernels.factor_groups(raw, np.eye(2), np.eye(2))[0], 1, 2, 2) is None


def test_compress_does_not_join_designs_that_nearly_agree(rng):
    # two Z that differ by 1e-9 of their size are two patterns
    m, q = 200, 2
    Z = rng.standard_normal((5, q))
    designs = [Z, Z * (1.0 + 1e-9)]
    index = np.repeat(np.arange(m), 5)
    rows_z = np.concatenate([designs[g % 2] for g in range(m)])
    raw = rows_in_numpy(np.ones((5 * m, 1)), rng.standard_normal(5 * m), rows_z, index, m)[0]
    smaller = kernels.compress(kernels.factor_groups(raw, np.eye(q), np.eye(2))[0], m, q, 2)
    _, _, counts = unpacked(smaller, len(smaller) * LANES, q, 2)
    assert sorted(counts[counts > 0.0].tolist()) == [100.0, 100.0]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_whiten_residuals(rng, rank, weighted):
    n, q, m = 90, 3, 11
    index = rng.integers(0, m, n)
    Z, r = rng.standard_normal((n, q)), rng.standard_normal(n)
    F = rng.standard_normal((q, rank))
    w = rng.uniform(0.2, 5.0, n) if weighted else None
    G = np.ascontiguousarray(F @ F.T)
    expected = np.empty(n)
    for g in range(m):
        at = np.flatnonzero(index == g)
        V = Z[at] @ G @ Z[at].T + np.diag(1.0 / w[at] if weighted else np.ones(len(at)))
        expected[at] = scipy.linalg.solve_triangular(np.linalg.cholesky(V), r[at], lower=True)
    close(kernels.whiten_residuals(r, Z, index, m, G, w), expected)
    close(kernels.whiten_residuals(r, np.asfortranarray(Z), index, m, G, w), expected)


# ------------------------------------------------------------------------------------------------------------
# small algebra


@pytest.mark.parametrize(("q", "r"), [(1, 1), (1, 3), (3, 3), (3, 1), (2, 5), (8, 8)])
def test_lower_factor(rng, q, r):
    for F in (rng.standard_normal((q, r)), np.outer(np.arange(1.0, q + 1), np.ones(r)), np.zeros((q, r))):
        L = kernels.lower_factor(F)
        np.testing.assert_array_equal(L, np.tril(L))
        assert (np.diag(L) >= 0.0).all()
        close(L @ L.T, F @ F.T, 1e-14)
    F = rng.standard_normal((q, q))
    np.testing.assert_allclose(kernels.lower_factor(F), np.linalg.cholesky(F @ F.T), rtol=0.0, atol=1e-7)


def test_lower_factor_keeps_small_rows():
    # a row a billion times smaller than the first keeps its relative accuracy
    L = np.array([[2.0, 0.0], [1e-9, 3e-9]])
    rotation = scipy.linalg.expm(np.array([[0.0, 0.7], [-0.7, 0.0]]))
    np.testing.assert_allclose(kernels.lower_factor(L @ rotation), L, rtol=1e-7, atol=0.0)
    np.testing.assert_array_equal(kernels.lower_factor(-np.eye(2)), np.eye(2))


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 2), (5, 3), (3, 5), (8, 8)])
def test_orthogonal_columns(rng, m, n):
    for F in (rng.standard_normal((m, n)), np.outer(np.ones(m), np.arange(n)), np.zeros((m, n))):
        U = kernels.orthogonal_columns(F)
        gram = U.T @ U
        size = max(np.linalg.norm(F) ** 2, 1e-300)
        assert np.max(np.abs(gram - np.diag(np.diag(gram)))) <= 1e-14 * size
        close(U @ U.T, F @ F.T, 1e-13)
        values = np.sort(np.linalg.norm(U, axis=0))[::-1]
        expected = np.zeros(n)
        expected[: min(m, n)] = np.linalg.svd(F, compute_uv=False)
        np.testing.assert_allclose(values, expected, rtol=0.0, atol=1e-13 * np.sqrt(size))


def test_orthogonal_columns_keep_small_singular_values():
    # columns at an angle, of sizes 1 and 1e-12: the small singular value is det / large one
    F = np.array([[1.0, 1e-12], [0.5, 3e-12]])
    values = np.sort(np.linalg.norm(kernels.orthogonal_columns(F), axis=0))
    large = np.sqrt(1.25)
    assert values[1] == pytest.approx(large, rel=1e-14)
    assert values[0] == pytest.approx(2.5e-12 / large, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 12, 70])
def test_orthonormal(rng, k):
    F = rng.standard_normal((k + 3, k))
    T, margin = kernels.orthonormal(F.T @ F)
    np.testing.assert_array_equal(T, np.triu(T))
    close(T.T @ (F.T @ F) @ T, np.eye(k), 1e-10)
    left = [np.linalg.lstsq(F[:, :j], F[:, j], rcond=None)[0] for j in range(k)]
    rest = [np.sum((F[:, j] - F[:, :j] @ left[j]) ** 2) / np.sum(F[:, j] ** 2) for j in range(k)]
    assert margin == pytest.approx(min(rest), rel=1e-9)


def test_orthonormal_of_what_is_not_positive_definite():
    for gram in (np.zeros((2, 2)), np.array([[1.0, 2.0], [2.0, 1.0]]), np.full((2, 2), np.nan), np.ones((70, 70))):
        T, margin = kernels.orthonormal(gram)
        assert margin == 0.0
        np.testing.assert_array_equal(T, np.eye(len(gram)))
    T, margin = kernels.orthonormal(np.empty((0, 0)))
    assert T.shape == (0, 0)


@pytest.mark.parametrize("k", [1, 2, 6, 70])
def test_within_part(rng, k):
    F = rng.standard_normal((20, k))
    S, T = F.T @ F, np.ascontiguousarray(np.triu(rng.standard_normal((k, k))))
    between = rng.standard_normal(k * (k + 1) // 2)
    close(kernels.within_part(packed_triangle(S), T, between), packed_triangle(T.T @ S @ T) - between, 1e-13)


def test_columns_in_the_span_of_z_are_cleared(rng):
    F = rng.standard_normal((9, 4))
    A = F.T @ F
    A[1] *= 1e-8
    A[:, 1] *= 1e-8
    packed = packed_triangle(A)
    assert kernels.clear_exact(packed, 4, 1.0, 1e-12) is False
    B = A.copy()
    B[1] = B[:, 1] = 0.0
    np.testing.assert_array_equal(packed, packed_triangle(B))
    # the last one is judged by a scale of its own
    assert kernels.clear_exact(packed, 4, 1e14, 1e-12) is True
    B[3] = B[:, 3] = 0.0
    np.testing.assert_array_equal(packed, packed_triangle(B))


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_range_of_codes(rng, kind):
    codes = rng.integers(-40, 60, 100).astype(kind)
    for values in (codes, codes[::-3], np.column_stack([codes, codes])[:, 1], codes[:1]):
        assert kernels.code_range(values) == (values.min(), values.max())
    ends = np.array([np.iinfo(kind).min, 0, np.iinfo(kind).max], dtype=kind)
    assert kernels.code_range(ends) == (ends[0], ends[2])


@pytest.mark.parametrize("codes", [np.zeros(4), np.zeros(4, dtype=np.int16), np.zeros(4, dtype=np.uint64),
                                   np.zeros((4, 1), dtype=np.int64)])  # fmt: skip
def test_codes_of_another_type_are_refused(codes):
    with pytest.raises(TypeError, match="int32 or int64"):
        kernels.code_range(codes)
    with pytest.raises(TypeError, match="int32 or int64"):
        accumulate(np.ones((4, 1)), np.arange(4.0), np.ones((4, 1)), codes, 0, 1)


def test_sample_mean(rng):
    values = rng.standard_normal(1000) + 1e8
    for layout in (values, values[::-1], np.repeat(values, 2)[::2]):
        assert kernels.sample_mean(layout, 100) == pytest.approx(layout[::10].mean(), rel=1e-15)
    assert kernels.sample_mean(values[:7], 100) == pytest.approx(values[:7].mean(), rel=1e-15)


def test_fields_of_packed_records(rng):
    records = np.zeros(60, dtype=[("flag", "i1"), ("y", "f8"), ("g", "i8"), ("h", "i4")])
    records["y"] = rng.standard_normal(60) + np.repeat(rng.standard_normal(10), 6)
    records["g"] = records["h"] = np.repeat(range(10), 6)
    expected = flc.LinearMixedModel(records["y"].copy(), groups=records["g"].copy()).fit().criterion
    for name in ("g", "h"):
        assert flc.LinearMixedModel(records["y"], groups=records[name]).fit().criterion == expected


@pytest.mark.parametrize("name", ["X", "y", "Z"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
def test_accumulate_sees_what_is_not_finite(rng, name, value):
    arrays = {"X": rng.standard_normal((20, 2)), "y": rng.standard_normal(20), "Z": rng.standard_normal((20, 2))}
    groups = np.repeat(np.arange(4), 5)
    assert accumulate(arrays["X"], arrays["y"], arrays["Z"], groups, 0, 4)[5]
    arrays[name][-1, ...] = value
    assert not accumulate(arrays["X"], arrays["y"], arrays["Z"], groups, 0, 4)[5]


@pytest.mark.parametrize("q", [1, 2, 3, 6])
def test_floored_factor(rng, q):
    matrix = rng.standard_normal((q, q))
    matrix = matrix + matrix.T
    lower = kernels.floored_factor(matrix, 0.3)
    values, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(lower @ lower.T, (vectors * np.maximum(values, 0.3)) @ vectors.T, atol=1e-13)
    assert not np.triu(lower, 1).any()
    assert (np.diag(lower) > 0.0).all()
    moved = kernels.floored_factor(matrix, 0.3, -1.7, 0.4)
    np.testing.assert_allclose(moved, kernels.floored_factor(0.4 * np.eye(q) - 1.7 * matrix, 0.3), rtol=0.0, atol=1e-13)


@pytest.mark.parametrize(("p", "n"), [(0, 30), (1, 30), (3, 30), (70, 700)])
def test_least_squares(rng, p, n):
    X, y, before = rng.standard_normal((n, p)), rng.standard_normal(n), rng.standard_normal(p)
    columns = np.column_stack([X, y - X @ before])
    T, margin, xy, beta, rest, total, scale = kernels.least_squares(packed_triangle(columns.T @ columns), before, n)
    left = y
    if p:
        expected, smallest = kernels.orthonormal(X.T @ X)
        np.testing.assert_allclose(T, expected, rtol=1e-13, atol=1e-16)
        assert margin == pytest.approx(smallest, rel=1e-12)
        coefficients = np.linalg.lstsq(X, y, rcond=None)[0]
        np.testing.assert_allclose(beta, coefficients, atol=1e-13)
        left = y - X @ coefficients
    assert rest == pytest.approx(left @ left, rel=1e-12)
    assert scale == pytest.approx(np.sqrt(left @ left / n), rel=1e-12)
    assert total == pytest.approx(np.sum(columns[:, -1] ** 2) + np.sum((X @ before) ** 2), rel=1e-12)
    np.testing.assert_array_equal(xy, np.triu(xy))
    close(columns @ xy, np.column_stack([X @ T, left / scale]), 1e-13)


def test_least_squares_of_collinear_columns(rng):
    columns = np.column_stack([np.ones((16, 2)), rng.standard_normal(16)])
    T, margin = kernels.least_squares(packed_triangle(columns.T @ columns), np.zeros(2), 16)[:2]
    assert margin == 0.0
    np.testing.assert_array_equal(T, np.eye(2))


@pytest.mark.parametrize("q", [1, 2, 5])
def test_rotation(rng, q):
    F = rng.standard_normal((q + 3, q))
    T, margin = kernels.rotation(packed_triangle(F.T @ F), q, 7.0)
    expected, smallest = kernels.orthonormal(F.T @ F)
    np.testing.assert_allclose(T, np.sqrt(7.0) * expected, rtol=1e-14)
    assert margin == smallest


@pytest.mark.parametrize("q", [1, 2, 3, 6])
def test_smallest_parts(rng, q):
    F = np.tril(rng.standard_normal((q, q)))
    columns, rows = np.triu_indices(q)
    flat = rows * q + columns
    factor, least, lowest = kernels.smallest_parts(F[rows, columns], flat, q)
    np.testing.assert_array_equal(factor, F)
    assert np.sqrt(least) == pytest.approx(np.linalg.svd(F, compute_uv=False)[-1], rel=1e-11)
    assert lowest == F.diagonal().min()
    F[-1] = 0.0
    assert kernels.smallest_parts(F[rows, columns], flat, q)[1] <= 1e-30
    for place in (0, -1):
        F = np.eye(q)
        F[place, place] = np.nan
        assert not kernels.smallest_parts(F[rows, columns], flat, q)[1] > 0.0


@pytest.mark.parametrize("k", [1, 2, 7])
def test_log_diagonal_scale_map_and_unpack(rng, k):
    A = rng.standard_normal((k, k))
    assert kernels.log_diagonal(A) == pytest.approx(np.sum(np.log(np.abs(np.diag(A)))), rel=1e-14)
    S = A + A.T
    np.testing.assert_array_equal(kernels.unpack(packed_triangle(S), k), S)
    X = rng.standard_normal((10, k))
    X[:, 0] = 4.0
    s = np.vstack([rng.standard_normal(k), rng.uniform(0.5, 2.0, k)])
    s[:, 0] = 0.0, 0.25
    close(X @ kernels.scale_map(s, 0), (X - s[0]) * s[1], 1e-14)
    close(X @ kernels.scale_map(s * [[0.0], [1.0]], -1), X * s[1], 1e-14)
    T, beta = np.ascontiguousarray(np.triu(A)), rng.standard_normal(k)
    for constant, shifts in ((0, s), (-1, s * [[0.0], [1.0]])):
        found, coefficients, log_det = kernels.natural_map(shifts, constant, T, beta)
        M = kernels.scale_map(shifts, constant)
        close(found, M @ T, 1e-14)
        close(coefficients, M @ beta, 1e-14)
        assert log_det == pytest.approx(np.linalg.slogdet(M @ T)[1], rel=1e-12, abs=1e-12)
        assert kernels.natural_map(shifts, constant, T, None)[1] is None


# ------------------------------------------------------------------------------------------------------------
# variants for other instruction sets


VARIANT_SCRIPT = textwrap.dedent(
    """
    import sys
    import numpy as np
    import fastlmm_core as flc
    from fastlmm_core import kernels
    out = {}
    rng = np.random.default_rng(11)
    for q, p, m in ((1, 1, 21), (2, 2, 21), (2, 1, 30), (3, 3, 17), (5, 2, 40), (1, 1, 200), (2, 2, 200)):
        n_i = 4 if m == 200 else q + 4
        groups = np.repeat(np.arange(m), n_i)
        t = np.tile(np.linspace(-1, 1, n_i), m) if m == 200 else rng.uniform(-1, 1, len(groups))
        Z = t[:, None] ** np.arange(q)
        X = np.column_stack([np.ones(len(t)), rng.standard_normal((len(t), p - 1))])
        y = rng.standard_normal(len(t)) + np.sum(Z * rng.standard_normal((m, q))[groups], axis=1)
        model = flc.LinearMixedModel(y, X, Z, groups)
        assert model.problem.uniform == (m != 200)
        lower = np.tril(0.5 + 0.1 * np.arange(q * q).reshape(q, q))
        theta = lower[model.structure.positions]
        criterion = model.problem.criterion()
        for reml in (True, False):
            criterion.reml = reml
            value, gradient, hessian = criterion.evaluate(theta, 2)
            beta, r2, chol, slope = criterion.solution()
            for name, x in dict(value=value, gradient=gradient, hessian=hessian, beta=beta, r2=r2, chol=chol,
                                slope=slope, curve=criterion.curvature()).items():
                out[f"{q} {p} {m} {reml} {name}"] = np.asarray(x)
        packed, between = kernels.factor_groups(model.problem.raw, model.problem.z_transform,
                                                model.problem.xy_transform)
        # the number of lanes differs between variants
        lines = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:m]
        e, N = kernels.group_effects(packed, m, np.ascontiguousarray(lower), np.append(-beta, 1.0), True)
        out.update({f"{q} {p} {m} packed": lines, f"{q} {p} {m} between": between, f"{q} {p} {m} e": e,
                    f"{q} {p} {m} N": N})
    assert kernels.VARIANT == sys.argv[2]
    np.savez(sys.argv[1], **out)
    """
)


def run_with(variant, *arguments, script=VARIANT_SCRIPT):
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
    assert len(base) == 7 * (2 * 8 + 4)
    for variant, values in found.items():
        assert values.keys() == base.keys()
        for name, expected in base.items():
            # 1e-12 of the largest element (of conditioned columns at least 1); a gradient is the difference of terms of
            # the size of the Hessian
            scale = np.max(np.abs(expected), initial=1.0)
            if name.endswith("gradient"):
                scale = np.max(np.abs(base[name.replace("gradient", "hessian")]))
            excess = np.max(np.abs(values[name] - expected), initial=0.0) / scale
            assert excess <= 1e-12, (variant, name)


def test_unknown_variant_is_refused():
    done = run_with("mmx", script="import fastlmm_core")
    assert done.returncode != 0
    assert "FASTLMM_KERNELS='mmx' is not available on this CPU; choose one of" in done.stderr


def test_base_runs_everywhere():
    assert variants()[-1] == "base"
    assert kernels.VARIANT in variants()


# ------------------------------------------------------------------------------------------------------------
# memory and threads


def growth_model(rng, m=40, sizes=(3, 7)):
    n_i = rng.integers(*sizes, m)
    groups = np.repeat(np.arange(m), n_i)
    x = rng.uniform(-1.0, 1.0, len(groups))
    X = np.column_stack([np.ones(len(x)), x])
    b = rng.standard_normal((m, 2)) * [1.0, 0.6]
    y = 1.0 + x + b[groups, 0] + b[groups, 1] * x + 0.7 * rng.standard_normal(len(x))
    return flc.LinearMixedModel(y, X, X, groups)


def resident():
    """Bytes in memory now."""
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


needs_statm = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc/self/statm")


@needs_statm
@pytest.mark.parametrize("what", ["evaluate", "criterion", "newton", "fit", "kernels"])
def test_memory_does_not_grow(rng, what):
    # 4,000 groups take some 500 kB of work space: calls that kept it would grow by 100 MB and more
    model = growth_model(rng, m=4000)
    criterion = model.problem.criterion()
    theta = np.array([1.0, 0.2, 0.5])
    problem = model.problem
    X, y, index = model.exog, model.endog, model.grouping.index
    calls, allowed = 1000, 8e6

    def once(i):
        if what == "evaluate":
            criterion.evaluate(theta * (1.0 + 1e-6 * i), 2)
        elif what == "criterion":
            problem.criterion().evaluate(theta, 2)
        elif what == "newton":
            kernels.minimize_newton(criterion, theta * (1.0 + 1e-3 * i))
        elif what == "fit":
            model.fit(start=theta)
        else:
            raw = accumulate(X, y, X, index, 0, 4000)[0]
            packed, _ = kernels.factor_groups(raw, np.eye(2), np.eye(3))
            kernels.group_effects(packed, 4000, np.eye(2), np.ones(3), True)
            kernels.compress(packed, 4000, 2, 3)

    if what in ("newton", "fit", "kernels"):
        calls = 200
    for i in range(20):
        once(i)
    before = resident()
    for i in range(calls):
        once(i)
    assert resident() - before < allowed


def test_a_criterion_outlives_its_problem(rng):
    model = growth_model(rng, m=300)
    theta = np.array([1.0, 0.2, 0.5])
    criterion = model.problem.criterion()
    before = criterion.evaluate(theta, 2)
    del model
    junk = [np.full(100_000, np.nan) for _ in range(50)]
    criterion.evaluate(theta * 2.0, 2)
    for a, b in zip(before, criterion.evaluate(theta, 2), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(junk) == 50


def test_evaluation_releases_the_gil(rng):
    # With a switch interval of ten minutes the other thread can advance during the call only if the call lets go. That
    # thread sleeps, which hands the lock back; 100,000 groups take some milliseconds, a turn of it some 0.1 ms.
    model = growth_model(rng, m=100_000, sizes=(3, 5))
    criterion = model.problem.criterion()
    criterion.evaluate(np.array([1.0, 0.0, 1.0]), 2)
    progress = {"count": 0, "stop": False}

    def count():
        while not progress["stop"]:
            progress["count"] += 1
            time.sleep(1e-5)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    advanced = held = 0
    try:
        sys.setswitchinterval(600.0)
        for i in range(50):
            theta = np.array([1.0 + 0.01 * i, 0.1, 0.5])
            before = progress["count"]
            sum(range(20_000))  # the same without letting go
            held += progress["count"] - before
            before = progress["count"]
            criterion.evaluate(theta, 2)
            advanced += progress["count"] > before
            time.sleep(1e-3)
    finally:
        sys.setswitchinterval(interval)
        progress["stop"] = True
        thread.join(timeout=60.0)
    assert held == 0
    assert advanced > 0


def test_threads_with_criteria_of_their_own_agree(rng):
    model = growth_model(rng, m=3000)
    thetas = [np.array([1.0 + 0.1 * i, 0.1 * i, 0.5]) for i in range(8)]
    expected = [model.problem.criterion().evaluate(theta, 2) for theta in thetas]
    found = [None] * 8

    def work(i):
        criterion = model.problem.criterion()
        for _ in range(30):
            found[i] = criterion.evaluate(thetas[(i + 1) % 8], 2)
            found[i] = criterion.evaluate(thetas[i], 2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, want in zip(found, expected, strict=True):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_one_model_serves_several_threads(rng):
    # whoever calls the public face from threads gets what one thread gets
    model = growth_model(rng, m=20_000)
    thetas = [np.array([1.0 + 0.2 * i, 0.1 * i, 0.5]) for i in range(4)]
    expected = [model.evaluate(theta, reml=bool(i % 2), order=2) for i, theta in enumerate(thetas)]
    start = threading.Barrier(4)
    wrong = []

    def work(me):
        start.wait()
        for step in range(100):
            i = (me + step) % 4
            found = model.evaluate(thetas[i], reml=bool(i % 2), order=2)
            if found.value != expected[i].value or not np.array_equal(found.hessian, expected[i].hessian):
                wrong.append((me, step))

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ------------------------------------------------------------------------------------------------------------
# Newton


def sleepstudy():
    ref = oracle.reference("sleepstudy_slope")
    return ref, flc.LinearMixedModel(*ref.arrays)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(
    "start",
    [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.5, 0.0], [1e-9, 0.0, 1e-9], [100.0, -50.0, 100.0]],
    ids=["zero", "no slope", "no intercept", "correlation one", "nearly zero", "far away"],
)
def test_newton_leaves_saddle_points(start, reml):
    ref, model = sleepstudy()
    criterion = model.problem.criterion()
    criterion.reml = reml
    if start == [0.0, 0.0, 0.0]:
        assert not np.any(criterion.evaluate(start, 1)[1])  # the gradient vanishes there: a gradient method stays
    x, gradient, hessian, value, decrement, lowest, n_evaluations, *_ = kernels.minimize_newton(
        criterion, np.array(start)
    )
    assert value + criterion_offset(model.problem, reml) == pytest.approx(ref.blocks[reml].criterion, rel=1e-10)
    assert decrement < 1e-6
    assert lowest >= -1e-9
    assert n_evaluations <= 60
    again = model.problem.criterion()
    again.reml = reml
    for got, want in zip((value, gradient, hessian), again.evaluate(x, 2), strict=True):
        np.testing.assert_array_equal(got, want)
    assert np.linalg.eigvalsh(hessian)[0] > 0.0


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("name", ["sleepstudy_slope", "orthodont_slope", "machines_q3"])
def test_newton_reaches_the_optimum_from_anywhere(rng, name, reml):
    ref = oracle.reference(name)
    model = flc.LinearMixedModel(*ref.arrays, structure=ref.structure)
    criterion = model.problem.criterion()
    criterion.reml = reml
    best = ref.blocks[reml].criterion - criterion_offset(model.problem, reml)
    for _ in range(20):
        start = rng.standard_normal(criterion.n_par) * 10.0 ** rng.uniform(-2.0, 2.0)
        value, decrement = kernels.minimize_newton(criterion, start)[3:5]
        assert value == pytest.approx(best, rel=1e-9, abs=1e-7)
        assert decrement < 1e-5


def test_newton_stops_where_it_is_told(rng):
    _, model = sleepstudy()
    criterion = model.problem.criterion()
    start = np.array([20.0, 5.0, 20.0])
    long = kernels.minimize_newton(criterion, start)
    for most in (0, 1, 3):
        found = kernels.minimize_newton(criterion, start, max_iterations=most)
        assert found[6] == most + 1
        assert found[3] >= long[3]
    values = [line[0] for line in long[7]]
    assert all(b <= a + 1e-12 * abs(a) for a, b in pairwise(values))
    loose = kernels.minimize_newton(criterion, start, tolerance=0.1)
    assert loose[6] < long[6]
    assert loose[4] <= 0.1


def test_newton_does_not_touch_its_start():
    _, model = sleepstudy()
    start = np.array([0.3, 0.1, 0.4])
    kernels.minimize_newton(model.problem.criterion(), start)
    np.testing.assert_array_equal(start, [0.3, 0.1, 0.4])


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17, 18, 40, 75])
@pytest.mark.parametrize("kind", ["random", "low rank", "equal", "diagonal", "graded", "zero"])
def test_eigensystem(n, kind):
    rng = np.random.default_rng(n)
    A = rng.normal(size=(n, n))
    if kind == "low rank":
        A[:, 2:] = 0.0
        A = A @ A.T
    elif kind == "equal":
        turn = np.linalg.qr(A)[0]
        A = (turn * np.where(np.arange(n) % 2, 3.0, -1.0)) @ turn.T
    elif kind == "diagonal":
        A = np.diag(np.diag(A))
    elif kind == "graded":
        A = A @ A.T * np.outer(10.0 ** -np.arange(n), 10.0 ** -np.arange(n)) if n < 20 else A
    elif kind == "zero":
        A[:] = 0.0
    A = A + A.T
    values, vectors = eigensystem(A)
    size = max(np.abs(A).max() * n, 1e-300)
    assert np.abs(np.sort(values) - np.linalg.eigvalsh(A)).max() < 1e-14 * size
    assert np.abs(vectors.T @ vectors - np.eye(n)).max() < 1e-13
    assert np.abs((vectors * values) @ vectors.T - A).max() < 1e-14 * size


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_sums_of_sparse_lines(rng, kind):
    """By full matrices; in an empty line, and beyond a block of the table, too."""
    n, q, r, m, count = 30_000, 2, 3, 7, 5
    dense = np.where(rng.random((count, n)) < 0.05, rng.standard_normal((count, n)), 0.0)
    dense[2] = 0.0
    given = sparse.csr_array(dense)
    start, place = given.indptr.astype(kind), given.indices.astype(kind)
    table, group = rng.standard_normal((n, q + r + 1)), rng.integers(0, m, n)
    own, beta, total = kernels.sparse_sums(start, place, given.data, table, group, q, m)
    for a in range(q):
        wanted = [np.bincount(group, y * table[:, a], m) for y in dense]
        np.testing.assert_allclose(own[:, :, a], wanted, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(beta, dense @ table[:, q:-1], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(total, (dense**2) @ table[:, -1], rtol=1e-11, atol=1e-11)
    # a line by itself has the same bits
    alone = kernels.sparse_sums(start[3:5] - start[3], place[start[3] :], given.data[start[3] :], table, group, q, m)
    np.testing.assert_array_equal(alone[0][0], own[3])
    np.testing.assert_array_equal(kernels.sparse_seals(start, place, given.data, n), kernels.line_seals(dense))
    with pytest.raises(ValueError, match="do not fit"):
        kernels.sparse_sums(start, place, given.data, table, group[1:], q, m)
