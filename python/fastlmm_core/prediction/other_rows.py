"""A model on other rows than those that it was made of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..design.residual import ResidualPart, refuse_unplaced
from ..errors import LMMError
from ..support.checks import row_values
from ..tables.columns import Table
from .new_rows import read_rows

if TYPE_CHECKING:
    from ..estimation.model import Model

__all__ = ["on_rows", "placed_anywhere", "placed_rows"]

M = TypeVar("M", bound="Model")


def on_rows(model: M, data: Any, weights: Any = None, offset: Any = None) -> M:
    """The model of other rows, with their response where they have one; parameters are to be stated for it.

    Parameters
    ----------
    model : Model
    data : table, or mapping of arrays for a model from arrays
        As `read_rows` takes them, the response optional; arrays of structured residuals with "residual".
    weights, offset : (n,) arrays, optional

    Raises
    ------
    LMMError
        For columns that are missing, and for weights or an offset that the model has and these rows do not.
    """
    every = tuple(f.grouping.name for f in model.factors) if model.structure.q else ()
    spec = model.spec
    response = "y" in data if spec is None and hasattr(data, "keys") else spec is None or spec.has_response(data)
    rows = read_rows(model, data, "data", every, every, response, weights is None)
    part = model.design.residual
    placed = None if part is None else placed_rows(part, data, len(rows.X), "data")
    Z = np.zeros((len(rows.X), 0)) if rows.Z is None else rows.Z
    w = (
        rows.weights
        if weights is None
        else row_values(rows.caller.values(weights, "weights"), "weights", len(rows.X), True)
    )
    known = rows.offset if offset is None else row_values(rows.caller.values(offset, "offset"), "offset", len(rows.X))
    if known is None and model.offset is not None:
        raise LMMError("the model has an offset: give that of the new rows as offset= (0 for none)")
    if w is None and model.weights is not None:
        raise LMMError("the model has weights: give those of the new rows as weights= (1 for a plain observation)")
    return model.of(model.design.other(rows.X, Z, rows.labels, w, known, placed, rows.caller.index), rows.y, True)


def placed_rows(part: ResidualPart, data: Any, n: int, argument: str) -> ResidualPart:
    """The residual part of rows that can all be observed, in a table or in arrays.

    Parameters
    ----------
    part : ResidualPart
        Of the fit.
    data : table, or mapping of arrays with a `Residual` as "residual"
    n : int
        Rows.
    argument : str
        What messages call `data`.

    Raises
    ------
    LMMError
        For rows that cannot be placed, and two of a subject at one place.
    """
    placed = placed_anywhere(part, data, n, argument, True)
    try:
        refuse_unplaced(placed)
    except LMMError as error:
        raise LMMError(f"{argument}: {error}") from None
    return replace(placed, subject=placed.subject.dense())


def placed_anywhere(
    part: ResidualPart, data: Any, n: int, argument: str, in_order: bool = False, subjects: bool = True
) -> ResidualPart:
    """The same of rows that are looked at one by one, so that some may stand at one place.

    Parameters
    ----------
    part, data, n, argument
    in_order : bool
        Whether arrays may leave out the visits, being the order of a subject's rows.
    subjects : bool
        Whether it matters which rows of a table are of one subject.
    """
    from ..formula.residual_rows import place_arrays, place_rows

    if part.from_arrays:
        if "residual" not in data:
            name = part.written_name
            wanted = "a Variance" if part.independent else f"Residual({name!r}, subject, time)"
            raise LMMError(f"{argument} has no 'residual': give {wanted} with the arrays of its rows")
        return place_arrays(part, data["residual"], n, argument, in_order)
    return place_rows(part, Table.of(data, argument), subjects)
