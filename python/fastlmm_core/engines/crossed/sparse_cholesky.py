"""Cholesky factors of sparse positive definite matrices, by SuperLU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["sparse_cholesky"]


def sparse_cholesky(S: Any) -> tuple[Any, NDArray[np.intp]]:
    """Lower triangular R with S[order][:, order] = R R'.

    Parameters
    ----------
    S : sparse (n, n) array
        Symmetric, its eigenvalues far from 0 for its scale.

    Returns
    -------
    R : csr_array
    order : (n,) intp array
        Rows of S in the order of their elimination, by minimum degree.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import splu

    # without row exchanges the factors are those of Cholesky but for the diagonal
    options = {"SymmetricMode": True}
    factors = splu(S.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
    order = np.argsort(factors.perm_r).astype(np.intp)
    # up to scipy 1.14 the factors are matrices, whose * is the matrix product
    return csr_array(factors.L).multiply(np.sqrt(factors.U.diagonal())).tocsr(), order
