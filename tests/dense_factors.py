"""Dense matrices for several grouping factors, and small problems of every shape to hold the engines against them."""

from __future__ import annotations

import numpy as np

from fastlmm_core import kernels
from fastlmm_core.covariance.parameters import Block, CovarianceStructure
from fastlmm_core.engines.choose import condition_factors
from fastlmm_core.engines.crossed.problem import Factor


class Dense:
    """The model with the full covariance matrix, in the conditioned problem's coordinates."""

    def __init__(self, problem, factors, X, y, weights, offset):
        root = np.ones(len(y)) if weights is None else np.sqrt(weights)
        start = y if offset is None else y - offset
        self.xy = root[:, None] * np.column_stack(
            [problem.conditioned_x(X), (start - X @ problem.beta_base) / problem.scale]
        )
        self.n, self.problem = len(y), problem
        self.Z, self.of = [], []
        for f, (factor, column) in enumerate(zip(factors, problem.columns, strict=True)):
            q = factor.Z.shape[1]
            part = slice(column, column + q)
            Z = root[:, None] * factor.Z @ problem.z_map[part, part]
            wide = np.zeros((self.n, factor.m * q))
            for j in range(q):
                wide[np.arange(self.n), factor.codes * q + j] = Z[:, j]
            self.Z.append(wide)
            self.of += [f] * q

    def at(self, G, reml):
        problem = self.problem
        V = np.eye(self.n)
        for Z, column, m in zip(self.Z, problem.columns, problem.n_levels, strict=True):
            q = Z.shape[1] // m
            V = V + Z @ np.kron(np.eye(m), G[column : column + q, column : column + q]) @ Z.T
        self.inverse = np.linalg.inv(V)
        k = self.xy.shape[1]
        p = k - 1
        H = self.xy.T @ self.inverse @ self.xy
        self.beta = np.linalg.solve(H[:p, :p], H[:p, p])
        self.r2 = H[p, p] - H[p, :p] @ self.beta
        self.chol = np.linalg.cholesky(H[:p, :p])
        nu = self.n - p if reml else self.n
        self.nu = nu
        value = np.linalg.slogdet(V)[1] + nu * (1 + np.log(2 * np.pi * self.r2 / nu))
        return value + (2 * np.log(np.diag(self.chol)).sum() if reml else 0.0)

    def tangents(self):
        """Z D Z' for the unit directions of vech(G); zero between factors."""
        problem, q = self.problem, self.problem.structure.q
        out = []
        for D in kernels.unit_directions(q):
            total = np.zeros((self.n, self.n))
            for Z, column, m in zip(self.Z, problem.columns, problem.n_levels, strict=True):
                q_f = Z.shape[1] // m
                inner = D[column : column + q_f, column : column + q_f]
                if inner.any():
                    total += Z @ np.kron(np.eye(m), inner) @ Z.T
            out.append(total)
        return out


def make(kind, seed, q=1, weights=False, n=60):
    rng = np.random.default_rng(seed)
    if kind == "nested":
        codes = [np.repeat(np.arange(15), 4), np.repeat(np.arange(5), 12)]
    elif kind == "nested3":
        codes = [np.repeat(np.arange(15), 4), np.repeat(np.arange(5), 12), np.repeat(np.arange(2), [24, 36])]
    elif kind == "crossed":
        codes = [rng.permutation(np.arange(n) % 12), np.arange(n) % 5]
    elif kind == "wide":
        # more random effects of the first factor than are worked on at a time
        n = 112
        codes = [rng.permutation(np.arange(n) % 28), np.arange(n) % 5]
    elif kind == "partial":
        codes = [rng.integers(0, 14, n), rng.integers(0, 6, n)]
    elif kind == "mixed":
        codes = [np.repeat(np.arange(15), 4), rng.integers(0, 4, n), np.repeat(np.arange(5), 12)]
    elif kind == "crossed3":
        codes = [rng.integers(0, 10, n), rng.integers(0, 5, n), rng.integers(0, 4, n)]
    elif kind == "schools":
        school = np.repeat(np.arange(4), n // 4)
        codes = [
            school * 5 + rng.integers(0, 5, n),
            school * 3 + rng.integers(0, 3, n),
            school * 2 + rng.integers(0, 2, n),
        ]
    elif kind == "one":
        codes = [np.repeat(np.arange(12), 5)]
    codes = [np.unique(c, return_inverse=True)[1] for c in codes]
    order = rng.permutation(n)
    codes = [rng.permutation(c.max() + 1)[c][order] for c in codes]
    X = np.column_stack([np.ones(n), rng.normal(size=(n, 2)) + 3.0])
    widths = [q] * len(codes) if isinstance(q, int) else list(q)
    factors, blocks, at, y = [], [], 0, X @ [3.0, 1.0, -2.0] + rng.normal(size=n)
    for f, (c, width) in enumerate(zip(codes, widths, strict=True)):
        Z = np.column_stack([np.ones(n), rng.normal(size=(n, width - 1))])
        m = int(c.max()) + 1
        y = y + (Z * rng.normal(size=(m, width))[c]).sum(1)
        factors.append(Factor(Z, c, m, f"f{f}"))
        if width == 3:
            blocks += [Block(at, at + 2, "full"), Block(at + 2, at + 3, "diagonal")]
        else:
            blocks.append(Block(at, at + width, "full"))
        at += width
    w = rng.uniform(0.5, 2.0, n) if weights else None
    off = rng.normal(size=n) if weights else None
    structure = CovarianceStructure(tuple(blocks))
    return y, X, factors, w, off, structure


CASES = [
    (kind, q, weights)
    for kind in ("one", "nested", "nested3", "crossed", "partial", "mixed", "crossed3", "schools")
    for q, weights in ((1, False), (2, True), (3, False))
] + [("mixed", (1, 3, 2), False), ("crossed3", (2, 1, 3), True), ("crossed", (3, 1), False), ("wide", 3, False)]


def close(a, b, tolerance):
    a, b = np.asarray(a), np.asarray(b)
    assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-300), np.abs(a - b).max() / np.abs(b).max()


def traces_of_products(matrices):
    """tr(A B) of all pairs."""
    stack = np.array(matrices)
    return np.tensordot(stack, stack, ((1, 2), (2, 1)))


def compare_every_quantity(kind, q, weights, reml, singular):
    """Assert that all that the engine computes for a case is what dense matrices give."""
    y, X, factors, w, off, structure = make(kind, 7, q, weights)
    problem = condition_factors(y, X, factors, w, off, structure)
    criterion = problem.criterion()
    criterion.reml = reml
    criterion.average = False
    rng = np.random.default_rng(1)
    factor = np.zeros((structure.q, structure.q))
    factor[structure.positions] = rng.normal(size=structure.n_parameters) * 0.5 + 0.3
    if singular == "zero":
        factor[:] = 0.0
    elif singular == "each":
        # all factors, also those that are eliminated last, lack a direction
        for column, Z in zip(problem.columns, (f.Z for f in factors), strict=True):
            factor[column + Z.shape[1] - 1, column + Z.shape[1] - 1] = 0.0
    elif singular:
        # one factor without variance, another of rank one; a tiny one
        factor[problem.columns[-1] :, problem.columns[-1] :] = 0.0
        if structure.blocks[0].stop > 1:
            factor[1, 1] = 0.0
        if len(factors) > 2:
            factor[problem.columns[1] : problem.columns[2]] *= 1e-6
    theta = structure.theta(factor)
    value, gradient, hessian = criterion.evaluate(theta, 2)
    dense = Dense(problem, factors, X, y, w, off)
    expected = dense.at(factor @ factor.T, reml)
    assert abs(value - expected) < 1e-10 * max(abs(expected), dense.n)
    beta, r2, chol, slope = criterion.solution()
    assert np.abs(beta - dense.beta).max() < 1e-10 * max(1.0, np.abs(dense.beta).max())
    close(r2, dense.r2, 1e-11)
    close(chol, dense.chol, 1e-11)
    p = X.shape[1]
    Vi, xy, n_a = dense.inverse, dense.xy, structure.q * (structure.q + 1) // 2
    tangents = dense.tangents()
    P = Vi - Vi @ xy[:, :p] @ np.linalg.solve(dense.chol @ dense.chol.T, xy[:, :p].T @ Vi)
    residual = P @ xy[:, p]
    scale = dense.nu / dense.r2
    around = P if reml else Vi
    # the products on which all pairs of directions rest, each formed once
    solved, swept = [Vi @ T for T in tangents], [around @ T for T in tangents]
    first = np.array([np.trace(A) - scale * residual @ T @ residual for A, T in zip(swept, tangents, strict=True)])
    directions = kernels.unit_directions(structure.q)
    inner = np.zeros((structure.q, structure.q), dtype=bool)
    for f in range(len(factors)):
        part = [i for i in range(structure.q) if dense.of[i] == f]
        inner[np.ix_(part, part)] = True
    found = np.array([np.sum(slope * inner * D) for D in directions])
    mask = np.array([inner[np.nonzero(D)].all() for D in directions])
    size = np.array([np.trace(A) for A in solved])
    assert np.abs(found - first)[mask].max() < 1e-10 * np.abs(size).max()
    s = np.array([residual @ T @ residual for T in tangents])
    moved = np.array([T @ residual for T in tangents])
    half = moved @ P @ moved.T
    trace = traces_of_products(swept)
    exact = -trace + 2 * scale * half - scale / dense.r2 * np.outer(s, s)
    close(criterion.curvature(), exact, 1e-9)
    E = [Vi @ xy]
    cross = np.array([E[0].T @ T @ E[0] for T in tangents])
    close(criterion.cross(), cross, 1e-10)
    close(criterion.traces(), traces_of_products(solved), 1e-10)
    weight = np.triu(rng.normal(size=(p + 1, p + 1)))
    spread = np.array([T @ E[0] @ weight for T in tangents])
    close(criterion.traces(weight), np.tensordot(spread, Vi @ spread, ((1, 2), (1, 2))), 1e-10)
    W = rng.normal(size=(n_a, n_a))
    W = W + W.T
    spanned = np.array([T @ E[0] for T in tangents])
    close(
        criterion.sandwich(W),
        np.einsum("ij,isk,st,jtl->kl", W, spanned, Vi, spanned, optimize=True),
        1e-9,
    )
    precision = criterion.precision()
    close([np.sum(precision * inner * D) for D in directions], size, 1e-10)
    # gradient and Hessian in theta by the chain rule
    rows, columns = structure.positions
    jac = np.zeros((n_a, len(rows)))
    for i, (r, c) in enumerate(zip(rows, columns, strict=True)):
        change = np.zeros_like(factor)
        change[r, c] = 1.0
        dG = change @ factor.T + factor @ change.T
        jac[:, i] = dG[np.tril_indices(structure.q)]
    slope_full = np.zeros((structure.q, structure.q))
    for D, g in zip(directions, first, strict=True):
        slope_full += D * g / np.sum(D)
    slope_full *= inner
    close(np.append(gradient, 1.0), np.append(2 * (slope_full @ factor)[rows, columns], 1.0), 1e-9)
    second = 2.0 * slope_full[np.ix_(rows, rows)] * (columns[:, None] == columns)
    close(hessian, jac.T @ exact @ jac + second, 1e-9)
    average = scale * half - scale / dense.r2 * np.outer(s, s)
    criterion.average = True
    close(criterion.evaluate(theta, 2)[2], jac.T @ average @ jac + second, 1e-9)
    # random effects and their conditional covariances
    effects = problem.effects(factor, dense.beta)
    for Z, column, m, u, C in zip(
        dense.Z, problem.columns, problem.n_levels, effects, problem.effects_covariance(factor), strict=True
    ):
        q_f = Z.shape[1] // m
        G = np.kron(np.eye(m), (factor @ factor.T)[column : column + q_f, column : column + q_f])
        expected = G @ Z.T @ Vi @ (xy[:, p] - xy[:, :p] @ dense.beta)
        assert np.abs(u.ravel() - expected).max() < 1e-10 * max(1.0, np.abs(expected).max())
        full = G - G @ Z.T @ Vi @ Z @ G
        for a in range(m):
            block = full[a * q_f : (a + 1) * q_f, a * q_f : (a + 1) * q_f]
            assert np.abs(C[a] - block).max() < 1e-10 * max(1.0, np.abs(G).max())
