"""What criteria with random effects share: the directions of G, and the way from them to theta."""

from __future__ import annotations

import numpy as np

from ...covariance.parameters import CovarianceStructure
from ...design.residual import ResidualPart
from ...support.types import Array, Index
from .criterion import StructuredCriterion

__all__ = ["EffectsCriterion"]


class EffectsCriterion(StructuredCriterion):
    """The profiled criterion in (theta, phi), by derivatives along the unit directions of G and along phi.

    Parameters
    ----------
    c, n : int
        Columns of [X y], observations.
    structure : CovarianceStructure
    spans : list of slice
        Columns of each factor.
    part : ResidualPart

    Attributes
    ----------
    units : (n_units, 3) array
        Factor, row and column of each unit direction of G.
    """

    def __init__(self, c: int, n: int, structure: CovarianceStructure, spans: list[slice], part: ResidualPart) -> None:
        super().__init__(c, n, structure.n_parameters, part)
        self.structure = structure
        units = []
        for block in structure.blocks:
            f = next(i for i, span in enumerate(spans) if span.start <= block.start < span.stop)
            for a in range(block.start, block.stop):
                units += [(f, a, b) for b in range(block.start, a + 1) if block.correlated or a == b]
        self.units = np.array(units, dtype=np.intp).reshape(len(units), 3)
        self._slope_g = np.zeros(len(units))

    def split(self, x: Array) -> tuple[Array, Array]:
        """Lambda, and phi."""
        return self.structure.factor(x[: self.n_theta]), x[self.n_theta :]

    def slope_in_g(self) -> Array:
        """Derivative in G as a symmetric matrix (q, q)."""
        q = self.structure.q
        out = np.zeros((q, q))
        a, b = self.units[:, 1], self.units[:, 2]
        values = np.where(a == b, self._slope_g, 0.5 * self._slope_g)
        out[a, b] = out[b, a] = values
        return out

    @property
    def unit_places(self) -> Index:
        """Which elements of vech(G), lower triangle by rows, the directions of G are."""
        a, b = self.units[:, 1], self.units[:, 2]
        return np.asarray(a * (a + 1) // 2 + b)

    def directions(self, x: Array) -> Array:
        """Derivatives of (G, phi) in (theta, phi)."""
        factor, phi = self.split(x)
        rows, columns = self.structure.positions
        a, b = self.units[:, 1], self.units[:, 2]
        inner = (a == rows[:, None]) * factor[b][:, columns].T + (b == rows[:, None]) * factor[a][:, columns].T
        out = np.zeros((len(x), len(a) + len(phi)))
        out[: len(rows), : len(a)] = inner
        out[len(rows) :, len(a) :] = np.eye(len(phi))
        return out

    def chained(self, x: Array, first: Array, second: Array | None) -> tuple[Array, Array | None]:
        """From directions of G to theta."""
        if not self.n_theta:
            return first, second
        turn = self.directions(x)
        gradient = turn @ first
        if second is None:
            return gradient, None
        hessian = turn @ second @ turn.T
        rows, columns = self.structure.positions
        slope = self.slope_in_g()
        hessian[: len(rows), : len(rows)] += 2.0 * slope[np.ix_(rows, rows)] * (columns[:, None] == columns)
        return gradient, hessian
