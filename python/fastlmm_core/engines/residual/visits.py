"""The criterion over visits: V_i = sigma^2 S(phi)[v_i, v_i], without random effects.

The chain rule leads from the elements of S to phi once for all patterns of visits (`kernels.residuals.PatternSums`);
for `us` this way is compiled too (`kernels.residuals.UnstructuredSums`).  Where S = A A' is nearly singular, V^-1 is
so large that its products with dS have no digits left; then all is taken in the coordinates of A, in which dS is
A^-1 dS A^-T (`PatternSums.take`).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...covariance.residual.relative import Relative
from ...covariance.residual.unstructured import Unstructured
from ...design.residual import ResidualPart
from ...kernels.records.rows import ConditionedRows
from ...kernels.residuals import PatternSums, UnstructuredSums
from ...support.types import Array
from .criterion import StructuredCriterion
from .patterns import Patterns

__all__ = ["VisitCriterion"]


NEARLY = 1e-3
"""Share of a standard deviation that the positions before leave, below which S is taken for nearly singular."""

FEW_DIRECTIONS = 3
"""Parameters of a table up to which the rows are multiplied by each direction; for more, all pairs of visits are."""


class VisitCriterion(StructuredCriterion):
    """The profiled criterion in phi.

    Parameters
    ----------
    patterns : Patterns
    n : int
        Observations.
    part : ResidualPart
    """

    def __init__(self, patterns: Patterns, n: int, part: ResidualPart) -> None:
        super().__init__(patterns.sums.columns, n, 0, part)
        self._places, self._patterns = patterns.places, patterns
        self._wide: PatternSums | None = None
        self._roots: list[Array] = []
        whole = all(
            isinstance(own.structure, Unstructured) and own.structure.m == len(places)
            for own, places in zip(part.strata, patterns.places, strict=True)
        )
        self._whole = whole
        self._always = whole and isinstance(part.strata[0].structure, Relative)
        self.sizes = [len(places) for places in patterns.places]
        self.direct = UnstructuredSums(patterns.sums, n) if whole and not self._always else None
        self.nearly = NEARLY
        self._last = np.full(part.n_parameters, np.nan)

    @cached_property
    def sums(self) -> PatternSums:
        """The sums over patterns, for tables that are made here."""
        return PatternSums(self._patterns.sums)

    # ---- `us`, compiled throughout --------------------------------------------------------------

    def at(self, x: Array, order: int) -> tuple[float, float, Array | None, Array | None]:
        """Value, its rounding error, gradient and Hessian, where they are not taken directly."""
        self._last = x
        return super().at(x, order)

    def evaluate(self, theta: ArrayLike, order: int = 0) -> tuple[float, Array | None, Array | None]:
        """Evaluate at theta; see `kernels.Objective`."""
        found = super().evaluate(theta, order)
        if self.directly:
            # what is asked for at this point
            assert self.direct is not None
            self._point, self._last, self._roots = None, np.array(theta, dtype=float), []
            if found[1] is not None:
                self.beta, self.r2, self.chol, self.half = self.direct.profile()
                self._first = found[1]
            if found[2] is not None:
                self._second = found[2]
        return found

    def _summed(self) -> None:
        """Bring the sums over patterns to the last point."""
        if self._point is None:
            count = self.n_evaluations
            super().at(self._last, 2)
            self.n_evaluations = count

    def cross_products(self) -> Array:
        """[A e]'D[A e] for all directions (n_d, c, c), at the last point of order 2."""
        if self._point is None and self.direct is not None:
            return self.direct.crossed()
        return super().cross_products()

    def expected(self) -> Array:
        """tr(V^-1 dV V^-1 dV) less twice that within X, for pairs of directions."""
        self._summed()
        return super().expected()

    # ---- any structure ---------------------------------------------------------------------------

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
        self._roots = []
        if len(known) < len(roots):
            return self.sums.reduce(tables)
        if self._whole and (self._always or any(_nearly_singular(root) for root in known)):
            self._roots = known
        return self.sums.reduce(known, True)

    @property
    def roots(self) -> list[Array]:
        """The roots of the tables, where derivatives are taken in their coordinates; none otherwise."""
        return self._roots

    @property
    def _now(self) -> PatternSums:
        """The sums, in the coordinates in which derivatives are taken."""
        if not self._roots:
            return self.sums
        if self._wide is None:
            p = self._patterns.sums
            sizes = p.table_size[p.table]
            visits = np.concatenate([np.arange(m, dtype=np.intp) for m in sizes.tolist()])
            rows = np.zeros(int((sizes * p.members).sum()) * self.c)
            beside = np.zeros(int((sizes**2).sum()))
            self._wide = PatternSums(p._replace(rows=rows, size=sizes, visits=visits, outside=beside))
        return self._wide

    def whitened(self) -> Array:
        """L^-1 [X y]."""
        return self.sums.whitened()

    def weigh(self, turn: Array) -> None:
        """Bring the rows to [A e]."""
        sums = self._now
        if self._roots:
            sums.take(self.sums, self._roots)
        sums.weigh(turn)

    def first(self, x: Array, ratio: float, bracket: float) -> Array:
        """Along phi."""
        self.slopes = self._now.slopes(1.0, -ratio, -bracket)
        self.jacobians = [
            own.framed_jacobian(x) if self._roots else own.jacobian(x, places)
            for own, places in zip(self.part.strata, self._places, strict=True)
        ]
        return np.concatenate([np.tensordot(J, slope, 2) for J, slope in zip(self.jacobians, self.slopes, strict=True)])

    def along(self, c_n: float, c_e: float, c_x: float) -> Array:
        """Quadratic forms over directions of the tables in those of phi (k, k)."""
        out = np.zeros((self.n_par, self.n_par))
        curves = self._now.curves(c_n, c_e, c_x)
        for own, J, curve, m in zip(self.part.strata, self.jacobians, curves, self.sizes, strict=True):
            rows, columns = np.tril_indices(m)
            flat = J[:, rows, columns]
            out[own.start : own.stop, own.start : own.stop] = flat @ curve @ flat.T
        return out

    def bend(self, x: Array) -> Array:
        """Second derivatives of the tables."""
        out = np.zeros((self.n_par, self.n_par))
        for own, places, slope in zip(self.part.strata, self._places, self.slopes, strict=True):
            out[own.start : own.stop, own.start : own.stop] = (
                own.framed_second(x, slope) if self._roots else own.second(x, places, slope)
            )
        return out

    def _crossed(self) -> Array:
        """[A e]'D[A e] for the directions of phi (k, c, c)."""
        if max(map(len, self.jacobians)) <= FEW_DIRECTIONS:
            return np.concatenate(self._now.crossed(self.jacobians))
        found = []
        for J, U, m in zip(self.jacobians, self._now.products(), self.sizes, strict=True):
            flat = U.transpose(0, 2, 1, 3).reshape(m * m, -1)
            found.append((J.reshape(len(J), m * m) @ flat).reshape(len(J), self.c, self.c))
        return np.concatenate(found)

    def sandwich_along(self, weight: Array) -> Array:
        """Sum over pairs of directions (r, r)."""
        self._summed()
        tables = []
        for own, J, m in zip(self.part.strata, self.jacobians, self.sizes, strict=True):
            flat = J.reshape(len(J), m * m)
            mine = weight[own.start : own.stop, own.start : own.stop]
            tables.append((flat.T @ mine @ flat).reshape(m, m, m, m))
        return self._now.sandwich(tables)

    def within(self, tables: list[Array]) -> Array:
        """A'TA for matrices T over the positions of the tables (r, r)."""
        self._summed()
        out = np.zeros((self.c - 1, self.c - 1))
        if self._roots:
            tables = [
                np.linalg.solve(root, np.linalg.solve(root, T).T).T for root, T in zip(self._roots, tables, strict=True)
            ]
        for T, U in zip(tables, self._now.products(), strict=True):
            out += np.einsum("ab,aibj->ij", T, U[:, :-1, :, :-1])
        return out

    def solve(self, v: Array, rows: ConditionedRows) -> Array:
        """V^-1 v by the rows of the problem."""
        columns = v.reshape(len(v), -1)
        root = np.ones(len(v)) if rows.weights is None else np.sqrt(rows.weights)
        out = root[:, None] * columns
        for own, where, members in self.part.alike():
            out[members] = np.linalg.solve(own.matrix(self._last, where), out[members])
        return np.asarray(root[:, None] * out).reshape(v.shape)


def _nearly_singular(root: Array) -> bool:
    """Whether a lower triangular root (m, m) has a row that is nearly all before its diagonal."""
    lengths = np.einsum("ij,ij->i", root, root)
    return bool((root.diagonal() ** 2 < NEARLY**2 * lengths).any())
