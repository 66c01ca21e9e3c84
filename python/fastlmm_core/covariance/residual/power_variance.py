"""Standard deviations that grow with a covariate: `power`, |v|^delta, and `exp`, exp(delta v)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .structure import Array
from .variance_function import Heights, VarianceFunction, half_log_squares, slope_of

__all__ = ["ExponentialVariance", "PowerVariance"]


@dataclass(frozen=True)
class ExponentialVariance(VarianceFunction):
    """s = exp(delta v)."""

    name: str = "exp"
    n_parameters: int = 1
    n_columns: int = 1

    def covariate(self, v: Array) -> Array:
        """That in which log s is linear (n, 1)."""
        return v

    def at(self, phi: Array, v: Array) -> Heights:
        """log s and its derivatives."""
        inner = self.covariate(v)
        return Heights(inner @ phi, inner.T, np.zeros((1, 1, len(v))))

    def start(self, residuals: Array, v: Array) -> Array:
        """Regression of log |r|."""
        return slope_of(half_log_squares(residuals), self.covariate(v))

    def labels(self) -> tuple[str, ...]:
        """The name of the function."""
        return (self.name,)


@dataclass(frozen=True)
class PowerVariance(ExponentialVariance):
    """s = |v|^delta; v must not be zero."""

    name: str = "power"

    def covariate(self, v: Array) -> Array:
        """log |v|."""
        return np.log(np.abs(v))
