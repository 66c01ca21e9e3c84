"""Exponential fall with the distance: `car1`, `sp_power` (rho^d) and `sp_exp` (exp(-d / range)), `sp_gau` with squares.

All are the same in x; rho = exp(-e^-x) is the correlation at distance one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .correlation import Curve
from .distances import FARTHEST, OfDistance
from .links import Link, Linked
from .steps import Steps, steps_of
from .structure import Array, Where

__all__ = ["ContinuousAutoregressive", "Exponential", "Gaussian"]


@dataclass(frozen=True)
class AtDistanceOne:
    """The link of rho = exp(-k), k = e^-x."""

    def at(self, x: Array) -> Linked:
        """Value and derivatives."""
        k = np.exp(np.clip(-x, -300.0, 300.0))
        rho = np.exp(-k)
        inner = np.minimum(k, FARTHEST)
        return Linked(rho, inner * rho, (inner - 1.0) * inner * rho)

    def inverse(self, value: Array) -> Array:
        """x from rho."""
        out: Array = -np.log(-np.log(value))
        return out


@dataclass(frozen=True)
class Exponential(OfDistance):
    """C = exp(-u), u = d / range."""

    name: str = "sp_exp"

    def curve(self, u: Array) -> Curve:
        """C, uC, (u^2 - u)C."""
        inner = np.minimum(u, FARTHEST)
        C = np.exp(-inner)
        return Curve(C, inner * C, (inner - 1.0) * inner * C)

    def steps(self, phi: Array, gaps: Where) -> Steps:
        """Correlations over gaps in one dimension; 1 - rho^2 without cancellation."""
        u = gaps * np.exp(np.clip(-phi[0], -300.0, 300.0))
        return steps_of(self.curve(u).value, -np.expm1(-2.0 * u), *self.curve(u)[1:])


@dataclass(frozen=True)
class ContinuousAutoregressive(Exponential):
    """C = rho^d: the exponential by its correlation at distance one."""

    name: str = "car1"

    @property
    def link(self) -> Link:
        """From the line to rho."""
        return AtDistanceOne()

    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The correlation at distance one."""
        return ("rho",)


@dataclass(frozen=True)
class Gaussian(OfDistance):
    """C = exp(-u^2)."""

    name: str = "sp_gau"

    def curve(self, u: Array) -> Curve:
        """With w = u^2: C, 2wC, 4(w^2 - w)C."""
        w = np.minimum(u, np.sqrt(FARTHEST)) ** 2
        C = np.exp(-w)
        return Curve(C, 2.0 * w * C, 4.0 * (w - 1.0) * w * C)
