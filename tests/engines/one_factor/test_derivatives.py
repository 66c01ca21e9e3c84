"""Value, gradient and Hessian of the criterion, against dense matrices in complex arithmetic.

The truth here is `Dense`: V_i is formed for every group and solved with, by numpy alone. It takes complex theta, so
that the gradient follows from the value, and the Hessian from the gradient, by a complex step of 1e-30: exact to
rounding, no difference is taken. `Dense` itself is checked against the n x n formulas of the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

import fastlmm_core as flc
import oracle
from fastlmm_core import kernels

STEP = 1e-30

# Both sides add some hundred terms of the size of the result in double precision.
VALUE, GRADIENT, HESSIAN = 1e-10, 1e-8, 1e-6


@dataclass(frozen=True)
class Data:
    y: np.ndarray
    X: np.ndarray
    Z: np.ndarray
    groups: np.ndarray
    weights: np.ndarray | None = None
    structure: str = "full"

    def model(self, **options):
        return flc.LinearMixedModel(
            self.y, self.X, self.Z, self.groups, weights=self.weights, structure=self.structure, **options
        )

    @property
    def q(self):
        return self.Z.shape[1]


class Dense:
    """The profiled criterion with V_i formed for every group, for real and complex theta."""

    def __init__(self, data: Data):
        self.data = data
        w = np.ones(len(data.y)) if data.weights is None else data.weights
        rows = [np.flatnonzero(data.groups == level) for level in np.unique(data.groups)]
        self.batches = []
        for size in {len(r) for r in rows}:  # groups of one size are solved in one call
            at = np.array([r for r in rows if len(r) == size])
            R = np.zeros((len(at), size, size))
            R[:, np.arange(size), np.arange(size)] = 1.0 / w[at]
            self.batches.append((data.y[at], data.X[at], data.Z[at], R))
        # the same for values, for gradients, by ML and by REML
        self.known = cache(lambda dtype, theta: self.formed(np.frombuffer(theta, dtype)))

    def factor(self, theta):
        return oracle.lambda_from_theta(theta, self.data.q, self.data.structure)

    def parts(self, theta):
        return self.known(theta.dtype, theta.tobytes())

    def formed(self, theta):
        Lam = self.factor(theta)
        p = self.data.X.shape[1]
        log_det, S, solved = 0.0, np.zeros((p + 1, p + 1), dtype=Lam.dtype), []
        for y, X, Z, R in self.batches:
            V = R + Z @ (Lam @ Lam.T) @ Z.transpose(0, 2, 1)
            sign, size = np.linalg.slogdet(V)
            log_det = log_det + np.sum(np.log(sign) + size)
            xy = np.concatenate([X, y[:, :, None]], axis=2)
            both = np.linalg.solve(V, np.concatenate([xy, Z], axis=2))
            S = S + over_rows(xy, both[:, :, : p + 1])
            solved.append((Z, both[:, :, : p + 1], both[:, :, p + 1 :]))
        K = np.linalg.inv(S[:p, :p])
        beta = K @ S[:p, p]
        r2 = S[p, p] - S[p, :p] @ beta
        return Lam, log_det, S[:p, :p], K, beta, r2, solved

    def nu(self, reml):
        n, p = self.data.X.shape
        return n - p if reml else n

    def value(self, theta, reml):
        _, log_det, H, _, _, r2, _ = self.parts(theta)
        nu = self.nu(reml)
        out = log_det + nu * (1.0 + np.log(2.0 * np.pi * r2 / nu))
        if reml and len(H):
            sign, size = np.linalg.slogdet(H)
            out = out + np.log(sign) + size
        return out

    def slope(self, theta, reml):
        """d(criterion) / dGhat as a symmetric matrix, and the factor."""
        Lam, _, _, K, beta, r2, solved = self.parts(theta)
        D = 0.0
        for Z, xy, z in solved:
            E = Z.transpose(0, 2, 1) @ xy
            u = E[:, :, -1] - E[:, :, :-1] @ beta
            D = D + over_rows(Z, z) - self.nu(reml) / r2 * (u.T @ u)
            if reml:
                D = D - np.tensordot(E[:, :, :-1] @ K, E[:, :, :-1], ((0, 2), (0, 2)))
        return 0.5 * (D + D.T), Lam

    def gradient(self, theta, reml):
        D, Lam = self.slope(theta, reml)
        return oracle.theta_from_lambda(2.0 * D @ Lam, self.data.structure)


def over_rows(A, B):
    """Sum of A_i'B_i over groups."""
    return np.tensordot(A, B, ((0, 1), (0, 1)))


def complex_step(f, theta):
    """Derivatives of f, one row per element of theta."""
    theta = np.asarray(theta, dtype=float)
    return np.array([np.imag(f(theta + 1j * STEP * unit)) / STEP for unit in np.eye(len(theta))])


def columns(rng, t, groups, p):
    """p columns of X: intercept, time, one constant within groups, noise."""
    pool = [np.ones(len(t)), t, rng.standard_normal(groups.max() + 1)[groups]]
    pool += [rng.standard_normal(len(t)) for _ in range(3)]
    return np.column_stack(pool)[:, :p]


def draw(rng, q, p, weighted, compressed, structure):
    """A problem of many groups with one schedule of visits, or one of groups that are all different."""
    visits = q + 2
    if compressed:
        m = 96
        sizes = np.full(m, visits)
        schedule = np.linspace(-1.0, 1.0, visits)
        t = np.tile(schedule, m)
        w = np.tile(rng.uniform(0.3, 3.0, visits), m)
    else:
        m = 18
        sizes = rng.integers(1, visits + 1, m)
        sizes[:9] = visits + 5
        sizes[9:11] = 1  # fewer rows than random effects
        t = rng.uniform(-1.0, 1.0, sizes.sum())
        w = rng.uniform(0.3, 3.0, sizes.sum())
    groups = np.repeat(np.arange(m), sizes)
    Z = np.polynomial.legendre.legvander(t, q - 1)
    b = rng.standard_normal((m, q)) @ np.tril(rng.normal(0.0, 0.8, (q, q))).T
    X = columns(rng, t, groups, p)
    y = X @ rng.standard_normal(p) + np.sum(Z * b[groups], axis=1) + rng.standard_normal(len(t))
    order = rng.permutation(len(t))
    return Data(y[order], X[order], Z[order], groups[order], w[order] if weighted else None, structure)


def points(rng, q, structure):
    """Factors in the interior and on the boundary, by name."""
    Lam = np.tril(rng.normal(0.0, 0.5, (q, q)))
    Lam[np.diag_indices(q)] = rng.uniform(0.4, 1.5, q)
    if structure == "diagonal":
        Lam = np.diag(np.diag(Lam))
    found = {"interior": Lam, "negative diagonal": Lam * np.where(np.arange(q) % 2, 1.0, -1.0)}
    found["zero"] = np.zeros((q, q))
    if q > 1:
        for name, column in (("last column zero", q - 1), ("first column zero", 0)):
            found[name] = Lam.copy()
            found[name][:, column] = 0.0
    if q > 1 and structure == "full":
        for sign in (1.0, -1.0):
            found[f"correlation {sign:+.0f}"] = Lam.copy()
            found[f"correlation {sign:+.0f}"][1] = 0.0
            found[f"correlation {sign:+.0f}"][1, 0] = sign * 0.7
        found["zero row"] = Lam.copy()
        found["zero row"][q - 1] = 0.0
    return {name: oracle.theta_from_lambda(f, structure) for name, f in found.items()}


def close(actual, desired, tolerance):
    desired = np.asarray(desired)
    scale = max(1.0, float(np.max(np.abs(desired))))
    np.testing.assert_allclose(actual, desired, rtol=0.0, atol=tolerance * scale)


def agrees(evaluate, dense, theta, reml, shift=0.0):
    """evaluate(theta, order) -> (value, gradient, Hessian) agrees with the dense formulas at theta."""
    value = dense.value(theta, reml)
    gradient = complex_step(lambda t: dense.value(t, reml), theta)
    hessian = complex_step(lambda t: dense.gradient(t, reml), theta)
    close(dense.gradient(theta, reml), gradient, 1e-10)  # the truth agrees with itself
    for order in (0, 1, 2):
        found = evaluate(theta, order)
        assert found[0] - shift == pytest.approx(value, rel=VALUE)
        if order >= 1:
            close(found[1], gradient, GRADIENT)
        else:
            assert found[1] is None
        if order >= 2:
            close(found[2], hessian, HESSIAN)
            close(found[2], found[2].T, 1e-10)
        else:
            assert found[2] is None


def natural(model, reml):
    def evaluate(theta, order):
        e = model.evaluate(theta, reml=reml, order=order)
        return e.value, e.gradient, e.hessian

    return evaluate


def conditioned(model, data, reml):
    """The conditioned criterion, and the data that it stands for."""
    problem = model.problem
    criterion = problem.criterion()
    criterion.reml = reml
    inner = replace(
        data,
        y=(data.y - data.X @ problem.beta_base) / problem.scale,
        X=data.X @ problem.x_map,
        Z=data.Z @ problem.z_map,
    )
    return criterion.evaluate, inner


CASES = [
    (q, p, structure, weighted, compressed)
    for q in (1, 2, 3, 4)
    for p in (0, 1, 3, 6)
    for structure in (("full", "diagonal") if q > 1 else ("full",))
    for weighted in (False, True)
    for compressed in (False, True)
] + [(8, 3, "full", True, False), (8, 3, "full", False, True), (8, 1, "diagonal", False, False)]


@pytest.mark.parametrize(
    ("q", "p", "structure", "weighted", "compressed"),
    CASES,
    ids=[
        f"q{q}-p{p}-{structure}-{'weights' if weighted else 'plain'}-{'compressed' if compressed else 'all'}"
        for q, p, structure, weighted, compressed in CASES
    ],
)
def test_derivatives(rng, q, p, structure, weighted, compressed):
    data = draw(rng, q, p, weighted, compressed, structure)
    model = data.model()
    assert model.problem.uniform is not compressed
    assert model.problem.rank == p
    if compressed:
        assert len(model.problem.packed) < len(model.problem.raw) // kernels.lanes()
    dense, conditioned_dense = Dense(data), Dense(conditioned(model, data, True)[1])
    found = points(rng, q, structure)
    if q == 8:
        found = {name: found[name] for name in ("interior", "zero", "first column zero")}
    # by REML and ML in turn at all points but the interior one, to bound the time
    for i, (name, theta) in enumerate(found.items()):
        for reml in (True, False) if name == "interior" else ((i + p) % 2 == 0,):
            agrees(natural(model, reml), dense, theta, reml)
            evaluate, _ = conditioned(model, data, reml)
            agrees(evaluate, conditioned_dense, theta, reml, shift=-model.problem.log_constant)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("structure", ["full", "diagonal"])
def test_two_schedules_are_two_patterns(rng, structure, reml):
    # groups of 4 and of 5 visits, 40 each: the counts of both patterns enter
    q, p = 2, 3
    sizes = np.tile([4, 5], 40)
    t = np.concatenate([np.arange(k) / 2.0 - 1.0 for k in sizes])
    groups = np.repeat(np.arange(80), sizes)
    X = columns(rng, t, groups, p)
    Z = t[:, None] ** np.arange(q)
    y = np.sum(Z * rng.standard_normal((80, q))[groups], axis=1) + rng.standard_normal(len(t))
    data = Data(y, X, Z, groups, None, structure)
    model = data.model()
    assert not model.problem.uniform
    for theta in points(rng, q, structure).values():
        agrees(natural(model, reml), Dense(data), theta, reml)


@pytest.mark.parametrize("reml", [True, False])
def test_many_groups_that_are_all_different(rng, reml):
    # more than enough groups to look for patterns, but none to find
    sizes = rng.integers(2, 5, 90)
    groups = np.repeat(np.arange(90), sizes)
    t = rng.uniform(-1.0, 1.0, len(groups))
    Z = t[:, None] ** np.arange(2)
    y = np.sum(Z * rng.standard_normal((90, 2))[groups], axis=1) + rng.standard_normal(len(t))
    data = Data(y, columns(rng, t, groups, 3), Z, groups)
    model = data.model()
    assert model.problem.uniform
    for theta in points(rng, 2, "full").values():
        agrees(natural(model, reml), Dense(data), theta, reml)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("q", [2, 4])
def test_every_small_group_has_fewer_rows_than_effects(rng, q, reml):
    sizes = np.r_[np.full(10, q + 4), np.full(9, q - 1), np.ones(4, dtype=int)]
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    t = rng.uniform(-1.0, 1.0, len(groups))
    Z = t[:, None] ** np.arange(q)
    X = columns(rng, t, groups, 3)
    y = X.sum(axis=1) + np.sum(Z * rng.standard_normal((len(sizes), q))[groups], axis=1)
    y = y + 0.5 * rng.standard_normal(len(t))
    data = Data(y, X, Z, groups)
    model = data.model()
    for theta in points(rng, q, "full").values():
        agrees(natural(model, reml), Dense(data), theta, reml)


@pytest.mark.parametrize("reml", [True, False])
def test_independent_blocks_of_a_formula(rng, reml):
    # (x | g) + (0 + w | g): a full block and a diagonal one in one model; theta block by block
    m = 16
    groups = np.repeat(np.arange(m), 7)
    x, w = rng.standard_normal((2, len(groups)))
    Z = np.column_stack([np.ones(len(x)), x, w])
    y = 1.0 + x + np.sum(Z * rng.standard_normal((m, 3))[groups], axis=1) + rng.standard_normal(len(x))
    model = flc.lmm("y ~ x + (x | g) + (0 + w | g)", {"y": y, "x": x, "w": w, "g": groups})
    theta = np.array([0.9, -0.4, 0.6, 1.2])
    found = model.evaluate(theta, reml=reml, order=2)

    data = Data(y, Z[:, :2], Z, groups)
    dense = Dense(data)
    free = [0, 1, 3, 5]  # of the full lower triangle, by columns

    def widen(t):
        out = np.zeros(6, dtype=np.asarray(t).dtype)
        out[free] = t
        return out

    assert found.value == pytest.approx(dense.value(widen(theta), reml), rel=VALUE)
    close(found.gradient, complex_step(lambda t: dense.value(widen(t), reml), theta), GRADIENT)
    close(found.hessian, complex_step(lambda t: dense.gradient(widen(t), reml)[free], theta), HESSIAN)


@pytest.mark.parametrize("structure", ["full", "diagonal"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("q", [1, 3])
def test_the_dense_formulas_by_groups_are_those_of_the_oracle(rng, q, weighted, structure):
    data = draw(rng, q, 3, weighted, False, structure)
    args = (data.y, data.X, data.Z, data.groups)
    dense = Dense(data)
    for reml in (True, False):
        theta = points(rng, q, structure)["interior"]
        rest = (reml, data.weights, None, structure)
        assert dense.value(theta, reml) == pytest.approx(oracle.criterion_theta(theta, *args, *rest), rel=1e-12)
        close(dense.gradient(theta, reml), oracle.complex_step_gradient(theta, *args, *rest), 1e-11)
        # the oracle takes fourth-order differences: truncation 1e-12 of the fifth derivative, rounding 1e-12
        close(
            complex_step(lambda t, reml=reml: dense.gradient(t, reml), theta),
            oracle.hessian_theta(theta, *args, *rest),
            1e-8,
        )


@pytest.mark.parametrize("reml", [True, False])
def test_units_far_apart(rng, reml):
    # natural theta of columns a million times apart: derivatives scale with the columns
    data = draw(rng, 2, 3, False, False, "full")
    k = np.array([1e3, 1e-3])
    theta = points(rng, 2, "full")["interior"]
    base = data.model().evaluate(theta, reml=reml, order=2)
    scaled = replace(data, Z=data.Z * k).model().evaluate(theta / k[[0, 1, 1]], reml=reml, order=2)
    s = k[[0, 1, 1]]
    assert scaled.value == pytest.approx(base.value, rel=VALUE)
    close(scaled.gradient / s, base.gradient, GRADIENT)
    close(scaled.hessian / np.outer(s, s), base.hessian, HESSIAN)


@pytest.mark.parametrize("reml", [True, False])
def test_order_of_calls_does_not_matter(rng, reml):
    # an evaluation may be answered from the last one; the answer must be that of the point, kind and order asked for
    model = draw(rng, 2, 3, True, False, "full").model()
    places = {"a": np.array([0.5, 0.2, 0.7]), "b": np.array([1.5, -0.4, 0.3])}
    truth = {}
    for kind in (True, False):
        for name, theta in places.items():
            fresh = model.problem.criterion()
            fresh.reml = kind
            truth[name, kind] = fresh.evaluate(theta, 2)
    criterion = model.problem.criterion()
    calls = [("a", 2), ("a", 0), ("b", 0), ("b", 1), ("a", 1), ("b", 2), ("b", 2), ("a", 0), ("a", 2)]
    for i, (name, order) in enumerate(calls):
        for kind in (reml, not reml) if i % 2 else (not reml, reml):
            criterion.reml = kind
            found = criterion.evaluate(places[name], order)
            for got, expected in zip(found[: order + 1], truth[name, kind], strict=False):
                np.testing.assert_array_equal(got, expected)
