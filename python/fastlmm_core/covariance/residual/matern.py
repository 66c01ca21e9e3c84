"""Matern's correlations of smoothness 3/2 and 5/2: `matern`.

With s = sqrt(2 nu) d / range: (1 + s) e^-s and (1 + s + s^2/3) e^-s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .correlation import Curve
from .distances import FARTHEST, OfDistance
from .structure import Array

__all__ = ["Matern32", "Matern52"]


@dataclass(frozen=True)
class Matern32(OfDistance):
    """Smoothness 3/2: (1 + s) e^-s."""

    name: str = "matern"

    def curve(self, u: Array) -> Curve:
        """C, s^2 e^-s, (s^3 - 2 s^2) e^-s."""
        s = np.sqrt(3.0) * np.minimum(u, FARTHEST)
        e = np.exp(-s)
        return Curve((1.0 + s) * e, s * s * e, (s - 2.0) * s * s * e)


@dataclass(frozen=True)
class Matern52(OfDistance):
    """Smoothness 5/2: (1 + s + s^2/3) e^-s."""

    name: str = "matern"

    def curve(self, u: Array) -> Curve:
        """C, (s^2 + s^3)/3 e^-s, (s^4 - 2 s^3 - 2 s^2)/3 e^-s."""
        s = np.sqrt(5.0) * np.minimum(u, FARTHEST)
        e = np.exp(-s)
        square = s * s / 3.0 * e
        return Curve((1.0 + s) * e + square, (1.0 + s) * square, ((s - 2.0) * s - 2.0) * square)
