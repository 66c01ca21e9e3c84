"""Series of pandas beside other rows: never taken by position where their labels say otherwise.

A Series is brought into the order of the rows that it is given for, or refused.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError

__all__ = ["aligned", "index_of", "positions", "shared_index"]


def index_of(values: Any) -> Any:
    """Index of a Series or DataFrame of pandas, None for anything else."""
    if type(values) is np.ndarray or values is None:
        return None
    pandas = sys.modules.get("pandas")
    return values.index if pandas is not None and isinstance(values, (pandas.Series, pandas.DataFrame)) else None


def shared_index(given: Iterable[tuple[str, Any]]) -> Any:
    """The index that named arguments have in common; None stands for an argument without one.

    Raises
    ------
    LMMError
        Where two indices differ: which rows belong together is then for the caller to say.
    """
    found: Any = None
    first = ""
    for name, index in given:
        if index is None or index is found:
            continue
        if found is None:
            found, first = index, name
        elif not found.equals(index):
            raise LMMError(
                f"{name} and {first} have different indices{_difference(index, found)}; give both the same index, or "
                ".to_numpy() of both if their rows belong together as they stand"
            )
    return found


def _shown(label: Any) -> str:
    """A label as its user wrote it."""
    return repr(label.item() if isinstance(label, np.generic) else label)


def _difference(index: Any, other: Any) -> str:
    """Where two indices differ first, for a message."""
    if len(index) != len(other):
        return f" ({len(index)} and {len(other)} rows)"
    row = next((i for i, (a, b) in enumerate(zip(index, other, strict=True)) if a != b), None)
    return "" if row is None else f" (first: {_shown(index[row])} and {_shown(other[row])} at row {row})"


def positions(own: Any, wanted: Any, argument: str) -> NDArray[np.intp] | None:
    """Where the labels `wanted` stand in the index `own`, None where both are the same.

    Raises
    ------
    LMMError
        Where labels are absent, or are repeated so that they name no single row.
    """
    if own is wanted or own.equals(wanted):
        return None
    if not own.is_unique:
        label = own[own.duplicated()][0]
        raise LMMError(
            f"{argument} has another index than the data and repeats its labels (first: {_shown(label)}), so that it "
            f"cannot be aligned; give it the index of the data, or {argument}.to_numpy() if it is in the order of the "
            "rows"
        )
    found = np.asarray(own.get_indexer(wanted), dtype=np.intp)
    absent = np.flatnonzero(found < 0)
    if len(absent):
        raise LMMError(
            f"{argument} has another index than the data, and no value for {len(absent)} of its {len(wanted)} rows "
            f"(first: label {_shown(wanted[absent[0]])}); give one for each, or {argument}.to_numpy() if it is in the "
            "order of the rows"
        )
    return found


def aligned(values: Any, index: Any, argument: str) -> Any:
    """Values for each row of a table with the given index; a Series is brought into its order.

    Parameters
    ----------
    values : Series, array or anything else
    index : pandas.Index or None
        None for a table whose rows have no labels.
    argument : str
        What messages call the values.

    Raises
    ------
    LMMError
        For a Series whose labels are not those of the rows.
    """
    own = index_of(values)
    if own is None:
        return values
    if index is None:
        if not own.equals(importlib.import_module("pandas").RangeIndex(len(own))):
            raise LMMError(
                f"{argument} has an index of its own and the rows of the data have no labels; give "
                f"{argument}.to_numpy() if it is in the order of the rows"
            )
        return values
    where = positions(own, index, argument)
    return values if where is None else values.iloc[where]
