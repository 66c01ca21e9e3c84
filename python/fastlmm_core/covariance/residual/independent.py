"""Rows without correlation: `id` and `diag`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .structure import Array, Rows, Where, identity

__all__ = ["Independent"]


@dataclass(frozen=True)
class Independent:
    """C = I.

    Parameters
    ----------
    positions : int or None
        Number of positions; None for rows of any kind.
    """

    positions: int | None = None
    name: str = "id"
    n_parameters: int = 0
    linear: bool = True

    def matrix(self, phi: Array, where: Where) -> Array:
        """The identity (n, n)."""
        return identity(where)

    def jacobian(self, phi: Array, where: Where) -> Array:
        """Empty (0, n, n)."""
        return np.zeros((0, *identity(where).shape))

    def second(self, phi: Array, where: Where, slope: Array) -> Array:
        """Empty (0, 0)."""
        return np.zeros((0, 0))

    def second_sum(self, phi: Array, where: Where, weights: Array) -> Array:
        """Zero (n, n)."""
        return np.zeros((len(where), len(where)))

    def start(self, rows: Rows) -> Array:
        """Empty."""
        return np.zeros(0)

    def natural(self, phi: Array) -> Array:
        """Empty."""
        return np.zeros(0)

    def from_natural(self, c: Array) -> Array:
        """Empty."""
        return np.zeros(0)

    def natural_jacobian(self, phi: Array) -> Array:
        """Empty (0, 0)."""
        return np.zeros((0, 0))

    def natural_second(self, phi: Array, weights: Array) -> Array:
        """Empty (0, 0)."""
        return np.zeros((0, 0))

    def labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """None."""
        return ()

    def boundary(self, phi: Array, labels: Sequence[str]) -> tuple[str, str] | None:
        """Never."""
        return None
