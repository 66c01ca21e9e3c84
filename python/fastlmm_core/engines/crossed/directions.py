"""What follows from Z'V^-1[X y] and products with Z'V^-1 Z: solutions by rows, and derivatives along G^.

A unit direction D of G^ stands for its action on every level of its factor; directions between factors are none, and
what belongs to them is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...kernels.hierarchies import own_products
from ...kernels.layouts import Layout
from ...kernels.records.rows import ConditionedRows
from ...support.types import Array, Index

__all__ = ["LevelDirections", "vech_place"]


def vech_place(row: int, column: int) -> int:
    """Place of row >= column in the lower triangle by rows."""
    return row * (row + 1) // 2 + column


class LevelDirections:
    """Methods of engines of several grouping factors that have E = Z'V^-1[X y] and products with N = Z'V^-1 Z."""

    if TYPE_CHECKING:
        reml: bool

        @property
        def layout(self) -> Layout:
            """Levels in the order of their slots."""

        @property
        def n_slots(self) -> int:
            """Random effects over all levels."""

        @property
        def q(self) -> int:
            """Columns of Lambda."""

        @property
        def k(self) -> int:
            """Columns of [X y]."""

        def scores(self) -> Array:
            """E (n_slots, k)."""

        def multiply(self, columns: Array) -> Array:
            """N columns."""

        def means(self, columns: Array) -> Array:
            """(I + G Z'Z)^-1 G columns."""

        def traces(self, weight: Array | None = None) -> Array:
            """See `LinearEngine`."""

        def state(self) -> tuple[Array, Array, float, float, Array, Array]:
            """theta, Lambda, nu, r^2, (-beta, 1), and the inverse of the factor of X'V^-1 X."""

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

    def cross(self) -> Array:
        """sum E_a'D E_a for the unit directions D of vech(G^), at the last point of order 1 or more.

        Returns
        -------
        (n_a, k, k) array
            Minus the derivative of [X y]'V^-1[X y].
        """
        out = np.zeros((self.q * (self.q + 1) // 2, self.k, self.k))
        for rows, column in zip(*self.layout.factor_slots(), strict=True):
            E = self.scores()[rows]
            for i in range(rows.shape[1]):
                for j in range(i + 1):
                    product = E[:, i].T @ E[:, j]
                    out[vech_place(column + i, column + j)] = product if i == j else product + product.T
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
        for rows, column in zip(*self.layout.factor_slots(), strict=True):
            for i in range(rows.shape[1]):
                for j in range(i + 1):
                    part = np.zeros_like(columns)
                    part[rows[:, i]] = columns[rows[:, j]]
                    part[rows[:, j]] = columns[rows[:, i]]
                    which.append(vech_place(column + i, column + j))
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
