"""Natural parameters that are entries of the covariance matrix, in which it is linear."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from .structure import Array, Where

__all__ = ["EntriesNatural"]


class EntriesNatural(ABC):
    """The part of a structure that reports variances and covariances at some entries of R over all positions."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """Number of positions."""

    @property
    @abstractmethod
    def entries(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the natural parameters."""

    @abstractmethod
    def matrix(self, phi: Array, where: Where) -> Array:
        """R~ (n, n)."""

    @abstractmethod
    def jacobian(self, phi: Array, where: Where) -> Array:
        """dR~ / dphi (k, n, n)."""

    @abstractmethod
    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times second derivatives (k, k)."""

    def _everywhere(self) -> NDArray[np.intp]:
        return np.arange(self.positions)

    def natural(self, phi: Array, sigma2: float) -> Array:
        """Variances and covariances."""
        out: Array = sigma2 * self.matrix(phi, self._everywhere())[self.entries]
        return out

    def natural_jacobian(self, phi: Array, sigma2: float) -> Array:
        """Their derivatives in phi and sigma^2 (k + 1, k + 1)."""
        i, j = self.entries
        where = self._everywhere()
        return np.column_stack((sigma2 * self.jacobian(phi, where)[:, i, j].T, self.matrix(phi, where)[i, j]))

    def natural_second(self, phi: Array, sigma2: float, weights: Array) -> Array:
        """Second derivatives of their weighted sum in phi and sigma^2 (k + 1, k + 1)."""
        where = self._everywhere()
        half = np.zeros((self.positions, self.positions))
        np.add.at(half, self.entries, 0.5 * weights)
        slope = half + half.T
        k = len(phi)
        out = np.zeros((k + 1, k + 1))
        out[:k, :k] = sigma2 * self.second(phi, where, slope)
        out[:k, k] = out[k, :k] = self.jacobian(phi, where).reshape(k, -1) @ slope.ravel()
        return out
