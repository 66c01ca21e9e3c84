"""Rows with one grouping factor, and what is found of their columns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...support.types import Array, Index, Int64

__all__ = ["ConditionedRows", "RowColumns", "Rows", "SharedColumns"]


class Rows(NamedTuple):
    """The rows of a model with one grouping factor, in the caller's order and memory."""

    X: Array
    """(n, p)."""
    y: Array
    """(n,)."""
    Z: Array
    """(n, q)."""
    codes: NDArray[np.int32] | Int64
    """(n,) group of each row, counted from `base`."""
    base: int
    n_slots: int
    """Groups, of which some may have no rows."""
    weights: Array | None
    """(n,)."""
    offset: Array | None
    """(n,)."""


class ConditionedRows(NamedTuple):
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


class RowColumns(NamedTuple):
    """What is done to the columns of rows before they are summed: x~ = (x - shift) * scale times a transformation."""

    x_scale: Array
    """(2, p) shift, scale."""
    z_scale: Array
    """(2, q)."""
    beta0: Array
    """(p,) provisional coefficients of the transformed columns, taken from y."""
    x_constant: int = -1
    """Column taken to be constant (so that the others may be shifted), -1 for none."""
    z_constant: int = -1
    x_transform: Array | None = None
    """(p, p) upper triangular."""
    z_transform: Array | None = None
    """(q, q) upper triangular."""


class SharedColumns(NamedTuple):
    """What X, Z, the groups and weights say by themselves of a problem with one grouping factor, for any response."""

    z_transform: Array
    """(q, q) from scaled columns to orthonormal ones."""
    z_scale: Array
    """(2, q) shift, scale."""
    x_scale: Array
    """(2, p)."""
    x_transform: Array
    """(p, p)."""
    z_map: Array
    """(q, q) from the caller's columns to orthonormal ones."""
    x_map: Array
    """(p, p)."""
    x_constant: int
    """Constant column, -1 for none."""
    z_constant: int
    present: Index | None
    """(m,) slots that have rows, None for all."""
    log_det: float
    """log|det| of x_map."""
    free: bool
    """Whether it shows already that all covariance parameters are identified."""
    balanced: bool
    """Whether the criterion is known to have one minimum only."""
    log_constant: float
    """Minus the sum of the logarithms of the weights."""
