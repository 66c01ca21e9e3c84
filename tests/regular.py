"""Whether a minimum is that of regular data (lanes/regular.pxi), by dense algebra."""

from __future__ import annotations

import numpy as np

import oracle

ENOUGH, TELLING, WORTH, LIKE_EXPECTED, CONFLICT = 6, 0.5, 0.25, 0.5, 0.3


def directions(q: int) -> list[np.ndarray]:
    """Symmetric unit directions of G."""
    out = []
    for a in range(q):
        for b in range(a + 1):
            D = np.zeros((q, q))
            D[a, b] = D[b, a] = 1.0
            out.append(D)
    return out


def information(y, X, Z, groups, G, reml) -> tuple[np.ndarray, np.ndarray]:
    """Observed and expected second derivatives of the criterion along directions of the relative G."""
    D = directions(Z.shape[1])
    # V is positive definite a little beyond the boundary, too
    sizes = np.sqrt(G.diagonal() + 1e-2 * len(set(groups)) / np.sum(Z * Z, axis=0))
    step = 1e-5 * np.outer(sizes, sizes)

    def slopes(at: np.ndarray) -> np.ndarray:
        S = oracle.gradient_ghat(y, X, Z, groups, at, reml)
        return np.array([np.sum(S * d) for d in D])

    observed = np.array(
        [(slopes(G + step * d) - slopes(G - step * d)) / (2.0 * np.sum(step * d * d) / d.sum()) for d in D]
    )
    V = np.linalg.inv(oracle.relative_v(Z, groups, G))
    same = np.equal.outer(groups, groups)
    parts = [V @ (same * (Z @ d @ Z.T)) for d in D]
    nu = len(y) - X.shape[1] if reml else len(y)
    traces = np.array([np.trace(part) for part in parts])
    return observed, np.array([[np.sum(one * two.T) for two in parts] for one in parts]) - np.outer(traces, traces) / nu


def differ_within(y, X, Z, groups, G) -> float:
    """Hausman's statistic of the coefficients of columns of X within groups beside Z, and of those between groups.

    From two sets of all coefficients, of rows that Z does not reach and of the rest, of those that both tell.
    """
    n = len(y)
    beside = np.eye(n)
    for g in set(groups):
        rows = groups == g
        beside[np.ix_(rows, rows)] -= Z[rows] @ np.linalg.pinv(Z[rows])
    V = np.linalg.inv(oracle.relative_v(Z, groups, G))
    X = X @ np.linalg.inv(np.linalg.cholesky(X.T @ X)).T
    within, whole = X.T @ beside @ X, X.T @ V @ X
    values, axes = np.linalg.eigh(within)
    X = X @ axes
    within, whole = np.diag(values), axes.T @ whole @ axes
    r = V @ (y - X @ oracle.beta(y, X, Z, groups, G))
    sigma2 = (y - X @ oracle.beta(y, X, Z, groups, G)) @ r
    told = values > 1e-10
    s = (X.T @ beside @ (y - X @ oracle.beta(y, X, Z, groups, G)))[told]
    # of the others nothing is told within groups
    between = np.linalg.inv(np.linalg.inv(whole)[np.ix_(told, told)]) - np.diag(values[told])
    return float(s @ (np.linalg.inv(np.diag(values[told])) + np.linalg.pinv(between, hermitian=True)) @ s / sigma2)


def is_regular(y, X, Z, groups, G, reml) -> tuple[bool, float]:
    """Whether a minimum at the relative G is that of regular data; how far from a limit it is, relatively."""
    m, q = groups.max() + 1, Z.shape[1]
    columns = np.linalg.inv(np.linalg.cholesky(Z.T @ Z)) @ Z.T
    A = np.array([columns[:, groups == g] @ columns[:, groups == g].T for g in range(m)])
    telling = np.trace(A, axis1=1, axis2=2).sum() ** 2 / (q * (A * A).sum())
    observed, expected = information(y, X, Z, groups, G, reml)
    root = np.linalg.inv(np.linalg.cholesky(expected))
    least = float(np.linalg.eigvalsh(root @ (observed + observed.T) @ root.T / 2.0)[0])
    V = np.linalg.inv(oracle.relative_v(Z, groups, G))
    r = V @ (y - X @ oracle.beta(y, X, Z, groups, G))
    whitened = np.empty((m, q))
    for g in range(m):
        rows = groups == g
        N = Z[rows].T @ V[np.ix_(rows, rows)] @ Z[rows]
        whitened[g] = np.linalg.solve(np.linalg.cholesky(N), Z[rows].T @ r[rows])
    # of groups with one A_i the sum of outer products is all that the criterion reads
    which = np.unique(np.round(A.reshape(m, -1), 9), axis=0, return_inverse=True)[1].ravel()
    mean = np.sum(whitened**2) / (m * q)
    apart = [whitened[which == a].T @ whitened[which == a] - np.sum(which == a) * mean * np.eye(q) for a in set(which)]
    worth = np.sum(whitened**2) ** 2 / (np.sum(np.square(apart)) + m * q * mean**2)
    nu = len(y) - X.shape[1] if reml else len(y)
    differ = nu * differ_within(y, X, Z, groups, G)
    limits = ((worth, WORTH * m), (least, LIKE_EXPECTED), (CONFLICT * m, differ + 1e-300))
    told = m >= ENOUGH * q and telling >= TELLING * m and all(found > limit for found, limit in limits)
    return told, min(abs(found / limit - 1.0) for found, limit in limits)
