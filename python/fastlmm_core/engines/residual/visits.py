"""The criterion over visits: V_i = sigma^2 S(phi)[v_i, v_i], without random effects.

With d = log|V| + nu log r^2 [+ log|X'V^-1X|] for V relative to sigma^2, and in the sums of `PatternSums`

    d_D   = sum_k tr(D (N_k W_k - (nu / r^2) E_k [- B_k]))
    d_DD' = sum_k tr(D F_k D' W_k) - 2 (nu / r^2) s_D's_D' - (nu / r^4) t_D t_D' [- tr(S_D S_D')]

along directions D and D' of S, with F_k = 2 (nu / r^2) E_k - N_k W_k [+ 2 B_k] and S_D = sum A'DA, s_D = sum A'De,
t_D = sum e'De.  Terms in brackets are those of REML.  The chain rule leads from S to phi once for all patterns.
"""

from __future__ import annotations

from math import inf, log, pi

import numpy as np
from numpy.typing import NDArray

from ...design.residual import ResidualPart
from ...kernels.residuals import PatternSums, ScriptedObjective
from ..rows import Rows
from .patterns import Patterns

__all__ = ["VisitCriterion"]

Array = NDArray[np.float64]

EPS = float(np.finfo(float).eps)


class VisitCriterion(ScriptedObjective):
    """The profiled criterion in phi.

    Parameters
    ----------
    patterns : Patterns
    c : int
        Columns of [X y].
    n : int
        Observations.
    part : ResidualPart

    Attributes
    ----------
    reml : bool
    n_evaluations : int
    """

    serial = True
    costly = False

    def __init__(self, patterns: Patterns, c: int, n: int, part: ResidualPart) -> None:
        self.reml = True
        self.n_evaluations = 0
        self.c, self.n, self.part = c, n, part
        p = patterns
        self.sums = PatternSums(p.rows, p.size, p.members, p.counts, p.visits, p.table, p.table_size, c)
        self.places = p.places
        self.sizes = [len(places) for places in self.places]
        self._point: Array | None = None
        self._weighed = False
        self.prepare(part.n_parameters)

    @property
    def nu(self) -> float:
        """Divisor of the residual variance."""
        return float(self.n - (self.c - 1 if self.reml else 0))

    # ---- evaluation ----------------------------------------------------------------------------

    def at(self, x: Array, order: int) -> tuple[float, float, Array | None, Array | None]:
        """Value, its rounding error, gradient and Hessian; an infinite value outside the domain."""
        if not (self._point is not None and np.array_equal(self._point, x)):
            self._point, self._weighed = None, False
            self.n_evaluations += 1
            with np.errstate(over="ignore", invalid="ignore"):
                tables = [own.matrix(x, places) for own, places in zip(self.part.strata, self.places, strict=True)]
            if not all(np.isfinite(table).all() for table in tables):
                return inf, 0.0, None, None
            self.log_det, H = self.sums.reduce(tables)
            if H is None or not self._profile(H):
                return inf, 0.0, None, None
            self._point = x.copy()
        nu, r2 = self.nu, self.r2
        spread = nu * (1.0 + log(2.0 * pi * r2 / nu))
        inner = 2.0 * float(np.log(np.diag(self.chol)).sum()) if self.reml else 0.0
        value = self.log_det + spread + inner
        noise = EPS * (self.n + abs(self.log_det) + abs(spread) + abs(inner))
        if order == 0:
            return value, noise, None, None
        self._weigh()
        bracket = 1.0 if self.reml else 0.0
        ratio = nu / r2
        slopes = self.sums.slopes(1.0, -ratio, -bracket)
        self.jacobians = [own.jacobian(x, places) for own, places in zip(self.part.strata, self.places, strict=True)]
        gradient = np.concatenate([np.tensordot(J, slope, 2) for J, slope in zip(self.jacobians, slopes, strict=True)])
        if order == 1:
            return value, noise, gradient, None
        curves = self.sums.curves(-1.0, 2.0 * ratio, 2.0 * bracket)
        hessian = self._along(curves)
        for own, places, slope in zip(self.part.strata, self.places, slopes, strict=True):
            hessian[own.start : own.stop, own.start : own.stop] += own.second(x, places, slope)
        S = self.cross_products()
        within, s, t = S[:, :-1, :-1].reshape(len(S), (self.c - 1) ** 2), S[:, :-1, -1], S[:, -1, -1]
        hessian -= 2.0 * ratio * (s @ s.T) + ratio / r2 * np.outer(t, t) + bracket * (within @ within.T)
        return value, noise, gradient, hessian

    def _profile(self, H: Array) -> bool:
        """Cholesky's factor of H: coefficients, r^2."""
        try:
            full = np.linalg.cholesky(H)
        except np.linalg.LinAlgError:
            return False
        self.chol: Array = np.asarray(full[:-1, :-1], dtype=np.float64)
        self.r2 = float(full[-1, -1] ** 2)
        self.half: Array = np.asarray(np.linalg.inv(self.chol), dtype=np.float64)
        self.beta = np.asarray(self.half.T @ full[-1, :-1])
        return self.r2 > 0.0

    def _weigh(self) -> None:
        if not self._weighed:
            turn = np.zeros((self.c, self.c))
            turn[:-1, :-1] = self.half.T
            turn[:-1, -1] = -self.beta
            turn[-1, -1] = 1.0
            self.sums.weigh(turn)
            self._weighed = True

    def _along(self, curves: list[Array]) -> Array:
        """Quadratic forms over directions of the tables in the directions of phi (k, k)."""
        out = np.zeros((self.n_par, self.n_par))
        for own, J, curve, m in zip(self.part.strata, self.jacobians, curves, self.sizes, strict=True):
            rows, columns = np.tril_indices(m)
            flat = J[:, rows, columns]
            out[own.start : own.stop, own.start : own.stop] = flat @ curve @ flat.T
        return out

    # ---- what inference needs, at the last point of order 1 or more ----------------------------

    @property
    def remainder(self) -> float:
        """1: nothing is lost, as all is made of sums of squares."""
        return 1.0

    def rotate(self, turn: Array | None = None) -> None:
        """Random effects have no other coordinates, as there are none."""

    def solution(self) -> tuple[Array, float, Array, Array]:
        """Coefficients, r^2, Cholesky's factor of X'V^-1X, and the derivative in G: there is none."""
        return self.beta, self.r2, self.chol, np.zeros((0, 0))

    def curvature(self) -> Array:
        """Second derivatives along directions of G: there are none."""
        return np.zeros((0, 0))

    def precision(self) -> Array:
        """Sum of Z_i'V_i^-1Z_i: there is no Z."""
        return np.zeros((0, 0))

    def cross(self) -> Array:
        """Derivatives along directions of G: there are none."""
        return np.zeros((0, self.c, self.c))

    def traces(self, weight: Array | None = None) -> Array:
        """Traces for pairs of directions of G: there are none."""
        return np.zeros((0, 0))

    def sandwich(self, weight: Array) -> Array:
        """Sum over pairs of directions of G: there are none."""
        return np.zeros((self.c, self.c))

    def solve(self, v: Array, rows: Rows) -> Array:
        """V^-1 v by the rows of the problem, V relative to sigma^2; (n,) or (n, k) array."""
        assert self._point is not None
        columns = v.reshape(len(v), -1)
        root = np.ones(len(v)) if rows.weights is None else np.sqrt(rows.weights)
        out = root[:, None] * columns
        for own, where, members in self.part.alike():
            out[members] = np.linalg.solve(own.matrix(self._point, where), out[members])
        return np.asarray(root[:, None] * out).reshape(v.shape)

    def cross_products(self) -> Array:
        """[A e]'D[A e] for the directions D of phi (k, c, c): S_D, s_D and t_D."""
        self._weigh()
        found = []
        for J, U, m in zip(self.jacobians, self.sums.products(), self.sizes, strict=True):
            flat = U.transpose(0, 2, 1, 3).reshape(m * m, -1)
            found.append((J.reshape(len(J), m * m) @ flat).reshape(len(J), self.c, self.c))
        return np.concatenate(found)

    def expected(self) -> Array:
        """tr(V^-1 dV V^-1 dV) less twice that within X, for pairs of directions of phi (k, k)."""
        return self._along(self.sums.curves(1.0, 0.0, -2.0))

    def sandwich_along(self, weight: Array) -> Array:
        """Sum over pairs of directions of w_ab A'dV_a V^-1 dV_b A (r, r)."""
        tables = []
        for own, J, m in zip(self.part.strata, self.jacobians, self.sizes, strict=True):
            flat = J.reshape(len(J), m * m)
            mine = weight[own.start : own.stop, own.start : own.stop]
            tables.append((flat.T @ mine @ flat).reshape(m, m, m, m))
        return self.sums.sandwich(tables)[:-1, :-1]

    def within(self, tables: list[Array]) -> Array:
        """A'TA for matrices T over the positions of the tables, in the place of dV (r, r)."""
        out = np.zeros((self.c - 1, self.c - 1))
        for T, U in zip(tables, self.sums.products(), strict=True):
            out += np.einsum("ab,aibj->ij", T, U[:, :-1, :, :-1])
        return out
