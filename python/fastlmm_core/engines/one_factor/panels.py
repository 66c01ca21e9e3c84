"""Sums over the groups of one factor that the criterion and its derivatives are made of, panel by panel.

For N_i, E_i and the whitened P_i see `wide`.  What holds groups elsewhere gives the same sums (see `GroupSums`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from scipy.linalg.blas import dtrsm

from ... import kernels
from ...support.types import Array, Index

__all__ = ["Derived", "GroupSums", "Panels", "Valued"]


PANEL = 2**20
"""Elements of the E_i of a panel, about."""


class Valued(NamedTuple):
    """What the value is made of.

    Attributes
    ----------
    log_det : float
        log|V|.
    sum_n : (n_a,) array
        Sum of N_i, lower triangle by rows.
    H : (k, k) array
        The part of [X y]'V^-1[X y] between groups.
    """

    log_det: float
    sum_n: Array
    H: Array


class Derived(NamedTuple):
    """What derivatives are made of.

    Attributes
    ----------
    outer, square : (q, q) arrays
        Sums of e_i e_i' and, for its lower triangle, of P_i'P_i.
    tensor : (n_a, n_a) array
        Sum of forms in N_i, e_i and P_i times N_i.
    u : (p, q, q) array
    within : (n_a, p, p) array
        Sums of P_a P_b'; empty where `whitened` is kept.
    whitened : list of (p, q, .) arrays
        P_i, where that is less.
    """

    outer: Array
    square: Array
    tensor: Array
    u: Array
    within: Array
    whitened: list[Array]


class GroupSums(Protocol):
    """The sums of a criterion over groups, wherever these are."""

    @property
    def effects(self) -> int:
        """Random effects over all groups."""

    def values(self, F: Array) -> Valued:
        """At Lambda = F."""

    def derivatives(self, F: Array, R: Array, beta: Array, ratio: float, reml: bool, order: int, keep: bool) -> Derived:
        """At Lambda = F, with the factor of H, the coefficients and nu / r^2 there; `keep`: the whitened P_i."""

    def cross(self, F: Array) -> Array:
        """Sums of E_a E_b' for the lower triangle (n_a, k, k)."""

    def traces(self, F: Array, weight: Array | None) -> Array:
        """See `LinearEngine.traces`, before contraction."""

    def sandwich(self, F: Array, mapped: Array) -> Array:
        """See `LinearEngine.sandwich`."""


class Panels:
    """The sums over groups in memory.

    Parameters
    ----------
    packed, uniform
        See `kernels.ClusterCriterion`.
    q, k : int
        Random effects of a group, and columns of [X y].
    """

    def __init__(self, packed: Array, uniform: bool, q: int, k: int) -> None:
        self.packed, self.uniform, self.q, self.k = packed, uniform, q, k

    @property
    def effects(self) -> int:
        """Random effects over all groups."""
        return int(self.q * len(self.packed) * self.packed.shape[2])

    def _panels(self, F: Array) -> Iterator[tuple[slice, float, Array, Array, Array]]:
        """Places, log|V|, N (n_a, .), D and E (k, q, .) of one panel of groups after the other."""
        lanes = self.packed.shape[2]
        step = max(1, PANEL // (self.k * self.q * lanes))
        for start in range(0, len(self.packed), step):
            part = self.packed[start : start + step]
            places = slice(start * lanes, (start + len(part)) * lanes)
            yield places, *kernels.group_moments(part, self.uniform, F, self.k)

    @property
    def _counts(self) -> Array:
        return np.ascontiguousarray(self.packed[:, -1]).ravel()

    def values(self, F: Array) -> Valued:
        """See `GroupSums`."""
        log_det, counts = 0.0, self._counts
        sum_n, H = np.zeros(self.q * (self.q + 1) // 2), np.zeros((self.k, self.k))
        for places, part, N, D, _ in self._panels(F):
            log_det += part
            sum_n += N @ counts[places]
            flat = D.reshape(self.k, -1)
            H += flat @ flat.T
        return Valued(log_det, sum_n, H)

    def derivatives(self, F: Array, R: Array, beta: Array, ratio: float, reml: bool, order: int, keep: bool) -> Derived:
        """See `GroupSums`."""
        q, p = self.q, self.k - 1
        lower, upper = np.tril_indices(q)
        n_a = len(lower)
        counts = self._counts
        square, outer = np.zeros((q, q)), np.zeros((q, q))
        tensor, u = np.zeros((n_a, n_a)), np.zeros((p, q, q))
        within = np.zeros((0 if keep else n_a, p, p))
        b = np.append(-beta, 1.0)
        whitened: list[Array] = []
        for places, _, N, _, E in self._panels(F):
            e = np.tensordot(b, E, 1)
            outer += e @ e.T
            if not reml and order < 2:
                continue
            P = _whitened(R, E[:-1])
            forms = 2.0 * ratio * e[lower] * e[upper]
            if reml:
                own = _diagonals(P, lower, upper)
                square[lower, upper] += own.sum(axis=1)
                forms += 2.0 * own
            if order < 2:
                continue
            tensor += (forms - counts[places] * N) @ N.T
            for j in range(q):
                u[:, j] += P[:, j] @ e.T
            if reml and keep:
                whitened.append(P)
            elif reml:
                for i, (a, c) in enumerate(zip(lower, upper, strict=True)):
                    within[i] += P[:, a] @ P[:, c].T
        return Derived(outer, square, tensor, u, within, whitened)

    def cross(self, F: Array) -> Array:
        """See `GroupSums`."""
        lower, upper = np.tril_indices(self.q)
        out = np.zeros((len(lower), self.k, self.k))
        for _, _, _, _, E in self._panels(F):
            for i, (a, c) in enumerate(zip(lower, upper, strict=True)):
                out[i] += E[:, a] @ E[:, c].T
        return out

    def traces(self, F: Array, weight: Array | None) -> Array:
        """See `GroupSums`."""
        lower, upper = np.tril_indices(self.q)
        tensor, counts = np.zeros((len(lower), len(lower))), self._counts
        for places, _, N, _, E in self._panels(F):
            if weight is None:
                forms = counts[places] * N
            else:
                turned = (weight.T @ E.reshape(self.k, -1)).reshape(E.shape)
                forms = _diagonals(turned, lower, upper)
            tensor += forms @ N.T
        return tensor

    def sandwich(self, F: Array, mapped: Array) -> Array:
        """See `GroupSums`."""
        out = np.zeros((self.k, self.k))
        for _, _, N, _, E in self._panels(F):
            omega = np.tensordot(mapped, N, 1)
            for a in range(self.q):
                out += np.einsum("bg,kbg->kg", omega[a], E) @ E[:, a].T
        return out


def _whitened(R: Array, E: Array) -> Array:
    """R_xx^-1 E_x (p, q, .)."""
    flat = E.reshape(len(E), -1)
    # its transpose is in the memory order of BLAS: X R' = flat'
    return np.ascontiguousarray(dtrsm(1.0, R[:-1, :-1], flat.T, side=1, lower=1, trans_a=1).T).reshape(E.shape)


def _diagonals(P: Array, rows: Index, columns: Index) -> Array:
    """Diagonals of P_a'P_b (pairs, .) for P (p, q, .) and pairs (a, b)."""
    return np.array([np.einsum("jg,jg->g", P[:, a], P[:, b]) for a, b in zip(rows, columns, strict=True)])
