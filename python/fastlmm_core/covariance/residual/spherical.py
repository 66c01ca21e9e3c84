"""Spherical correlation, `spher` (nlme's corSpher, SAS's SP(SPH)): 1 - 3u/2 + u^3/2 within the range, then zero.

Its second derivative jumps where a distance equals the range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .correlation import Curve
from .distances import OfDistance
from .structure import Array

__all__ = ["Spherical"]


@dataclass(frozen=True)
class Spherical(OfDistance):
    """C = 1 - 3u/2 + u^3/2 for u < 1."""

    name: str = "spher"

    def curve(self, u: Array) -> Curve:
        """C, 3u(1 - u^2)/2, 3u(3u^2 - 1)/2."""
        u = np.minimum(u, 1.0)
        inside = u < 1.0
        C = np.where(inside, 1.0 + u * (0.5 * u * u - 1.5), 0.0)
        return Curve(C, 1.5 * u * (1.0 - u * u), np.where(inside, 1.5 * u * (3.0 * u * u - 1.0), 0.0))
