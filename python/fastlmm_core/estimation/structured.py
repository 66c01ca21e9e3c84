"""Fits with structured residuals: minimise, certify, and say what lies on the boundary.

The parameters phi of a structure have no constraints: what lies on the boundary (a correlation of 1, a variance of 0)
is at infinity.  A search that runs there ends where the criterion does not fall any more, and the structure tells what
has run into its limit.  Variances of random effects that vanish are set to zero where that lowers the criterion, or
leaves it as it is, and are taken up again where the slope there says so.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from ..covariance.residual.catalogue import kind_of
from ..support.types import Array
from .certificate import decrement_of, small_directions
from .methods import Ended, run_once
from .optimize import folded, preferred
from .optimum import CERTIFIED, Optimum, close_enough
from .vanishing import followed, without_maximum

if TYPE_CHECKING:
    from ..engines.protocol import Engine
    from ..engines.residual.problem import ResidualProblem

__all__ = ["minimise_residual", "verdict"]


NEAR, POLISHING, HALVED = 0.1, 40, 12
"""Decrement of an optimum so near that differences lead to it; their steps, and how often one is quartered."""

LOWER = 1e-4
"""Units of the criterion that a point lies clearly lower; less is lost in rounding where V is nearly singular."""

APART = 1e-4
"""Distance of gradients that are subtracted: an element of phi is a logarithm, or a link's argument, of size 1."""

CONTINUED = 2
"""Further searches from where one has ended at its last iteration, on the way to a limit."""

FEW_ROWS, OTHERS, AROUND = 2_000, 4, 1.0
"""Rows up to which other starts are tried, how many, and their distance in elements of (theta, phi)."""

SMALLER, LARGER = 0.3, 3.0
"""Multiples of the first start of the random effects from which the search begins too."""


def minimise_residual(
    engine: Engine, problem: ResidualProblem, start: Array, method: str | Callable[..., Any],
    options: dict[str, Any] | None, given: bool,
) -> Optimum:  # fmt: skip
    """Minimise the criterion in (theta, phi) and certify what was found.

    Parameters
    ----------
    engine : Engine
    problem : ResidualProblem
    start : (k,) array
    method, options
        See `LinearMixedModel.fit`.
    given : bool
        Whether the start is the caller's, so that no other is tried.

    Raises
    ------
    LMMError
        For an unknown method, or a start at which the criterion is not defined.
    """
    options = dict(options or {})
    engine.n_evaluations = 0
    if method == "newton":
        options.setdefault("tolerance", close_enough(problem.m))
    starts = [start] if given or "maxiter" in options else _starts(problem, start)
    best: Optimum | None = None
    for first in starts:
        if best is not None and best.converged and engine.costly:
            break
        if best is not None and not isfinite(engine.evaluate(first, 0)[0]):
            continue
        point: Array | None = first
        for _ in range(problem.structure.q + 2):
            if point is None:
                break
            found, point = _settled(engine, problem, point, method, options)
            if best is None or preferred(found, best, LOWER):
                best = found
    assert best is not None
    engine.evaluate(best.theta, 2)
    return best._replace(n_evaluations=engine.n_evaluations)


def _starts(problem: ResidualProblem, start: Array) -> list[Array]:
    """Where searches begin: at random effects of several sizes, and at points around, where there may be other minima.

    So it is with random effects, which residuals can take the place of, and with what is not seen by itself at any
    distance, as a nugget.
    """
    n_theta, part = problem.structure.n_parameters, problem.residual
    starts = [start]
    if n_theta:
        starts += [np.concatenate([size * start[:n_theta], start[n_theta:]]) for size in (SMALLER, LARGER)]
    if problem.n <= FEW_ROWS and (n_theta or not part.at_visits or kind_of(part.name).several_minima):
        # in a sequence that is always the same
        starts += list(start + AROUND * np.random.default_rng(0).standard_normal((OTHERS, len(start))))
    return starts


def _settled(
    engine: Engine, problem: ResidualProblem, start: Array, method: str | Callable[..., Any], options: dict[str, Any]
) -> tuple[Optimum, Array | None]:
    """One minimisation, certified; and a better start where a variance of zero turns out to be wrong."""
    structure, part = problem.structure, problem.residual
    n_theta = structure.n_parameters
    name = method if isinstance(method, str) else getattr(method, "__name__", "callable")
    ended: Ended | None = run_once(engine, start, method, options) if len(start) else None
    for _ in range(CONTINUED if method == "newton" and "maxiter" not in options else 0):
        # what lies at infinity is approached by a share of the way in each step
        if ended is None or ended.success or not part.boundaries(np.asarray(ended.theta)[n_theta:]):
            break
        ended = run_once(engine, np.asarray(ended.theta, dtype=float), method, options)
    x = start if ended is None else np.asarray(ended.theta, dtype=float)
    factor = structure.canonical(structure.factor(x[:n_theta])) if n_theta else np.zeros((0, 0))
    null, again = np.empty((structure.q, 0)), None
    if n_theta:
        per_group = problem.n / problem.levels
        x = np.concatenate([structure.theta(factor), x[n_theta:]])
        snapped, null = small_directions(factor, structure, per_group)
        if null.shape[1]:
            at_zero = np.concatenate([structure.theta(snapped), x[n_theta:]])
            value = engine.evaluate(x, 0)[0]
            if engine.evaluate(at_zero, 0)[0] <= value + 1e-11 * (abs(value) + problem.n):
                x, factor = at_zero, snapped
                again = _taken_up(engine, problem, x, factor, null)
            else:
                null = null[:, :0]
    at_end = None if ended is None or n_theta else _of_search(ended)
    if at_end is not None:
        value, gradient, hessian, decrement, lowest = at_end
    else:
        value, gradient, hessian = _evaluated(engine, x)
        decrement, lowest = decrement_of(gradient, hessian) if len(x) else (0.0, 1.0)
    unbounded = ""
    if ended is not None and not (ended.success and decrement <= CERTIFIED):
        unbounded = without_maximum(engine, problem, x)
        near = None
        if not unbounded and not n_theta and method == "newton" and "maxiter" not in options:
            near = followed(engine, problem, x, options)
        if near is not None:
            x, ended, unbounded = near.phi, near.ended, near.unbounded
            value, gradient, hessian = _evaluated(engine, x)
            decrement, lowest = near.decrement, near.lowest
    if not unbounded and (
        (method == "newton" and CERTIFIED < decrement < NEAR) or (decrement <= CERTIFIED and lowest < -1e-6)
    ):
        # near to singular V second derivatives have lost their digits before first ones have
        polished = _polished(engine, x, n_theta)
        if polished is not None:
            x, value, gradient, hessian = polished
            decrement, lowest = decrement_of(gradient, hessian)
    if not unbounded and not n_theta and method == "newton" and CERTIFIED < decrement < NEAR:
        # near to singular V values have lost their digits before first derivatives have
        told = _stepped(engine, x, value, gradient, hessian) or _before_digits_end(engine, start, value, options)
        if told is not None:
            x, value, gradient, hessian = told
            decrement, lowest = decrement_of(gradient, hessian)
    converged = bool(decrement <= CERTIFIED and lowest >= -1e-6 and isfinite(value) and again is None and not unbounded)
    limits = part.boundaries(x[n_theta:])
    message = verdict(converged, bool(limits) or bool(null.shape[1]), ended, decrement)
    optimum = Optimum(
        theta=x,
        factor=factor,
        value=float(value) if isfinite(value) else inf,
        gradient=gradient,
        hessian=hessian,
        gradient_norm=decrement,
        converged=converged,
        singular=bool(limits) or bool(null.shape[1]),
        n_evaluations=engine.n_evaluations,
        method=name,
        message=f"not certified: {unbounded}" if unbounded else message,
        null_space=null,
        trace=() if ended is None else ended.trace,
    )
    return optimum, again


def _of_search(ended: Ended) -> tuple[float, Array, Array, float, float] | None:
    """Value, gradient, Hessian, decrement and lowest curvature where a compiled search ended; None of another."""
    if ended.gradient is None or ended.hessian is None or ended.decrement is None or ended.lowest is None:
        return None
    return ended.value, ended.gradient, ended.hessian, ended.decrement, ended.lowest


def _evaluated(engine: Engine, x: Array) -> tuple[float, Array, Array]:
    """Value, gradient and Hessian."""
    value, gradient, hessian = engine.evaluate(x, 2)
    assert gradient is not None and hessian is not None
    return value, gradient, hessian


def _stepped(
    engine: Engine, x: Array, value: float, gradient: Array, hessian: Array
) -> tuple[Array, float, Array, Array] | None:
    """A Newton step that is judged by the gradient where it leads; None where that is no minimum."""
    sizes, vectors = np.linalg.eigh(hessian)
    if not sizes[0] > 0.0:
        return None
    x = x - vectors @ ((vectors.T @ gradient) / sizes)
    new_value, gradient, hessian = _evaluated(engine, x)
    decrement, lowest = decrement_of(gradient, hessian)
    ended = decrement <= CERTIFIED and lowest >= -1e-6 and new_value <= value + LOWER
    return (x, new_value, gradient, hessian) if ended else None


def _before_digits_end(
    engine: Engine, start: Array, value: float, options: dict[str, Any]
) -> tuple[Array, float, Array, Array] | None:
    """The end of a search that goes no further than a certificate asks, lest derivatives lose their digits, too.

    Parameters
    ----------
    engine : Engine
    start : (k,) array
    value : float
        Where another search has ended, which has gone on for longer.
    options : dict
    """
    ended = run_once(engine, start, "newton", {**options, "tolerance": 0.5 * CERTIFIED})
    x = np.asarray(ended.theta, dtype=float)
    return (x, *_evaluated(engine, x)) if ended.success and ended.value <= value + LOWER else None


def _polished(engine: Engine, x: Array, n_theta: int) -> tuple[Array, float, Array, Array] | None:
    """Newton's method with differences of gradients for a Hessian; None where it does not end.

    Parameters
    ----------
    engine : Engine
    x : (k,) array
        Near to the optimum.
    n_theta : int
        First elements of x, which stay where they are at zero.
    """
    if n_theta and not x[:n_theta].all():
        return None
    value, gradient, _ = engine.evaluate(x, 1)
    for _ in range(POLISHING):
        assert gradient is not None
        hessian = _differences(engine, x)
        if hessian is None:
            return None
        decrement, lowest = decrement_of(gradient, hessian)
        if decrement <= CERTIFIED and lowest >= -1e-6:
            return x, value, gradient, hessian
        values, vectors = np.linalg.eigh(hessian)
        size = np.maximum(np.abs(values), 1e-12 * np.abs(values).max())
        step = -vectors @ ((vectors.T @ gradient) / size)
        step *= min(1.0, 1.0 / float(np.linalg.norm(step)))
        for _ in range(HALVED):
            new_value, new_gradient, _ = engine.evaluate(x + step, 1)
            if new_value <= value:
                break
            step = 0.25 * step
        else:
            return None
        x, value, gradient = x + step, new_value, new_gradient
    return None


def _differences(engine: Engine, x: Array) -> Array | None:
    """Hessian from central differences of gradients."""
    out = np.empty((len(x), len(x)))
    for i in range(len(x)):
        h = np.zeros(len(x))
        h[i] = APART
        ahead, behind = engine.evaluate(x + h, 1), engine.evaluate(x - h, 1)
        if not (isfinite(ahead[0]) and isfinite(behind[0])):
            return None
        assert ahead[1] is not None and behind[1] is not None
        out[i] = (ahead[1] - behind[1]) / (2.0 * APART)
    return 0.5 * (out + out.T)


def verdict(converged: bool, boundary: bool, ended: Ended | None, decrement: float) -> str:
    """The message of an optimum: certified or not, and why.

    Parameters
    ----------
    converged, boundary : bool
    ended : Ended or None
        How the search ended.
    decrement : float
    """
    if converged:
        return "certified: the gradient vanishes to rounding error" + (", on the boundary" if boundary else "")
    if ended is not None and ended.unfinished:
        return (
            "not certified: stopped at the limit of iterations; the criterion can still be lowered (a Newton step "
            f"promises {0.5 * decrement**2:.1e})"
        )
    if boundary:
        return (
            "not certified: the likelihood has no maximum inside, or it lies too near to the boundary for the digits "
            "of the criterion"
        )
    if decrement <= CERTIFIED:
        return "not certified: a saddle point, the criterion can still be lowered"
    return f"not certified: the criterion can still be lowered by about {0.5 * decrement**2:.1e}"


def _taken_up(engine: Engine, problem: ResidualProblem, x: Array, factor: Array, null: Array) -> Array | None:
    """A start with some variance along the null space, where that lowers the criterion."""
    structure = problem.structure
    engine.evaluate(x, 1)
    slope = engine.solution()[3]
    per_group = problem.n / problem.levels
    size = per_group * np.sqrt(problem.levels)
    slopes, directions = np.linalg.eigh(null.T @ (slope / np.sqrt(np.outer(size, size))) @ null)
    if slopes[0] >= -CERTIFIED:
        return None
    wide = np.column_stack([factor, 0.5 / np.sqrt(per_group) * (null @ directions[:, 0])])
    return np.concatenate([structure.theta(folded(wide, structure)), x[structure.n_parameters :]])
