"""What the deletion of a group takes away that its line of sums does not tell, from one more pass over the rows."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..design.grouping import Grouping
from ..design.streamed import StreamedDesign
from ..engines.one_factor.problem import OneFactorProblem
from ..errors import LMMError
from ..kernels.records.rows import Rows
from ..support.types import Array
from .labels import CellSlots, joined
from .recipe import Recipe, Seen
from .reduce import chunks
from .source import Scan

__all__ = ["sums_within_groups"]


def sums_within_groups(design: StreamedDesign, problem: OneFactorProblem, source: Scan) -> tuple[Array, Array]:
    """The part of [X_o y_o]'[X_o y_o] within each group, and the sums of the logarithms of the weights.

    Parameters
    ----------
    design : StreamedDesign
        With one grouping factor.
    problem : OneFactorProblem
    source : Scan
        The rows of the fit, in any order.

    Returns
    -------
    within : (m, (r+1)(r+2)/2) array
    log_weights : (m,) array

    Raises
    ------
    LMMError
        For a group that the fit does not know, or other numbers of rows.
    """
    recipe = cast("Recipe", design.recipe)
    grouping = design.grouping
    slots, packed = CellSlots(recipe.shared.names), problem.unpatterned()
    within = np.zeros((packed.shape[0] * packed.shape[2], len(problem.within)))
    counts, log_weights = np.zeros(problem.m, dtype=np.int64), np.zeros(problem.m)
    place = np.empty(0, dtype=np.int64)
    # in one thread: the labels are looked at while rows are read
    for rows in chunks(recipe, source.tables(list(recipe.columns)), slots, Seen.nothing()):
        place = np.append(place, _places(slots, grouping, len(place)))
        y = rows.y if rows.offset is None else rows.y - rows.offset
        X, y, Z = problem.conditioned_rows(rows.X, y, rows.Z)
        codes: NDArray[np.int64] = np.asarray(rows.codes, dtype=np.int64)
        problem.add_within(Rows(X, y, Z, codes, 0, len(place), rows.weights, None), place, packed, within)
        counts += np.bincount(place[codes], minlength=problem.m)
        if rows.weights is not None:
            log_weights += np.bincount(place[codes], np.log(rows.weights), minlength=problem.m)
    other = np.flatnonzero(counts != problem.raw[:, -1])
    if len(other):
        at = other[0]
        raise LMMError(
            f"source has {counts[at]} complete rows of {grouping.labels.tolist()[at]!r} of {grouping.name!r}, and the "
            f"fit had {int(problem.raw[at, -1])}; give the rows of the fit"
        )
    return within[: problem.m], log_weights


def _places(slots: CellSlots, grouping: Grouping, first: int) -> NDArray[np.int64]:
    """Groups of the slots from one on."""
    labels = joined(grouping.name, slots.labels_from(first))
    found = grouping.locate(labels)
    if (found < 0).any():
        unknown = labels.tolist()[int(np.argmax(found < 0))]
        raise LMMError(
            f"source has the level {unknown!r} of {grouping.name!r}, which the fit does not know; give the rows of the "
            "fit"
        )
    return found.astype(np.int64)
