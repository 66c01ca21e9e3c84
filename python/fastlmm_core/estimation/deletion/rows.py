"""Refits of a model of several grouping factors, or with structured residuals, without some of its rows.

What one factor allows, to take a group's contribution from sums (deletion.py), crossed factors do not: a row that goes
changes the elimination of all levels, and neither do the parameters of residuals.
Refits start at the estimates of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ...errors import LMMError
from ...support.progress import progress_bar
from ...support.threads import map_in_threads, processors
from ...support.types import Index
from .groups import Deletions

if TYPE_CHECKING:
    from ...design.grouping import Grouping
    from ..fit import Fit

__all__ = ["MOST", "outside", "refit_each", "refit_without", "refits", "rows_of_units"]

T = TypeVar("T")
F = TypeVar("F", bound="Fit")

MOST = 3000
"""Refits without single observations that are still made."""


def outside(n: int, unit: Index) -> Index:
    """The rows, of n, that are not of a unit."""
    keep = np.ones(n, dtype=bool)
    keep[unit] = False
    return np.flatnonzero(keep)


def refit_without(result: F, unit: Index) -> F:
    """The fit of the rows outside a unit."""
    return _refit(result, outside(result.nobs, unit))


def _refit(result: F, rows: Index) -> F:
    model = result.model.rows(rows)
    found = None
    if result.converged and not result.singular:
        found = result.again(model, start=result.theta)
        if found.converged and not found.singular:
            return found
    other = result.again(model)
    if found is None or other.converged > found.converged or other.criterion <= found.criterion:
        return other
    return found


def refits(result: Fit, units: Sequence[Index], use: Callable[[int, Fit], T]) -> list[T | LMMError]:
    """Fit the rows outside each unit and make use of the fit; the error where there is none.

    Parameters
    ----------
    result : LMMResult
    units : sequence of int arrays
        Rows left out.
    use : callable
        Of the number of the unit and the fit without it.
    """

    def one(i: int) -> T | LMMError:
        try:
            return use(i, refit_without(result, units[i]))
        except LMMError as error:
            return error

    bar = progress_bar(None, len(units), "refit")
    tasks = ((i,) for i in range(len(units)))
    found = map_in_threads(one, tasks, min(8, processors()), None if bar is None else bar.update)
    if bar is not None:
        bar.close()
    return found


def rows_of_units(result: Fit, grouping: Grouping | None) -> list[Index]:
    """Rows of each level of a factor, or each row by itself.

    Raises
    ------
    LMMError
        For more single rows than refits are made of.
    """
    if grouping is None:
        if result.nobs > MOST:
            raise LMMError(
                "a model with several grouping factors or structured residuals is refitted without each of up to "
                f"{MOST:,} observations, this one has {result.nobs:,}; leave out the levels of a grouping factor "
                "instead (by=)"
            )
        return [np.array([i]) for i in range(result.nobs)]
    order = np.argsort(grouping.index, kind="stable")
    counts = np.bincount(grouping.index, minlength=len(grouping.labels))
    return np.split(order, np.cumsum(counts)[:-1])


def refit_each(result: Fit, grouping: Grouping | None) -> Deletions:
    """`deletion.delete` for several grouping factors, or structured residuals.

    Parameters
    ----------
    result : LMMResult
    grouping : Grouping or None
        The factor each of whose levels is deleted; None to delete each observation.

    Raises
    ------
    LMMError
        See `rows_of_units`.
    """
    p, q = result.model.exog.shape[1], result.model.structure.q
    units, part = rows_of_units(result, grouping), result.model.residual
    d = len(units)
    out = Deletions(
        params=np.full((d, p), np.nan),
        half=np.full((d, p, p), np.nan),
        sigma2=np.full(d, np.nan),
        criterion=np.full(d, np.nan),
        gradient_norm=np.full(d, np.nan),
        factor=np.full((d, q, q), np.nan),
        converged=np.zeros(d, dtype=bool),
        singular=np.zeros(d, dtype=bool),
        n=np.array([result.nobs - len(rows) for rows in units], dtype=np.int64),
        notes={},
        residual=None if part is None else np.full((d, len(part.natural(result.phi, result.sigma2))), np.nan),
    )
    before = result.model.problem.kept

    def take(i: int, fit: Fit) -> None:
        problem = fit.model.problem
        out.params[i] = fit.beta
        out.half[i] = 0.0
        out.half[i, : problem.rank] = np.linalg.solve(fit.solution.chol, problem.x_map.T) if problem.rank else 0.0
        out.half[i][:, problem.dropped] = np.nan
        out.sigma2[i], out.criterion[i], out.gradient_norm[i] = fit.sigma2, fit.criterion, fit.gradient_norm
        out.factor[i] = fit.relative_factor
        if out.residual is not None and fit.model.residual is not None:
            out.residual[i] = fit.model.residual.natural(fit.phi, fit.sigma2)
        out.converged[i], out.singular[i] = fit.converged, fit.singular
        lost = np.setdiff1d(before, problem.kept)
        if len(lost):
            names = ", ".join(result.model.exog_names[j] for j in lost)
            out.notes[i] = f"X loses rank: no estimate of {names}"
        elif not fit.converged:
            out.notes[i] = fit.message

    for i, error in enumerate(refits(result, units, take)):
        if error is not None:
            out.notes[i] = str(error)
    return out
