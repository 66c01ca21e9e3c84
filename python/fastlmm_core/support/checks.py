"""Checks of arguments that several modules share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from .numerals import first_other
from .types import Array

__all__ = [
    "check_count",
    "check_level",
    "check_share",
    "exact_floats",
    "float_array",
    "number_array",
    "object_floats",
    "plain_array",
    "row_values",
    "sum_is_finite",
]


_FLOAT = np.dtype(np.float64)

_LARGEST = 1e100
"""Squares and products of numbers up to here are finite."""

_MOST = 10**8

_EXACT = 2**53
"""Up to here float64 holds every integer."""


def plain_array(values: Any, name: str) -> NDArray[Any]:
    """What the caller gave, as an array of numpy.

    Raises
    ------
    LMMError
        For masked values (missing data), sparse matrices and records.
    """
    if type(values) is np.ndarray and values.dtype.names is None:
        return values
    if isinstance(values, np.ma.MaskedArray) or (
        isinstance(values, (list, tuple)) and any(isinstance(part, np.ma.MaskedArray) for part in values)
    ):
        masked = np.ma.array(values) if isinstance(values, (list, tuple)) else values
        gaps = np.ma.getmaskarray(masked)
        if gaps.any():
            place = ", ".join(map(str, np.argwhere(gaps)[0].tolist()))
            raise LMMError(
                f"{name} is masked at {int(gaps.sum())} places (first: [{place}]): masked values are missing; remove "
                "or impute these rows"
            )
        return np.asarray(masked.data)
    if _sparse(values):
        raise LMMError(f"{name} is a sparse matrix ({type(values).__name__}); give {name}.toarray()")
    try:
        array = np.asarray(values)
    except Exception as error:
        if isinstance(values, (list, tuple)):
            raise LMMError(
                f"{name} must be an array, but its rows have different lengths; fill or split them"
            ) from error
        raise LMMError(f"{name} of type {type(values).__name__!r} cannot be read as an array: {error}") from error
    if array.dtype.names is not None:
        raise LMMError(f"{name} holds records with the fields {', '.join(array.dtype.names)}; give one of them")
    return array


def _sparse(values: Any) -> bool:
    """Whether it is a sparse matrix or array of scipy."""
    return type(values) is not np.ndarray and hasattr(values, "toarray") and hasattr(values, "tocsr")


def _written_out(values: Any, name: str) -> NDArray[Any]:
    """The rows of a sparse matrix with their zeros."""
    from .memory import require

    require(int(np.prod(values.shape, dtype=np.float64)) * 8, f"{name}, a sparse matrix that is written out")
    return np.asarray(values.toarray(order="C"))


def float_array(values: Any, name: str, ndim: int) -> Array:
    """A float64 array of `ndim` dimensions, copied only where it has to be; a vector counts as one column.

    Of two dimensions it may be a sparse matrix, which is written out.

    Raises
    ------
    LMMError
        For text, dates, complex numbers, masked values, records, integers that float64 would round, or another number
        of dimensions.
    MemoryError
        For a sparse matrix that there is no room for.
    """
    if type(values) is np.ndarray and values.dtype is _FLOAT and values.ndim == ndim and values.flags.aligned:
        return values
    array = _written_out(values, name) if ndim == 2 and _sparse(values) else plain_array(values, name)
    if array.dtype is not _FLOAT and array.dtype != _FLOAT:
        array = _floats(array, values, name)
    elif not array.flags.aligned:
        # a field of packed records: the kernels count strides in elements
        array = array.copy()
    if ndim == 2 and array.ndim == 1:
        array = array[:, None]
    if array.ndim != ndim:
        raise LMMError(f"{name} must have {ndim} dimension{'s' * (ndim > 1)}, not the shape {array.shape}")
    return array


def number_array(values: Any, name: str) -> Array:
    """Finite numbers in an array of any shape, always a copy.

    Raises
    ------
    LMMError
        As `float_array`, and for values that are not finite.
    """
    array = plain_array(values, name)
    floats = array.copy() if array.dtype == np.float64 else _floats(array, values, name)
    if not np.isfinite(floats).all():
        raise LMMError(f"{name} has values that are not finite; give a number for each")
    if floats.size and np.abs(floats).max() > _LARGEST:
        raise LMMError(f"{name} has values above {_LARGEST:g} in size; use larger units")
    return floats


def _floats(array: NDArray[Any], values: Any, name: str) -> Array:
    """Numbers of any other kind as float64."""
    kind = array.dtype.kind
    if kind in "iufb":
        return exact_floats(array, name)
    text = array.ndim > 0 and kind in "UST"
    if kind == "O" and values is not None:
        # numpy would read numbers from text
        text = array.ndim > 0 and any(isinstance(value, (str, bytes)) for value in array.flat)
        try:
            if not text:
                return object_floats(array, name)
        except (TypeError, ValueError) as error:  # objects that are no numbers
            if isinstance(error, LMMError):
                raise
    shown = str(array.dtype if array.ndim or hasattr(values, "dtype") else type(values).__name__)
    holds = f" (it holds {first_other(array.tolist())})" if text and array.ndim == 1 and array.size else ""
    raise LMMError(
        f"{name} must hold numbers, not {f'text ({shown})' if text else shown}; convert or encode it first{holds}"
    )


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
    given = plain_array(values, name)
    array = float_array(np.full(n, given) if given.ndim == 0 else given, name, 1)
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


def sum_is_finite(values: Array) -> bool:
    """Whether the sum is, and so all values are, which takes half the time of looking at each.

    Finite values whose sum overflows are to be looked at one by one.
    """
    with np.errstate(all="ignore"):
        return bool(np.isfinite(values.sum()))


def check_count(n: int, name: str, least: int = 1) -> None:
    """Refuse what is not an integer from `least` to a hundred million."""
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
        raise LMMError(f"{name}={n!r} must be an integer of at least {least}")
    if n < least:
        raise LMMError(f"{name}={n} must be at least {least}")
    if n > _MOST:
        shown = n if n < 10**30 else "a huge number"
        raise LMMError(f"{name}={shown} must be at most {_MOST:,}")


def check_level(level: float, name: str = "level") -> None:
    """Refuse a level of confidence that is none: not between 0 and 1, or below one half, where alpha was meant."""
    if not 0.0 < level < 1.0:
        hint = f"; write {level / 100:g}" if 50.0 <= level < 100.0 else ", e.g. 0.95"
        raise LMMError(f"{name}={level} must lie between 0 and 1{hint}")
    if level < 0.5:
        raise LMMError(
            f"{name}={level} is the share that the limits are to cover, not the share outside them; write "
            f"{name}={1.0 - level:g}"
        )


def check_share(value: float, name: str) -> None:
    """Refuse what does not lie strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise LMMError(f"{name}={value} must lie between 0 and 1, e.g. 0.95")
