"""Predictions along one variable for each group, as nlme's augPred has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import LMMError
from ..formula.syntax import parse
from ..support.checks import check_count
from ..tables.columns import Table
from .predict import prediction

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["predictions_along"]


def predictions_along(
    result: Fit, x: str, points: int, low: float | None, high: float | None, factor: str | None, data: Any
) -> Any:
    """See `LMMResult.predict_along`."""
    model, spec = result.model, result.model.spec
    if spec is None:
        raise LMMError("predict_along() takes variables from a table, and this model is from arrays; use predict()")
    check_count(points, "points", 2)
    table = Table(model.design.origin(data).table)
    grouping = model.factor(factor).grouping
    parsed = parse(spec.formula)
    if not parsed.bars:
        raise LMMError(
            "predict_along() is of the levels of a factor, and the model has no random effects; use predict()"
        )
    own = next(bar.factors for bar in parsed.bars if bar.name == grouping.name)
    groups = dict.fromkeys([*own, *(name for bar in parsed.bars for name in bar.factors)])
    others = [name for name in dict.fromkeys([*spec.reference, *spec.random_variables, *groups]) if name != x]
    if x not in {*spec.reference, *spec.random_variables}:
        known = ", ".join(map(repr, dict.fromkeys([*spec.reference, *spec.random_variables])))
        raise LMMError(f"x={x!r} is no variable of the model; choose one of {known}")
    if table.column(x).number is None:
        raise LMMError(f"x={x!r} is a factor: its levels are not a range; predict() takes rows of your own")
    rows = model.rows_used
    values = np.asarray(table.column(x).number, dtype=np.float64)[rows]
    ends = float(values.min()) if low is None else low, float(values.max()) if high is None else high
    if not (np.isfinite(ends).all() and ends[0] < ends[1]):
        raise LMMError(f"low={ends[0]:g} and high={ends[1]:g} must be finite numbers, the first below the second")
    new: dict[str, Any] = {x: np.tile(np.linspace(*ends, points), grouping.m)}
    for name in [*others, *([spec.offset_name] if spec.offset_name else [])]:
        column = table.column(name)
        if column.number is not None and name not in groups:
            number = np.asarray(column.number, dtype=np.float64)[rows]
            typical = np.bincount(grouping.index, number, grouping.m) / np.bincount(grouping.index)
        else:
            codes, labels = column.codes(rows)
            typical = labels[_most_frequent(codes, grouping.index, grouping.m)]
        new[name] = np.repeat(typical, points)
    # of structured residuals nothing is told here: rows have their places in these, and lines have none
    every = [f.grouping.name for f in model.factors]
    means = {
        name: np.asarray(prediction(result, new, effects))
        for name, effects in (("fitted_population", "population"), ("fitted", every))
    }
    return model.table({grouping.name: np.repeat(grouping.labels, points), x: new[x], **means})


def _most_frequent(codes: NDArray[np.intp], index: NDArray[np.intp], m: int) -> NDArray[np.intp]:
    """The most frequent code of each group, of several the first."""
    size = int(codes.max()) + 1
    pairs, counts = np.unique(index * np.intp(size) + codes, return_counts=True)
    order = np.lexsort((pairs, -counts, pairs // size))
    first = np.searchsorted(pairs[order] // size, np.arange(m))
    return np.asarray(pairs[order][first] % size, dtype=np.intp)
