"""Algebra of `_matrices` for matrices of many columns, by BLAS and LAPACK; loaded with the first of them.

Arguments and results are those of the functions of the same names there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg.blas import dtrmm
from scipy.linalg.lapack import dpotrf, dtrtri

from ..support.types import Array

__all__ = ["packed_lower", "regression", "row_moments", "triangle", "whitened_slopes", "within_part"]


def triangle(gram: Array) -> tuple[Array, float]:
    """Upper triangular T with T' gram T = I, and the margin; see `orthonormal`."""
    k, diagonal = len(gram), np.diagonal(gram)
    L, info = dpotrf(gram.T, lower=1, clean=1)
    if info != 0 or not (diagonal > 0.0).all():
        return np.eye(k), 0.0
    inverse, _ = dtrtri(L, lower=1)
    return np.ascontiguousarray(inverse.T), float((np.diagonal(L) ** 2 / diagonal).min())


def packed_lower(matrix: Array) -> Array:
    """The lower triangle by rows."""
    return np.ascontiguousarray(matrix[np.tril_indices(len(matrix))])


def turned(T: Array, matrix: Array) -> Array:
    """T'S T for symmetric S and upper triangular T, both row by row."""
    # in the memory order of BLAS T' is lower triangular
    half = dtrmm(1.0, T.T, np.asarray(matrix).T, side=0, lower=1)
    return np.asarray(dtrmm(1.0, T.T, half, side=1, lower=1, trans_a=1, overwrite_b=1))


def within_part(matrix: Array, T: Array, between: Array) -> Array:
    """T'S T less `between`, packed by rows, for a symmetric matrix S."""
    return packed_lower(turned(T, matrix)) - between


def regression(matrix: Array, exact: float) -> tuple[Array, float] | None:
    """`within_regression` of a symmetric matrix, None where a pivot, but not the diagonal, is too small for it."""
    p = len(matrix) - 1
    slope = np.zeros(p)
    kept = np.flatnonzero(np.diagonal(matrix)[:p] > exact)
    L, info = dpotrf(matrix[np.ix_(kept, kept)].T, lower=1, clean=1)
    if info != 0 or not (np.diagonal(L) ** 2 > exact).all():
        return None
    inverse, _ = dtrtri(L, lower=1)
    half = inverse @ matrix[kept, p]
    slope[kept] = inverse.T @ half
    return slope, float(matrix[p, p] - half @ half)


def whitened_slopes(chol: Array, beta: Array, r2: float, cross: Array) -> tuple[Array, Array, Array]:
    """See `_matrices.whitened_slopes`."""
    inverse, _ = dtrtri(np.asarray(chol), lower=1)
    half = np.tril(inverse)
    contrast = np.append(-beta, 1.0)
    slopes = np.array([turned(half.T, part[:-1, :-1]) for part in cross])
    slopes = 0.5 * (slopes + slopes.transpose(0, 2, 1))
    return np.ascontiguousarray(half), slopes, (cross @ contrast) @ contrast / r2


def row_moments(
    rows: Array, half: Array, slopes: Array, shift: Array, inverse: Array, nu: float
) -> tuple[Array, Array]:
    """See `_matrices.row_moments`."""
    turned_rows = rows @ half.T
    variance = (turned_rows * turned_rows).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        u: Any = np.array([((turned_rows @ slope) * turned_rows).sum(axis=1) / variance for slope in slopes])
        u -= shift[:, None]
        df = 1.0 / (1.0 / nu + (u * (inverse @ u)).sum(axis=0))
    return variance, df
