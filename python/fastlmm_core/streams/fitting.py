"""A formula and a source, or a plan and its sums, to a design and a problem."""

from __future__ import annotations

from typing import NamedTuple

from ..design.design import check_sigma
from ..design.streamed import StreamedDesign, random_without_rows
from ..engines.one_factor.conditioning import condition_rows
from ..engines.protocol import Problem
from ..errors import LMMError
from ..formula.syntax import parse
from .cross_products import CrossProducts
from .plan import Plan, make_plan
from .reader import StreamRows
from .source import Scan

__all__ = ["Streamed", "condition_plan", "condition_source", "design_without_rows"]


class Streamed(NamedTuple):
    """A design without rows, and its problem."""

    design: StreamedDesign
    problem: Problem


def condition_source(
    formula: str, source: Scan, weights: str | None, offset: str | None, missing: str, sigma: float | None = None
) -> Streamed:
    """The model of a formula and a source.

    Parameters
    ----------
    formula : str
    source : Scan
    weights, offset, missing
        See `make_plan`.
    sigma : float, optional
        Residual standard deviation where it is known.

    Raises
    ------
    LMMError
        As for rows in memory, and for what a scan does not take.
    """
    before = source.passes
    if source.once:
        from .late import read_once

        found = read_once(formula, source, weights, offset, missing)
        if found is not None:
            return _conditioned(StreamRows.of_sums(found[0], source, found[1]), source, before, sigma)
    plan = make_plan(formula, source, weights, offset, missing, {})
    return condition_plan(plan, None, source, before, sigma)


def condition_plan(
    plan: Plan, total: CrossProducts | None, source: Scan | None, before: int = 0, sigma: float | None = None
) -> Streamed:
    """The model of a plan and its sums, or of the rows of a source.

    Parameters
    ----------
    plan : Plan
    total : CrossProducts or None
    source : Scan or None
        Where the rows may be read.
    before : int
        Passes over the source that are not those of this model.
    sigma : float, optional
        Residual standard deviation where it is known; no sum depends on it.

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
    return _conditioned(StreamRows(plan, source, total), source, before, sigma)


def _conditioned(reader: StreamRows, source: Scan | None, before: int, sigma: float | None) -> Streamed:
    """The model of what a reader gives."""
    plan = reader.plan
    recipe = plan.recipe
    problem: Problem
    part = random_without_rows(recipe.terms)
    if sigma is not None:
        check_sigma(sigma, part.structure)
    if len(plan.factors) == 1:
        problem, _ = condition_rows(
            reader, part.structure, plan.factors[0], part.columns, columns=plan.columns, sigma=sigma
        )
    else:
        from ..engines.nested.cells import condition_cells

        problem = condition_cells(reader, plan.columns, sigma)
    passes = reader.passes if source is None else source.passes - before
    return Streamed(design_without_rows(plan, reader, problem, passes, sigma), problem)


def design_without_rows(
    plan: Plan, reader: StreamRows, problem: Problem, passes: int, sigma: float | None = None
) -> StreamedDesign:
    """What is known of a design from the sums that a reader has given.

    Parameters
    ----------
    plan : Plan
    reader : StreamRows
    problem : Problem
        Made of those sums.
    passes : int
        How often all rows were read.
    sigma : float, optional
        Residual standard deviation where it is known.
    """
    recipe = plan.recipe
    return StreamedDesign(
        None,  # type: ignore[arg-type]
        random_without_rows(recipe.terms, [grouping.codes for grouping in reader.groupings]),
        recipe.x_names,
        spec=recipe.specification(reader.seen),
        response_name=parse(recipe.formula).response.label,
        n_dropped=reader.seen.dropped,
        groupings=reader.groupings,
        passes=passes,
        missing=dict(reader.seen.gaps),
        weighted=recipe.weights is not None,
        offset_mean=None if recipe.offset is None else reader.seen.offset / reader.n,
        constant=plan.columns.x_constant if problem.x_constant else -1,
        exog_root=reader.root(problem),
        mean_squares=reader.mean_squares(),
        squares=reader.squares(),
        log_weights=reader.log_weights,
        recipe=recipe,
        sigma=sigma,
    )
