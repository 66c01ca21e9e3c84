"""Correlations that fall off with the distance of coordinates, of one parameter: the range, e^x.

Each is a function of u = d e^-x, with derivatives in x; d is Euclidean. Their natural parameter is the range, or the
correlation at distance one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .correlation import Curve, OneParameter
from .links import Exponential, Link
from .moments import at_distance
from .structure import NEAR, Array, Rows, Where

__all__ = ["FARTHEST", "OfDistance", "distances"]

FARTHEST = 1e4
"""Distance in ranges beyond which an exponential is zero in floats; keeps products with powers of it finite."""


def distances(where: Where) -> Array:
    """Euclidean distances (..., n, n) of coordinates (..., n, d)."""
    difference = where[..., :, None, :] - where[..., None, :, :]
    if where.shape[-1] == 1:
        return np.asarray(np.abs(difference[..., 0]))
    return np.asarray(np.sqrt(np.einsum("...k,...k->...", difference, difference)))


@dataclass(frozen=True)
class OfDistance(OneParameter):
    """A correlation of distances.

    Parameters
    ----------
    closest, farthest : float
        Smallest and largest distance of two rows of a subject: what the boundary is told by.
    """

    closest: float = 1.0
    farthest: float = 1.0
    name: str = ""

    @property
    def positions(self) -> int | None:
        """Rows have coordinates."""
        return None

    @property
    def link(self) -> Link:
        """From the line to the range."""
        return Exponential()

    @abstractmethod
    def curve(self, u: Array) -> Curve:
        """The correlation at u ranges, and its derivatives in the logarithm of the range."""

    def at(self, x: Array, where: Where) -> Curve:
        """C and its derivatives."""
        return self.curve(distances(where) * np.exp(np.clip(-x[0], -300.0, 300.0)))

    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The range."""
        return ("range",)

    def start(self, rows: Rows) -> Array:
        """The range at which the correlation at a typical distance is that of the residuals, by bisection."""
        distance, rho = at_distance(rows)
        low, high = -12.0, 12.0
        for _ in range(50):
            x = 0.5 * (low + high)
            if self.curve(np.array([np.exp(-x)])).value[0] < rho:
                low = x
            else:
                high = x
        return np.array([0.5 * (low + high) + np.log(distance)])

    def boundary(self, phi: Array, labels: Sequence[str]) -> tuple[str, str] | None:
        """No correlation at the closest distance, or nothing but correlation at the farthest."""
        u = np.array([self.closest, self.farthest]) * np.exp(np.clip(-phi[0], -300.0, 300.0))
        near, far = self.curve(u).value
        name = self.labels(labels)[0]
        if near < NEAR:
            return name, "0"
        return (name, "1" if name == "rho" else "infinity") if 1.0 - far < NEAR else None
