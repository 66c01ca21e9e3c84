"""Fits of crossed factors without dense matrices: a root of derivatives that are known up to Monte Carlo errors.

Derivatives of log|V| are means over probes, the same at each point, so that they are functions of theta which have a
root near that of the exact ones.  Steps are Newton's with the average information (Gilmour, Thompson and Cullis 1995,
Biometrics 51, 1440-1450), which no probe enters; values of the criterion, of other Monte Carlo errors than derivatives
have, decide nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import LMMError
from ..support.blas_threads import one_blas_thread
from ..support.checks import check_count
from ..support.types import Array
from .model import Model
from .optimum import CERTIFIED, SINGULAR, MonteCarlo, Optimum

if TYPE_CHECKING:
    from ..engines.crossed.iterative import IterativeCriterion
    from ..engines.crossed.problem import CrossedProblem

__all__ = ["iterated", "refusal"]


PROBES = 64
"""Probes by default."""

ITERATIONS = 60
"""Steps at the most."""

CERTAIN = 0.1
"""Monte Carlo errors, in standard errors of the parameters, up to which an optimum is certified."""

TOWARDS_ZERO = 0.05
"""What is left of a single standard deviation at the least after a step."""

LONGEST = 0.7
"""Longest step, relative to the elements of Lambda of a block."""


def iterated(
    model: Model, reml: bool, start: ArrayLike | None, options: dict[str, Any] | None
) -> tuple[Optimum, IterativeCriterion]:
    """The optimum of a model of crossed factors by conjugate gradients, and the engine that stands at it.

    Parameters
    ----------
    model : Model
    reml : bool
    start : (k,) array or None
    options : dict or None
        ``probes``, ``seed`` and ``maxiter``.

    Raises
    ------
    LMMError
        For models that have no crossed factors, or more than random effects of free covariances, and unknown options.
    """
    from ..engines.crossed.iterative import IterativeProblem

    settings = _settings(options)
    problem = IterativeProblem.of(_crossed(model), settings["probes"], settings["seed"])
    engine: IterativeCriterion = problem.criterion()
    engine.reml = reml
    with one_blas_thread():
        first = problem.start(engine) if start is None else model.conditioned_theta(start, "start")
        return _root(engine, problem, first, settings["maxiter"]), engine


def _settings(options: dict[str, Any] | None) -> dict[str, int]:
    given = {"probes": PROBES, "seed": 0, "maxiter": ITERATIONS} | (options or {})
    unknown = set(given) - {"probes", "seed", "maxiter"}
    if unknown:
        raise LMMError(f"options: {sorted(unknown)[0]!r} is unknown; method='iterative' knows probes, seed and maxiter")
    check_count(given["probes"], "options['probes']", 8)
    check_count(given["maxiter"], "options['maxiter']")
    if not isinstance(given["seed"], int | np.integer) or given["seed"] < 0:
        raise LMMError(f"options['seed']={given['seed']!r} must be a whole number from 0 on")
    return {name: int(value) for name, value in given.items()}


def refusal(model: Model) -> str:
    """Why a model cannot be fitted by iterations; empty where it can."""
    if model.n_factors < 2 or model.residual is not None:
        return "method='iterative' is for crossed grouping factors; use method='newton', which is exact"
    from ..engines.nested.problem import NestedProblem

    if isinstance(model.problem, NestedProblem):
        return (
            "method='iterative' is for crossed grouping factors, and these are nested; use method='newton', which is "
            "exact whatever their size"
        )
    if model.structure.restricted or model.sigma is not None:
        return "method='iterative' estimates free covariances beside an unknown residual variance; use method='newton'"
    return ""


def _crossed(model: Model) -> CrossedProblem:
    """The problem of a model that iterations are for."""
    why = refusal(model)
    if why:
        raise LMMError(why)
    found: Any = model.problem
    problem: CrossedProblem = found
    return problem


def _root(engine: IterativeCriterion, problem: Any, start: Array, most: int) -> Optimum:
    """Where the derivatives vanish."""
    structure = problem.structure
    rows, columns = structure.positions
    levels: Array = problem.levels
    unit = np.sqrt(levels / problem.n)[rows]
    alone = np.zeros(len(rows), dtype=bool)  # a variance that may be zero by itself
    for block in structure.blocks:
        mine = (rows >= block.start) & (rows < block.stop)
        alone |= mine & (rows == columns) & (not block.correlated or block.stop - block.start == 1)
    theta = np.array(start, dtype=np.float64)
    trace: list[tuple[float, float, float]] = []
    damping = 1.0
    for step in range(most + 1):
        value, gradient, hessian = engine.evaluate(theta, 2)
        assert gradient is not None and hessian is not None
        found = value, gradient, hessian
        slope = engine.slope
        at_zero = alone & (np.abs(theta) < SINGULAR * unit) & (slope[rows, rows] > 0.0)
        live = np.flatnonzero(~at_zero)
        inverse = _inverse(hessian[np.ix_(live, live)])
        decrement = float(np.sqrt(max(float(gradient[live] @ inverse @ gradient[live]), 0.0)))
        # a variance on its way to zero keeps its part of the decrement
        damping = 0.5 * damping if trace and decrement > 1.2 * trace[-1][1] else min(1.0, 2.0 * damping)
        trace.append((value, decrement, damping))
        if decrement <= 0.1 * CERTIFIED or step == most:
            break
        move = np.zeros(len(theta))
        move[live] = -damping * (inverse @ gradient[live])
        theta = _moved(theta, move, unit, alone, structure)
    return _record(engine, problem, theta, found, at_zero, inverse, trace)


def _inverse(hessian: Array) -> Array:
    """Inverse of an average information, which is positive semidefinite."""
    if not len(hessian):
        return hessian
    values, vectors = np.linalg.eigh(hessian)
    return np.asarray((vectors / np.maximum(values, 1e-12 * values[-1])) @ vectors.T)


def _moved(theta: Array, move: Array, unit: Array, alone: NDArray[np.bool_], structure: Any) -> Array:
    """A step that is not too long for the elements of a block; single variances go towards zero and not beyond."""
    rows = structure.positions[0]
    out = theta.copy()
    for block in structure.blocks:
        mine = (rows >= block.start) & (rows < block.stop)
        size = float(np.linalg.norm(theta[mine])) + 0.01 * float(unit[mine].max())
        out[mine] += min(1.0, LONGEST * size / max(float(np.linalg.norm(move[mine])), 1e-300)) * move[mine]
    low = alone & (out < TOWARDS_ZERO * np.abs(theta))
    out[low] = TOWARDS_ZERO * np.abs(theta[low])
    return np.asarray(structure.theta(structure.canonical(structure.factor(out))))


def _record(
    engine: IterativeCriterion, problem: Any, theta: Array, found: tuple[float, Array, Array],
    at_zero: NDArray[np.bool_], inverse: Array, trace: list[tuple[float, float, float]],
) -> Optimum:  # fmt: skip
    """The optimum, with what is certain of it."""
    structure = problem.structure
    rows = structure.positions[0]
    value, gradient, hessian = found
    theta = np.where(at_zero, 0.0, theta)
    factor = structure.factor(theta)
    null = np.eye(structure.q)[:, rows[at_zero]]
    live = ~at_zero
    noise = engine.noise()[:, live]
    count = len(noise)
    spread = noise.T @ noise / max(count - 2, 1) / count
    drawn = np.sqrt(np.diag(inverse @ spread @ inverse))
    share = float(np.max(drawn / np.sqrt(2.0 * np.diag(inverse)), initial=0.0))
    error = engine.probed.log_det_error
    decrement = trace[-1][1]
    told = (
        f"for {count} probes; the criterion has a Monte Carlo standard error of {error:.1g} and parameters have up to "
        f"{share:.1g} of their standard errors"
    )
    least = SINGULAR * np.sqrt(problem.levels / problem.n)
    wide = [slice(block.start, block.stop) for block in structure.blocks if block.correlated]
    narrow = any(
        part.stop - part.start > 1 and np.linalg.svd(factor[part, part])[1][-1] < least[part.start] for part in wide
    )
    converged = decrement <= CERTIFIED and share <= CERTAIN and not narrow
    if converged:
        message = f"certified up to Monte Carlo errors: the derivatives vanish {told}; other minima were not looked for"
    elif narrow:
        message = (
            "not certified: a covariance matrix of correlated effects loses its rank, which method='iterative' does "
            "not follow; take independent effects, or method='newton'"
        )
    elif decrement > CERTIFIED:
        message = f"not certified: the criterion can still be lowered by about {0.5 * decrement**2:.1e} {told}"
    else:
        message = f"not certified: Monte Carlo errors are large {told}; take more, options={{'probes': {4 * count}}}"
    if at_zero.any():
        message += "; on the boundary"
    return Optimum(
        theta, factor, value, gradient, hessian, decrement, converged, bool(at_zero.any()), engine.n_evaluations,
        "iterative", message, null, tuple(trace),
        monte_carlo=MonteCarlo(count, problem.seed, error, share, engine.probed.log_det_deviations),
    )  # fmt: skip
