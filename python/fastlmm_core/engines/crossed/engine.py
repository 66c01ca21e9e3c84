"""The criterion of several grouping factors with the derivatives in G^ that inference needs.

A unit direction D of G^ stands for its action on every level of its factor; directions between factors are none, and
what belongs to them is zero.  N = Z'V^-1 Z and E = Z'V^-1 [X y] come from the kernel `_blocked`.
"""

from __future__ import annotations

import numpy as np

from ...kernels.crossed import CrossedEngine
from ...kernels.hierarchies import own_products
from ...kernels.records import ConditionedRows
from ...support.blas_threads import blas_threads, libraries
from ...support.memory import blas_callers
from ...support.threads import threads_in_use
from ...support.types import Array, Index

__all__ = ["CrossedCriterion"]

# the kernel has loaded scipy's BLAS
libraries.cache_clear()


DENSE_UP_TO = 4000
"""Random effects, over all levels, up to which tr(N D N F) is taken from all of N."""

SERIAL_FROM, SHARED_FROM = 40, 500
"""Columns of a dense core from which BLAS is called, and from which threads of ours share the work."""

COSTLY_FROM, MANY_PARAMETERS = 300, 20
"""Random effects over all levels, and parameters, from which a fit is content with one certified minimum."""

CENTRAL = ((-2.0, -1.0, 1.0, 2.0), (1.0 / 12.0, -2.0 / 3.0, 2.0 / 3.0, -1.0 / 12.0))
ONE_SIDED = ((0.0, 1.0, 2.0, 3.0, 4.0), (-25.0 / 12.0, 4.0, -3.0, 4.0 / 3.0, -0.25))
"""Steps and weights of first derivatives of fourth order."""


def _vech(row: int, column: int) -> int:
    """Place of row >= column in the lower triangle by rows."""
    return row * (row + 1) // 2 + column


class CrossedCriterion(CrossedEngine):
    """The criterion as a function of the free elements of L, with the interface of `ClusterCriterion`.

    See `_blocked.CrossedEngine` for the parameters.
    """

    _traces: tuple[Array, Array] | None = None

    @property
    def costly(self) -> bool:
        """Whether the search for other minima than a certified one takes too long."""
        return self.n_slots > COSTLY_FROM or self.n_par > MANY_PARAMETERS

    @property
    def serial(self) -> bool:
        """Whether an evaluation calls BLAS, whose threads cost more than they gain; large cores are shared by ours."""
        return self._largest_core >= SERIAL_FROM

    @property
    def _largest_core(self) -> int:
        return int(self.layout.core_sizes.max(initial=0))

    def share(self) -> None:
        """Let as many threads as are in use, and BLAS may use now, share the work on a large core."""
        if self._largest_core >= SHARED_FROM:
            most = blas_threads()
            self.jobs = blas_callers(min(most, threads_in_use(most)))

    def solve(self, v: Array, rows: ConditionedRows) -> Array:
        """V^-1 v by rows at the last point, V relative to sigma^2: W (v - Z u), u the means of the effects given v.

        Parameters
        ----------
        v : (n,) or (n, k) array
        rows : ConditionedRows
            The rows that v belongs to.

        Returns
        -------
        array like v
        """
        root = 1.0 if rows.weights is None else rows.weights[:, None]
        rest = np.array(v, dtype=float).reshape(len(v), -1)
        weighted = np.ascontiguousarray(root * rest)
        places = self.layout.places
        products = np.zeros((self.n_slots, rest.shape[1]))
        for Z, codes, slots in zip(rows.Z, rows.codes, places, strict=True):
            products[slots.ravel()] = own_products(codes, Z, weighted, len(slots))[1]
        means = self.means(products)
        for Z, codes, slots in zip(rows.Z, rows.codes, places, strict=True):
            for column, slot in zip(Z.T, slots.T, strict=True):
                rest -= column[:, None] * means[slot[codes]]
        return np.asarray((root * rest).reshape(np.shape(v)))

    def directions(self) -> tuple[list[Index], list[int]]:
        """Slots of each factor as (m, q) arrays, and its first column in G^.

        Returns
        -------
        slots : list of (m, q) intp arrays
        columns : list of int
            First column of each factor in G^.
        """
        slots: list[Index] = []
        columns: list[int] = []
        at = 0
        for stage in self.layout.stages:
            slots.append(at + np.arange(stage.m * stage.q).reshape(stage.m, stage.q))
            columns.append(stage.column)
            at += stage.m * stage.q
        comp_slot = np.asarray(self.layout.comp_slot)
        for tail in self.layout.tails:
            slots.append((at + comp_slot[tail.comp] + tail.slot)[:, None] + np.arange(tail.q))
            columns.append(tail.column)
        return slots, columns

    def cross(self) -> Array:
        """sum E_a'D E_a for the unit directions D of vech(G^), at the last point of order 1 or more.

        Returns
        -------
        (n_a, k, k) array
            Minus the derivative of [X y]'V^-1[X y].
        """
        out = np.zeros((self.q * (self.q + 1) // 2, self.k, self.k))
        for rows, column in zip(*self.directions(), strict=True):
            E = self.scores()[rows]
            for i in range(rows.shape[1]):
                for j in range(i + 1):
                    product = E[:, i].T @ E[:, j]
                    out[_vech(column + i, column + j)] = product if i == j else product + product.T
        return out

    def directed(self, columns: Array) -> tuple[Index, Array]:
        """D columns for the unit directions D of vech(G^) within factors.

        Parameters
        ----------
        columns : (n_slots, c) array

        Returns
        -------
        which : (d,) intp array
            Their places in vech(G^).
        (n_slots, d, c) array
        """
        which: list[int] = []
        parts: list[Array] = []
        for rows, column in zip(*self.directions(), strict=True):
            for i in range(rows.shape[1]):
                for j in range(i + 1):
                    part = np.zeros_like(columns)
                    part[rows[:, i]] = columns[rows[:, j]]
                    part[rows[:, j]] = columns[rows[:, i]]
                    which.append(_vech(column + i, column + j))
                    parts.append(part)
        return np.array(which, dtype=np.intp), np.stack(parts, axis=1)

    def forms(self, columns: Array) -> Array:
        """sum_j c_j'D N F c_j over columns c_j for the unit directions D, F of vech(G^): (n_a, n_a) array."""
        which, turned = self.directed(np.ascontiguousarray(columns))
        d, c = turned.shape[1:]
        n_a = self.q * (self.q + 1) // 2
        out = np.zeros((n_a, n_a))
        total = np.zeros((d, d))
        for j in range(c):
            total += turned[:, :, j].T @ self.multiply(turned[:, :, j])
        out[np.ix_(which, which)] = 0.5 * (total + total.T)
        return out

    def traces(self, weight: Array | None = None) -> Array:
        """tr(B D N F) for the unit directions D, F of vech(G^) at the last point of order 1 or more.

        Parameters
        ----------
        weight : upper triangular (k, k) array or None
            B = (E w)(E w)'; without a weight B = N.

        Returns
        -------
        (n_a, n_a) array
        """
        if weight is not None:
            return self.forms(self.scores() @ weight)
        # profiles ask twice at most points
        factor = self.state()[1]
        if self._traces is None or not np.array_equal(factor, self._traces[0]):
            found = self._dense_traces() if self.n_slots <= DENSE_UP_TO else self._differenced_traces()
            self._traces = factor, found
        return self._traces[1].copy()

    def _dense_traces(self) -> Array:
        """tr(N D N F) from all of N, some columns at a time."""
        n_a = self.q * (self.q + 1) // 2
        out = np.zeros((n_a, n_a))
        slots, columns = self.directions()
        # columns of N, some levels at a time; Gram matrices of vec(N_ab) over pairs of levels
        for rows_g, column_g in zip(slots, columns, strict=True):
            q_g = rows_g.shape[1]
            step = max(1, 256 // q_g)
            for start in range(0, len(rows_g), step):
                some = rows_g[start : start + step]
                unit = np.zeros((self.n_slots, some.size))
                unit[some.ravel(), np.arange(some.size)] = 1.0
                N = self.multiply(unit)
                for rows_f, column_f in zip(slots, columns, strict=True):
                    q_f = rows_f.shape[1]
                    blocks = N[rows_f].reshape(len(rows_f), q_f, len(some), q_g)
                    pairs = blocks.transpose(0, 2, 1, 3).reshape(-1, q_f * q_g)
                    gram = (pairs.T @ pairs).reshape(q_f, q_g, q_f, q_g)
                    for i in range(q_f):
                        for j in range(i + 1):
                            # tr(D N_ab F N_ba), D of f and F of g
                            half = gram[i, :, j] if i == j else gram[i, :, j] + gram[j, :, i]
                            for r in range(q_g):
                                for s in range(r + 1):
                                    value = half[r, s] if r == s else half[r, s] + half[s, r]
                                    out[_vech(column_f + i, column_f + j), _vech(column_g + r, column_g + s)] += value
        return 0.5 * (out + out.T)

    def _differenced_traces(self) -> Array:
        """tr(N D N F) = -d_D tr(F N) by differences of fourth order of the exact first derivatives.

        Along v v' only, v a unit vector or the sum of two, from one side where G^ - h v v' is not a covariance matrix;
        h is small against 1 / N, on which scale N changes.
        """
        q = self.q
        theta, factor, *_ = self.state()
        G = factor @ factor.T
        sums = self.precision()
        slots, columns = self.directions()
        n_a = q * (q + 1) // 2
        rows, places = np.tril_indices(q)
        out = np.zeros((n_a, n_a))
        for some, column in zip(slots, columns, strict=True):
            m, q_f = some.shape
            along: dict[tuple[int, int], Array] = {}
            for i in range(q_f):
                for j in range(i + 1):
                    v = np.zeros(q)
                    v[column + i] = v[column + j] = 1.0
                    h = 2e-3 * m / (v @ sums @ v)
                    part = slice(column, column + q_f)
                    inner = G[part, part] - 3.0 * h * np.outer(v[part], v[part])
                    central = np.linalg.eigvalsh(inner)[0] > 0.0
                    steps, weights = CENTRAL if central else ONE_SIDED
                    change = np.zeros((q, q))
                    for step, weight in zip(steps, weights, strict=True):
                        moved = G + step * h * np.outer(v, v)
                        values, vectors = np.linalg.eigh(moved)
                        change += (
                            weight / h * self.precision_at((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)
                        )
                    along[i, j] = -change
            for i in range(q_f):
                for j in range(i + 1):
                    change = along[i, j] if i == j else along[i, j] - along[i, i] - along[j, j]
                    out[_vech(column + i, column + j)] = change[rows, places] * np.where(rows == places, 1.0, 2.0)
        # back to where it was
        self.recall(theta, 1)
        return 0.5 * (out + out.T)

    def sandwich(self, weight: Array) -> Array:
        """sum_kl w_kl E'D_k N D_l E over the unit directions of vech(G^), at the last point of order 1 or more.

        Parameters
        ----------
        weight : symmetric (n_a, n_a) array

        Returns
        -------
        (k, k) array
        """
        which, turned = self.directed(self.scores())
        weight = np.asarray(weight)[np.ix_(which, which)]
        mixed = np.einsum("kl,nlj->nkj", weight, turned)
        out = np.zeros((self.k, self.k))
        for i in range(len(which)):
            out += mixed[:, i].T @ self.multiply(turned[:, i])
        return 0.5 * (out + out.T)

    def curvature(self) -> Array:
        """Exact second derivatives of the criterion in vech(G^) at the last point of order 1 or more, (n_a, n_a)."""
        k, p = self.k, self.k - 1
        _, _, nu, r2, b, inverse = self.state()
        scale = nu / r2
        b = b[:, None]
        E = self.scores()
        which, turned = self.directed(E @ b)
        n_a = self.q * (self.q + 1) // 2
        u = np.zeros((n_a, k))
        u[which] = turned[:, :, 0].T @ E
        square = u @ b
        whitened = u[:, :p] @ inverse.T
        out = 2.0 * scale * (self.forms(E @ b) - whitened @ whitened.T) - scale / r2 * (square @ square.T)
        out -= self.traces()
        if self.reml and p:
            inner = inverse @ self.cross()[:, :p, :p] @ inverse.T
            out += 2.0 * self.forms(E[:, :p] @ inverse.T) - np.einsum("aij,bij->ab", inner, inner)
        return out
