"""Any covariance over the positions: `us`, by the logarithm of Cholesky's factor.

S = L L' with L_00 = 1. phi holds the lower triangle of L by columns without L_00, the diagonal by its logarithm:
dS / dL_ij = e_i l_j' + l_j e_i' with l_j the j-th column, and d2S / dL_ij dL_kj = e_i e_k' + e_k e_i'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .entries import EntriesNatural
from .moments import visit_covariance
from .structure import NEAR, Array, Rows, Where

__all__ = ["Unstructured"]

_LARGEST = 150.0
"""Largest logarithm of an element of the diagonal: products of squares of some are finite, and their inverses."""


class _Layout(NamedTuple):
    """Where elements of the lower triangle stand in phi."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    diagonal: NDArray[np.intp]
    same_column: NDArray[np.bool_]
    flat: NDArray[np.intp]
    """Places in L by rows of all but L_00."""


@lru_cache(maxsize=64)
def _layout(m: int) -> _Layout:
    columns, rows = np.triu_indices(m)
    same = np.equal.outer(columns[1:], columns[1:])
    return _Layout(rows, columns, np.flatnonzero(rows[1:] == columns[1:]), same, rows[1:] * m + columns[1:])


@dataclass(frozen=True)
class Unstructured(EntriesNatural):
    """A positive definite matrix over m positions.

    Parameters
    ----------
    m : int
    """

    m: int
    name: str = "us"

    @property
    def positions(self) -> int:
        """m."""
        return self.m

    @property
    def n_parameters(self) -> int:
        """m (m + 1) / 2 - 1."""
        return self.m * (self.m + 1) // 2 - 1

    @property
    def entries(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the lower triangle, by columns."""
        return _layout(self.m)[:2]

    @property
    def _diagonal(self) -> NDArray[np.intp]:
        """Places in phi of the diagonal."""
        return _layout(self.m).diagonal

    @property
    def _same_column(self) -> NDArray[np.bool_]:
        return _layout(self.m).same_column

    def _factor(self, phi: Array) -> tuple[Array, Array]:
        """L, and dL_a / dphi_a (k,)."""
        layout, values = _layout(self.m), phi.copy()
        change = np.ones(len(phi))
        logarithms = np.minimum(np.maximum(phi[layout.diagonal], -_LARGEST), _LARGEST)
        values[layout.diagonal] = change[layout.diagonal] = np.exp(logarithms)
        L = np.zeros(self.m * self.m)
        L[0] = 1.0
        L[layout.flat] = values
        return L.reshape(self.m, self.m), change

    def root(self, phi: Array, where: Where) -> Array:
        """A with S = A A' at some positions (n, m): near to singular matrices it has digits that S has lost."""
        return np.asarray(self._factor(phi)[0][where])

    def matrix(self, phi: Array, where: Where) -> Array:
        """S at some positions (n, n)."""
        L = self.root(phi, where)
        return L @ L.T

    def variances(self, phi: Array, where: Where) -> Array:
        """The diagonal of S at some positions (n,)."""
        return np.asarray((self.root(phi, where) ** 2).sum(axis=1))

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dS / dphi (k, n, n)."""
        L, change = self._factor(phi)
        rows, columns = self.entries
        units = np.equal.outer(rows[1:], where) * change[:, None]
        half = units[:, :, None] * L.T[columns[1:]][:, None, where]
        return half + half.transpose(0, 2, 1)

    def framed_jacobian(self, phi: Array) -> Array:
        """A^-1 dS A^-T for S = A A' with the root A over all positions (k, m, m): dL = L T, so that it is T + T'."""
        L, change = self._factor(phi)
        rows, columns = self.entries
        half = np.zeros((len(phi), self.m, self.m))
        half[np.arange(len(phi)), :, columns[1:]] = (np.linalg.inv(L)[:, rows[1:]] * change).T
        return half + half.transpose(0, 2, 1)

    def framed_second(self, phi: Array, slope: Array) -> Array:
        """Sums of a slope in T + T' times second derivatives (k, k); see `framed_jacobian`."""
        L, change = self._factor(phi)
        rows = self.entries[0][1:]
        inverse = np.linalg.inv(L)
        G = inverse.T @ slope @ inverse
        out = np.where(self._same_column, G[rows[:, None], rows], 0.0)
        out *= 2.0 * change[:, None] * change
        own = rows[self._diagonal]
        out[self._diagonal, self._diagonal] += (
            2.0 * change[self._diagonal] * np.einsum("ij,ji->i", slope[own], inverse[:, own])
        )
        return out

    def _scattered(self, where: Where, slope: Array) -> Array:
        """Slope at all positions (m, m); what rows of one position have is summed."""
        units = np.equal.outer(np.arange(self.m), where).astype(float)
        return np.asarray(units @ slope @ units.T)

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times second derivatives (k, k)."""
        L, change = self._factor(phi)
        rows = self.entries[0][1:]
        G = self._scattered(where, slope)
        out = np.where(self._same_column, G[rows[:, None], rows], 0.0)
        out *= 2.0 * change[:, None] * change
        diagonal = rows[self._diagonal]
        out[self._diagonal, self._diagonal] += (
            2.0 * change[self._diagonal] * np.einsum("ij,ji->i", G[diagonal], L[:, diagonal])
        )
        return out

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Weighted sum of second derivatives (n, n)."""
        L, change = self._factor(phi)
        rows = self.entries[0][1:]
        own = np.where(self._same_column, weights, 0.0) * (change[:, None] * change)
        out = np.zeros((self.m, self.m))
        np.add.at(out, (rows[:, None], rows), own)
        diagonal = rows[self._diagonal]
        out[diagonal] += (np.diag(weights)[self._diagonal] * change[self._diagonal])[:, None] * L.T[diagonal]
        full = out + out.T
        found: Array = full[np.ix_(where, where)]
        return found

    def of_factor(self, L: Array) -> Array:
        """Phi of a lower triangular factor with a positive diagonal (m, m), whatever its scale."""
        rows, columns = self.entries
        phi: Array = (L / L[0, 0])[rows[1:], columns[1:]]
        phi[self._diagonal] = np.log(phi[self._diagonal])
        return phi

    def nearest(self, covariance: Array) -> tuple[Array, float]:
        """Phi and sigma^2 of a positive definite matrix (m, m)."""
        L = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
        return self.of_factor(L), float(L[0, 0]) ** 2

    def start(self, rows: Rows) -> Array:
        """The covariance over pairs of rows, shrunk to be positive definite."""
        return self.nearest(visit_covariance(rows, self.m))[0]

    def from_natural(self, psi: Array) -> tuple[Array, float]:
        """Phi and sigma^2 from variances and covariances."""
        S = np.empty((self.m, self.m))
        rows, columns = self.entries
        S[rows, columns] = S[columns, rows] = psi
        return self.nearest(S)

    def names(self, labels: Sequence[str], term: str) -> tuple[str, ...]:
        """Variances and covariances, the lower triangle by columns."""
        return tuple(
            f"var_{labels[i]}|{term}" if i == j else f"cov_{labels[j]}.{labels[i]}|{term}"
            for i, j in zip(*(places.tolist() for places in self.entries), strict=True)
        )

    def boundary(self, phi: Array, labels: Sequence[str], term: str) -> str | None:
        """A variance that vanishes beside the largest, or that of a combination of standardised positions."""
        L = self._factor(phi)[0]
        lengths = np.sqrt(np.einsum("ij,ij->i", L, L))
        low = int(lengths.argmin())
        if lengths[low] < NEAR * lengths.max():
            return f"var_{labels[low]}|{term} = 0"
        if (L.diagonal() / lengths).prod() > 2.0 * NEAR:
            # rows of length 1: the smallest singular value is at least this product over sqrt(e)
            return None
        left, sizes, _ = np.linalg.svd(L / lengths[:, None])
        if sizes[-1] >= NEAR:
            return None
        told = [labels[i] for i in np.flatnonzero(np.abs(left[:, -1]) > 10.0 * sizes[-1]).tolist()]
        return f"var of a combination of {', '.join(told[:-1])} and {told[-1]}|{term} = 0"
