"""A correlation for each lag: `toep` and `toeph`, by partial autocorrelations.

r(pi) is Durbin and Levinson's recursion, which gives a positive definite C for all pi in (-1, 1); its derivatives are
those of the recursion, taken twice (`kernels.residuals.lag_correlations`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ...errors import LMMError
from .links import Hyperbolic
from .moments import positive_definite, visit_covariance
from .structure import NEAR, Array, Rows, Where

__all__ = ["Toeplitz"]

_LINK = Hyperbolic()


@lru_cache(maxsize=8)
def _correlations(raw: bytes, order: int) -> tuple[Array, ...]:
    """r (m,), dr / dphi (m - 1, m) and d2r / dphi_a dphi_b (m - 1, m - 1, m) of phi, up to an order.

    Matrix, gradient and Hessian at one phi ask one after the other, the latter two for all; the last few are kept.
    """
    from ...kernels.residuals import lag_correlations

    pi, first, second = _LINK.at(np.frombuffer(raw))
    r = lag_correlations(pi, order)
    K = len(pi)
    if order >= 2:
        np.multiply(r[2], (first[:, None] * first)[:, :, None], out=r[2])
        r[2][range(K), range(K)] += second[:, None] * r[1]
    if order >= 1:
        np.multiply(r[1], first[:, None], out=r[1])
    for part in r:
        part.setflags(write=False)
    return r


def partial_autocorrelations(r: Array) -> Array:
    """Durbin and Levinson's recursion backwards: pi (m - 1,) from the correlations at lags 1, ..., m - 1."""
    pi = np.empty(len(r))
    f = np.empty(0)
    v = 1.0
    for k in range(len(r)):
        pi[k] = (r[k] - f @ r[:k][::-1]) / v
        if not abs(pi[k]) < 1.0:
            raise LMMError("The correlations are not those of a positive definite Toeplitz matrix.")
        f = np.append(f - pi[k] * f[::-1], pi[k])
        v *= 1.0 - pi[k] ** 2
    return pi


@dataclass(frozen=True)
class Toeplitz:
    """C_ij = r_|i - j|.

    Parameters
    ----------
    m : int
        Number of positions.
    """

    m: int
    name: str = "toep"
    linear: bool = True

    @property
    def positions(self) -> int:
        """m."""
        return self.m

    @property
    def n_parameters(self) -> int:
        """m - 1."""
        return self.m - 1

    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """``rho_lag1``, ``rho_lag2``, ..."""
        return tuple(f"rho_lag{k}" for k in range(1, self.m))

    def matrix(self, phi: Array, where: Where) -> Array:
        """C (n, n)."""
        out: Array = _correlations(phi.tobytes(), 0)[0][np.abs(where[:, None] - where)]
        return out

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dC / dphi (m - 1, n, n)."""
        out: Array = _correlations(phi.tobytes(), 2)[1][:, np.abs(where[:, None] - where)]
        return out

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times second derivatives (m - 1, m - 1), by the sums of slope over lags."""
        lags = np.abs(where[:, None] - where)
        sums = np.bincount(lags.ravel(), slope.ravel(), minlength=self.m)
        return _correlations(phi.tobytes(), 2)[2] @ sums

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Weighted sum of second derivatives (n, n)."""
        by_lag = np.tensordot(weights, _correlations(phi.tobytes(), 2)[2], 2)
        out: Array = by_lag[np.abs(where[:, None] - where)]
        return out

    def start(self, rows: Rows) -> Array:
        """Means by lag of the correlations over pairs of rows, drawn to zero until they are positive definite."""
        covariance = visit_covariance(rows, self.m)
        s = np.sqrt(np.diag(covariance))
        lags = np.abs(np.subtract.outer(np.arange(self.m), np.arange(self.m)))
        sums = np.bincount(lags.ravel(), (covariance / s / s[:, None]).ravel())
        means = sums / np.bincount(lags.ravel())
        r: Array = positive_definite(means[lags])[0, 1:]
        pi = np.clip(partial_autocorrelations(r), -0.9, 0.9)
        return _LINK.inverse(np.where(np.abs(pi) < 0.01, 0.01, pi))

    def natural(self, phi: Array) -> Array:
        """The correlations by lag (m - 1,)."""
        return _correlations(phi.tobytes(), 0)[0][1:].copy()

    def from_natural(self, c: Array) -> Array:
        """Phi from the correlations by lag."""
        return _LINK.inverse(partial_autocorrelations(c))

    def natural_jacobian(self, phi: Array) -> Array:
        """Derivatives of the correlations by lag (m - 1, m - 1)."""
        return _correlations(phi.tobytes(), 2)[1][:, 1:].T.copy()

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Second derivatives of their weighted sum (m - 1, m - 1)."""
        return _correlations(phi.tobytes(), 2)[2][:, :, 1:] @ weights

    def boundary(self, phi: Array, labels: Sequence[str]) -> tuple[str, str] | None:
        """The first partial autocorrelation at -1 or 1."""
        pi = _LINK.at(phi).value
        limits = np.flatnonzero(1.0 - np.abs(pi) < NEAR)
        if not len(limits):
            return None
        k = int(limits[0])
        return f"rho_lag{k + 1}" if k == 0 else f"partial rho_lag{k + 1}", f"{pi[k]:.0f}"
