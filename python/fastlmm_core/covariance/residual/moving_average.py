"""Autoregression with a moving average, `arma`: C_ij = gamma rho^(|i - j| - 1).

    gamma = (1 + rho theta)(rho + theta) / D,    D = 1 + 2 rho theta + theta^2 = (rho + theta)^2 + 1 - rho^2

with rho and theta in (-1, 1) (nlme's corARMA(1, 1)). Natural parameters are rho and gamma, as in SAS's ARMA(1,1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import LMMError
from .links import Hyperbolic
from .moments import bounded, correlation_at_lag, lag_one
from .structure import NEAR, Array, Rows, Where

__all__ = ["AutoregressiveMovingAverage"]

_LINK = Hyperbolic()
_SMALLEST = 1e-20
"""Of D, which vanishes where rho = 1 and theta = -1."""


def _gamma(phi: Array) -> tuple[float, Array, Array]:
    """Gamma, its gradient and Hessian in phi."""
    (rho, theta), first, second = _LINK.at(phi)
    N = (1.0 + rho * theta) * (rho + theta)
    D = max((rho + theta) ** 2 + (1.0 / np.hypot(1.0, phi[0])) ** 2, _SMALLEST)
    gamma = N / D
    slope_n = np.array([1.0 + 2.0 * rho * theta + theta * theta, 1.0 + 2.0 * rho * theta + rho * rho])
    slope_d = np.array([2.0 * theta, 2.0 * (rho + theta)])
    gradient = (slope_n - gamma * slope_d) / D
    bend_n = np.array([[2.0 * theta, 2.0 * (rho + theta)], [2.0 * (rho + theta), 2.0 * rho]])
    bend_d = np.array([[0.0, 2.0], [2.0, 2.0]])
    outer = np.multiply.outer(gradient, slope_d)
    hessian = (bend_n - outer - outer.T - gamma * bend_d) / D
    return float(gamma), gradient * first, hessian * np.multiply.outer(first, first) + np.diag(gradient * second)


@dataclass(frozen=True)
class AutoregressiveMovingAverage:
    """Stationary noise of one autoregressive and one moving average term.

    Parameters
    ----------
    m : int
        Number of positions.
    """

    m: int
    name: str = "arma"
    n_parameters: int = 2
    linear: bool = False

    @property
    def positions(self) -> int:
        """m."""
        return self.m

    def _by_lag(self, phi: Array, last: int) -> tuple[Array, Array, Array]:
        """Correlations at lags 0, ..., last (l,), gradients (2, l) and Hessians (2, 2, l)."""
        gamma, slope, bend = _gamma(phi)
        rho, first, second = (float(part[0]) for part in _LINK.at(phi))
        down = np.arange(-1, last)  # exponent of rho
        inside = down >= 0
        power = np.where(inside, rho ** np.maximum(down, 0), 0.0)
        lower = np.where(inside, down * rho ** np.maximum(down - 1, 0), 0.0)
        lowest = np.where(inside, down * (down - 1) * rho ** np.maximum(down - 2, 0), 0.0)
        value = gamma * power
        value[0] = 1.0
        own = np.array([first, 0.0])
        gradient = slope[:, None] * power + own[:, None] * (gamma * lower)
        mixed = np.multiply.outer(slope, own)
        hessian = bend[:, :, None] * power + (mixed + mixed.T)[:, :, None] * lower
        hessian[0, 0] += gamma * (lowest * first**2 + lower * second)
        return value, gradient, hessian

    def _lags(self, where: Where) -> tuple[Where, int]:
        lags = np.abs(where[:, None] - where)
        return lags, int(lags.max(initial=0))

    def matrix(self, phi: Array, where: Where) -> Array:
        """C (n, n)."""
        lags, last = self._lags(where)
        out: Array = self._by_lag(phi, last)[0][lags]
        return out

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dC / dphi (2, n, n)."""
        lags, last = self._lags(where)
        out: Array = self._by_lag(phi, last)[1][:, lags]
        return out

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times second derivatives (2, 2)."""
        lags, last = self._lags(where)
        out: Array = self._by_lag(phi, last)[2] @ np.bincount(lags.ravel(), slope.ravel(), minlength=last + 1)
        return out

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Weighted sum of second derivatives (n, n)."""
        lags, last = self._lags(where)
        out: Array = np.tensordot(weights, self._by_lag(phi, last)[2], 2)[lags]
        return out

    def start(self, rows: Rows) -> Array:
        """From the correlations at lags one and two, with the noise of a moving average where they do not tell."""
        first = float(bounded(lag_one(rows))[0])
        second = correlation_at_lag(rows, 2)
        ratio = second / first if np.isfinite(second) and abs(second) < abs(first) else first
        rho = float(bounded(ratio)[0])
        # gamma is held within what a theta in (-0.8, 0.8) gives
        low, high = (_gamma(_LINK.inverse(np.array([rho, theta])))[0] for theta in (-0.8, 0.8))
        phi = self.from_natural(np.array([rho, min(max(first, low), high)]))
        phi[1] = phi[1] if abs(phi[1]) > 0.05 else 0.05
        return phi

    def natural(self, phi: Array) -> Array:
        """Rho and gamma."""
        return np.array([_LINK.at(phi).value[0], _gamma(phi)[0]])

    def from_natural(self, c: Array) -> Array:
        """Phi from rho and gamma: the root of (gamma - rho)(1 + theta^2) = (1 + rho^2 - 2 gamma rho) theta inside."""
        rho, gamma = c
        off, middle = gamma - rho, 1.0 + rho * rho - 2.0 * gamma * rho
        square = middle * middle - 4.0 * off * off
        if not (abs(rho) < 1.0 and square > 0.0 and middle > 0.0):
            raise LMMError(f"rho = {rho:g} and gamma = {gamma:g} are not those of an invertible ARMA(1, 1).")
        return _LINK.inverse(np.array([rho, 2.0 * off / (middle + np.sqrt(square))]))

    def natural_jacobian(self, phi: Array) -> Array:
        """Derivatives of rho and gamma (2, 2)."""
        return np.array([[_LINK.at(phi).first[0], 0.0], _gamma(phi)[1]])

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Second derivatives of their weighted sum (2, 2)."""
        out: Array = weights[1] * _gamma(phi)[2]
        out[0, 0] += weights[0] * _LINK.at(phi).second[0]
        return out

    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """``rho`` and ``gamma``."""
        return ("rho", "gamma")

    def boundary(self, phi: Array, labels: Sequence[str]) -> tuple[str, str] | None:
        """Rho or theta at -1 or 1."""
        for name, value in zip(("rho", "theta"), _LINK.at(phi).value.tolist(), strict=True):
            if 1.0 - abs(value) < NEAR:
                return name, f"{value:.0f}"
        return None
