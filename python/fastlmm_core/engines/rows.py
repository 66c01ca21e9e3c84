"""Rows as the engines see them: where V^-1 v is wanted row by row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rows", "conditioned_rows"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


class Rows(NamedTuple):
    """Rows of the random part in the conditioned columns of a problem.

    Attributes
    ----------
    Z : tuple of (n, q_f) arrays
        Z_o of each factor.
    codes : tuple of (n,) intp arrays
        Level of each row, as the problem numbers them.
    weights : (n,) array or None
        V = diag(1 / weights) + sum Z_f (I x G_f) Z_f'.
    """

    Z: tuple[Array, ...]
    codes: tuple[Index, ...]
    weights: Array | None


def conditioned_rows(Z: list[Array], codes: list[Index], weights: Array | None, z_map: Array) -> Rows:
    """Rows for `solve` of the engine of a problem.

    Parameters
    ----------
    Z : list of (n, q_f) arrays
        Columns of each factor in the caller's units, in the order of the problem.
    codes : list of (n,) int arrays
        Level of each row.
    weights : (n,) array or None
    z_map : (q, q) array
        The problem's: Z_o = Z z_map.
    """
    turned: list[Array] = []
    at = 0
    for part in Z:
        own = slice(at, at + part.shape[1])
        turned.append(np.ascontiguousarray(part @ z_map[own, own]))
        at = own.stop
    return Rows(tuple(turned), tuple(np.ascontiguousarray(code, dtype=np.intp) for code in codes), weights)
