"""Directions in the space of relative covariances, and inverses of second derivatives along those that are free."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .parameters import CovarianceStructure, vech_positions

__all__ = ["free_directions", "inverse_hessian", "unit_places"]

Array = NDArray[np.float64]


@lru_cache(maxsize=64)
def unit_places(q: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the unit directions of vech(G^)."""
    return vech_positions(q)


def free_directions(structure: CovarianceStructure) -> NDArray[np.intp]:
    """Which of the unit directions of G^ are parameters."""
    lower, upper = unit_places(structure.q)
    rows, columns = structure.positions
    return np.flatnonzero(np.isin(lower * structure.q + upper, rows * structure.q + columns))


def inverse_hessian(structure: CovarianceStructure, theta: Array, hess: Array) -> Array:
    """Inverse Hessians in theta; zero for elements that are zero with their column of Lambda (the boundary)."""
    columns = structure.positions[1]
    largest = np.zeros((len(theta), structure.q))
    for k, column in enumerate(columns):
        largest[:, column] = np.maximum(largest[:, column], np.abs(theta[:, k]))
    null = largest[:, columns] == 0.0
    inner = np.where(null[:, :, None] | null[:, None, :], 0.0, hess)
    diagonal = np.arange(len(columns))
    inner[:, diagonal, diagonal] += null
    out: Array = np.linalg.inv(inner)
    out[:, diagonal, diagonal] -= null
    return out
