"""Standard deviations as functions of covariates, s = exp(h(phi, v)): what they tell, and what they share.

`v` holds the covariates (n, c) of rows. Natural parameters are functions of phi alone; sigma^2 is beside them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from .structure import Array

__all__ = ["LARGEST", "Heights", "VarianceFunction", "half_log_squares", "slope_of"]

LARGEST = 150.0
"""Largest logarithm of a relative standard deviation: products of squares of some are finite, and their inverses."""


class Heights(NamedTuple):
    """log s (n,), its gradients (k, n) and Hessians (k, k, n)."""

    value: Array
    first: Array
    second: Array


class VarianceFunction(ABC):
    """A function of covariates, which says what it is by `at`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As users write it."""

    @property
    @abstractmethod
    def n_parameters(self) -> int:
        """Number k of parameters."""

    @property
    @abstractmethod
    def n_columns(self) -> int:
        """Number c of covariates."""

    @abstractmethod
    def at(self, phi: Array, v: Array) -> Heights:
        """log s and its derivatives."""

    @abstractmethod
    def start(self, residuals: Array, v: Array) -> Array:
        """Phi near to the squares of residuals."""

    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Names of the natural parameters."""

    def logarithm(self, phi: Array, where: Array) -> Array:
        """log s (n,)."""
        return np.clip(self.at(phi, where).value, -LARGEST, LARGEST)

    def jacobian(self, phi: Array, where: Array) -> Array:
        """dlog s / dphi (k, n)."""
        return self.at(phi, where).first

    def second(self, phi: Array, where: Array, weights: Array) -> Array:
        """Sums over rows of weights (n,) times second derivatives (k, k)."""
        return self.at(phi, where).second @ weights

    def second_sum(self, phi: Array, where: Array, weights: Array) -> Array:
        """Sums over parameters of weights (k, k) times second derivatives (n,)."""
        return np.tensordot(weights, self.at(phi, where).second, 2)

    def natural(self, phi: Array) -> Array:
        """What is reported (k,): phi itself, unless a function says otherwise."""
        return phi.copy()

    def from_natural(self, c: Array) -> Array:
        """Phi from it."""
        return c.copy()

    def natural_jacobian(self, phi: Array) -> Array:
        """Its derivatives (k, k)."""
        return np.eye(len(phi))

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Second derivatives of its weighted sum (k, k)."""
        return np.zeros((len(phi), len(phi)))

    def boundary(self, phi: Array) -> str | None:
        """What has run into its limit."""
        return None


def half_log_squares(residuals: Array) -> Array:
    """log |r|, with a residual that vanishes taken for a small one."""
    squares = residuals**2
    floor = 1e-6 * float(squares.mean()) or 1.0
    return np.asarray(0.5 * np.log(np.maximum(squares, floor)))


def slope_of(values: Array, columns: Array) -> Array:
    """Coefficients (c,) of the regression of values (n,) on columns (n, c) and a constant."""
    centred = columns - columns.mean(axis=0)
    return np.asarray(np.linalg.lstsq(centred, values - values.mean(), rcond=None)[0])
