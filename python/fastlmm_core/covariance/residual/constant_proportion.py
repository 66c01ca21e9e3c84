"""Additive and proportional error: `constprop`, s^2 = 1 + (b v)^2 relative to sigma (nlme's varConstProp with a = 1).

With b = e^gamma and p = 1 / s^2: dlog s = 1 - p, d2log s = 2 p (1 - p).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .links import Exponential, logistic
from .structure import NEAR, Array
from .variance_function import Heights, VarianceFunction, slope_of

__all__ = ["ConstantProportion"]

_LINK = Exponential()


@dataclass(frozen=True)
class ConstantProportion(VarianceFunction):
    """s^2 = 1 + (b v)^2, phi = log b: the proportion relative to the additive standard deviation.

    Parameters
    ----------
    typical : float
        A typical |v|, by which the boundary is told.
    """

    typical: float = 1.0
    name: str = "constprop"
    n_parameters: int = 1
    n_columns: int = 1

    def at(self, phi: Array, v: Array) -> Heights:
        """log s and its derivatives."""
        size = np.abs(v[:, 0])
        zero = size == 0.0
        square = np.where(zero, -np.inf, 2.0 * (phi[0] + np.log(np.where(zero, 1.0, size))))
        rest, p = logistic(np.clip(square, -1e3, 1e3))
        return Heights(0.5 * np.logaddexp(0.0, square), rest[None], (2.0 * p * rest)[None, None])

    def start(self, residuals: Array, v: Array) -> Array:
        """From the regression of squares on squares."""
        squares = v[:, 0] ** 2
        mean = float(squares.mean()) or 1.0
        slope = float(slope_of(residuals**2, squares[:, None] / mean)[0])
        level = float((residuals**2).mean()) - slope
        ratio = slope / level if level > 0.0 else 20.0
        return np.array([0.5 * (np.log(np.clip(ratio, 0.05, 20.0)) - np.log(mean))])

    def labels(self) -> tuple[str, ...]:
        """``prop``."""
        return ("prop",)

    def boundary(self, phi: Array) -> str | None:
        """One part of the variance beside the other."""
        square = 2.0 * (phi[0] + np.log(self.typical))
        if abs(square) < -np.log(NEAR):
            return None
        return "prop = 0" if square < 0.0 else "prop = infinity"

    def natural(self, phi: Array) -> Array:
        """b."""
        return _LINK.at(phi).value

    def from_natural(self, c: Array) -> Array:
        """Phi from b."""
        return _LINK.inverse(c)

    def natural_jacobian(self, phi: Array) -> Array:
        """Derivative of b (1, 1)."""
        return np.diag(_LINK.at(phi).first)

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Second derivative of its weighted value (1, 1)."""
        return np.diag(weights * _LINK.at(phi).second)
