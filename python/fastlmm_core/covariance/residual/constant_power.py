"""A constant and a power: `constpower`, s = c + |v|^delta (nlme's varConstPower).

With c = e^gamma, p = c / s and l = log |v|: dlog s = (p, (1 - p) l), d2log s = p (1 - p) [1, -l; -l, l^2].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .links import Exponential
from .structure import NEAR, Array
from .variance_function import LARGEST, Heights, VarianceFunction, half_log_squares, slope_of

__all__ = ["ConstantPower"]

_LINK = Exponential()


@dataclass(frozen=True)
class ConstantPower(VarianceFunction):
    """s = c + |v|^delta, phi = (log c, delta).

    Parameters
    ----------
    typical : float
        A typical |v|, by which the boundary is told.
    """

    typical: float = 1.0
    name: str = "constpower"
    n_parameters: int = 2
    n_columns: int = 1

    def at(self, phi: Array, v: Array) -> Heights:
        """log s and its derivatives."""
        size = np.abs(v[:, 0])
        zero = size == 0.0
        log_size = np.log(np.where(zero, 1.0, size))
        # where v is zero, s is the constant
        power = np.where(zero, -np.inf, np.clip(phi[1] * log_size, -LARGEST, LARGEST))
        gamma = np.clip(phi[0], -LARGEST, LARGEST)
        value = np.logaddexp(gamma, power)
        p = np.exp(gamma - value)
        rest = np.exp(power - value)
        first = np.array([p, rest * log_size])
        unit = np.array([np.ones_like(p), -log_size])
        return Heights(value, first, p * rest * unit[:, None] * unit)

    def start(self, residuals: Array, v: Array) -> Array:
        """The power from the regression of log |r|, the constant a fifth of the typical power."""
        size = np.abs(v)
        log_size = np.log(np.maximum(size, 1e-3 * (float(np.median(size)) or 1.0)))
        # the slope of log s is (1 - p) delta, where p is a sixth for a constant of a fifth of the power
        delta = 1.2 * float(slope_of(half_log_squares(residuals), log_size)[0]) or 0.5
        return np.array([np.log(0.2) + delta * float(np.median(log_size)), delta])

    def labels(self) -> tuple[str, ...]:
        """``const`` and ``power``."""
        return ("const", "power")

    def boundary(self, phi: Array) -> str | None:
        """The constant beside the power."""
        return "const = 0" if phi[0] - phi[1] * np.log(self.typical) < np.log(NEAR) else None

    def natural(self, phi: Array) -> Array:
        """c and delta."""
        return np.array([_LINK.at(phi[:1]).value[0], phi[1]])

    def from_natural(self, c: Array) -> Array:
        """Phi from c and delta."""
        return np.array([np.log(c[0]), c[1]])

    def natural_jacobian(self, phi: Array) -> Array:
        """Derivatives of c and delta (2, 2)."""
        return np.diag([_LINK.at(phi[:1]).first[0], 1.0])

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Second derivatives of their weighted sum (2, 2)."""
        return np.diag([weights[0] * _LINK.at(phi[:1]).second[0], 0.0])
