"""Correlations that are products of those between neighbours: `ad` and `adh` (SAS's ANTE(1)).

C_ij = rho_i rho_{i+1} ... rho_{j-1}. With P_ij that product (zero for i > j) nothing is ever divided by a rho:

    dC_ij / drho_a = P_ia P_{a+1,j},    d2C_ij / drho_a drho_b = P_ia P_{a+1,b} P_{b+1,j}  (i <= a < b < j)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .correlation import LinkedCorrelation
from .links import Hyperbolic
from .moments import bounded, consecutive, lag_one
from .structure import Array, Rows, Where

__all__ = ["AnteDependence"]


@dataclass(frozen=True)
class AnteDependence(LinkedCorrelation):
    """A correlation for each pair of neighbouring positions.

    Parameters
    ----------
    m : int
        Number of positions.
    """

    m: int
    name: str = "ad"

    @property
    def positions(self) -> int:
        """m."""
        return self.m

    @property
    def n_parameters(self) -> int:
        """m - 1."""
        return self.m - 1

    @property
    def link(self) -> Hyperbolic:
        """From the line to (-1, 1)."""
        return Hyperbolic()

    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """``rho_first.second`` for each pair of neighbours."""
        return tuple(f"rho_{labels[k]}.{labels[k + 1]}" for k in range(self.m - 1))

    def _products(self, rho: Array) -> Array:
        """P (m, m)."""
        P = np.eye(self.m)
        for k in range(self.m - 1):
            P[: k + 1, k + 1] = P[: k + 1, k] * rho[k]
        return P

    def matrix(self, phi: Array, where: Where) -> Array:
        """C (n, n)."""
        P = self._products(self.link.at(phi).value)
        out: Array = (P + np.triu(P, 1).T)[where[:, None], where]
        return out

    def _sides(self, P: Array, where: Where) -> tuple[Array, Array]:
        """P_ia (n, m - 1) and P_{a+1,j} (m - 1, n)."""
        return P[where, :-1], P[1:, where]

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dC / dphi (m - 1, n, n)."""
        rho, first, _ = self.link.at(phi)
        left, right = self._sides(self._products(rho), where)
        half = (left.T * first[:, None])[:, :, None] * right[:, None, :]
        return half + half.transpose(0, 2, 1)

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times second derivatives (m - 1, m - 1)."""
        rho, first, second = self.link.at(phi)
        P = self._products(rho)
        left, right = self._sides(P, where)
        met = left.T @ slope @ right.T
        half = 2.0 * met * P[1:, :-1]
        return (half + half.T) * np.multiply.outer(first, first) + np.diag(2.0 * np.diag(met) * second)

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Weighted sum of second derivatives (n, n)."""
        rho, first, second = self.link.at(phi)
        P = self._products(rho)
        left, right = self._sides(P, where)
        inner = 2.0 * weights * np.multiply.outer(first, first) * P[1:, :-1]
        half = left @ (inner + np.diag(np.diag(weights) * second)) @ right
        return half + half.T

    def start(self, rows: Rows) -> Array:
        """From the pairs at each two neighbouring positions; where there are none, that of all."""
        earlier, later = consecutive(rows)
        near = rows.where[later] - rows.where[earlier] == 1
        place = rows.where[earlier[near]]
        a, b = rows.residuals[earlier[near]], rows.residuals[later[near]]
        products, left, right = (
            np.bincount(place, values, minlength=self.m - 1)[: self.m - 1] for values in (a * b, a * a, b * b)
        )
        counts = np.bincount(place, minlength=self.m - 1)[: self.m - 1]
        size = np.sqrt(left * right)
        overall = lag_one(rows)
        own = np.where(size > 0.0, products / np.where(size > 0.0, size, 1.0), overall)
        return self.from_natural(bounded((counts * own + 2.0 * overall) / (counts + 2.0)))
