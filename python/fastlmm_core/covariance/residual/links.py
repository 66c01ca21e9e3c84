"""Maps of the line onto the values that a parameter may have, with two derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from .structure import Array

__all__ = ["Exponential", "Hyperbolic", "Link", "Linked", "Logistic", "logistic"]


class Linked(NamedTuple):
    """Values of a link, its first and its second derivatives, all (k,)."""

    value: Array
    first: Array
    second: Array


class Link(Protocol):
    """A monotone map of the line."""

    def at(self, x: Array) -> Linked:
        """Value and derivatives."""

    def inverse(self, value: Array) -> Array:
        """What is mapped to a value."""


def logistic(x: Array) -> tuple[Array, Array]:
    """1 / (1 + exp(-x)) and 1 / (1 + exp(x)), both to full relative precision."""
    small = np.exp(-np.abs(x))
    large = 1.0 / (1.0 + small)
    small *= large
    return np.where(x >= 0.0, large, small), np.where(x >= 0.0, small, large)


@dataclass(frozen=True)
class Hyperbolic:
    """Correlations: x / sqrt(1 + x^2), in (-1, 1)."""

    def at(self, x: Array) -> Linked:
        """Value and derivatives; 1 - rho^2 does not cancel."""
        scale = 1.0 / np.hypot(1.0, x)
        value = x * scale
        cube = scale * scale * scale
        return Linked(value, cube, -3.0 * value * (cube * scale))

    def inverse(self, value: Array) -> Array:
        """x from a correlation."""
        out: Array = value / np.sqrt((1.0 - value) * (1.0 + value))
        return out


@dataclass(frozen=True)
class Logistic:
    """Values in (low, 1): low + (1 - low) / (1 + exp(-x))."""

    low: float = 0.0

    def at(self, x: Array) -> Linked:
        """Value and derivatives."""
        p, rest = logistic(x)
        width = 1.0 - self.low
        slope = width * p * rest
        return Linked(self.low + width * p, slope, slope * (rest - p))

    def inverse(self, value: Array) -> Array:
        """x from a value."""
        out: Array = np.log(value - self.low) - np.log1p(-value)
        return out


@dataclass(frozen=True)
class Exponential:
    """Positive values: exp(x), held within what floats can be squared and inverted."""

    def at(self, x: Array) -> Linked:
        """Value and derivatives."""
        value = np.exp(np.clip(x, -300.0, 300.0))
        return Linked(value, value, value)

    def inverse(self, value: Array) -> Array:
        """The logarithm."""
        out: Array = np.log(value)
        return out
