"""The criterion of several grouping factors with the derivatives in G^ that inference needs.

A unit direction D of G^ stands for its action on every level of its factor; directions between factors are none, and
what belongs to them is zero.  N = Z'V^-1 Z and E = Z'V^-1 [X y] come from the kernel `_crossed`.
"""

from __future__ import annotations

import numpy as np

from ...kernels.crossed import CrossedEngine
from ...support.blas_threads import blas_threads, libraries
from ...support.memory import blas_callers
from ...support.threads import threads_in_use
from ...support.types import Array
from .directions import LevelDirections, vech_place

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


class CrossedCriterion(LevelDirections, CrossedEngine):
    """The criterion as a function of the free elements of L, with the interface of `ClusterCriterion`.

    See `_crossed.CrossedEngine` for the parameters.
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
        slots, columns = self.layout.factor_slots()
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
                                    at = vech_place(column_f + i, column_f + j), vech_place(column_g + r, column_g + s)
                                    out[at] += value
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
        slots, columns = self.layout.factor_slots()
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
                    out[vech_place(column + i, column + j)] = change[rows, places] * np.where(rows == places, 1.0, 2.0)
        # back to where it was
        self.recall(theta, 1)
        return 0.5 * (out + out.T)
