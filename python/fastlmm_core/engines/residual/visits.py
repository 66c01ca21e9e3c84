"""The criterion over visits: V_i = sigma^2 S(phi)[v_i, v_i], without random effects.

The chain rule leads from the elements of S to phi once for all patterns of visits (`kernels.residuals.PatternSums`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...design.residual import ResidualPart
from ...kernels.residuals import PatternSums
from ..rows import Rows
from .criterion import StructuredCriterion
from .patterns import Patterns

__all__ = ["VisitCriterion"]

Array = NDArray[np.float64]


class VisitCriterion(StructuredCriterion):
    """The profiled criterion in phi.

    Parameters
    ----------
    patterns : Patterns
    c : int
        Columns of [X y].
    n : int
        Observations.
    part : ResidualPart
    """

    def __init__(self, patterns: Patterns, c: int, n: int, part: ResidualPart) -> None:
        super().__init__(c, n, 0, part)
        p = patterns
        self.sums = PatternSums(p.rows, p.size, p.members, p.counts, p.visits, p.table, p.table_size, c)
        self._places = p.places
        self.sizes = [len(places) for places in p.places]

    @property
    def places(self) -> list[tuple[int, NDArray[np.intp] | Array]]:
        """Each stratum has one table, of the positions that occur."""
        return list(enumerate(self._places))

    def reduce(self, x: Array) -> tuple[float, Array | None]:
        """log|V| and H."""
        tables = [own.matrix(x, places) for own, places in zip(self.part.strata, self._places, strict=True)]
        if not all(np.isfinite(table).all() for table in tables):
            return np.inf, None
        roots = [own.root(x, places) for own, places in zip(self.part.strata, self._places, strict=True)]
        known = [root for root in roots if root is not None]
        return self.sums.reduce(known, True) if len(known) == len(roots) else self.sums.reduce(tables)

    def whitened(self) -> Array:
        """L^-1 [X y]."""
        return self.sums.whitened()

    def weigh(self, turn: Array) -> None:
        """Bring the rows to [A e]."""
        self.sums.weigh(turn)

    def first(self, x: Array, ratio: float, bracket: float) -> Array:
        """Along phi."""
        self.slopes = self.sums.slopes(1.0, -ratio, -bracket)
        self.jacobians = [own.jacobian(x, places) for own, places in zip(self.part.strata, self._places, strict=True)]
        return np.concatenate([np.tensordot(J, slope, 2) for J, slope in zip(self.jacobians, self.slopes, strict=True)])

    def along(self, c_n: float, c_e: float, c_x: float) -> Array:
        """Quadratic forms over directions of the tables in those of phi (k, k)."""
        out = np.zeros((self.n_par, self.n_par))
        curves = self.sums.curves(c_n, c_e, c_x)
        for own, J, curve, m in zip(self.part.strata, self.jacobians, curves, self.sizes, strict=True):
            rows, columns = np.tril_indices(m)
            flat = J[:, rows, columns]
            out[own.start : own.stop, own.start : own.stop] = flat @ curve @ flat.T
        return out

    def bend(self, x: Array) -> Array:
        """Second derivatives of the tables."""
        out = np.zeros((self.n_par, self.n_par))
        for own, places, slope in zip(self.part.strata, self._places, self.slopes, strict=True):
            out[own.start : own.stop, own.start : own.stop] = own.second(x, places, slope)
        return out

    def _crossed(self) -> Array:
        """[A e]'D[A e] for the directions of phi (k, c, c)."""
        found = []
        for J, U, m in zip(self.jacobians, self.sums.products(), self.sizes, strict=True):
            flat = U.transpose(0, 2, 1, 3).reshape(m * m, -1)
            found.append((J.reshape(len(J), m * m) @ flat).reshape(len(J), self.c, self.c))
        return np.concatenate(found)

    def sandwich_along(self, weight: Array) -> Array:
        """Sum over pairs of directions (r, r)."""
        tables = []
        for own, J, m in zip(self.part.strata, self.jacobians, self.sizes, strict=True):
            flat = J.reshape(len(J), m * m)
            mine = weight[own.start : own.stop, own.start : own.stop]
            tables.append((flat.T @ mine @ flat).reshape(m, m, m, m))
        return self.sums.sandwich(tables)[:-1, :-1]

    def within(self, tables: list[Array]) -> Array:
        """A'TA for matrices T over the positions of the tables (r, r)."""
        out = np.zeros((self.c - 1, self.c - 1))
        for T, U in zip(tables, self.sums.products(), strict=True):
            out += np.einsum("ab,aibj->ij", T, U[:, :-1, :, :-1])
        return out

    def solve(self, v: Array, rows: Rows) -> Array:
        """V^-1 v by the rows of the problem."""
        assert self._point is not None
        columns = v.reshape(len(v), -1)
        root = np.ones(len(v)) if rows.weights is None else np.sqrt(rows.weights)
        out = root[:, None] * columns
        for own, where, members in self.part.alike():
            out[members] = np.linalg.solve(own.matrix(self._point, where), out[members])
        return np.asarray(root[:, None] * out).reshape(v.shape)
