"""A formula and a source, or a plan and its sums, to a design and a problem."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..design.grouping import Grouping
from ..design.streamed import StreamedDesign, grouping_of, random_without_rows
from ..engines.one_factor.conditioning import condition_rows
from ..engines.one_factor.problem import OneFactorProblem
from ..engines.protocol import Problem
from ..errors import LMMError
from ..formula.syntax import parse
from .cross_products import CrossProducts
from .labels import joined
from .plan import Plan, make_plan
from .reader import StreamRows
from .source import Scan

__all__ = ["Streamed", "condition_plan", "condition_source"]


class Streamed(NamedTuple):
    """A design without rows, its problem and its grouping factors."""

    design: StreamedDesign
    problem: Problem
    groupings: tuple[Grouping, ...]


def condition_source(formula: str, source: Scan, weights: str | None, offset: str | None, missing: str) -> Streamed:
    """The model of a formula and a source.

    Raises
    ------
    LMMError
        As for rows in memory, and for what a scan does not take.
    """
    before = source.passes
    plan = make_plan(formula, source, weights, offset, missing, {})
    return condition_plan(plan, None, source, before)


def condition_plan(plan: Plan, total: CrossProducts | None, source: Scan | None, before: int = 0) -> Streamed:
    """The model of a plan and its sums, or of the rows of a source.

    Parameters
    ----------
    plan : Plan
    total : CrossProducts or None
    source : Scan or None
        Where the rows may be read.
    before : int
        Passes over the source that are not those of this model.

    Raises
    ------
    LMMError
        As for rows in memory.
    """
    if total is not None and total.fingerprint != plan.fingerprint:
        raise LMMError(
            f"the sums were made by another plan (fingerprint {total.fingerprint[:8]}, this plan has "
            f"{plan.fingerprint[:8]}); give the plan whose reduce() made them"
        )
    recipe = plan.recipe
    reader = StreamRows(plan, source, total)
    names = random_without_rows(recipe.terms).columns
    problem, _ = condition_rows(reader, plan.structure, plan.factor, names, columns=plan.columns)
    grouping = grouping_of(plan.factor, joined(plan.factor, reader.labels))
    design = StreamedDesign(
        None,  # type: ignore[arg-type]
        random_without_rows(recipe.terms, grouping.codes),
        recipe.x_names,
        spec=recipe.specification(reader.seen),
        response_name=parse(recipe.formula).response.label,
        n_dropped=reader.seen.dropped,
        groupings=(grouping,),
        passes=reader.passes if source is None else source.passes - before,
        missing=dict(reader.seen.gaps),
        weighted=recipe.weights is not None,
        offset_mean=None if recipe.offset is None else reader.seen.offset / reader.n,
        constant=plan.columns.x_constant if problem.x_constant else -1,
        exog_root=reader.root(problem),
        mean_squares=_mean_squares(problem),
        recipe=recipe,
    )
    return Streamed(design, problem, (grouping,))


def _mean_squares(problem: OneFactorProblem) -> NDArray[np.float64]:
    """Z'WZ / n in the caller's units."""
    q = problem.structure.q
    inner = kernels.unpack(np.sum(problem.raw[:, : q * (q + 1) // 2], axis=0), q)
    turn = problem.z_transform @ np.linalg.inv(problem.z_map)
    return np.asarray(turn.T @ inner @ turn / problem.n)
