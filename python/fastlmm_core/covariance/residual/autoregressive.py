"""Correlations that fall off geometrically with the lag: `ar1` and `ar1h`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .correlation import Curve, OneParameter
from .links import Hyperbolic
from .moments import bounded, lag_one
from .steps import Steps, steps_of
from .structure import Array, Rows, Where

__all__ = ["Autoregressive"]


@dataclass(frozen=True)
class Autoregressive(OneParameter):
    """C_ij = rho^|i - j|.

    C' = l rho^(l-1) rho', C'' = l (l-1) rho^(l-2) rho'^2 + l rho^(l-1) rho''.

    Parameters
    ----------
    m : int
        Number of positions.
    """

    m: int
    name: str = "ar1"

    @property
    def positions(self) -> int:
        """m."""
        return self.m

    @property
    def link(self) -> Hyperbolic:
        """From the line to (-1, 1)."""
        return Hyperbolic()

    def at(self, x: Array, where: Where) -> Curve:
        """C and its derivatives."""
        rho, first, second = self.link.at(x)
        lags = np.abs(where[:, None] - where)
        lag = np.arange(int(lags.max(initial=0)) + 1)
        value = rho**lag
        down = lag * rho ** np.maximum(lag - 1, 0)
        twice = lag * (lag - 1) * rho ** np.maximum(lag - 2, 0)
        return Curve(value[lags], (down * first)[lags], (twice * first**2 + down * second)[lags])

    def steps(self, phi: Array, gaps: Where) -> Steps:
        """Correlations over gaps; 1 - rho^(2 lag) without cancellation."""
        rho, first, second = (float(part[0]) for part in self.link.at(phi))
        down = gaps * rho ** (gaps - 1)
        twice = gaps * (gaps - 1) * rho ** np.maximum(gaps - 2, 0)
        value = rho**gaps
        with np.errstate(divide="ignore", over="ignore"):  # rho = 0: the logarithm is infinite, 1 - rho^2 is one
            rest = -np.expm1(-gaps * np.log1p((1.0 / phi[0]) ** 2))
        return steps_of(value, rest, down * first, twice * first**2 + down * second)

    def start(self, rows: Rows) -> Array:
        """From consecutive rows."""
        return self.from_natural(bounded(lag_one(rows)))
