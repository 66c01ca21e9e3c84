"""Columns of the data by name.

From the design follow numeric variables that are a column of X or Z, factors by the columns of their main effects in
whatever coding, and the columns that make the grouping factors.  Others are in the caller's table, to which a model
from a formula holds a reference; one from a pickle or a file has lost it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..formula.coding import fixed_terms
from ..inference.means.grid import ReferenceGrid
from ..support.arguments import near
from ..tables.columns import Table

if TYPE_CHECKING:
    from ..estimation.model import Model

__all__ = ["column_names", "data_column", "held_column", "known_column"]

Array = NDArray[Any]


def column_names(model: Model) -> list[str]:
    """Columns of the data that `held_column` may know: of the fixed part, the random part, the grouping factors."""
    spec = model.spec
    if spec is None:
        named = [*model.exog_re_names, *model.exog_names]
        return list(dict.fromkeys(named))
    parts = [part for factor in model.factors for part in factor.grouping.name.split(":")]
    return list(dict.fromkeys([*spec.random_variables, *spec.reference, *parts]))


def held_column(model: Model, name: str) -> Array | None:
    """Values or labels of a column of the data over the rows used (n,); None where the model does not hold them."""
    spec = model.spec
    reference = None if spec is None else spec.reference.get(name)
    if isinstance(reference, tuple):
        found = _factor(model, name, reference)
        if found is not None:
            return found
    else:
        for names, matrix in ((model.exog_re_names, model.exog_re), (model.exog_names, model.exog)):
            if name in names:
                return np.asarray(matrix[:, list(names).index(name)])
    for factor in model.factors:
        grouping = factor.grouping
        if grouping.name == name:
            return np.asarray(grouping.labels)[grouping.index]
        parts = grouping.name.split(":")
        if name in parts:
            pieces = [str(label).split(":") for label in grouping.labels.tolist()]
            if all(len(piece) == len(parts) for piece in pieces):
                labels = np.array([piece[parts.index(name)] for piece in pieces], dtype=object)
                return labels[grouping.index]
    return None


def known_column(model: Model, name: str) -> Array | None:
    """A column from the design, or else from the table that the model was made of (n,); None where neither has it."""
    found = held_column(model, name)
    table = None if found is not None else model.design.source_table()
    if table is None or name not in table.names:
        return found
    return np.asarray(table.column(name).raw)[model.design.caller_rows.positions]


def data_column(model: Model, given: Any, argument: str, frame: Any = None) -> tuple[Array, str]:
    """A column of the data by name, or given row by row, over the rows used (n,), and its name.

    Raises
    ------
    LMMError
        For a name that is not known, or a column that the model does not hold, with the remedy.
    """
    rows = model.design.caller_rows
    if not isinstance(given, str):
        name = str(getattr(given, "name", None) or argument)
        return np.asarray(rows.values(given, argument)), name
    if frame is not None:
        table = Table(frame, "frame")
        return np.asarray(rows.values(table.column(given).raw, "frame")), given
    found = known_column(model, given)
    if found is not None:
        return found, given
    names = column_names(model)
    if given in names:
        raise LMMError(
            f"{argument}={given!r}: the design does not hold this column as it is in the data; give its values, "
            f"{argument}=data[{given!r}]"
        )
    own = model.design.source_table()
    if own is not None:
        known = dict.fromkeys([*names, *own.names])
        raise LMMError(f"{argument}={given!r} is not a column of the data: {near(given, known)}")
    raise LMMError(
        f"{argument}={given!r} is not a column of the model, and its table is not there: {near(given, names)}; for "
        f"another column of the data give its values, {argument}=data[{given!r}]"
    )


def _factor(model: Model, name: str, levels: tuple[Any, ...]) -> Array | None:
    """Labels of a factor from the columns of its main effect."""
    columns = [j for term in fixed_terms(model.design) if term.variables == {name} for j in term.columns]
    if not columns:
        return None
    coded = ReferenceGrid(model).functions([name])[:, columns]
    distance = np.array([np.abs(model.exog[:, columns] - row).max(axis=1) for row in coded])
    nearest = distance.argmin(axis=0)
    apart = np.abs(coded[:, None] - coded[None]).max(axis=2) + np.eye(len(coded))
    if len(levels) > 1 and (apart.min() < 1e-9 or distance.min(axis=0).max() > 1e-9 * max(1.0, np.abs(coded).max())):
        return None
    labels = np.empty(len(levels), dtype=object)
    labels[:] = levels
    return np.asarray(labels[nearest])
