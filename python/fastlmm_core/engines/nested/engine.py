"""The criterion of nested factors with exact second derivatives, by sweeps over families of levels.

The sweeps are in lanes/families.pxi; see `chain` for the columns in which the factors are written.
"""

from __future__ import annotations

from math import isfinite, log, pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...kernels.hierarchies import ChainEngine

if TYPE_CHECKING:
    from ...covariance.parameters import CovarianceStructure
    from ..crossed.engine import BlockedCriterion
    from ..crossed.order import Layout
    from .problem import ChainProblem

__all__ = ["ChainCriterion"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


def _vech(row: int, column: int) -> int:
    """Place of row >= column in the lower triangle by rows."""
    return row * (row + 1) // 2 + column


def _turned_directions(T: Array) -> Array:
    """Coefficients of T D T' in the unit directions of (r, r) matrices, for the unit directions D of (q, q) ones."""
    r, q = T.shape
    rows, columns = np.tril_indices(r)
    out = np.empty((len(rows), q * (q + 1) // 2))
    for i in range(q):
        for j in range(i + 1):
            turned = np.outer(T[:, i], T[:, j])
            out[:, _vech(i, j)] = (turned if i == j else turned + turned.T)[rows, columns]
    return out


class ChainCriterion(ChainEngine):
    """The criterion as a function of the free elements of L, with the interface of `BlockedCriterion`.

    Parameters
    ----------
    packed, r, k, starts, parents, n_par :
        See `_nested.ChainEngine`.
    problem : ChainProblem
        Where the primitives that need every level are found.
    columns : array or None
        [X y] columns in place of [X y].
    within : (k, k) array
        [X y]'[X y] less what the finest levels explain.
    gram : (k, k) array
        [X y]'[X y].
    maps : list of (r, q_s) arrays
        T_s, finest first.
    places : list of int
        First column of each in G^.
    """

    def __init__(
        self, packed: Array, r: int, k: int, starts: list[Index], parents: list[Index], n_par: int,
        problem: ChainProblem, columns: Array | None, within: Array, gram: Array, maps: list[Array], places: list[int],
    ) -> None:  # fmt: skip
        self.structure: CovarianceStructure = problem.structure
        self.problem, self.columns, self.within, self.gram = problem, columns, within, gram
        self.q, self.n_rows = problem.structure.q, problem.n
        self.parts = [slice(at, at + T.shape[1]) for at, T in zip(places, maps, strict=True)]
        self.maps = maps
        self.reml = True
        self.average = True
        self.n_evaluations = 0
        self.turn: Array | None = None
        rows, across = np.tril_indices(r)
        self._lower = rows, across
        n_a = len(rows)
        self._spread = np.zeros((len(maps) * n_a, self.q * (self.q + 1) // 2))
        for s, (part, T) in enumerate(zip(self.parts, maps, strict=True)):
            i, j = np.tril_indices(T.shape[1])
            i, j = i + part.start, j + part.start
            self._spread[s * n_a : (s + 1) * n_a, i * (i + 1) // 2 + j] = _turned_directions(T)
        self._free = self.structure.positions
        free = np.zeros((self.q, self.q), dtype=bool)
        for block in self.structure.blocks:
            inner = slice(block.start, block.stop)
            width = block.stop - block.start
            free[inner, inner] = np.tril(np.ones((width, width))) if block.structure == "full" else np.eye(width)
        self._elements = np.nonzero(free)
        self._at: tuple[Any, ...] | None = None
        self._done = -1
        self._every: BlockedCriterion | None = None

    # --- evaluation

    def rotate(self, turn: Array | None = None) -> None:
        """Let theta be the free elements of L in G^ = Q'L L'Q from now on; Q (q, q) orthogonal or None."""
        self.turn = None if turn is None else np.array(turn, dtype=float)
        self._at = None

    def evaluate(self, theta: Any, order: int = 0) -> tuple[float, Array | None, Array | None]:
        """Value, gradient and Hessian at theta (n_par,); an infinite value where the criterion is not defined.

        The Hessian is exact, or from the average information if `average`.
        """
        theta = np.array(theta, dtype=float)
        n = self.n_par
        if theta.shape != (n,):
            raise ValueError(f"theta has {theta.size} elements, the model has {n}")
        try:
            value, _, gradient, hessian = self.at(theta, order)
        except (FloatingPointError, np.linalg.LinAlgError):
            value = np.inf
        if not isfinite(value):
            return np.inf, np.zeros(n) if order >= 1 else None, np.eye(n) if order >= 2 else None
        return value, gradient, hessian

    def at(self, theta: Array, order: int) -> tuple[float, float, Array | None, Array | None]:
        """Value, the rounding error expected in it, gradient and Hessian."""
        here = self._at
        if here is None or here[1] != self.reml or not np.array_equal(here[0], theta):
            self.n_evaluations += 1
            self._every = None
            self._at = None
            self._value_at(theta)
            self._at = (np.array(theta), self.reml)
            self._done = 0
        if order > self._done or (order == 2 and self._averaged != self.average):
            self._slopes(order, self.average)
        return (
            self._value,
            self._noise,
            self._gradient if order >= 1 else None,
            self._hessian if order >= 2 else None,
        )

    def _value_at(self, theta: Array) -> None:
        k, p, gram = self.k, self.k - 1, self.gram
        factor = self.structure.factor(theta)
        self._factor = factor if self.turn is None else self.turn.T @ factor
        self._factors = np.zeros((self.n_stages, self.r, self.r))
        for s, (part, T) in enumerate(zip(self.parts, self.maps, strict=True)):
            self._factors[s, :, : T.shape[1]] = T @ self._factor[part, part]
        logdet, quadratic = self.up(self._factors)
        chol = np.linalg.cholesky(self.within + kernels.unpack(quadratic, k))
        self._chol = chol
        self._r2 = float(chol[p, p] ** 2)
        self._inverse = np.linalg.inv(chol[:p, :p]) if p else np.zeros((0, 0))
        self._b = np.append(-(self._inverse.T @ chol[p, :p]), 1.0)
        diagonal = np.diag(chol)[:p]
        log_h = 2.0 * float(np.log(diagonal).sum())
        self._nu = nu = float(self.n_rows - p if self.reml else self.n_rows)
        scale = nu * (1.0 + log(2.0 * pi * self._r2 / nu))
        self._value = logdet + scale + (log_h if self.reml else 0.0)
        noise = abs(logdet) + abs(scale) + abs(log_h) + nu * gram[p, p] / self._r2
        if self.reml:
            noise += float(np.sum(np.diag(gram)[:p] / diagonal**2))
        self._noise = 2.3e-16 * noise

    def _weight(self) -> Array:
        """w with w w' = 2 M, M = (nu / r^2) b b' [+ K]."""
        k, p = self.k, self.k - 1
        weight = np.zeros((k, k))
        if self.reml:
            weight[:p, :p] = sqrt(2.0) * self._inverse.T
        weight[:, p] = sqrt(2.0 * self._nu / self._r2) * self._b
        return weight

    def _slopes(self, order: int, average: bool) -> None:
        p = self.k - 1
        first, second = 0 if self.reml else p, order >= 2
        sums, squares, gram, curve = self.down(
            self._factors, self._weight(), first, second, not average, p if average else first
        )
        self._sums = sums
        self._slope = self._joined(sums - 0.5 * squares)
        rows, columns = self._free
        turned = self._slope if self.turn is None else self.turn @ self._slope
        self._gradient = 2.0 * (turned @ self._factor)[rows, columns]
        self._done, self._averaged = order, average
        if not second:
            return
        self._cross = self._products(gram)
        scale = self._nu / self._r2
        u = self._cross @ self._b
        square = u @ self._b
        whitened = u[:, :p] @ self._inverse.T
        out = self._spread.T @ curve @ self._spread
        if average:
            out = 0.5 * out - scale * (whitened @ whitened.T + np.outer(square, square) / self._r2)
        else:
            out -= scale * (2.0 * whitened @ whitened.T + np.outer(square, square) / self._r2)
        if self.reml and p and not average:
            inner = self._inverse @ self._cross[:, :p, :p] @ self._inverse.T
            out -= np.einsum("aij,bij->ab", inner, inner)
        self._curvature = out
        i, j = self._elements
        change = self._changes(rows, columns)[:, i, j]
        free = i * (i + 1) // 2 + j
        self._hessian = change @ out[np.ix_(free, free)] @ change.T
        if self.turn is not None:
            turned = turned @ self.turn.T
        self._hessian += 2.0 * turned[np.ix_(rows, rows)] * (columns[:, None] == columns)

    def _changes(self, rows: Index, columns: Index) -> Array:
        """Derivatives of G^ in theta, (n_par, q, q)."""
        unit = np.eye(self.q) if self.turn is None else self.turn
        half = unit[rows][:, :, None] * self._factor.T[columns][:, None, :]
        return np.asarray(half + half.transpose(0, 2, 1))

    def _joined(self, packed: Array) -> Array:
        """Symmetric matrices of all stages, in the columns of G^."""
        out = np.zeros((self.q, self.q))
        for s, (part, T) in enumerate(zip(self.parts, self.maps, strict=True)):
            out[part, part] = T.T @ kernels.unpack(packed[s], self.r) @ T
        return out

    def _products(self, gram: Array) -> Array:
        """sum E'D E (n_a, k, k)."""
        k, r = self.k, self.r
        out = np.zeros((self.q * (self.q + 1) // 2, k, k))
        for s, (part, T) in enumerate(zip(self.parts, self.maps, strict=True)):
            every = kernels.unpack(gram[s], r * k).reshape(r, k, r, k)
            turned = np.einsum("aibj,ac,bd->cdij", every, T, T)
            for i in range(T.shape[1]):
                for j in range(i + 1):
                    product = turned[i, j]
                    out[_vech(part.start + i, part.start + j)] = product if i == j else product + product.T
        return out

    def _require(self, order: int) -> None:
        if self._at is None:
            raise ValueError(f"evaluate with order={order} first")
        if self._done < order:
            self._slopes(order, self.average)

    # --- what inference needs (see `BlockedCriterion`)

    def solution(self) -> tuple[Array, float, Array, Array]:
        """beta, r^2, the Cholesky factor of H_xx and the derivative in G^, at the last point of order 1 or more."""
        self._require(1)
        p = self.k - 1
        return -self._b[:p], self._r2, np.ascontiguousarray(self._chol[:p, :p]), self._slope.copy()

    def curvature(self) -> Array:
        """Exact second derivatives of the criterion in vech(G^), (n_a, n_a), zero between factors."""
        self._require(1)
        if self._done < 2 or self._averaged:
            self._slopes(2, False)
        return self._curvature.copy()

    def precision(self) -> Array:
        """sum N_aa (q, q) over the levels of each factor."""
        self._require(1)
        return self._joined(self._sums)

    def cross(self) -> Array:
        """sum E_a'D E_a (n_a, k, k) for the unit directions D of vech(G^)."""
        self._require(2)
        return self._cross.copy()

    def traces(self, weight: Array | None = None) -> Array:
        """tr(B D N F) (n_a, n_a) for the unit directions, B = N, or (E w)(E w)' for an upper triangular w (k, k)."""
        self._require(1)
        given = np.zeros((self.k, self.k)) if weight is None else np.ascontiguousarray(weight, dtype=float)
        first = self.k if weight is None else 0
        curve = self.down(self._factors, given, first, True, weight is None)[3]
        out = self._spread.T @ curve @ self._spread
        return np.asarray(-out if weight is None else out)

    def sandwich(self, weight: Array) -> Array:
        """sum_kl w_kl E'D_k N D_l E (k, k) over the unit directions, for a symmetric w (n_a, n_a)."""
        k = self.k
        single = np.empty(k)
        out = np.zeros((k, k))
        for j in range(k):
            for i in range(j + 1):
                column = np.zeros((k, k))
                column[i, j] = column[j, j] = 1.0
                total = float(np.sum(self.traces(column) * weight))
                if i == j:
                    single[j] = out[j, j] = total
                else:
                    out[i, j] = total
        for j in range(k):
            for i in range(j):
                out[i, j] = out[j, i] = 0.5 * (out[i, j] - single[i] - single[j])
        return out

    def state(self) -> tuple[Array, Array, float, float, Array, Array]:
        """theta, F = Q'L, nu, r^2, b = (-beta, 1) and the inverse of the Cholesky factor of H_xx."""
        self._require(1)
        assert self._at is not None
        return self._at[0].copy(), self._factor.copy(), self._nu, self._r2, self._b.copy(), self._inverse.copy()

    def blocked(self) -> BlockedCriterion:
        """The same criterion by block elimination, at the last point."""
        self._require(1)
        if self._every is None:
            self._every = self.problem.blocked_criterion(self.columns)
            self._every.reml = self.reml
            self._every.evaluate(self.structure.theta(self.structure.canonical(self._factor)), 1)
        return self._every

    def scores(self) -> Array:
        """E = Z'V^-1 [X y] (n_slots, k) in the layout's order."""
        return self.blocked().scores()

    def multiply(self, columns: Array) -> Array:
        """N columns for (n_slots, c) columns."""
        return self.blocked().multiply(columns)

    def conditional(self, precision: bool = False) -> Array:
        """Posterior covariance of each level relative to sigma^2, or N_aa: (n_slots, q), left-justified."""
        return self.blocked().conditional(precision)

    def gram_times(self, columns: Array) -> Array:
        """Z'Z columns for (n_slots, c) columns."""
        if not columns.shape[1]:
            return np.empty((self.n_slots, 0))
        return self.problem.blocked_criterion().gram_times(columns)

    @property
    def layout(self) -> Layout:
        """Levels and products of the block elimination."""
        return self.problem.layout

    @property
    def n_slots(self) -> int:
        """Random effects over all levels."""
        return self.problem.n_effects
