"""Checks of arguments that several modules share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError

__all__ = ["check_count", "check_share", "exact_floats", "float_array", "object_floats", "row_values"]

Array = NDArray[np.float64]

_BILLION = 10**9

_EXACT = 2**53
"""Up to here float64 holds every integer."""


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


def exact_floats(values: NDArray[Any], name: str) -> Array:
    """Numbers as float64.

    Raises
    ------
    LMMError
        For integers of more than 53 binary digits that float64 would round.
    """
    floats = values.astype(np.float64)
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8 or values.size == 0:
        return floats
    if int(values.max()) <= _EXACT and int(values.min()) >= -_EXACT:
        return floats
    beyond = floats >= float(2 ** (63 if values.dtype.kind == "i" else 64))  # the largest integers round up to this
    lost = beyond | (np.where(beyond, 0.0, floats).astype(values.dtype) != values)
    if lost.any():
        at = np.argwhere(lost)[0].tolist()
        raise LMMError(
            f"{name} holds integers that a float64 would round (first: {values[tuple(at)]} at row {at[0]}); subtract "
            "a constant from them, or give them as text if they are labels"
        )
    return floats


def object_floats(values: NDArray[Any], name: str) -> Array:
    """Numbers that are Python objects, as float64.

    Raises
    ------
    LMMError
        For integers that float64 would round, and those beyond its range.
    """
    for at, value in enumerate(values.ravel().tolist()):
        if isinstance(value, int) and abs(value) > _EXACT and (abs(value) >= 2**1023 or int(float(value)) != value):
            shown = str(value) if abs(value) < 10**30 else f"an integer of {value.bit_length()} binary digits"
            raise LMMError(
                f"{name} holds integers that a float64 would round (first: {shown}, element {at}); subtract a constant "
                "from them, or give them as text if they are labels"
            )
    return np.asarray(values, dtype=np.float64)


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


def check_count(n: int, name: str, least: int = 1) -> None:
    """Refuse what is not an integer from `least` to a billion."""
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
        raise LMMError(f"{name}={n!r} must be an integer of at least {least}")
    if n < least:
        raise LMMError(f"{name}={n} must be at least {least}")
    if n > _BILLION:
        raise LMMError(f"{name}={n} must be at most {_BILLION:,}")


def check_share(value: float, name: str) -> None:
    """Refuse what does not lie strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise LMMError(f"{name}={value} must lie between 0 and 1, e.g. 0.95")
