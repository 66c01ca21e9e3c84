"""One sequence of looks at a piece of the responses: each takes up what the one before it has left.

Fits in lanes, searches from other starts where there may be other minima, a second look at the boundary, single fits
where need be.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...engines.scaling import criterion_constant
from ...errors import LMMError
from ...kernels.records.batches import BatchCriterion, BatchLook, BatchResults, BatchScores, BatchSums
from ...support.types import Array, Index, Int
from ..estimate import estimate
from ..fit import Fit
from ..information import moments
from ..model import Model
from ..search import NEAR_BOUNDARY
from .batch_fit import BOUNDARY, BatchFit
from .search import Ended, enough_worth, narrowed_starts, next_lowest, screened_design

if TYPE_CHECKING:
    from ...kernels.hierarchies import CorrelatedBatch, FactorBatch
    from .several_factors import HierarchyDesign
    from .visits import VisitDesign

    Sided: TypeAlias = kernels.BatchDesign | FactorBatch | CorrelatedBatch
    Shared: TypeAlias = Sided | HierarchyDesign | VisitDesign

__all__ = ["FIELDS", "fit_alone", "fit_together", "in_lanes"]

FIELDS = ("theta_o", "params", "bse", "sigma2", "criterion", "gradient_norm", "status", "satterthwaite")
"""What is told of each response."""

LOWER, CLEARLY = 1e-9, 1e-6
"""Units by which a minimum must be lower to be another one, and a point at which a search has stopped."""

GOES_ON = 4
"""Times that a search goes on: of many effects of few groups most take longer than the lanes have patience."""

SIDE_BY_SIDE = 256
"""Searches from other starts that are made in one go at least."""


def in_lanes(
    shared: Shared, Y: Array, into: BatchFit, first: int,
    start: Array | None = None, **more: Any,
) -> None:  # fmt: skip
    """Fits in lanes alone: those that they do not certify keep the status 0."""
    criterion = BatchCriterion(into.reml, criterion_constant(into.model.problem, into.reml))
    shared.fit(
        Y, first, criterion, start,
        BatchResults(
            into.theta_o, into.params, into.bse, into.sigma2, into.criterion, into.gradient_norm, into.status,
            into.n_evaluations, into.satterthwaite,
        ),
        **more,
    )  # fmt: skip


def fit_together(
    shared: Shared, Y: Array, into: BatchFit, first: int,
    scores: BatchScores | BatchSums | None = None, worth: float | None = None,
) -> None:  # fmt: skip
    """Fits in lanes, and other starts where there may be other minima.

    `scores`: what the rows of Y mean, if not y; `worth`: groups that the variation of
    responses is to be worth, if not as many as their design asks for.
    """
    screen = getattr(shared, "screen", None)
    more: dict[str, Any] = {} if scores is None else {"scores": scores}
    if screen is None:
        in_lanes(shared, Y, into, first, **more)
        return
    model, status = into.model, into.status[first : first + len(Y)]
    several, structure = len(model.factors) > 1, model.structure
    if not several and screen.alone:
        status[:] = into.n_evaluations[first : first + len(Y)] = 0
        return
    if worth is None:
        worth = 0.0 if several else enough_worth(model)
    # minima next to each other, of few groups
    close = several or (screen.lowest > 0 and structure.one_full and structure.q > 1)
    chosen = np.empty((len(Y), screen.width), dtype=np.intc)
    rise = np.empty(len(Y)) if close else None
    look = BatchLook(chosen, rise, None, np.empty(len(Y)) if worth > 0.0 else None)
    in_lanes(shared, Y, into, first, look=look, **more)
    few = near = np.zeros(0, dtype=np.intp)
    if look.worth is not None and not look.worth.min(initial=np.inf) >= worth:
        few = np.flatnonzero((look.worth < worth) & (status > 0))
        chosen[few] = -1
    if rise is not None:
        rise[few] = np.inf
        near = np.flatnonzero((status == 1) & (rise <= NEAR_BOUNDARY))
    known = into.theta_o[first + near]
    # few responses have any points; searches side by side end together where they start from the same one
    some = np.flatnonzero(chosen[:, 0] >= 0)
    responses, starts = _chosen_starts(screen.thetas, chosen, some)
    if scores is None and len(responses) > len(Y) and isinstance(shared, kernels.BatchDesign):
        # many searches of a response read it once
        Y, scores = shared.sums(Y), BatchSums()
        more = {"scores": scores}
    descend = partial(_descend, cast("Sided", shared), Y, into, first, more)
    before = into.criterion[first : first + len(Y)].copy() if close else None
    ended = descend(responses, starts)
    if several:
        from .correlated_lanes import further_starts

        which = first + np.union1d(near, np.flatnonzero(status == BOUNDARY))
        responses, starts = further_starts(cast("FactorBatch | CorrelatedBatch", shared), into.theta_o[which])
        descend(which[responses] - first, starts)
    elif close and (len(near) or len(ended.responses)):
        which, thetas = near, known
        if len(ended.responses):
            assert before is not None
            lowest, others = next_lowest(ended, before)
            which, thetas = np.concatenate([near, lowest]), np.concatenate([known, others])
        descend(which, narrowed_starts(model, thetas))
    if len(few):
        _fit_closely(screened_design(model, cast("kernels.BatchDesign", shared)), Y, into, first, few, scores)


def _chosen_starts(thetas: Array, chosen: Int, some: Index) -> tuple[Index, Array]:
    """Points (count, n_par) from which `some` responses are searched, and the response of each, point by point."""
    if not len(some):
        return some, np.zeros((0, thetas.shape[1]))
    places, which = np.nonzero(chosen[some].T >= 0)
    points = chosen[some[which], places]
    order = np.argsort(points, kind="stable")
    return some[which[order]], thetas[points[order]]


def _fit_closely(
    shared: kernels.BatchDesign, Y: Array, into: BatchFit, first: int, few: Index,
    scores: BatchScores | BatchSums | None,
) -> None:  # fmt: skip
    """Fit those responses again of whose variation few groups make up most, with the search of few groups."""
    other = BatchFit(into.model, into.kind, into.reml, len(few), None)
    fit_together(shared, np.ascontiguousarray(Y[few]), other, 0, scores, 0.0)
    for name in FIELDS:
        getattr(into, name)[first + few] = getattr(other, name)
    into.n_evaluations[first + few] += other.n_evaluations


def _descend(
    shared: Sided, Y: Array, into: BatchFit, first: int, more: dict[str, Any],
    responses: Index, starts: Array,
) -> Ended:  # fmt: skip
    """Search from other starts of some responses, and fit those again for which something lower is found.

    Returns where the searches ended, inside the boundary.
    """
    if not len(responses):
        return Ended(responses, np.zeros(0), starts)
    ended = [(np.zeros(0, dtype=np.intp), np.zeros(0), np.zeros((0, starts.shape[1])))]
    lowest = np.full(len(Y), np.inf)
    theta = np.empty((len(Y), starts.shape[1]))
    own = slice(first, first + len(Y))
    known = into.theta_o[own], into.criterion[own]
    step = max(len(Y), SIDE_BY_SIDE)
    for begin in range(0, len(responses), step):
        which = responses[begin : begin + step]
        other = _searched(shared, Y, into, which, starts[begin : begin + step], more, known)
        np.add.at(into.n_evaluations, first + which, other.n_evaluations)
        # a minimum is none to certify where a point is known that is lower, whatever that one is
        open_ = (other.status == 0) & (other.criterion < into.criterion[first + which] - CLEARLY)
        into.status[first + which[open_]] = 0
        value = np.where(other.status > 0, other.criterion, np.inf)
        inside = other.status == 1
        ended.append((which[inside], value[inside], other.theta_o[inside]))
        # few are lower than the minimum that is known; the lowest of each response comes first
        lower = np.flatnonzero(value < into.criterion[first + which] - LOWER)
        if not len(lower):
            continue
        order = lower[np.lexsort((value[lower], which[lower]))]
        best = order[np.flatnonzero(np.diff(which[order], prepend=-1))]
        best = best[value[best] < lowest[which[best]]]
        lowest[which[best]], theta[which[best]] = value[best], other.theta_o[best]
    which = np.flatnonzero(lowest < into.criterion[first : first + len(Y)] - LOWER)
    if len(which):
        other = _from(shared, Y, into, which, theta[which], **more)
        settled = (other.status > 0) & (other.criterion < into.criterion[first + which] - LOWER)
        better = np.flatnonzero(settled)
        for name in FIELDS if len(better) else ():
            getattr(into, name)[first + which[better]] = getattr(other, name)[better]
        # a minimum from which the lanes do not come to its last digits is left to a single fit
        into.status[first + which[~settled]] = 0
    return Ended(*(np.concatenate(parts) for parts in zip(*ended, strict=True)))


def _searched(
    shared: Sided, Y: Array, into: BatchFit, which: Index, starts: Array, more: dict[str, Any],
    known: tuple[Array, Array],
) -> BatchFit:  # fmt: skip
    """Searches from starts of their own; those that have not ended where patience with them does go on from there.

    `known`: theta and criterion of minima of all responses, to which no search has to go.
    """

    def beside(some: Index) -> dict[str, Any]:
        return more | {"known": (known[0][some], known[1][some])}

    found = _from(shared, Y, into, which, starts, **beside(which))
    for _ in range(GOES_ON):
        going = np.flatnonzero((found.status == 0) & np.isfinite(found.criterion))
        if not len(going):
            break
        some = which[going]
        again = _from(shared, Y, into, some, found.theta_o[going], **beside(some))
        again.n_evaluations += found.n_evaluations[going]
        for name in ("theta_o", "criterion", "status", "n_evaluations"):
            getattr(found, name)[going] = getattr(again, name)
    return found


def _from(
    shared: Sided, Y: Array, into: BatchFit, which: Index, starts: Array, **more: Any
) -> BatchFit:  # fmt: skip
    """Fits of some responses, each from a start of its own."""
    other = BatchFit(into.model, into.kind, into.reml, len(which), None)
    in_lanes(shared, np.ascontiguousarray(Y[which]), other, 0, starts, **more)
    return other


def fit_alone(model: Model, responses: Callable[[NDArray[np.intp]], Array], into: BatchFit, part: slice) -> None:
    """The single-fit path where the lanes did not certify; NaN for dropped columns and where there is no fit."""
    status, first, problem = into.status[part], part.start, model.problem
    open_ = np.flatnonzero(status == 0)
    for i, y in zip(open_.tolist(), responses(open_) if len(open_) else (), strict=True):
        _single(model, y, into, first + i)
    if problem.rank < into.params.shape[1]:
        dropped = problem.dropped
        into.params[part, dropped] = into.bse[part, dropped] = into.satterthwaite[part, dropped] = np.nan
    lost = first + np.flatnonzero(into.status[part] < 0)
    if len(lost):
        for name in set(FIELDS) - {"status"}:
            getattr(into, name)[lost] = np.nan


def _single(model: Model, y: Array, into: BatchFit, at: int) -> None:
    """Fit one response by the single-fit path."""
    try:
        known = not model.given and np.array_equal(model.endog, y)
        own = model if known else model.with_response(y)
        result = estimate(Fit, own, into.reml)
    except LMMError:
        into.status[at] = -2
        return
    problem = model.problem
    # theta of the fit in the coordinates of this design
    inner: Array = np.asarray(np.linalg.solve(problem.z_map, result.relative_factor), dtype=np.float64)
    into.theta_o[at] = np.append(model.structure.theta(model.structure.canonical(inner)), result.phi)
    into.params[at] = result.beta
    into.bse[at] = np.sqrt(np.diag(result.cov))
    into.sigma2[at] = result.sigma2
    into.criterion[at] = result.criterion
    into.gradient_norm[at] = result.gradient_norm
    into.satterthwaite[at] = moments(result, "satterthwaite").coefficient_df(result.model.problem)
    into.alone[at] = True
    into.status[at] = (BOUNDARY if result.singular else 1) if result.converged else 0
    into.n_evaluations[at] += result.n_evaluations
