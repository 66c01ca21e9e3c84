"""The random effects of several grouping factors given the data: a square root of their covariance matrix.

At known parameters the effects b of all levels have covariance sigma^2 M given y, M = (G^-1 + Z'WZ)^-1.  Block
elimination of nested factors, finest first, and then of the levels of the others, which are dense within connected
components unless these are large, gives Phi with M = Phi'Phi.  For a row z both z'Mz = |Phi z|^2 and
z'M c = (Phi z)'(Phi c) are then sums without differences: they stay exact where M has large elements that cancel, as in
crossed factors with large variances.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...support.blas_threads import one_blas_thread, quiet_blas
from ...support.types import Array, Index
from .order import chain_of
from .sparse_cholesky import sparse_cholesky

__all__ = ["Posterior"]


HELD = 1 << 23
"""Numbers in the arrays of a piece of the rows."""

LARGEST_DENSE = 5_000
"""Random effects of a connected component up to which its square root is formed, by dense matrices."""


class Posterior:
    """The square root Phi of the conditional covariance of all random effects, relative to sigma^2.

    Parameters
    ----------
    Z : list of (n, q_f) arrays
        Rows of each factor, times the roots of the weights.
    codes : list of (n,) int arrays
        Level of each row; levels without rows are allowed.
    sizes : list of int
        Levels of each factor.
    factors : list of (q_f, q_f) arrays
        Lambda_f: relative covariances are Lambda_f Lambda_f'.
    xy : (n, k) array
        Columns c of which z'M Z'c is wanted, times the roots of the weights.
    """

    def __init__(self, Z: list[Array], codes: list[Index], sizes: list[int], factors: list[Array], xy: Array) -> None:
        from scipy.sparse import block_diag, csr_array

        self.widths = [part.shape[1] for part in Z]
        chain, _ = chain_of(codes, sizes, self.widths)
        order = chain + [f for f in range(len(Z)) if f not in chain]
        self.first = np.zeros(len(Z), dtype=np.intp)
        at = 0
        for f in order:
            self.first[f] = at
            at += sizes[f] * self.widths[f]
        self.size = at
        rows = self._sparse(Z, codes)
        S: Any = csr_array(rows.T @ rows)
        cross = rows.T @ xy
        self.stages: list[tuple[Any, Any, Array]] = []
        for f in chain:
            width, count = self.widths[f], sizes[f]
            stop = width * count
            place = np.arange(stop).reshape(count, width)
            own = np.asarray(S[np.repeat(place, width, axis=1).ravel(), np.tile(place, width).ravel()])
            L = factors[f]
            lower = np.linalg.cholesky(np.eye(width) + L.T @ own.reshape(count, width, width) @ L)
            blocks = np.linalg.solve(lower, np.broadcast_to(L.T, lower.shape))
            half = _block_diagonal(blocks)
            turned: Any = half @ S[:stop, stop:]
            mine = half @ cross[:stop]
            S = csr_array(S[stop:, stop:] - turned.T @ turned)
            cross = cross[stop:] - turned.T @ mine
            self.stages.append((half, turned, mine))
        self.tail: Any = None
        if S.shape[0]:
            inner = block_diag([_repeated(factors[f], sizes[f]) for f in order[len(chain) :]], format="csr")
            self.tail = _root(csr_array(S), csr_array(inner))
            self.mine = self.tail @ cross

    def _sparse(self, Z: list[Array], levels: list[Index]) -> Any:
        """Rows over all random effects, nothing at levels of -1."""
        from scipy.sparse import csr_array

        n = len(levels[0])
        values, columns = [], []
        for part, level, first in zip(Z, levels, self.first, strict=True):
            width = part.shape[1]
            values.append(np.where(level[:, None] >= 0, part, 0.0))
            columns.append(first + np.maximum(level, 0)[:, None] * width + np.arange(width))
        count = sum(self.widths)
        found: Any = csr_array(
            (np.concatenate(values, axis=1).ravel(), np.concatenate(columns, axis=1).ravel(), np.arange(n + 1) * count),
            shape=(n, self.size),
        )
        return found

    def at(self, Z: list[Array], levels: list[Index]) -> tuple[Array, Array]:
        """z'M Z'c and z'Mz for rows z.

        Parameters
        ----------
        Z : list of (r, q_f) arrays
        levels : list of (r,) int arrays
            -1 where a row has no effect of the factor.

        Returns
        -------
        carried : (r, k) array
        variance : (r,) array
        """
        n = len(levels[0])
        # a stretch of rows at a time: its products with a dense tail take most of the memory
        step = max(1, HELD // max(1, self.tail.shape[0] if self.tail is not None else 64))
        carried, variance = [], []
        for begin in range(0, max(n, 1), step):
            rows = slice(begin, begin + step)
            with one_blas_thread():
                one, other = self._stretch([part[rows] for part in Z], [level[rows] for level in levels])
            carried.append(one)
            variance.append(other)
        return np.concatenate(carried), np.concatenate(variance)

    def _stretch(self, Z: list[Array], levels: list[Index]) -> tuple[Array, Array]:
        left = self._sparse(Z, levels)
        carried: Any = 0.0
        variance: Any = 0.0
        for half, turned, mine in self.stages:
            stop = half.shape[0]
            seen = left[:, :stop] @ half.T
            carried = carried + seen @ mine
            variance = variance + seen.power(2).sum(axis=1)
            left = left[:, stop:] - seen @ turned
        if self.tail is not None:
            seen = self.tail.along(left) if isinstance(self.tail, _SparseRoot) else left @ self.tail.T
            carried = carried + seen @ self.mine
            variance = variance + (seen**2 if isinstance(seen, np.ndarray) else seen.power(2)).sum(axis=1)
        return np.asarray(carried, dtype=np.float64), np.asarray(variance, dtype=np.float64)


def _block_diagonal(blocks: Array) -> Any:
    from scipy.sparse import bsr_array

    count, width = blocks.shape[0], blocks.shape[1]
    whole = bsr_array((blocks, np.arange(count), np.arange(count + 1)), shape=(count * width, count * width))
    return whole.tocsr()


def _repeated(block: Array, count: int) -> Any:
    return _block_diagonal(np.broadcast_to(block, (count, *block.shape)))


class _SparseRoot:
    """(chol(I + L'SL))^-1 L' without forming it, for the levels in the order of their elimination."""

    def __init__(self, S: Any, L: Any) -> None:
        from scipy.sparse import eye_array

        self.shape = S.shape
        self.R, self.order = sparse_cholesky(L.T @ S @ L + eye_array(S.shape[0]))
        self.turn = L.T.tocsr()[self.order]

    def __matmul__(self, columns: Array) -> Array:
        from scipy.sparse.linalg import spsolve_triangular

        return np.asarray(spsolve_triangular(self.R, self.turn @ columns, lower=True))

    def along(self, rows: Any) -> Array:
        """The root applied to each of some sparse rows: (r, n) array."""
        return np.ascontiguousarray((self @ rows.T.toarray()).T)


def _root(S: Any, L: Any) -> Any:
    """(chol(I + L'SL))^-1 L': an array if all is connected, a sparse matrix of dense components, or solutions."""
    from scipy.linalg import solve_triangular
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n = S.shape[0]
    links: Any = abs(S) + abs(L) + abs(L.T)
    count, label = connected_components(links, directed=False)
    widest = int(np.bincount(label).max())
    if widest > LARGEST_DENSE:
        return _SparseRoot(S, L)
    if count == 1:
        with quiet_blas(n, n):
            lower = np.linalg.cholesky(np.eye(n) + (L.T @ S @ L).toarray())
            return np.asarray(solve_triangular(lower, L.T.toarray(), lower=True, check_finite=False))
    inner: Any = csr_array(L.T @ S @ L)
    rows, columns, values = [], [], []
    order = np.argsort(label, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(label))])
    sizes = np.diff(starts)
    for size in np.unique(sizes):
        members = order[starts[:-1][sizes == size][:, None] + np.arange(size)]
        for part in np.array_split(members, -(-members.size * int(size) // HELD)):
            wide = np.repeat(part, size, axis=1).ravel(), np.tile(part, size).ravel()
            shape = (len(part), size, size)
            lower = np.linalg.cholesky(np.eye(size) + np.asarray(inner[wide]).reshape(shape))
            root = np.linalg.solve(lower, np.asarray(L.T.tocsr()[wide]).reshape(shape))
            rows.append(wide[0])
            columns.append(wide[1])
            values.append(root.ravel())
    place = (np.concatenate(rows), np.concatenate(columns))
    whole: Any = csr_array((np.concatenate(values), place), shape=(n, n))
    whole.eliminate_zeros()
    return whole
