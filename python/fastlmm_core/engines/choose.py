"""Which engine takes a design."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..design.design import Design
from ..design.grouping import Grouping
from .one_factor.problem import condition
from .protocol import Problem

__all__ = ["problem_of"]

Array = NDArray[np.float64]


def problem_of(design: Design, y: Array | None, given: bool = False) -> tuple[Problem, tuple[Grouping, ...]]:
    """Condition a design with a response, for the engine that evaluates it soonest.

    Parameters
    ----------
    design : Design
    y : (n,) array or None
        None for a design without a response.
    given : bool
        Whether the parameters are, so that designs and responses that leave them open are taken too.

    Returns
    -------
    Problem
    tuple of Grouping
        The grouping factors, counted.

    Raises
    ------
    LMMError
        For what cannot be fitted; see `condition` and `condition_factors`.
    """
    part, offset = design.random, design.offset
    if y is None:
        y, offset, given = np.zeros(len(design.exog)), None, True
    if design.residual is not None:
        from .residual.problem import condition_residual

        return condition_residual(design, y, offset, given)
    if len(part.codes) == 1:
        problem, grouping = condition(
            y, design.exog, part.Z, part.codes[0], design.weights, offset, part.structure, part.columns, given
        )
        return problem, (grouping,)
    # loaded with the first model that needs it
    from .crossed.problem import Factor, condition_factors

    factors = [
        Factor(part.columns_of(span), read.codes, read.n_slots, read.name, part.columns[span])
        for read, span in zip(part.codes, part.spans, strict=True)
    ]
    found = condition_factors(y, design.exog, factors, design.weights, offset, part.structure, given)
    return found, tuple(Grouping(read) for read in part.codes)
