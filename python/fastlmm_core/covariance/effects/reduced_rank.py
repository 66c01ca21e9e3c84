"""Random effects that are combinations of few: `fa0`, G = L L' with r columns (SAS's FA0(r)); of full rank `us`.

theta holds the elements of L by columns, none above the diagonal: dG / dL_ij = e_i l_j' + l_j e_i' with the column l_j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .structure import Array

__all__ = ["ReducedRank"]

_NEGLIGIBLE = 1e-5
"""Standard deviation relative to sigma, or singular value of the standardized factor, that counts as zero."""


@dataclass(frozen=True)
class ReducedRank:
    """A covariance of q effects of rank r.

    Parameters
    ----------
    q, r : int
    """

    q: int
    r: int
    name: str = "fa0"

    @property
    def n_parameters(self) -> int:
        """Elements of L."""
        return len(self._places[0])

    @cached_property
    def _places(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the elements, by columns."""
        columns, rows = np.nonzero(np.tri(self.q, self.r).T)
        return rows, columns

    def factor(self, theta: Array) -> Array:
        """L, with columns of zeros (q, q)."""
        L = np.zeros((self.q, self.q))
        L[self._places] = theta
        return L

    def coordinates(self, factor: Array) -> Array:
        """Theta of a lower triangular L with no more than r columns that are not zero."""
        return np.asarray(factor[self._places])

    def matrix(self, theta: Array) -> Array:
        """G (q, q)."""
        L = self.factor(theta)
        return L @ L.T

    def jacobian(self, theta: Array) -> Array:
        """dG / dtheta (k, q, q)."""
        rows, columns = self._places
        half = np.eye(self.q)[rows][:, :, None] * self.factor(theta).T[columns][:, None, :]
        return half + half.transpose(0, 2, 1)

    def second(self, theta: Array, slope: Array) -> Array:
        """Sums of slope times d2G / dtheta_a dtheta_b (k, k): elements of one column only."""
        rows, columns = self._places
        return np.where(np.equal.outer(columns, columns), 2.0 * slope[rows[:, None], rows], 0.0)

    def second_sum(self, theta: Array, weights: Array) -> Array:
        """Sum over a, b of weights_ab d2G / dtheta_a dtheta_b (q, q)."""
        rows, columns = self._places
        half = np.zeros((self.q, self.q))
        np.add.at(half, (rows[:, None], rows), np.where(np.equal.outer(columns, columns), weights, 0.0))
        return half + half.T

    def nearest(self, G: Array) -> Array:
        """The largest principal components of G, turned into a lower triangle."""
        values, vectors = np.linalg.eigh(G)
        floor = 1e-6 * (float(values[-1]) or 1.0)
        L = vectors[:, : -self.r - 1 : -1] * np.sqrt(np.maximum(values[: -self.r - 1 : -1], floor))
        L = L @ np.linalg.qr(L[: self.r].T)[0]
        return np.asarray(L[self._places])

    def natural(self, theta: Array, sigma2: float) -> Array:
        """Loadings, the first of each factor not negative (k,)."""
        L = self.factor(theta)
        return np.asarray(np.sqrt(sigma2) * (L * self._signs(L))[self._places])

    @staticmethod
    def _signs(L: Array) -> Array:
        return np.where(np.diag(L) < 0.0, -1.0, 1.0)

    def natural_jacobian(self, theta: Array, sigma2: float) -> Array:
        """Their derivatives in theta and sigma^2 (k, k + 1)."""
        signs = self._signs(self.factor(theta))[self._places[1]]
        return np.column_stack((np.diag(np.sqrt(sigma2) * signs), 0.5 / np.sqrt(sigma2) * signs * theta))

    def bend(self, theta: Array, weights: Array) -> Array:
        """Sum over loadings of weights times second derivatives of G in them (q, q); none at full rank.

        Of full rank the parameters may as well be variances and covariances, in which G is linear.
        """
        if self.r == self.q:
            return np.zeros((self.q, self.q))
        signs = self._signs(self.factor(theta))[self._places[1]]
        return self.second_sum(theta, weights * np.multiply.outer(signs, signs))

    def names(self, effects: Sequence[str], term: str) -> tuple[str, ...]:
        """``loading1_effect|term``, ..."""
        rows, columns = (places.tolist() for places in self._places)
        return tuple(f"loading{j + 1}_{effects[i]}|{term}" for i, j in zip(rows, columns, strict=True))

    def boundary(self, theta: Array, effects: Sequence[str], term: str) -> str | None:
        """An effect, or a combination of as many as there are factors, that does not vary."""
        L = self.factor(theta)
        lengths = np.linalg.norm(L, axis=1)
        low = int(np.argmin(lengths))
        if lengths[low] < _NEGLIGIBLE:
            return f"var_{effects[low]}|{term} = 0"
        least = np.linalg.svd(L[:, : self.r] / lengths[:, None], compute_uv=False)[-1]
        return f"rank of {term} = {self.r - 1}" if least < _NEGLIGIBLE else None
