"""Fitting: the compiled Newton method or one of scipy.optimize, and the certificate of the optimum.

One way from a start to an optimum that is certified: what a step decides depends on how the one before it
ended.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from math import inf, isfinite, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..covariance.parameters import CovarianceStructure
from ..engines.protocol import EASY, UNASKED, Elsewhere, LinearEngine
from ..engines.starts import shrunk_start
from ..errors import LMMError
from ..kernels import minimize_newton, orthogonal_columns, smallest_parts
from ..kernels.records.objectives import Evaluated
from ..support.types import Array
from .search import Found, descend, search

__all__ = [
    "CERTIFIED",
    "SINGULAR",
    "Ended",
    "LocalMinimum",
    "MonteCarlo",
    "Optimum",
    "close_enough",
    "decrement_of",
    "folded",
    "optimize",
    "preferred",
    "run_once",
    "small_directions",
]


CERTIFIED = 1e-4
"""Decrement below which an optimum is certified: the criterion is then within 5e-9 of its minimum."""

SINGULAR = 1e-4
"""A singular value of Lambda (columns of Z of unit mean square per group) below this counts as zero."""

EXACTLY = 1e-13
"""Share of y'y that is left by the effects below which it is rounding error."""

NEARLY = 1e-6
"""Share below which a search that does not end is on its way to no residual variance."""

ROUND, WIDE_ROUND, ITERATIONS = 30, 4, 240
"""Iterations of Newton between changes of coordinates: of narrow terms, and of wide ones; of all rounds together."""

CLOSE, CLOSEST = 1e-6, 1e-9
"""Decrement at which a search ends (see `close_enough`): the distance to the optimum in standard errors, at most; its
share of theta.  Where one more evaluation takes seconds, the former is enough: the criterion is then 5e-13 above its
minimum."""

SEARCH = Elsewhere()

REPORTED, APART = 2.0, 1e-6
"""Units of the criterion up to which other certified minima are reported, and from which they differ."""

ASIDE = (1.03, 0.97)
"""Shares of theta from which a minimum that could not be certified is approached again."""

PILOT_UNITS = 10.0
"""Units by which a minimum of a part of the groups may be higher than another and be the lower one of all groups."""

WIDE = 6
"""Correlated random effects of a term from which it is wide: some of its directions then vanish, as a rule."""

_WITHOUT_GRADIENT = {"nelder-mead", "powell", "cobyla", "cobyqa"}
_WITH_HESSIAN = {"newton-cg", "dogleg", "trust-ncg", "trust-krylov", "trust-exact", "trust-constr"}

SCIPY = ("Nelder-Mead", "Powell", "CG", "BFGS", "L-BFGS-B", "TNC", "COBYLA", "SLSQP", "trust-constr", "trust-exact")
"""Methods of scipy.optimize.minimize that messages name."""


@lru_cache(maxsize=64)
def close_enough(m: float) -> float:
    """Decrement at which a search ends where the factor with most levels has m of them.

    The relative accuracy of theta is about decrement / sqrt(m).
    """
    return min(CLOSEST * sqrt(m), CLOSE)


class LocalMinimum(NamedTuple):
    """Value and theta of a certified minimum that is not the lowest one."""

    value: float
    theta: Array


class MonteCarlo(NamedTuple):
    """What an optimum by random probes leaves open.

    Attributes
    ----------
    probes, seed : int
    criterion : float
        Monte Carlo standard error of the value.
    parameters : float
        The largest of the covariance parameters, relative to their standard errors.
    deviations : (probes,) array
        What each probe makes of the value, less the mean.
    """

    probes: int
    seed: int
    criterion: float
    parameters: float
    deviations: Array

    def apart(self, other: MonteCarlo | None) -> float:
        """Monte Carlo standard error of the difference of two values; None for one that has no such error.

        The same probes have nearly the same errors at both.
        """
        if other is None:
            return self.criterion
        if (self.probes, self.seed) != (other.probes, other.seed):
            return float(np.hypot(self.criterion, other.criterion))
        rest = self.deviations - other.deviations
        return float(np.sqrt(rest @ rest / max(len(rest) - 2, 1) / len(rest)))


class Optimum(NamedTuple):
    """One record of the optimisation, in the conditioned problem's units.

    Attributes
    ----------
    theta, factor : arrays
        Free elements of Lambda, and Lambda.
    value : float
    gradient, hessian : arrays
    gradient_norm : float
        Decrement: square root of twice the decrease of the criterion that a Newton step promises.
    converged, singular : bool
    n_evaluations : int
    method, message : str
    null_space : (q, r) array
        Directions of zero variance.
    trace : tuple
        (value, decrement, radius) at each point accepted by the Newton method.
    others : tuple of LocalMinimum
        Certified minima that are at most `REPORTED` units higher.
    restricted : (k,) array or None
        The parameters of `covariance.effects`, where the covariance of random effects has fewer than theta; gradient
        and Hessian are then in these.
    monte_carlo : MonteCarlo or None
        Of ``method="iterative"``.
    """

    theta: Array
    factor: Array
    value: float
    gradient: Array
    hessian: Array
    gradient_norm: float
    converged: bool
    singular: bool
    n_evaluations: int
    method: str
    message: str
    null_space: Array
    trace: tuple[tuple[float, float, float], ...]
    others: tuple[LocalMinimum, ...] = ()
    restricted: Array | None = None
    monte_carlo: MonteCarlo | None = None


class _Objective:
    """The criterion as scipy sees it."""

    def __init__(self, criterion: Evaluated) -> None:
        self.criterion = criterion

    def __call__(self, theta: Array, *args: Any) -> float:
        return self.criterion.evaluate(theta, 0)[0]

    def gradient(self, theta: Array, *args: Any) -> Array:
        out = self.criterion.evaluate(theta, 1)[1]
        assert out is not None
        return out

    def hessian(self, theta: Array, *args: Any) -> Array:
        out = self.criterion.evaluate(theta, 2)[2]
        assert out is not None
        return out


class Ended(NamedTuple):
    """Where a method of optimisation ended, with what it tells of that point: what `minimize_newton` returns.

    Attributes
    ----------
    theta : array
    gradient, hessian : arrays or None
    value : float
    decrement, lowest : float or None
        See `decrement_of`; of the compiled Newton method.
    n_evaluations : int
        Of the compiled Newton method.
    trace : tuple
        See `Optimum`.
    success : bool
    radius : float
        Of the trust region, with which the search would go on.
    limited : bool
        Whether another method was ended by its limit of iterations, which is all that ends Newton's without success.
    """

    theta: Array
    gradient: Array | None
    hessian: Array | None
    value: float
    decrement: float | None
    lowest: float | None
    n_evaluations: int
    trace: tuple[tuple[float, float, float], ...]
    success: bool
    radius: float = 1.0
    limited: bool = False

    @property
    def unfinished(self) -> bool:
        """Whether the limit of iterations ended it."""
        return not self.success and (self.limited or self.decrement is not None)


def _newton(
    criterion: Evaluated, start: Array, radius: float = 1.0, /, maxiter: int = 200, tolerance: float = 1e-8
) -> Ended:
    """The compiled trust-region Newton; it stops at a decrement of `tolerance`."""
    return Ended(*minimize_newton(criterion, start, tolerance, maxiter, radius))


def _run(criterion: Evaluated, start: Array, method: str | Callable[..., Any], options: dict[str, Any]) -> Ended:
    if method == "newton":
        return _newton(criterion, start, **options)
    import scipy.optimize

    minimize: Any = scipy.optimize.minimize
    objective = _Objective(criterion)
    derivatives: dict[str, Any] = {}
    name = method.lower() if isinstance(method, str) else ""
    if name not in _WITHOUT_GRADIENT:
        derivatives["jac"] = objective.gradient
    if name in _WITH_HESSIAN or not name:
        derivatives["hess"] = objective.hessian
    with warnings.catch_warnings():
        # the outcome is judged by its own gradient below; only options that a method does not know are refused
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Unknown solver options")
        found = minimize(objective, start, method=method, tol=1e-12, options=options, **derivatives)
    theta = np.ascontiguousarray(found.x, dtype=float)
    success, limited = getattr(found, "success", True), "iteration" in str(getattr(found, "message", "")).lower()
    return Ended(theta, None, None, float(found.fun), None, None, 0, (), bool(success), limited=limited)


def decrement_of(gradient: Array, hessian: Array) -> tuple[float, float]:
    """Square root of twice the decrease that a Newton step promises; the smallest eigenvalue over the largest one."""
    values, vectors = np.linalg.eigh(hessian)
    largest = float(np.max(np.abs(values)))
    if largest == 0.0:
        return float(np.linalg.norm(gradient)), 0.0
    size = np.maximum(np.abs(values), 1e-12 * largest)
    return float(np.sqrt(np.sum((vectors.T @ gradient) ** 2 / size))), float(values[0] / largest)


def small_directions(factor: Array, structure: CovarianceStructure, per_group: Array) -> tuple[Array, Array]:
    """Lambda with its negligible singular values set to zero, and the directions of zero variance."""
    q = structure.q
    pieces: list[tuple[slice, Array, NDArray[np.bool_]]] = []
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        inner = factor[part, part]
        columns = orthogonal_columns(inner) if block.correlated else inner
        pieces.append((part, columns, (columns * columns).sum(axis=0) > SINGULAR**2 / per_group[block.start]))
    if all(keep.all() for _, _, keep in pieces):
        return factor, np.empty((q, 0))
    snapped = np.zeros_like(factor)
    null: list[Array] = []
    for (part, columns, keep), block in zip(pieces, structure.blocks, strict=True):
        kept = np.where(keep, columns, 0.0)
        snapped[part, part] = kept
        basis = np.linalg.svd(kept)[0] if block.correlated else np.eye(len(kept))
        out = basis[:, keep.sum() :] if block.correlated else basis[:, ~keep]
        null.extend(np.pad(direction, (part.start, q - part.stop)) for direction in out.T)
    return structure.canonical(snapped), np.array(null).T.reshape(q, len(null))


@lru_cache(maxsize=64)
def _no_directions(q: int) -> Array:
    """None of the directions of q effects."""
    out = np.empty((q, 0))
    out.setflags(write=False)
    return out


def _settle(
    criterion: LinearEngine,
    structure: CovarianceStructure,
    found: Ended,
    levels: Array,
    n: int,
    method: str,
    note: str,
    turn: Array | None = None,
) -> tuple[Optimum, Array | None]:
    """Certify an optimum; also a better start where the boundary turns out to be the wrong one.

    `turn` is the rotation in force (see `ClusterCriterion.rotate`); the results are in its coordinates.  `note` ends
    the message of a certified optimum.
    """
    theta, gradient, hessian, value, decrement, lowest = found[:6]
    if structure.one_full:
        factor, least, lowest_diagonal = smallest_parts(theta, structure.flat, structure.q)
    else:
        factor = structure.factor(theta)
        least, lowest_diagonal = 0.0, float(factor.diagonal().min())
    snapped, null, singular, wrong = factor, _no_directions(structure.q), False, None
    if not least > SINGULAR**2 * levels.item(0) / n:
        snapped, null = small_directions(factor, structure, n / levels)
        singular = null.shape[1] > 0
    if singular:
        at_zero = structure.theta(snapped)
        value, gradient, hessian = criterion.evaluate(at_zero, 2)
        decrement = None
        if value <= found.value + 1e-11 * (abs(found.value) + n):
            theta, factor = at_zero, snapped
            # on the cone of covariance matrices no direction out of the null space may lower the criterion
            slope = criterion.solution()[3]
            slope = np.where(structure.free, slope if turn is None else turn @ slope @ turn.T, 0.0)
            per_group = n / levels
            size = per_group * np.sqrt(levels)
            slopes, directions = np.linalg.eigh(null.T @ (slope / np.sqrt(np.outer(size, size))) @ null)
            if slopes[0] < -CERTIFIED:
                wrong = np.column_stack([factor, 0.5 / np.sqrt(per_group) * (null @ directions[:, 0])])
        else:
            null, singular = null[:, :0], False
            criterion.evaluate(theta, 2)
            _, gradient, hessian, value, decrement = found[:5]
    if not singular and (found.decrement is None or lowest_diagonal < 0.0):
        factor = structure.canonical(factor)
        theta = structure.theta(factor)
        value, gradient, hessian = criterion.evaluate(theta, 2)
        decrement = None
    assert gradient is not None and hessian is not None
    if decrement is None or lowest is None:
        decrement, lowest = decrement_of(gradient, hessian)
    converged = bool(decrement <= CERTIFIED and lowest >= -1e-6 and wrong is None and isfinite(value))
    if converged:
        message = f"certified: the gradient vanishes to rounding error{', on the boundary' if singular else ''}{note}"
    elif found.unfinished:
        message = (
            "not certified: stopped at the limit of iterations; the criterion can still be lowered (a Newton step "
            f"promises {0.5 * decrement**2:.1e})"
        )
    elif wrong is not None or (decrement <= CERTIFIED and lowest < -1e-6):
        message = "not certified: a saddle point, the criterion can still be lowered"
    else:
        message = f"not certified: the criterion can still be lowered by about {0.5 * decrement**2:.1e}"
    # by place, which is faster than by name
    optimum = Optimum(
        theta, factor, float(value), gradient, hessian, decrement, converged, singular, criterion.n_evaluations, method,
        message, null, found.trace,
    )  # fmt: skip
    return optimum, wrong


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
    found = _newton(criterion, theta, maxiter=iterations, **options)
    if found.success:
        return _settle(criterion, structure, found, levels, n, "newton", note)
    turn = np.eye(structure.q)
    for _ in range(ITERATIONS // iterations):
        turn, axes = _principal_axes(turn.T @ structure.factor(found.theta), structure)
        criterion.rotate(turn)
        found = _newton(criterion, structure.theta(axes), found.radius, maxiter=iterations, **options)
        if found.success:
            break
    optimum, wrong = _settle(criterion, structure, found, levels, n, "newton", note, turn)
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
        start = _newton(pilot, start).theta
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
    if best.converged and found is not None and elsewhere.kind == "search":
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
        found = _run(criterion, theta, method, options)
    except FloatingPointError as error:
        smaller = shrunk_start(criterion, theta)
        if not isfinite(criterion.evaluate(smaller, 0)[0]):
            raise LMMError(f"{error}, nor at smaller variances; rescale y, X and Z") from None
        return _attempt(criterion, structure, levels, n, method, options, note, smaller)
    except (TypeError, ValueError, Warning) as error:
        raise _said_clearly(error, method) from None
    name = method if isinstance(method, str) else getattr(method, "__name__", "callable")
    return _settle(criterion, structure, found, levels, n, name, note)


def _said_clearly(error: Exception, method: str | Callable[..., Any]) -> Exception:
    """What an unknown method or option is refused with; any other error as it is."""
    if isinstance(error, TypeError) and "unexpected keyword" in str(error):
        return LMMError(f"options: {error}; newton knows maxiter and tolerance")
    if isinstance(error, Warning):
        name = method if isinstance(method, str) else getattr(method, "__name__", "callable")
        return LMMError(f"options: {str(error).lower()}; method={name!r} does not know them")
    if isinstance(error, ValueError) and "Unknown solver" in str(error):
        from ..support.arguments import near
        from ..support.words import option

        hint = option("method of fit", method, ()) or f"; {near(str(method), SCIPY)}"
        return LMMError(f"method={method!r} is unknown: use 'newton' or a method of scipy.optimize.minimize{hint}")
    return error


def run_once(criterion: Evaluated, start: Array, method: str | Callable[..., Any], options: dict[str, Any]) -> Ended:
    """One run of a method, without policy.

    Raises
    ------
    LMMError
        For an unknown method, options that it does not know, or a start at which the criterion is not defined.
    """
    try:
        return _run(criterion, start, method, options)
    except (TypeError, ValueError, Warning) as error:
        raise _said_clearly(error, method) from None
    except FloatingPointError as error:
        raise LMMError(f"{error}; start from other parameters") from None


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
    return found, [theta for value, theta in found.minima if value <= limit]


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
        raise LMMError(
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
