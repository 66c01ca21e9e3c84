"""A model on other rows than those that it was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import LMMError
from ..support.checks import row_values
from .new_rows import read_rows

if TYPE_CHECKING:
    from ..estimation.model import Model

__all__ = ["on_rows"]

M = TypeVar("M", bound="Model")


def on_rows(model: M, data: Any, weights: Any = None, offset: Any = None) -> M:
    """The model of other rows, with their response where they have one; parameters are to be stated for it.

    Parameters
    ----------
    model : Model
    data : table, or mapping of arrays for a model from arrays
        As `read_rows` takes them, the response optional.
    weights, offset : (n,) arrays, optional

    Raises
    ------
    LMMError
        For columns that are missing, and for weights or an offset that the model has and these rows do not.
    """
    model.needs_independent_residuals("at(data=)")
    every = tuple(f.grouping.name for f in model.factors)
    spec = model.spec
    response = "y" in data if spec is None and hasattr(data, "keys") else spec is None or spec.has_response(data)
    rows = read_rows(model, data, "data", every, every, response)
    assert rows.Z is not None
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
    return model.of(model.design.other(rows.X, rows.Z, rows.labels, w, known, rows.caller.index), rows.y, True)
