"""Rows of new data with missing values: left out of a prediction, and NaN in its results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import LMMError
from ..formula.matrices import complete_rows, needed_columns
from ..formula.syntax import parse
from ..tables.columns import Table
from ..tables.rows import CallerRows

if TYPE_CHECKING:
    from ..estimation.model import Model

__all__ = ["complete"]


def complete(model: Model, data: Any, factors: tuple[str, ...], weights: bool) -> CallerRows:
    """Which rows of new data have all that predictions with the effects of some factors, or the weights too, need.

    Raises
    ------
    LMMError
        For a model from arrays, and where no row has it.
    """
    spec = model.spec
    if spec is None:
        raise LMMError("missing='nan' needs a model from a formula; of arrays give the rows without missing values")
    table = Table.of(data)
    parsed = parse(spec.formula)
    sides = [parsed.fixed, *(bar.left for bar in parsed.bars if bar.name in factors)]
    names = [name for side in sides for name in needed_columns(side, table)]
    names += [name for bar in parsed.bars if bar.name in factors for name in bar.factors]
    part = model.design.residual
    if part is not None:  # what is observed of a subject depends on where its rows stand
        names += [name for name in (part.time, part.subject.name, part.by) if name in table]
    if spec.offset_name is not None and spec.offset_name in table:
        names.append(spec.offset_name)
    if weights and spec.weights_name is not None and spec.weights_name in table:
        names.append(spec.weights_name)
    columns = [table.column(name).settle() for name in dict.fromkeys(names)]
    kept = complete_rows(columns, table.n_rows, "drop")
    return CallerRows(table.library, table.index, kept, table.n_rows, True)
