"""R = s s' o C with log s = h(phi_s) and C = C(phi_c): derivatives of the product from those of its factors.

With E = slope o ss' and M = slope o R (o elementwise), phi = (phi_s, phi_c):

    dR = R o (h'_i + h'_j)  or  ss' o C'
    <slope, d2R> = 2 h_a' diag(M 1) h_b + 2 h_a' M h_b + 2 (M 1)' h_ab,   2 h_a' (E o C'_b) 1,   <E, C''>
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from .structure import Array, Where

__all__ = ["Factor", "Profile", "product_jacobian", "product_matrix", "product_second", "product_second_sum"]


class Profile(Protocol):
    """Logarithms of standard deviations, and their derivatives."""

    def logarithm(self, phi: Array, where: Where) -> Array:
        """log s (n,)."""

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dlog s / dphi (k, n)."""

    def second(self, phi: Array, where: Where, weights: Array) -> Array:
        """Sums over rows of weights (n,) times second derivatives (k, k)."""

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Sums over parameters of weights (k, k) times second derivatives (n,)."""


class Factor(Protocol):
    """A matrix, and its derivatives."""

    def matrix(self, phi: Array, where: Where) -> Array:
        """C (n, n)."""

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dC / dphi (k, n, n)."""

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times second derivatives (k, k)."""

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Weighted sum of second derivatives (n, n)."""


Sides = tuple[Array, Where]
"""Parameters and rows of one factor."""


def _one_by_one(where: Where) -> Where:
    """Rows of several subjects (B, n, c), one after the other; any other rows as they are."""
    return where.reshape(where.shape[0] * where.shape[1], where.shape[2]) if where.ndim > 2 else where


def _rows(of_rows: Callable[[Array, Where], Array], first: Sides) -> Array:
    """What a profile says of rows (..., n), or (..., B, n) of several subjects."""
    phi, where = first
    found = of_rows(phi, _one_by_one(where))
    return found.reshape(*found.shape[:-1], *where.shape[:-1]) if where.ndim > 2 else found


def _outer(profile: Profile, first: Sides) -> Array:
    s = np.exp(_rows(profile.logarithm, first))
    return np.asarray(s[..., :, None] * s[..., None, :])


def product_matrix(profile: Profile, first: Sides, factor: Factor, last: Sides) -> Array:
    """R (n, n)."""
    return _outer(profile, first) * factor.matrix(*last)


def product_jacobian(profile: Profile, first: Sides, factor: Factor, last: Sides) -> Array:
    """dR / dphi (k, n, n)."""
    outer = _outer(profile, first)
    inner = outer * factor.jacobian(*last)
    if not len(first[0]):
        return inner
    h = _rows(profile.jacobian, first)
    R = outer * factor.matrix(*last)
    return np.concatenate((R * (h[..., :, None] + h[..., None, :]), inner), axis=0)


def product_second(profile: Profile, first: Sides, factor: Factor, last: Sides, slope: Array) -> Array:
    """Sums of slope times d2R / dphi_a dphi_b (k, k)."""
    E = slope * _outer(profile, first)
    inner = factor.second(*last, E)
    k = len(first[0])
    if not k:
        return inner
    h = _rows(profile.jacobian, first)
    M = E * factor.matrix(*last)
    sums = M.sum(axis=-1)
    flat = h.reshape(k, sums.size)
    across = h @ M if h.ndim == 2 else np.einsum("kbi,bij->kbj", h, M, optimize=True)
    both = (h * sums + across).reshape(k, sums.size)
    out = np.empty((k + len(inner), k + len(inner)))
    out[:k, :k] = 2.0 * (both @ flat.T + profile.second(first[0], _one_by_one(first[1]), sums.ravel()))
    out[:k, k:] = 2.0 * flat @ (factor.jacobian(*last) * E).sum(axis=-1).reshape(len(inner), sums.size).T
    out[k:, :k] = out[:k, k:].T
    out[k:, k:] = inner
    return out


def product_second_sum(profile: Profile, first: Sides, factor: Factor, last: Sides, weights: Array) -> Array:
    """Sum over a, b of weights_ab d2R / dphi_a dphi_b (n, n)."""
    k = len(first[0])
    h = profile.jacobian(*first)
    own = weights[:k, :k]
    both = h.T @ own @ h
    squares = np.diag(both) + profile.second_sum(*first, own)
    out = factor.matrix(*last) * (squares[:, None] + squares + 2.0 * both)
    out += factor.second_sum(*last, weights[k:, k:])
    mixed = weights[:k, k:].T @ h
    out += 2.0 * (factor.jacobian(*last) * (mixed[:, :, None] + mixed[:, None, :])).sum(axis=0)
    return out * _outer(profile, first)
