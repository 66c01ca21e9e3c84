"""Principal components of a covariance matrix from its factor."""

from __future__ import annotations

import numpy as np

from ..support.types import Array

__all__ = ["principal_axes"]


def principal_axes(factor: Array, rank: int, correlation: bool) -> tuple[Array, Array]:
    """Variances and directions of the principal components of L L', or of its correlations.

    They are squares of singular values of the factor: none is negative, and small ones keep their digits.

    Parameters
    ----------
    factor : (q, q) array
        L; a row of zeros is a variable without variance, which takes no part in correlations.
    rank : int
        Of L; the variances behind it are 0.
    correlation : bool

    Returns
    -------
    variances : (q,) array
        In falling order.
    loadings : (q, q) array
        Orthonormal directions as columns, the largest element of each positive.
    """
    rows = np.array(factor, dtype=np.float64)
    if correlation:
        length = np.linalg.norm(rows, axis=1)
        rows /= np.where(length > 0.0, length, 1.0)[:, None]
    loadings, size, _ = np.linalg.svd(rows)
    size[rank:] = 0.0
    largest = loadings[np.abs(loadings).argmax(axis=0), np.arange(len(rows))]
    return size**2, loadings * np.where(largest < 0.0, -1.0, 1.0)
