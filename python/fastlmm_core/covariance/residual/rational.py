"""Rational quadratic correlation, `ratio` (nlme's corRatio): 1 / (1 + (d / range)^2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .correlation import Curve
from .distances import OfDistance
from .structure import Array

__all__ = ["RationalQuadratic"]

_LARGEST = 1e50
"""Of u: the third power of its square is finite."""


@dataclass(frozen=True)
class RationalQuadratic(OfDistance):
    """C = 1 / (1 + u^2)."""

    name: str = "ratio"

    def curve(self, u: Array) -> Curve:
        """With w = u^2: C, 2w C^2, 4w(w - 1) C^3."""
        w = np.minimum(u, _LARGEST) ** 2
        C = 1.0 / (1.0 + w)
        first = 2.0 * w * C * C
        return Curve(C, first, 2.0 * (w - 1.0) * C * first)
