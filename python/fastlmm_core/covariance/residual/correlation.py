"""Correlations: what a structure of correlations tells, and what those of few parameters share.

Each is used in R = D C D with standard deviations of `deviations.py`. Natural parameters c are functions of phi alone:
correlations, ranges.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from .links import Link
from .structure import NEAR, Array, Rows, Where

__all__ = ["Correlation", "Curve", "LinkedCorrelation", "OneParameter"]


class Correlation(Protocol):
    """The correlation of the rows of a subject: as `ResidualStructure`, without scale and standard deviations."""

    @property
    def name(self) -> str:
        """As users write it."""

    @property
    def n_parameters(self) -> int:
        """Number k of parameters phi."""

    @property
    def positions(self) -> int | None:
        """Number of positions that a row can have; None where rows have coordinates."""

    @property
    def linear(self) -> bool:
        """Whether C is linear in c: the natural parameters of sigma^2 C are then sigma^2 and sigma^2 c."""

    def matrix(self, phi: Array, where: Where) -> Array:
        """C (n, n)."""

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dC / dphi (k, n, n)."""

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sums of slope times second derivatives (k, k)."""

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Weighted sum of second derivatives (n, n)."""

    def start(self, rows: Rows) -> Array:
        """Phi near to the moments of standardized residuals."""

    def natural(self, phi: Array) -> Array:
        """c (k,)."""

    def from_natural(self, c: Array) -> Array:
        """Phi from c."""

    def natural_jacobian(self, phi: Array) -> Array:
        """dc / dphi (k, k)."""

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Second derivatives in phi of the sum of weights times c (k, k)."""

    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Names of c without the subjects' factor, e.g. ``"rho"``, given the labels of the positions."""

    def boundary(self, phi: Array, labels: Sequence[str]) -> tuple[str, str] | None:
        """The name and the limit of what has run into its limit."""


class LinkedCorrelation(ABC):
    """The part of a correlation whose natural parameters are phi, each through one link."""

    @property
    @abstractmethod
    def link(self) -> Link:
        """From each element of phi to the natural parameter."""

    @property
    def linear(self) -> bool:
        """Whether the correlation is linear in its natural parameters."""
        return False

    @abstractmethod
    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Names of the natural parameters."""

    def natural(self, phi: Array) -> Array:
        """The natural parameters (k,)."""
        return self.link.at(phi).value

    def from_natural(self, c: Array) -> Array:
        """Phi from the natural parameters."""
        return self.link.inverse(c)

    def natural_jacobian(self, phi: Array) -> Array:
        """Derivatives of the natural parameters (k, k)."""
        return np.diag(self.link.at(phi).first)

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Second derivatives of their weighted sum (k, k)."""
        return np.diag(weights * self.link.at(phi).second)

    def boundary(self, phi: Array, labels: Sequence[str]) -> tuple[str, str] | None:
        """The first correlation at -1 or 1."""
        value = self.link.at(phi).value
        limits = np.flatnonzero(1.0 - np.abs(value) < NEAR)
        return (self.labels(labels)[limits[0]], f"{value[limits[0]]:.0f}") if len(limits) else None


class Curve(NamedTuple):
    """A matrix along one parameter: its value, first and second derivative, each (n, n)."""

    value: Array
    first: Array
    second: Array


class OneParameter(LinkedCorrelation):
    """A correlation of one parameter, which says what it is by `at`."""

    @property
    def n_parameters(self) -> int:
        """One."""
        return 1

    @abstractmethod
    def at(self, x: Array, where: Where) -> Curve:
        """C, dC / dx and d2C / dx2, x of shape (1,)."""

    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The name of the parameter."""
        return ("rho",)

    def matrix(self, phi: Array, where: Where) -> Array:
        """C (n, n)."""
        return self.at(phi, where).value

    def jacobian(self, phi: Array, where: Where) -> Array:
        """dC / dphi (1, n, n)."""
        return self.at(phi, where).first[None]

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Sum of slope times the second derivative (1, 1)."""
        return np.array([[np.vdot(slope, self.at(phi, where).second)]])

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Weight times the second derivative (n, n)."""
        out: Array = weights[0, 0] * self.at(phi, where).second
        return out
