"""Rows as the engines see them: where V^-1 v is wanted row by row."""

from __future__ import annotations

import numpy as np

from ..kernels.records.rows import ConditionedRows
from ..support.types import Array, Index

__all__ = ["conditioned_rows"]


def conditioned_rows(Z: list[Array], codes: list[Index], weights: Array | None, z_map: Array) -> ConditionedRows:
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
    return ConditionedRows(tuple(turned), tuple(np.ascontiguousarray(code, dtype=np.intp) for code in codes), weights)
