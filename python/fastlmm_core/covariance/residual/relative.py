"""`us` in coordinates about one of its members, S = (L_0 M)(L_0 M)' with M lower triangular, M_00 = 1.

phi holds M as that of `us` holds L, so that it is zero at the member. However nearly singular L_0 is, all directions
have the same length there in the metric of the likelihood of complete data; in those of `us` itself the curvature runs
over as many powers of ten as the eigenvalues of S.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .structure import Array, Where
from .unstructured import Unstructured

__all__ = ["Relative"]


@dataclass(frozen=True)
class Relative(Unstructured):
    """The coordinates about a member.

    Parameters
    ----------
    m : int
    base : (m, m) array
        L_0.
    """

    base: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def root(self, phi: Array, where: Where) -> Array:
        """L_0 M at some positions (n, m)."""
        return np.asarray((self.base @ self._factor(phi)[0])[where])
