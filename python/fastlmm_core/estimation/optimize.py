"""Fitting: starts, runs and certificates, until the lowest optimum is found or nothing lowers the criterion.

One way from a start to an optimum that is certified: what a step decides depends on how the one before it
ended.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from typing import Any

import numpy as np

from ..covariance.parameters import CovarianceStructure
from ..engines.protocol import EASY, UNASKED, Elsewhere, LinearEngine
from ..engines.starts import shrunk_start
from ..errors import LMMError
from ..support.types import Array
from .certificate import settle
from .methods import newton, run, said_clearly
from .optimum import CLOSE, LocalMinimum, Optimum, close_enough
from .ranks import by_rank
from .search import Found, descend, search

__all__ = ["ROUND", "NothingLeft", "folded", "optimize", "preferred"]


class NothingLeft(LMMError):
    """No residual variance is left where a search ends, to rounding error."""


EXACTLY = 1e-13
"""Share of y'y that is left by the effects below which it is rounding error."""

NEARLY = 1e-6
"""Share below which a search that does not end is on its way to no residual variance."""

ROUND, WIDE_ROUND, ITERATIONS = 30, 4, 240
"""Iterations of Newton between changes of coordinates: of narrow terms, and of wide ones; of all rounds together."""

SEARCH = Elsewhere()

REPORTED, APART = 2.0, 1e-6
"""Units of the criterion up to which other certified minima are reported, and from which they differ."""

ASIDE = (1.03, 0.97)
"""Shares of theta from which a minimum that could not be certified is approached again."""

PILOT_UNITS = 10.0
"""Units by which a minimum of a part of the groups may be higher than another and be the lower one of all groups."""

WIDE = 6
"""Correlated random effects of a term from which it is wide: some of its directions then vanish, as a rule."""


def _patiently(
    criterion: LinearEngine,
    structure: CovarianceStructure,
    theta: Array,
    options: dict[str, Any],
    levels: Array,
    n: int,
    note: str,
) -> tuple[Optimum, Array | None]:
    """Newton with a change of coordinates to the principal axes of G where a round of iterations was not enough.

    A triangular Lambda whose first diagonal elements vanish before the last ones is nearly redundant: the way to the
    optimum is then a narrow curved valley.  In the principal axes, largest first, it is not.
    """
    iterations = ROUND if structure.widest < WIDE else WIDE_ROUND
    found = newton(criterion, theta, maxiter=iterations, **options)
    if found.success:
        return settle(criterion, structure, found, levels, n, "newton", note)
    turn = np.eye(structure.q)
    for _ in range(ITERATIONS // iterations):
        turn, axes = _principal_axes(turn.T @ structure.factor(found.theta), structure)
        criterion.rotate(turn)
        found = newton(criterion, structure.theta(axes), found.radius, maxiter=iterations, **options)
        if found.success:
            break
    optimum, wrong = settle(criterion, structure, found, levels, n, "newton", note, turn)
    criterion.rotate(None)
    factor = structure.canonical(turn.T @ optimum.factor)
    theta = structure.theta(factor)
    value, gradient, hessian = criterion.evaluate(theta, 2)
    assert gradient is not None and hessian is not None
    optimum = optimum._replace(
        theta=theta,
        factor=factor,
        value=value,
        gradient=gradient,
        hessian=hessian,
        null_space=turn.T @ optimum.null_space,
    )
    return optimum, None if wrong is None else turn.T @ wrong


def _principal_axes(factor: Array, structure: CovarianceStructure) -> tuple[Array, Array]:
    """Orthogonal Q and diagonal L with Q'L L'Q = F F', largest first within each full block."""
    turn, axes = np.eye(structure.q), np.zeros((structure.q, structure.q))
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        if not block.correlated:
            axes[part, part] = factor[part, part]
            continue
        left, sizes, _ = np.linalg.svd(factor[part, part])
        turn[part, part] = left.T
        axes[part, part] = np.diag(sizes)
    return turn, axes


def optimize(
    criterion: LinearEngine,
    structure: CovarianceStructure,
    levels: Array,
    n: int,
    start: Array,
    method: str | Callable[..., Any] = "newton",
    options: dict[str, Any] | None = None,
    *,
    pilot: LinearEngine | None = None,
    elsewhere: Elsewhere = SEARCH,
) -> Optimum:
    """Minimise the criterion of a conditioned problem and certify what was found.

    Parameters
    ----------
    criterion : LinearEngine
    structure : CovarianceStructure
    levels : (q,) array
        Number of groups of each random effect.
    n : int
        Observations.
    start : array
        Theta to start from.
    method : str or callable
        "newton" (compiled, exact Hessian) or any method of scipy.optimize.minimize.
    options : dict, optional
        Options of the method.
    pilot : LinearEngine, optional
        The criterion of a part of the groups, whose optimum is a start close enough for a few evaluations of all.
    elsewhere : Elsewhere
        What is known of other minima.

    Returns
    -------
    Optimum

    Raises
    ------
    LMMError
        For an unknown method, a start at which the criterion is not defined, or a response without residual variation.
    """
    options = dict(options or {})
    criterion.n_evaluations = 0
    if not isinstance(method, str) and not callable(method):
        raise LMMError(f"method={method!r} is unknown: use 'newton' or a method of scipy by name, or a callable")
    if method == "newton":
        options.setdefault("tolerance", CLOSE if criterion.averaged else close_enough(max(levels.tolist())))
    if method != "newton" or "maxiter" in options:
        # who chooses the method or limits the steps asks for what they lead to
        elsewhere = UNASKED
    elif pilot is not None:
        pilot.reml = criterion.reml
        start = newton(pilot, start).theta
    note = "; balanced data have one minimum only" if elsewhere.kind == "nothing" else ""

    def attempt(theta: Array) -> tuple[Optimum, Array | None]:
        return _attempt(criterion, structure, levels, n, method, options, note, theta)

    best, wrong = attempt(start)
    left = structure.q + 1
    while wrong is not None and left:
        left -= 1
        other, wrong = attempt(structure.theta(folded(wrong, structure)))
        if other.value <= best.value or other.converged > best.converged:
            best = other
    found: Found | None = None
    wanted = elsewhere.kind == "search" and (not criterion.costly or elsewhere.always)
    if wanted or (elsewhere.kind != "unasked" and not best.converged):
        found, starts = _elsewhere(criterion, structure, np.sqrt(levels / n), best, elsewhere)
        best = _lowest(criterion, n, attempt, best, starts)
        if elsewhere.unalike and elsewhere.scout is None and best.converged:
            # where nothing is to be certified, as where the residual variance runs to zero, ranks need not be searched
            found = by_rank(criterion, structure, np.sqrt(levels / n), found)
            best = _lowest(criterion, n, attempt, best, _within(found, best.value + REPORTED))
    if best.converged and found is not None and elsewhere.kind == "search":
        if found.doubt:
            best = best._replace(message=found.doubt, converged=False)
        else:
            best = best._replace(message=best.message + _looked(found, elsewhere))
    if found is not None or best.n_evaluations != criterion.n_evaluations:
        best = best._replace(n_evaluations=criterion.n_evaluations)
        # leave the criterion's state at the optimum, with the slope in G, as the only attempt has left it
        criterion.evaluate(best.theta, 1)
    return best if best.converged else _judged(best, criterion)


def _attempt(
    criterion: LinearEngine, structure: CovarianceStructure, levels: Array, n: int, method: str | Callable[..., Any],
    options: dict[str, Any], note: str, theta: Array,
) -> tuple[Optimum, Array | None]:  # fmt: skip
    """One minimisation, settled."""
    try:
        if method == "newton" and "maxiter" not in options:
            return _patiently(criterion, structure, theta, options, levels, n, note)
        found = run(criterion, theta, method, options)
    except FloatingPointError as error:
        smaller = shrunk_start(criterion, theta)
        if not isfinite(criterion.evaluate(smaller, 0)[0]):
            raise LMMError(f"{error}, nor at smaller variances; rescale y, X and Z") from None
        return _attempt(criterion, structure, levels, n, method, options, note, smaller)
    except (TypeError, ValueError, Warning) as error:
        raise said_clearly(error, method) from None
    name = method if isinstance(method, str) else getattr(method, "__name__", "callable")
    return settle(criterion, structure, found, levels, n, name, note)


def _elsewhere(
    criterion: LinearEngine, structure: CovarianceStructure, unit: Array, best: Optimum, elsewhere: Elsewhere
) -> tuple[Found, list[Array]]:
    """A search for other minima, and what it found that deserves a closer look."""
    scout = elsewhere.scout
    relaxed = None if elsewhere.relaxed is None else elsewhere.relaxed()
    if scout is None:
        effort = EASY if criterion.costly else elsewhere.effort
        known = (best.value if best.converged else inf, best.theta)
        found = search(criterion, structure, unit, known, effort, relaxed, elsewhere.beside, elsewhere.foremost)
        limit = best.value + REPORTED if best.converged else inf
    else:
        scout.reml = criterion.reml
        known = descend(scout, structure, best.theta) or (inf, best.theta)
        found = search(scout, structure, unit, known, elsewhere.effort, relaxed, foremost=elsewhere.foremost)
        limit = known[0] + PILOT_UNITS if best.converged else inf
    return found, _within(found, limit)


def _within(found: Found, limit: float) -> list[Array]:
    """Theta of the minima that a search has found below a limit."""
    return [theta for value, theta in found.minima if value <= limit]


def _noise(criterion: LinearEngine, theta: Array, n: int) -> float:
    """What rounding may make of the criterion at a point, for the part that r^2 is of y'y."""
    evaluations = criterion.n_evaluations
    criterion.evaluate(theta, 0)
    criterion.n_evaluations = evaluations
    return 0.0 if criterion.remainder == 1.0 else 1e-15 * n / criterion.remainder


def preferred(found: Optimum, best: Optimum, clearly: float) -> bool:
    """Whether an end takes the place of another one: where it is lower, or certified and not clearly higher.

    No minimum is certified above a point that is known to be clearly lower, whatever that one is.

    Parameters
    ----------
    found, best : Optimum
    clearly : float
        Units of the criterion that its digits tell, and that count, of an end that is not certified.
    """
    if found.converged != best.converged:
        return found.value < best.value + (clearly if found.converged else -clearly)
    return found.value < best.value - 1e-9


def _lowest(
    criterion: LinearEngine,
    n: int,
    attempt: Callable[[Array], tuple[Optimum, Array | None]],
    best: Optimum,
    starts: list[Array],
) -> Optimum:
    """The lowest optimum that is found from any start, with the other certified ones that are hardly higher."""
    others: list[Optimum] = []
    for theta in starts:
        other, _ = attempt(theta)
        if best.converged and not other.converged and other.value < best.value - 1e-9:
            # a search that begins where another one ended cannot come closer than rounding errors let it
            again = [attempt(share * theta)[0] for share in ASIDE]
            other = min((one for one in again if one.converged), key=lambda one: one.value, default=other)
        if preferred(other, best, APART + _noise(criterion, other.theta, n)):
            best, other = other, best
        others.append(other)
    distinct: list[LocalMinimum] = []
    for other in sorted(others, key=lambda o: o.value):
        above = [best.value, *(one.value for one in distinct)]
        apart = min(abs(other.value - value) for value in above) > APART
        if other.converged and apart and other.value <= best.value + REPORTED:
            distinct.append(LocalMinimum(other.value, other.theta))
    return best._replace(others=tuple(distinct)) if distinct else best


def _looked(found: Found, elsewhere: Elsewhere) -> str:
    """What a message says of the search for other minima."""
    part = "" if elsewhere.scout is None else " for some of the groups"
    return f"; no better point in a screen of {found.screened} starts{part}"


def _judged(best: Optimum, criterion: LinearEngine) -> Optimum:
    """What is no certified optimum, or why it is none where no residual variance is left."""
    remainder = criterion.remainder
    if remainder < EXACTLY:
        raise NothingLeft(
            "y is reproduced by the random effects to rounding error: the residual variance cannot be told from zero; "
            "use fewer random effects"
        )
    if remainder < NEARLY:
        message = (
            f"not certified: the residual variance runs to zero or nearly ({remainder:.0e} of the variation is left), "
            "as where the fixed and random effects together can reproduce y; use fewer random effects"
        )
        best = best._replace(message=message)
    return best


def folded(wide: Array, structure: CovarianceStructure) -> Array:
    """Square factor of the structure from q x (q + 1) columns."""
    out = np.zeros((structure.q, structure.q))
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        covariance = wide[part] @ wide[part].T
        values, vectors = np.linalg.eigh(covariance)
        out[part, part] = vectors * np.sqrt(np.maximum(values, 0.0))
        if not block.correlated:
            out[part, part] = np.diag(np.sqrt(np.diag(covariance)))
    return structure.canonical(out)
