"""An independent look at a fit in plain numpy: is this the criterion, and is it a minimum?

With Λ the relative covariance factor, A_i = Z_iᵀZ_i, C_i = Z_iᵀ[X_i y_i] and S = Σ[X_i y_i]ᵀ[X_i y_i]:

    W_i = I + ΛᵀA_iΛ,   H = S - ΣC_iᵀΛW_i⁻¹ΛᵀC_i,
    d = Σlog|W_i| + log|H_xx| + (n - p)(1 + log(2π r²/(n - p))),   r² = 1/(H⁻¹)_yy

Not conditioned in any way: for the well-scaled problems of the benchmarks only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from _harness import criterion_tolerance


@dataclass(frozen=True)
class CrossProducts:
    """What the criterion needs of the rows: A (groups, q, q), C (groups, q, p + 1), S (p + 1, p + 1)."""

    a: np.ndarray
    c: np.ndarray
    s: np.ndarray
    n: int


def cross_products(y: np.ndarray, x: np.ndarray, z: np.ndarray, codes: np.ndarray) -> CrossProducts:
    columns = [*x.T, y]
    q, m, groups = z.shape[1], len(columns), int(codes.max()) + 1
    a = np.empty((groups, q, q))
    c = np.empty((groups, q, m))
    for i in range(q):
        for j in range(i + 1):
            a[:, i, j] = a[:, j, i] = np.bincount(codes, z[:, i] * z[:, j], groups)
        for j in range(m):
            c[:, i, j] = np.bincount(codes, z[:, i] * columns[j], groups)
    s = np.array([[np.dot(u, v) for v in columns] for u in columns])
    return CrossProducts(a, c, s, y.size)


def reml_criterion(products: CrossProducts, factor: np.ndarray) -> float:
    q, m = products.c.shape[1:]
    w = np.eye(q) + factor.T @ products.a @ factor
    cholesky = np.linalg.cholesky(w)
    u = np.linalg.solve(cholesky, factor.T @ products.c)
    h = products.s - np.tensordot(u, u, axes=((0, 1), (0, 1)))
    root = np.linalg.cholesky(h)
    nu = products.n - (m - 1)
    logdet_w = 2.0 * np.log(np.diagonal(cholesky, axis1=1, axis2=2)).sum()
    logdet_x = 2.0 * np.log(np.diag(root)[:-1]).sum()
    return float(logdet_w + logdet_x + nu * (1.0 + np.log(2.0 * np.pi * root[-1, -1] ** 2 / nu)))


def relative_factor(result: Any) -> np.ndarray:
    """Lower Λ with ΛΛᵀ = G/σ² from a result with one term."""
    (covariance,) = result.G.values()
    relative = np.asarray(covariance, dtype=float) / float(result.sigma2)
    values, vectors = np.linalg.eigh(relative)
    factor = np.linalg.qr((vectors * np.sqrt(np.maximum(values, 0.0))).T, mode="r").T
    return factor * np.where(np.diag(factor) < 0.0, -1.0, 1.0)


def objection(result: Any, y: np.ndarray, x: np.ndarray, z: np.ndarray, codes: np.ndarray) -> str | None:
    """Why the result is not a REML fit of these data, or None when it is."""
    if not result.converged:
        return f"not certified: {result.message}"
    products = cross_products(y, x, z, codes)
    factor = relative_factor(result)
    centre = reml_criterion(products, factor)
    tolerance = criterion_tolerance(centre)
    if not abs(centre - result.criterion) <= tolerance:
        return f"reports the criterion {result.criterion:.6f} where G and sigma2 give {centre:.6f}"
    for i, j in zip(*np.tril_indices(factor.shape[0]), strict=True):
        step = np.zeros_like(factor)
        step[i, j] = 0.01 * max(factor[i, i], 1e-2)
        up, down = reml_criterion(products, factor + step), reml_criterion(products, factor - step)
        curvature = up + down - 2.0 * centre
        gain = (up - down) ** 2 / (8.0 * curvature) if curvature > 0.0 else max(centre - up, centre - down)
        if gain > tolerance:
            return f"moving theta[{i},{j}] lowers the criterion by {gain:.3g}"
    return None
