"""From a model to the record of its fit: by which method, from which start, and where no residual variance is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ..engines.protocol import UNASKED, Engine, Solution, linear_problem
from ..engines.starts import shrunk_start
from ..support.blas_threads import one_blas_thread
from ..support.types import Array
from .known_variance import KnownVariance
from .model import Model
from .optimize import NothingLeft, optimize
from .optimum import Optimum
from .refinement import loses_digits, refined
from .residual_limit import SMALL, refuse_unbounded, with_residual_variance, without_maximum

__all__ = ["estimate"]

F = TypeVar("F")

Record = Callable[[Model, Optimum, bool, Solution], F]

LARGE = 30.0
"""Standard deviation of a start, relative to what a group tells of it, from which smaller ones are tried."""


def _given_start(engine: Engine, model: Model, start: ArrayLike, method: str | Callable[..., Any]) -> Array:
    """Conditioned theta of a start, shrunk where it is very large and smaller ones are better.

    A method of the caller's own is given the start as it is.
    """
    theta = model.conditioned_theta(start, "start")
    if callable(method):
        return theta
    unit = float(np.sqrt(model.problem.levels.max() / model.problem.n))
    return theta if np.abs(theta).max() <= LARGE * unit else shrunk_start(engine, theta)


def estimate(
    kind: Record[F],
    model: Model,
    reml: bool,
    method: str | Callable[..., Any] = "newton",
    start: ArrayLike | None = None,
    options: dict[str, Any] | None = None,
) -> F:
    """Fit a model.

    Parameters
    ----------
    kind : callable
        Makes the record of a model, its optimum, whether by REML, and a solution: `Fit`, or what derives from it.
    model : Model
    reml : bool
    method, start, options
        See `LinearMixedModel.fit`.

    Raises
    ------
    LMMError
        For an unknown method, a start of the wrong length, or a likelihood that has its supremum where the residual
        variance is zero.
    """
    model = model.estimable()
    if method == "iterative":
        return _by_iterations(kind, model, bool(reml), start, options)
    if model.one_by_one:
        by = _of_structure if model.sigma is None else _with_known_variance
        return by(kind, model, bool(reml), method, start, options)
    problem, structure = linear_problem(model.problem), model.structure
    engine, levels = problem.criterion(), problem.levels
    engine.reml = bool(reml)
    if not reml:
        refuse_unbounded(problem.outside)
    with one_blas_thread(engine.serial):
        try:
            optimum = optimize(
                engine,
                structure,
                levels,
                problem.n,
                problem.start(engine) if start is None else _given_start(engine, model, start, method),
                method,
                options,
                pilot=problem.pilot() if start is None else None,
                elsewhere=problem.elsewhere() if start is None else UNASKED,
            )
        except NothingLeft as error:
            if problem.saturated:
                # on its way to the limit a search may lose all digits of r^2
                raise without_maximum(bool(reml)) from error
            raise
        solution = Solution(*engine.solution()[:3])
        if problem.saturated or solution.r2 < SMALL * problem.n:
            optimum = with_residual_variance(engine, structure, levels, problem.n, optimum, problem.saturated)
            solution = Solution(*engine.solution()[:3])
        if loses_digits(engine, problem, optimum.factor):
            optimum, solution = refined(engine, model, optimum, solution)
    return kind(model, optimum, bool(reml), solution)


def _by_iterations(
    kind: Record[F], model: Model, reml: bool, start: ArrayLike | None, options: dict[str, Any] | None
) -> F:
    """`estimate` of crossed factors by conjugate gradients."""
    from .iterative import iterated

    optimum, engine = iterated(model, reml, start, options)
    found = kind(model, optimum, reml, Solution(*engine.solution()[:3]))
    # the engine stands at the optimum already
    found.__dict__["engine"] = engine
    return found


def _with_known_variance(
    kind: Record[F],
    model: Model,
    reml: bool,
    method: str | Callable[..., Any],
    start: ArrayLike | None,
    options: dict[str, Any] | None,
) -> F:
    """`estimate` where the residual variance is known."""
    problem, engine = linear_problem(model.problem), model.criterion()
    assert isinstance(engine, KnownVariance)
    engine.reml = reml
    with one_blas_thread():
        engine.refuse_unidentified(model.term_names)
        starts = [model.conditioned_theta(start, "start")] if start is not None else engine.starts(problem)
        optimum = engine.lowest(problem, starts, method, options)
        engine.evaluate(optimum.theta, 1)
    return kind(model, optimum, reml, Solution(*engine.solution()[:3]))


def _of_structure(
    kind: Record[F],
    model: Model,
    reml: bool,
    method: str | Callable[..., Any],
    start: ArrayLike | None,
    options: dict[str, Any] | None,
) -> F:
    """`estimate` where random effects have a restricted covariance, or residuals a structure."""
    engine = model.problem.criterion()
    engine.reml = reml
    if not model.structure.restricted:
        return _with_structured_residuals(kind, model, engine, method, start, options)
    from .restricted import restricted_optimum

    with one_blas_thread(engine.serial):
        optimum = restricted_optimum(engine, model, method, start, options)
    return kind(model, optimum, reml, Solution(*engine.solution()[:3]))


def _with_structured_residuals(
    kind: Record[F],
    model: Model,
    engine: Engine,
    method: str | Callable[..., Any],
    start: ArrayLike | None,
    options: dict[str, Any] | None,
) -> F:
    """`estimate` for structured residuals."""
    from ..engines.residual.problem import residual_problem
    from .structured import minimise_residual

    problem = residual_problem(model.problem)
    with one_blas_thread():
        first = problem.start(engine) if start is None else model.structured_theta(start, "start")
        optimum = minimise_residual(engine, problem, first, method, options, start is not None)
    found = kind(model, optimum, engine.reml, Solution(*engine.solution()[:3]))
    # the engine stands at the optimum already
    found.__dict__["engine"] = engine
    return found
