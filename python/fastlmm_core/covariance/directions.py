"""Directions in the space of relative covariances, and inverses of second derivatives along those that are free.

Matrices of a given rank.  With Q the orthogonal projector on the null space of G^, those of the rank of G^ have the
tangents X with Q X Q = 0, and X -> X - Q X Q is the orthogonal projection on them.  Along X the set bends by
2 Q X G^+ X Q, which adds 2 tr(S Q X G^+ X Q) to a second derivative where the derivative in G^ is S.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..kernels import unit_directions
from ..support.types import Array
from .parameters import CovarianceStructure, vech_positions

__all__ = [
    "face_bend",
    "face_inverse",
    "face_inverse_free",
    "face_projector",
    "free_directions",
    "inverse_hessian",
    "null_projectors",
    "theta_jacobian",
    "unit_lengths",
    "unit_places",
]


RANK = 1e-10
"""Singular value of a factor, relative to the largest of its block, from which it counts."""


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


def null_projectors(structure: CovarianceStructure, factors: Array) -> Array:
    """Q of each L L' (n, q, q), block by block, where L has columns of exact zeros or is of lower rank.

    Parameters
    ----------
    structure : CovarianceStructure
    factors : (n, q, q) array
        L.
    """
    out = np.zeros_like(factors)
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        inner = factors[:, part, part]
        if not block.correlated:
            places = np.arange(block.start, block.stop)
            out[:, places, places] = np.diagonal(inner, axis1=1, axis2=2) == 0.0
            continue
        left, sizes, _ = np.linalg.svd(inner)
        null = left * (sizes <= RANK * np.maximum(sizes[:, :1], 1e-300))[:, None]
        out[:, part, part] = null @ null.transpose(0, 2, 1)
    return out


def face_projector(structure: CovarianceStructure, null: Array) -> Array:
    """The projection on the tangents of the rank found (..., n_a, n_a), in the unit directions scaled to length 1.

    Parameters
    ----------
    structure : CovarianceStructure
    null : (..., q, q) array
        Q.
    """
    lower, upper = unit_places(structure.q)
    share = np.where(lower == upper, np.sqrt(0.5), 1.0)
    pair = null[..., lower[:, None], lower] * null[..., upper[:, None], upper]
    pair = pair + null[..., lower[:, None], upper] * null[..., upper[:, None], lower]
    out = np.eye(len(lower)) - pair * (share[:, None] * share)
    free = np.zeros(len(lower))
    free[free_directions(structure)] = 1.0
    return np.asarray(out * (free[:, None] * free))


def face_bend(null: Array, relative: Array, slope: Array) -> Array:
    """What the bend of the matrices of the rank found adds to second derivatives along unit directions (n_a, n_a).

    Parameters
    ----------
    null, relative, slope : (q, q) arrays
        Q, G^, and the derivative in G^ as a symmetric matrix.
    """
    along = np.eye(len(null)) - null
    spread = along @ np.linalg.inv(relative + null) @ along
    half = null @ unit_directions(len(null))
    return np.asarray(2.0 * np.einsum("ab,kai,ij,lbj->kl", slope, half, spread, half, optimize=True))


def unit_lengths(q: int) -> Array:
    """Frobenius norms of the unit directions (n_a,)."""
    lower, upper = unit_places(q)
    return np.where(lower == upper, 1.0, np.sqrt(2.0))


def theta_jacobian(structure: CovarianceStructure, factors: Array) -> Array:
    """Derivatives of the free elements of G^ in theta (..., k, d)."""
    rows, columns = structure.positions
    lower, upper = (part[free_directions(structure)] for part in vech_positions(structure.q))
    first = factors[..., upper[None, :], columns[:, None]] * (rows[:, None] == lower)
    # in the order of its axes, whatever indexing makes of one response: up to numpy 2.2 the last bits depend on it
    return np.ascontiguousarray(first + factors[..., lower[None, :], columns[:, None]] * (rows[:, None] == upper))


def face_inverse(
    structure: CovarianceStructure, information: Array, null: Array, invert: Callable[[Array], Array]
) -> Array:
    """Inverse along the covariance matrices of the rank found, zero across them (..., n_a, n_a).

    Parameters
    ----------
    structure : CovarianceStructure
    information : (..., n_a, n_a) array
        Along the unit directions of G^.
    null : (..., q, q) array
        Projector on the null space of G^.
    invert : callable
    """
    length = unit_lengths(structure.q)
    along = face_projector(structure, null)
    scaled = information / (length[:, None] * length)
    size = np.abs(np.diagonal(scaled, axis1=-2, axis2=-1)).sum(axis=-1)
    across = np.eye(len(length)) - along
    inner = along @ scaled @ along + across * np.where(size > 0.0, size, 1.0)[..., None, None]
    return np.asarray(along @ invert(inner) @ along / (length[:, None] * length))


def face_inverse_free(structure: CovarianceStructure, information: Array, null: Array) -> Array:
    """`face_inverse` among the free directions: of and as (..., d, d) arrays."""
    free = free_directions(structure)
    n_a = len(unit_lengths(structure.q))
    wide = np.zeros((*information.shape[:-2], n_a, n_a))
    wide[..., free[:, None], free] = information
    return np.asarray(
        face_inverse(structure, wide, null, lambda inner: np.asarray(np.linalg.inv(inner)))[..., free[:, None], free]
    )
