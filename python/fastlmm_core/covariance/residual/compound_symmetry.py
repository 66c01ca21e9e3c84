"""Equal correlations: `cs` and `csh`.

C over m positions is positive definite for rho in (-a, 1), a = 1/(m-1): rho = -a + (1 + a) / (1 + exp(-x)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .correlation import Curve, OneParameter
from .links import Logistic
from .moments import bounded
from .structure import NEAR, Array, Rows, Where

__all__ = ["CompoundSymmetry"]


@dataclass(frozen=True)
class CompoundSymmetry(OneParameter):
    """C_ij = rho.

    Parameters
    ----------
    m : int
        Number of positions.
    """

    m: int
    name: str = "cs"

    @property
    def positions(self) -> int:
        """m."""
        return self.m

    @property
    def link(self) -> Logistic:
        """From the line to (-1/(m-1), 1)."""
        return Logistic(-1.0 / (self.m - 1))

    @property
    def linear(self) -> bool:
        """C is linear in rho."""
        return True

    def at(self, x: Array, where: Where) -> Curve:
        """C and its derivatives."""
        rho, first, second = self.link.at(x)
        off = np.not_equal.outer(where, where)
        return Curve(np.where(off, rho, 1.0), first * off, second * off)

    def start(self, rows: Rows) -> Array:
        """From the mean product of pairs of rows: (sum^2 - sum of squares) of each subject."""
        index = np.concatenate(([0], np.cumsum(np.diff(rows.subjects) != 0)))
        counts = np.bincount(index)
        sums = np.bincount(index, rows.residuals)
        total = float(rows.residuals @ rows.residuals)
        pairs = float((counts * (counts - 1.0)).sum())
        rho = (float(sums @ sums) - total) / max(pairs, 1.0) * len(rows.residuals) / (total or 1.0)
        return self.from_natural(bounded(rho, -0.8 / (self.m - 1)))

    def boundary(self, phi: Array, labels: Sequence[str]) -> tuple[str, str] | None:
        """Rho at 1, or at the smallest value for m positions."""
        low = self.link.low
        share = (self.link.at(phi).value[0] - low) / (1.0 - low)
        if share < NEAR:
            return "rho", f"{low:.4g}"
        return ("rho", "1") if 1.0 - share < NEAR else None
