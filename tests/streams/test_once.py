"""Sources that can be read only once: what a second pass would find follows from sums in twice the precision."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import fastlmm_core as flc
from fastlmm_core.kernels.reading import add_products
from fastlmm_core.support.double_double import Pairs, cholesky, pairs, product, total
from streamed import FORMULA, cut, same_bits, simulated

TWICE = 1e-29
"""Sums of some hundred products, relative to the sum of their sizes."""

OTHER_COLUMNS = 1e-12
"""Criteria of the same rows about other columns."""

ROUNDED = 1e-8
"""Estimates where a second pass rounds each row anew, to 1e-7 of what it varies by."""


def exactly(values):
    return [[Fraction(float(v)) for v in row] for row in values]


def value(hi, lo, at):
    return Fraction(float(hi[at])) + Fraction(float(lo[at]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("q", "k"), [(1, 1), (2, 3), (3, 2)])
def test_sums_of_products_in_twice_the_precision(q, k, weighted):
    rng = np.random.default_rng(q)
    n, m = 200, 5
    values = rng.normal(size=(n, q + k)) * np.exp(6.0 * rng.normal(size=(n, q + k)))
    weights = rng.random(n) if weighted else None
    slots = np.sort(rng.integers(0, m, n))
    slots[50:90] = 2
    lines, whole = np.zeros((2, m, q * (q + 1) // 2 + q * k)), np.zeros((2, k * (k + 1) // 2))
    for part in (slice(0, 77), slice(77, 77), slice(77, n)):
        own = None if weights is None else weights[part]
        add_products(values[part].copy(), own, slots[part].copy(), q, lines, whole)
    rows, w = exactly(values), [Fraction(1)] * n if weights is None else [Fraction(float(v)) for v in weights]

    def check(found, at, a, b, chosen):
        terms = [w[i] * rows[i][a] * rows[i][b] for i in chosen]
        assert abs(value(*found, at) - sum(terms)) <= TWICE * sum(map(abs, terms))

    for g in range(m):
        mine = np.flatnonzero(slots == g).tolist()
        pairs_of = [(a, b) for a in range(q) for b in range(a + 1)] + [(a, q + j) for a in range(q) for j in range(k)]
        for at, (a, b) in enumerate(pairs_of):
            check(lines[:, g], at, a, b, mine)
    for at, (a, b) in enumerate(zip(*np.tril_indices(k), strict=True)):
        check(whole, at, q + a, q + b, range(n))


def test_matrices_in_twice_the_precision():
    rng = np.random.default_rng(1)
    A, B = rng.normal(size=(3, 4)) * 1e8, rng.normal(size=(4, 2))
    found = product(pairs(A), pairs(B))
    a, b = exactly(A), exactly(B)
    for i in range(3):
        for j in range(2):
            terms = [a[i][t] * b[t][j] for t in range(4)]
            assert abs(value(found.hi, found.lo, (i, j)) - sum(terms)) <= TWICE * sum(map(abs, terms))
    column = Pairs(np.array([1e16, 1.0, -1e16, 3.0, 1e-20]), np.zeros(5))
    summed = total(column)
    assert abs(value(summed.hi, summed.lo, ()) - Fraction(4) - Fraction(1e-20)) < Fraction(1e-15)
    X = rng.normal(size=(50, 4))
    X[:, 2] = X[:, 0] + 1e-9 * X[:, 2]
    X[:, 3] = X[:, 1] - X[:, 0]
    lines, whole = np.zeros((2, 1, 5)), np.zeros((2, 10))
    add_products(np.column_stack([np.ones(50), X]), None, np.zeros(50, dtype=np.int64), 1, lines, whole)
    square = np.zeros((2, 4, 4))
    for part, packed in zip(square, whole, strict=True):
        part[np.tril_indices(4)] = packed
        part += np.tril(part, -1).T
    R = cholesky(Pairs(*square))
    wanted = np.linalg.qr(X[:, :3], mode="r")
    wanted *= np.sign(np.diag(wanted))[:, None]
    np.testing.assert_allclose(R[:3, :3], wanted, rtol=1e-6)  # the last row is all that QR leaves of 1e-9
    assert not R[3].any()
    for _ in range(8):
        X = rng.normal(size=(20, 2))
        X = np.column_stack([X, X @ rng.normal(size=2)])
        # what is left of the last column is what rounding has made of it
        assert not cholesky(product(pairs(X.T), pairs(X)))[2].any()


def cases():
    rng = np.random.default_rng(5)
    data = simulated(5000)
    near = data.assign(u=data["x"] + 1e-4 * rng.normal(size=5000))
    changing = data.assign(k=np.where(np.arange(5000) < 3000, 1.0, 2.0))
    grouped = data.assign(y=np.round(64.0 * data["y"]) / 64.0 + 2.0**13 * (data["g"] % 7))
    explained = data.assign(y=2.0**14 * np.round(data["x"], 1) + data["y"], x=np.round(data["x"], 1))
    weighted = near.assign(w=1.0 + data["x"] / 40.0, o=0.3 * data["x"])
    cells = grouped.assign(room=data["g"], school=data["g"] // 15)
    return {
        "collinear": ("y ~ x + u + z + (x | g)", near, {}), "dependent": ("y ~ x + z + v + (1 | g)", data.assign(
            v=2.0 * data["x"] - data["z"]), {}),
        "effects": ("y ~ x + u + (0 + x + u | g)", near, {}),
        "constant at first": ("y ~ 0 + k + z + (1 | g)", changing, {}),
        "and in Z": ("y ~ 0 + k + z + (0 + k | g)", changing, {}),
        "between": ("y ~ z + (1 | g)", grouped, {}), "explained": ("y ~ x + z + (1 | g)", explained, {}),
        "weighted": ("y ~ x + u + z + (x | g)", weighted, {"weights": "w", "offset": "o"}),
        "shuffled": ("y ~ x + u + (1 | g)", near.sample(frac=1.0, random_state=1), {}),
        "nested": ("y ~ x + u + (1 | school/room)", near.assign(room=data["g"], school=data["g"] // 15), {}),
        "nested between": ("y ~ x + (1 | school/room)", cells, {}),
        "crossed": ("y ~ x + u + (1 | g) + (1 | arm)", near, {}),
    }  # fmt: skip


CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_one_pass_has_what_several_find(case):
    formula, data, options = CASES[case]
    one = flc.lmm(formula, flc.scan(cut(data, 700)), **options)
    other = flc.lmm(formula, flc.scan(iter(cut(data, 333))), **options)
    assert one.design.passes > 1 and other.design.passes == 1
    np.testing.assert_array_equal(other.problem.kept, one.problem.kept)
    a, b = one.fit(), other.fit()
    assert b.converged and b.criterion == pytest.approx(a.criterion, rel=OTHER_COLUMNS)
    np.testing.assert_allclose(b.theta, a.theta, rtol=ROUNDED, atol=ROUNDED)
    np.testing.assert_allclose(b.beta / b.bse, a.beta / b.bse, atol=ROUNDED)
    np.testing.assert_allclose(b.cov, a.cov, rtol=1e-6, atol=1e-6 * np.nanmax(np.abs(a.cov)))


def test_one_pass_that_is_enough_has_the_bits_of_memory():
    data = simulated(9000, shuffled=True)
    for formula in (FORMULA, "y ~ x + arm + (1 | g)"):
        plan = flc.plan(formula, data)
        same_bits(flc.lmm(plan, flc.scan(iter(cut(data, 800)))).fit(), flc.lmm(formula, data).fit())


def test_what_varies_within_groups_is_what_exact_arithmetic_finds():
    # so little that one rounding of each row shows
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(40), 50)
    y = 1e4 * (g % 7) + 1e-6 * rng.normal(size=2000)
    fit = flc.lmm("y ~ 1 + (1 | g)", flc.scan(iter([{"y": y, "g": g}]))).fit()
    within = Fraction(0)
    for i in range(40):
        own = [Fraction(float(v)) for v in y[g == i]]
        mean = sum(own) / 50
        within += sum((v - mean) ** 2 for v in own)
    assert fit.sigma2 == pytest.approx(float(within / (2000 - 40)), rel=1e-10)


def test_rows_that_were_read_are_not_read_again():
    source = flc.scan(iter(cut(simulated(5000), 700)))
    flc.lmm(FORMULA, source)
    with pytest.raises(flc.LMMError, match="have to be read again, and an iterator gives its tables once"):
        flc.lmm(FORMULA, source)
