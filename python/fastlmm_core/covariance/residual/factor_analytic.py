"""Correlations that come from few factors: `fa` (with a variance for each position, SAS's FA(q)).

C_ij = l_i'l_j for i != j, with standardized loadings l_i = a_i / sqrt(1 + |a_i|^2) of any a_i: what the factors leave
of a position's variance is 1 - |l_i|^2 > 0. Loadings on factors beyond the position's own number are zero, as a
rotation can make them. With w = 1 / sqrt(1 + |a|^2):

    dl_f / da_g = w (delta_fg - l_f l_g),
    d2l_f / da_g da_h = w^2 (3 l_f l_g l_h - delta_fg l_h - delta_fh l_g - delta_gh l_f)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .moments import visit_covariance
from .structure import NEAR, Array, Rows, Where

__all__ = ["FactorAnalytic"]

_LARGEST_COMMUNALITY = 0.9


@dataclass(frozen=True)
class FactorAnalytic:
    """Correlations of m positions by q factors.

    Parameters
    ----------
    m, q : int
    """

    m: int
    q: int = 1
    name: str = "fa"
    linear: bool = False

    @property
    def positions(self) -> int:
        """m."""
        return self.m

    @property
    def n_parameters(self) -> int:
        """Loadings that are not zero."""
        return len(self._places[0])

    @cached_property
    def _places(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Position and factor of each loading, factor by factor."""
        factors, positions = np.nonzero(np.tri(self.m, self.q).T)
        return positions, factors

    def _loadings(self, phi: Array) -> tuple[Array, Array]:
        """Standardized loadings l (m, q), and w (m,)."""
        a = np.zeros((self.m, self.q))
        a[self._places] = phi
        largest = np.maximum(1.0, np.abs(a).max(axis=1))
        length = largest * np.sqrt((1.0 / largest) ** 2 + ((a / largest[:, None]) ** 2).sum(axis=1))
        return a / length[:, None], 1.0 / length

    def _slopes(self, loadings: Array, w: Array) -> Array:
        """dl_i / da_a of the position i of each parameter (k, q)."""
        i, f = self._places
        return (np.eye(self.q)[f] - loadings[i] * loadings[i, f][:, None]) * w[i][:, None]

    def _bends(self, loadings: Array, w: Array) -> Array:
        """d2l_i / da_a da_b (k, k, q) for parameters of the same position, zero for others."""
        i, f = self._places
        own = loadings[i, f]
        unit = np.eye(self.q)[f]
        same = np.equal.outer(i, i)
        out = 3.0 * own[:, None, None] * own[None, :, None] * loadings[i][:, None, :]
        out -= unit[:, None, :] * own[None, :, None] + unit[None, :, :] * own[:, None, None]
        out -= np.equal.outer(f, f)[:, :, None] * loadings[i][:, None, :]
        return np.asarray(out * (same * (w[i] ** 2)[:, None])[:, :, None])

    def matrix(self, phi: Array, where: Where) -> Array:
        """C (n, n)."""
        loadings = self._loadings(phi)[0][where]
        C: Array = loadings @ loadings.T
        np.fill_diagonal(C, 1.0)
        return C

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dC / dphi (k, n, n)."""
        loadings, w = self._loadings(phi)
        change = self._slopes(loadings, w) @ loadings[where].T  # (k, n)
        here = np.equal.outer(self._places[0], where)
        half = here[:, :, None] * np.where(here, 0.0, change)[:, None, :]
        return np.asarray(half + half.transpose(0, 2, 1))

    def _scattered(self, where: Where, slope: Array) -> Array:
        """Slope at all positions, without its diagonal."""
        G = np.zeros((self.m, self.m))
        G[np.ix_(where, where)] = slope
        np.fill_diagonal(G, 0.0)
        return G

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times second derivatives (k, k)."""
        loadings, w = self._loadings(phi)
        i = self._places[0]
        G = self._scattered(where, slope)
        slopes = self._slopes(loadings, w)
        out = 2.0 * G[i[:, None], i] * (slopes @ slopes.T)
        met = (G @ loadings)[i]
        out += 2.0 * np.einsum("abf,af->ab", self._bends(loadings, w), met)
        return np.asarray(out)

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Weighted sum of second derivatives (n, n)."""
        loadings, w = self._loadings(phi)
        i = self._places[0]
        slopes = self._slopes(loadings, w)
        half = np.zeros((self.m, self.m))
        np.add.at(half, (i[:, None], i), weights * (slopes @ slopes.T))
        bend = np.zeros((self.m, self.q))
        np.add.at(bend, i, np.einsum("ab,abf->af", weights, self._bends(loadings, w)))
        half += bend @ loadings.T
        full = half + half.T
        np.fill_diagonal(full, 0.0)
        return np.asarray(full[np.ix_(where, where)])

    def start(self, rows: Rows) -> Array:
        """Principal factors of the correlations over pairs of rows."""
        S = visit_covariance(rows, self.m)
        s = np.sqrt(np.diag(S))
        C = S / s / s[:, None]
        reduced = C - np.diag(1.0 / np.diag(np.linalg.inv(C)))
        values, vectors = np.linalg.eigh(reduced)
        loadings = vectors[:, : -self.q - 1 : -1] * np.sqrt(np.maximum(values[: -self.q - 1 : -1], 0.05))
        # turned so that the loadings above the diagonal vanish
        loadings = loadings @ np.linalg.qr(loadings[: self.q].T)[0]
        communality = (loadings**2).sum(axis=1)
        loadings *= np.sqrt(_LARGEST_COMMUNALITY / np.maximum(communality, _LARGEST_COMMUNALITY))[:, None]
        a = loadings[self._places]
        return self._of_loadings(np.where(np.abs(a) < 0.02, 0.02, a))

    def _of_loadings(self, c: Array) -> Array:
        loadings = np.zeros((self.m, self.q))
        loadings[self._places] = c
        rest = 1.0 - (loadings**2).sum(axis=1)
        return np.asarray((loadings / np.sqrt(rest)[:, None])[self._places])

    def natural(self, phi: Array) -> Array:
        """Standardized loadings (k,)."""
        out: Array = self._loadings(phi)[0][self._places]
        return out

    def from_natural(self, c: Array) -> Array:
        """Phi from standardized loadings."""
        return self._of_loadings(c)

    def natural_jacobian(self, phi: Array) -> Array:
        """Derivatives of standardized loadings (k, k)."""
        i, f = self._places
        slopes = self._slopes(*self._loadings(phi))
        return np.asarray(slopes[:, f].T * np.equal.outer(i, i))

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Second derivatives of their weighted sum (k, k)."""
        i = self._places[0]
        by_position = np.zeros((self.m, self.q))
        by_position[self._places] = weights
        return np.asarray(np.einsum("abf,af->ab", self._bends(*self._loadings(phi)), by_position[i]))

    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """``loading1_label``, ..."""
        positions, factors = self._places
        return tuple(f"loading{f + 1}_{labels[i]}" for i, f in zip(positions.tolist(), factors.tolist(), strict=True))

    def boundary(self, phi: Array, labels: Sequence[str]) -> tuple[str, str] | None:
        """A position whose variance is that of the factors alone."""
        w = self._loadings(phi)[1]
        low = int(np.argmin(w))
        return (f"specific variance of {labels[low]}", "0") if w[low] ** 2 < NEAR else None
