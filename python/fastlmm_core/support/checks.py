"""Checks of arguments that several modules share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError

__all__ = ["check_share", "float_array", "row_values"]

Array = NDArray[np.float64]


def float_array(values: Any, name: str, ndim: int) -> Array:
    """A float64 array of `ndim` dimensions, copied only where it has to be; a vector counts as one column.

    Raises
    ------
    LMMError
        For text, dates, complex numbers or another number of dimensions.
    """
    try:
        array = np.asarray(values)
        if array.dtype != np.float64:
            if array.dtype.kind in "USMmc":
                raise ValueError
            array = array.astype(np.float64)
        elif not array.flags.aligned:
            # a field of packed records: the kernels count strides in elements
            array = array.copy()
    except (ValueError, TypeError):
        kind = np.asarray(values, dtype=object).dtype if not hasattr(values, "dtype") else values.dtype
        raise LMMError(f"{name} must hold numbers, not {kind}; convert or encode it first") from None
    if ndim == 2 and array.ndim == 1:
        array = array[:, None]
    if array.ndim != ndim:
        raise LMMError(f"{name} must have {ndim} dimension{'s' * (ndim > 1)}, not the shape {array.shape}")
    return array


def row_values(values: Any, name: str, n: int, positive: bool = False) -> Array:
    """One finite number for each of n rows (a single number serves all).

    Raises
    ------
    LMMError
        For another length, values that are not finite, or (`positive`) values that are not positive.
    """
    array = float_array(np.full(n, values) if np.ndim(values) == 0 else values, name, 1)
    if len(array) != n:
        raise LMMError(f"{name} has {len(array)} values for {n} rows; give one per row")
    bad = ~np.isfinite(array)
    if positive:
        bad |= ~(array > 0.0)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        value = array[row]
        if np.isfinite(value):
            raise LMMError(f"{name} must be positive, which {value} at row {row} is not; correct or remove such rows")
        raise LMMError(f"{name} is not finite at row {row} ({value}); correct or remove such rows")
    return array


def check_share(value: float, name: str) -> None:
    """Refuse what does not lie strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise LMMError(f"{name}={value} must lie between 0 and 1, e.g. 0.95")
